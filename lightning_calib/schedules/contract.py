"""What a learning-rate rule must fulfil: tried once, when it is laid for an optimizer's param groups."""

from torch import Tensor

from lightning_calib.functional.checks import check_flag, message
from lightning_calib.functional.contract import Answer, try_once
from lightning_calib.functional.segments import Segments
from lightning_calib.schedules.rule import LearningRateRule, Measurement, Setting

_NEEDS = {"needs_loss": ("loss",), "needs_distance": ("distances", "start_norms")}


def check_rule(rule: LearningRateRule, groups: Segments) -> None:
    """Ask for the factors of norms, a loss and distances of 1 once, and look at what comes back.

    Raises:
        TypeError: If the rule returns something else than it must.
        ValueError: If a shape, a dtype, a device or a number is not what it must be, it writes into its arguments, or
            its state would take more than 64 MB.
    """
    name = type(rule).__name__
    for flag in _NEEDS:
        remedy = f"Declare `{flag}: ClassVar[bool] = True` for a rule that reads what it is called after."
        check_flag(f"{name}.{flag}", getattr(rule, flag), remedy)
    if not (rule.meant_for is None or isinstance(rule.meant_for, Setting)):
        remedy = 'Use for instance lightning_calib.schedules.Setting("plain SGD", rate=1.0).'
        raise TypeError(message(f"{name}.meant_for", "a Setting or None", rule.meant_for, remedy))

    def see(norms: Tensor) -> Measurement:
        return Measurement(norms, norms > 0, norms.new_ones(()), norms.clone(), norms.clone())

    try_once(rule, groups, see, _NEEDS, Answer("factors", "finite numbers >= 0", False))
