"""The writing side of the "Gradients" tab, if a logger of the Trainer is TensorBoard's."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lightning_calib.fit.participant import FitStart, TabRecorder
from lightning_calib.report.shadow_rows import ShadowNames
from lightning_calib.steps.saved_state import Losses


def tab_recorder(
    fit: FitStart,
    shadows: ShadowNames,
    *,
    histograms: bool,
    saved: dict[str, Any],
    losses: Losses,
    warn: Callable[[str], None],
    say: Callable[[str], None],
) -> TabRecorder | None:
    """Open it, and tell where to see it; None where no logger is TensorBoard's.

    Args:
        fit: That begins.
        shadows: Policies that are judged and never applied.
        histograms: Whether to count magnitudes.
        saved: The monitor's state from a checkpoint.
        losses: Where to say what of it cannot be taken up.
        warn: Where warnings go.
        say: Where the line on how to see it goes.
    """
    writers = _writers(fit.trainer)
    if writers is None:
        return None
    # Imported here, because it loads a hundred modules of TensorBoard, which only a run with a tab needs.
    from lightning_calib.dashboard.recorder import Recorder

    tab = Recorder(writers, shadows, histograms=histograms, saved=saved, losses=losses, warn=warn)
    address = tab.furnish([view.suffix for view in fit.views])
    if address:
        say(address)
    return tab


def _writers(trainer: Any) -> list[Any] | None:
    """The files of this rank's TensorBoard loggers; None where no rank has any. The same on every rank."""
    if trainer is None:
        return None
    for logger in trainer.loggers:
        with suppress(Exception):  # somebody else's logger, which will say so itself
            getattr(logger, "experiment", None)  # opens its file, for which a TensorBoardLogger loads TensorBoard
    writers: list[Any] = []
    if "torch.utils.tensorboard" in sys.modules:
        from lightning_calib.dashboard.event_file import record_writer

        writers = [found for logger in trainer.loggers if (found := record_writer(logger)) is not None]
    wanted = bool(writers)
    if trainer.world_size > 1:
        wanted = bool(trainer.strategy.broadcast(wanted))
    return writers if wanted else None
