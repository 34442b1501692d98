"""Optimizer steps that Lightning's hook did not announce: an inner optimizer's, or one that goes past Lightning."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_calib.steps.gradient_view import GradientView


class UnseenSteps:
    """Watches the steps of every optimizer in the process for one that moves our parameters behind Lightning's back.

    torch's process-wide step hooks see each ``Optimizer.step``, also that of an optimizer inside a wrapper. A step is
    announced if our hook was called for its parameters earlier in this batch, or by the closure that the step
    evaluates. A step inside another one is a part of that one.

    Args:
        views: Gives the views of the optimizers that our callbacks read.
        report: Called with a view and the optimizer that stepped its parameters unannounced. Without a closure this
            is before the weights move, so that an exception leaves them alone; with one it is right after.
    """

    views: Callable[[], Sequence[GradientView]]
    report: Callable[[GradientView, Optimizer], None]

    def __init__(
        self, views: Callable[[], Sequence[GradientView]], report: Callable[[GradientView, Optimizer], None]
    ) -> None:
        self.views, self.report = views, report
        self.announced: set[int] = set()  # indices of the views that our hook was called for in this batch
        self.running: list[Optimizer] = []  # the steps of our parameters that are under way, the outermost first
        self.handles: list[Any] = []

    def attach(self) -> None:
        """Register torch's process-wide hooks."""
        self.handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    def detach(self) -> None:
        """Remove them."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def announce(self, view: GradientView) -> None:
        """Our hook is called for this optimizer."""
        self.announced.add(view.index)

    def end_batch(self) -> None:
        """No step is under way; one that an exception has left in the middle is forgotten."""
        self.announced.clear()
        self.running.clear()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        moved = self._moved_by(optimizer)
        if not moved:
            return
        self.running.append(optimizer)
        has_closure = any(one is not None for one in (*args[1:], *kwargs.values()))
        if len(self.running) == 1 and not has_closure:
            self._judge(moved, optimizer)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not any(one is optimizer for one in self.running):
            return
        while self.running.pop() is not optimizer:  # what it contained and an exception has left
            pass
        if self.running:
            return
        moved = self._moved_by(optimizer)
        self._judge(moved, optimizer)
        self.announced -= {view.index for view in moved if view.optimizer is optimizer}

    def _moved_by(self, optimizer: Optimizer) -> list[GradientView]:
        """The views whose parameters a step of this optimizer moves."""
        views = self.views()
        for view in views:
            if view.optimizer is optimizer:
                return [view]
        held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
        return [view for view in views if any(id(tensor) in held for tensor in view.plan.tensors)]

    def _judge(self, moved: list[GradientView], optimizer: Optimizer) -> None:
        if any(view.index in self.announced for view in moved):
            return
        for view in moved:
            self.report(view, optimizer)
