"""What the optimizer really did on a logged step: the norm it used, and how far the weights moved."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_calib.fit.messages import warn
from lightning_calib.functional.norms import Reading
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.optimizer_facts import LeftInGrad, TrainerClip, left_in_grad
from lightning_calib.steps.weight_update import Moved, WeightSample

_USED, _UPDATE = "`calib/grad_norm_after`", "`calib/update_norm` and `calib/update_ratio`"


class After:
    """Watches one optimizer through torch's own step hooks; does nothing on a step that is not logged.

    Training needs nothing of what it reads, so that a failure to read it ends the tags, not the run.

    Args:
        ledger: The optimizer's record.
        clip: What the Trainer does after our callbacks.
        foreseeable: Whether what the optimizer uses follows from what ours leave.
        weights: Whether to measure the update of the weights.

    Attributes:
        reading: The norms that the optimizer used; None where they cannot be known.
        look: Called with the ledger when the gradients are as the optimizer uses them; None if nobody wants to.
    """

    def __init__(self, ledger: Ledger, clip: TrainerClip, *, foreseeable: bool, weights: bool) -> None:
        self.ledger, self.clip, self.foreseeable, self.weights = ledger, clip, foreseeable, weights
        left = left_in_grad(ledger.optimizer)
        self.overwritten, self.freed = left is not LeftInGrad.USED, left is LeftInGrad.NOTHING
        self.handles: list[Any] = []
        self.ended: set[str] = set()  # tags whose reading has failed
        self.look: Callable[[Ledger], None] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the last logged step."""
        self.waiting = False
        self.reading: Reading | None = None
        self.used: Tensor | None = None
        self.update: Moved | None = None
        self.sample: WeightSample | None = None

    def attach(self) -> None:
        """Register the two hooks."""
        optimizer = self.ledger.optimizer
        self.handles = [
            optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def detach(self) -> None:
        """Remove them."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def prepare(self) -> None:
        """The step that now comes is logged."""
        self.clear()
        self.waiting = True
        if self.weights:
            self._attempt(_UPDATE, self._copy_weights)

    def _attempt(self, tags: str, read: Callable[[], None]) -> None:
        if tags in self.ended:
            return
        try:
            read()
        except Exception as trouble:
            if self.ledger.plan.shards is not None:  # the other processes would wait for this one in a collective
                raise
            self.ended.add(tags)
            warn(f"{self.ledger.label} has no {tags} from here on, training goes on: {trouble!r}")

    def _copy_weights(self) -> None:
        self.sample = WeightSample(self.ledger.plan.tensors)

    def _compare_weights(self) -> None:
        sample, self.sample = self.sample, None
        self.update = sample.moved() if sample is not None else None

    def _before_step(self) -> None:
        # Without a GradScaler this comes before the backward pass and finds nothing to do. With one it comes
        # when everybody has had the gradients: the best moment to read them.
        if self.waiting and self.ledger.opened:
            self._attempt(_USED, self._read)

    @torch.no_grad()
    def _after_step(self) -> None:
        self.ledger.visited = False
        self.ledger.stepped = self.ledger.opened and self._taken()
        if not (self.waiting and self.ledger.stepped):
            return
        self.waiting = False
        if self.reading is None and self.overwritten:
            self._compute()
        elif self.reading is None:
            self._attempt(_USED, self._read)
        if self.sample is not None:
            self._attempt(_UPDATE, self._compare_weights)
        self._count()

    def _taken(self) -> bool:
        """Whether the optimizer had gradients: nobody can take them away behind ours, or they are still there."""
        if self.foreseeable or self.freed:
            return self.ledger.live
        return any(tensor.grad is not None for tensor in self.ledger.plan.tensors)

    @torch.no_grad()
    def _read(self) -> None:
        self.ledger.gradients = self.ledger.plan.gradients()
        reading = self.ledger.measure()
        self.used, self.reading = self.ledger.total(reading), reading
        if self.look is not None:
            self.look(self.ledger)

    def _compute(self) -> None:
        """Where the optimizer leaves something else in ``grad``: from what ours left and the Trainer's formula."""
        ledger = self.ledger
        if ledger.final is None or not self.foreseeable:
            return
        share = torch.ones_like(ledger.final)
        if self.clip.how is not None:
            share = trainer_share(self.clip, ledger.final, ledger.completion)
        self.used, self.reading = ledger.final * share, ledger.readings[2.0].rescaled(share.reshape(1))

    def _count(self) -> None:
        """A clip that can only be seen, not computed, is counted on logged steps."""
        ledger = self.ledger
        if self.foreseeable or ledger.before is None or ledger.final is None or self.used is None:
            return
        by_trainer = torch.zeros_like(self.used).bool()
        if self.clip.how == "norm":  # it comes last, and leaves its own value where it fires
            by_trainer = self.used >= self.clip.value * ledger.completion * (1 - 1e-4)
        elif self.clip.how is not None:
            by_trainer = self.used < ledger.final * (1 - 1e-6)
        ledger.reduced.append(by_trainer)
        ledger.tally = ledger.tally.add_left(ledger.before, self.used, by_trainer)


def trainer_share(clip: TrainerClip, norm: Tensor, completion: float) -> Tensor:
    """What the Trainer's norm clip multiplies a gradient by, in torch's own formula.

    It sees the gradient as it is; ``norm`` is that of a whole window, and ``completion`` the ratio of the two.
    """
    return (clip.value / (norm / completion + 1e-6)).clamp(max=1)
