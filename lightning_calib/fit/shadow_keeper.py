"""What GradientMonitor judges and never applies: the shadows of every optimizer, their rows and their state."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_calib.functional.saved_state import ListOf, check_saved, entry
from lightning_calib.report.shadow_rows import ShadowNames, ShadowRows
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.own_failure import ends_only_itself
from lightning_calib.steps.saved_state import Losses, of_optimizer
from lightning_calib.steps.shadow_history import COLUMNS, ShadowHistory
from lightning_calib.steps.shadows import Shadow, ShadowMemory


class ShadowKeeper:
    """Judges every step of a fit. What it counts is `ShadowHistory`, which a session holds.

    Args:
        about: What the shadows are.
        lay: Makes the shadows of an optimizer, in that order.
        saved: The monitor's state from a checkpoint; empty without one.
        losses: Where to say what of it cannot be taken up.
        warn: Where sentences go.
    """

    about: ShadowNames
    names: tuple[str, ...]
    lay: Callable[[GradientView], list[Shadow]]
    kept: dict[str, Any]
    losses: Losses
    warn: Callable[[str], None]

    def __init__(
        self,
        about: ShadowNames,
        lay: Callable[[GradientView], list[Shadow]],
        *,
        saved: dict[str, Any],
        losses: Losses,
        warn: Callable[[str], None],
    ) -> None:
        self.about, self.names, self.lay = about, about.names, lay
        self.kept, self.losses, self.warn = saved, losses, warn
        self.memories: dict[int, ShadowMemory] = {}  # by the optimizer's index
        self.off = False

    def tell_the_end(self, trouble: Exception) -> None:
        """One warning."""
        self.warn(f"shadows are judged no longer, training goes on: {trouble!r}")

    def prepare(self, run: OptimizerRun) -> None:
        """Prepare for an optimizer's plan: take up what the plan before, or a checkpoint, has left.

        Raises:
            ValueError: If a policy cannot be used with these parameters, as in training.
        """
        index = run.view.index
        old, fresh = self.memories.get(index), ShadowMemory(dict(zip(self.names, self.lay(run.view), strict=True)))
        self.memories[index] = fresh
        if old is not None:
            self._take_up(fresh, old.saved(), f"shadows.{index}.learnt")
            return
        history = ShadowHistory.empty(self.names, run.view.plan)
        with self.losses.of("what is known of its shadows"):
            saved = of_optimizer(self.kept, "shadows", index)
            if saved is not None and self._are_same(saved, f"shadows.{index}"):
                learnt = entry(saved, "learnt", f"shadows.{index}")
                history = ShadowHistory.restored(saved, self.names, run.view.plan, f"shadows.{index}")
                self._take_up(fresh, learnt, f"shadows.{index}.learnt")
        run.memory = run.memory._replace(shadows=history)

    def _are_same(self, saved: dict[str, Any], key: str) -> bool:
        """Whether the saved shadows are these; says so if not."""
        names = entry(saved, "names", key)
        check_saved(names, ListOf(""), f"{key}.names")
        if names == list(self.names):
            return True
        self.warn(
            f"the checkpoint's shadows are {', '.join(names) or 'none'}; those of now are others, and start afresh."
        )
        return False

    def _take_up(self, memory: ShadowMemory, learnt: Any, key: str) -> None:
        misfits = memory.restore(learnt, key, self.losses)
        if misfits:
            told = ", ".join(misfits)
            self.warn(f"shadows: the saved state of {told} is of other parameters or another policy; it starts afresh.")

    def judge(self, view: GradientView) -> Tensor | None:
        """What each shadow makes of the gradient as it is now, shape (S, 3); None where they have ended.

        An error ends the shadows alone; but where parameters are sharded, other processes would wait for the readings
        of this one: there it is raised.
        """
        return self._judge(view) if view.plan.shards is None else self.memories[view.index].judge(view)

    @ends_only_itself
    def _judge(self, view: GradientView) -> Tensor:
        return self.memories[view.index].judge(view)

    @ends_only_itself
    def collect(self, run: OptimizerRun, memory: OptimizerMemory) -> Tensor | None:
        """What a row needs on the host: shape (S, 8)."""
        if memory.shadows is None:
            return None
        thresholds = torch.full((len(self.names),), torch.nan)
        if run.record.turn and run.record.live:
            thresholds = self.memories[run.view.index].thresholds()
        return memory.shadows.counts.table(thresholds)

    def rows(self, run: OptimizerRun, step: int) -> ShadowRows | None:
        """The rows so far, and one for the steps since the last of them."""
        history, now = run.memory.shadows, self.since_the_last(run)
        if history is None:
            return None
        steps, table = history.rows.table((len(self.names), len(COLUMNS)))
        if now is not None:
            steps, table = [*steps, step], torch.cat([table, now.unsqueeze(0)])
        values = {name: table[:, :, i].double().numpy() for i, name in enumerate(COLUMNS)}
        return ShadowRows(*self.about, np.array(steps, np.int64), values)

    def since_the_last(self, run: OptimizerRun) -> Tensor | None:
        """The same table as of a row, float32 on the host; None where there was no step since the last row."""
        history, memory = run.memory.shadows, self.memories.get(run.view.index)
        if history is None or memory is None or not history.counts.window_steps:
            return None
        return history.counts.table(memory.thresholds()).float().cpu()

    def saved(self, memories: dict[int, OptimizerMemory]) -> dict[str, Any]:
        """For the checkpoint."""
        known = {index: memory.shadows for index, memory in memories.items() if index in self.memories}
        return {
            str(index): {**history.saved(), "learnt": self.memories[index].saved()}
            for index, history in known.items()
            if history is not None
        }
