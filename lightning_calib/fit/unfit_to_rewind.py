"""Where steps cannot be dropped, weights cannot be put back, or the learning rate cannot be lowered afterwards."""

from lightning_calib.fit.participant import FitStart
from lightning_calib.fit.unsupported import refused
from lightning_calib.steps.scaled_rates import with_inner


def unfit_to_rewind(fit: FitStart, *, rewinds: bool, lowers_rate: bool) -> str:
    """Why SpikeGuard cannot act in this fit, with the way out; empty if it can."""
    if fit.clip.how == "value":
        return (
            f"cannot drop steps under {fit.clip}: the Trainer's value clip fails where there is no gradient. Use "
            "GradientValueClip instead of the Trainer's argument."
        )
    manual, several = not fit.module.automatic_optimization, len(fit.trainer.optimizers) > 1
    if rewinds and (manual or several):
        mode = "several optimizers" if several else "manual optimization"
        return (
            f"cannot rewind under {mode}: the weights would change between forward and backward passes of one batch. "
            'Use SpikeGuard(ladder=("skip", "stop")).'
        )
    inner = [one for view in fit.views for one in with_inner(view.optimizer)] if lowers_rate else []
    early = next((reason for one in inner if (reason := refused(one, "rates"))), "")
    return f"cannot lower the learning rate. {early} Or use lr_factor=1.0." if early else ""
