"""Scale the learning rate for one step at a time, by what the gradients say."""

from numbers import Real
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.fit.base_rate import doubt_of_rate
from lightning_calib.fit.messages import warn
from lightning_calib.fit.parameter_names import check_name
from lightning_calib.fit.participant import FitStart, Needs, Row
from lightning_calib.fit.scalar_row import rates_of
from lightning_calib.fit.unsupported import refused
from lightning_calib.functional.checks import check_number, message
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.segments import Segments
from lightning_calib.schedules.contract import check_rule
from lightning_calib.schedules.rule import LearningRateRule, Measurement
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.saved_state import Losses, pack, unpack
from lightning_calib.steps.scaled_rates import ScaledRates, with_inner
from lightning_calib.steps.start_distance import StartDistance
from lightning_calib.steps.step_record import StepRecord


class RuleMemory:
    """What a rule remembers of one optimizer: its state, the starting weights, this step's norms."""

    def __init__(self, rule: LearningRateRule, plan: Plan) -> None:
        self.rule = rule
        self.segments: Segments = Segments.of(plan, "group")
        # A param group without parameters has no segment.
        self.groups: list[int] = list(dict.fromkeys(plan.groups))
        check_rule(rule, self.segments)
        norms = torch.zeros(len(self.segments), dtype=plan.dtype, device=plan.device)
        self.state: Any = rule.init(norms)
        self._start = StartDistance(self.segments, rule) if rule.needs_distance else None
        self.norms = norms

    def measurement(self, loss: Tensor | None) -> Measurement:
        """This step, as the rule wants to see it."""
        distances = self._start.distances() if self._start else None
        start_norms = self._start.start_norms if self._start else None
        observed = (self.norms > 0) & (self.norms < torch.inf)
        return Measurement(self.norms, observed, loss, distances, start_norms)

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        start = {"start": self._start.saved()} if self._start else {}
        return {**pack(self.rule.kind, self.segments, self.state), **start}

    def restore(self, saved: dict[str, Any], key: str, losses: Losses) -> bool:
        """Take up a saved state; False if it is of other groups or another kind of rule."""
        with losses.of(f"what {self.rule.kind} has learnt"):
            more = ("start",) if self._start else ()
            found = unpack(saved, self.rule.kind, self.segments, self.state, key, *more)
            if found is None:
                return False
            if self._start is not None:
                self._start.restore(saved["start"], f"{key}.start")
            self.state = found
        return True


class LearningRateControl(CalibratedCallback):
    """Multiply each param group's learning rate by a rule's factor, for this optimizer step only.

    The factor is in place while torch is inside the step and put back by value on every way out of it, so schedulers,
    ``LearningRateMonitor`` and checkpoints only ever see the pure rate. Several controls multiply.

    Args:
        rule: ``SpikeBackoff()``, ``Polyak()``, ``DistanceOverGradients()`` or ``InverseNorm()``.
        min_factor: The least factor, in [0, max_factor].
        max_factor: The largest factor, above 0; 1 lets a rule only lower the rate, ``math.inf`` lets it do anything.
        name: Tells two controls apart, in checkpoints.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range; at the start of training, if the rule's state would take more than 64 MB.
        MisconfigurationException: With LBFGS, Rprop or ZeroRedundancyOptimizer, which read the rate too early, with an
            optimizer that has no learning rate or that the rule refuses, and under a strategy where gradients cannot
            be read right.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import LearningRateControl, SpikeBackoff
        >>> trainer = Trainer(callbacks=[LearningRateControl(SpikeBackoff())], logger=False)

    Logged:
        ``calib/lr`` (pure) and ``calib/lr_effective`` (times the factor, times ``d`` where a group has one), both of
        the first param group.

    Checkpoint:
        The rule's state and, for a rule that needs distances, the starting weights.

    Note:
        ``Polyak`` and ``DistanceOverGradients`` compute the whole step, for plain SGD with ``lr=1.0``; where an
        optimizer has another learning rate (that of before its schedule), a line at the start of training says so.

        Norms are those before any clipping. A learning rate that is a Python number needs its factor on the host, one
        wait for the device per step; a tensor learning rate is scaled in place without, and one that several groups
        share takes the least of their factors. Decoupled weight decay (AdamW) scales with the rate. An optimizer that
        changes its own rate within the step keeps the change, in proportion to the rate that it was given: one that
        multiplies it by 1.05 ends the step at 1.05 times the pure rate. A factor of 0 leaves no proportion: there the
        pure rate comes back, unless another number than 0 was written, which stays.
    """

    rule: LearningRateRule
    min_factor: float
    max_factor: float
    name: str | None

    def __init__(
        self, rule: LearningRateRule, *, min_factor: float = 0.0, max_factor: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__()
        if not isinstance(rule, LearningRateRule):
            raise TypeError(message("rule", "a learning-rate rule", rule, "Use for instance SpikeBackoff()."))
        check_number("max_factor", max_factor, "Use 1.0, or math.inf for no cap.", 0, float("inf"), ends="(]")
        check_number("min_factor", min_factor, "Use 0.0 for no floor.", 0, max_factor)
        check_name(name)
        self._needs = Needs(scales_rates=True, loss=rule.needs_loss)
        self.rule, self.min_factor, self.max_factor, self.name = rule, float(min_factor), float(max_factor), name

    def _start(self, fit: FitStart) -> str | None:
        """Refuse optimizers that read their rate too early, or that the rule does not suit; warn of a doubtful rate."""
        for view in fit.views:
            name, inner = type(view.optimizer).__name__, with_inner(view.optimizer)
            early = next(filter(None, (refused(one, "rates") for one in inner)), None)
            momentum = max((float(group.get("momentum") or 0.0) for group in view.optimizer.param_groups), default=0.0)
            reason = early or self.rule.refuses(name, momentum)
            if reason:
                raise MisconfigurationException(f"{self._label} cannot control {name}. {reason.rstrip('.')}.")
            doubt = doubt_of_rate(self.rule, view.optimizer, self.max_factor)
            if doubt:
                warn(f"{self._label}: {doubt}")
        return f"{self._label}: {self.rule}"

    def _lay(self, view: GradientView) -> RuleMemory:
        """Prepare the rule's state."""
        self._check_rates(view)
        return RuleMemory(self.rule, view.plan)

    def _check_rates(self, view: GradientView) -> None:
        """Refuse an optimizer that has no rate to scale, or whose saved rates cannot be kept pure."""
        optimizer, reason = view.optimizer, ""
        rates = [group.get("lr") for group in optimizer.param_groups]
        missing = next((i for i, rate in enumerate(rates) if not isinstance(rate, (Tensor, Real))), None)
        if missing is not None:
            reason = (
                f"`lr` must be a number or a tensor in each param group, got {rates[missing]!r} in group {missing}: "
                "the optimizer finds its step size by itself"
            )
        elif not ScaledRates(optimizer).saving():
            reason = (
                "its `state_dict` runs none of torch's hooks, so a checkpoint within a step would hold scaled rates"
            )
        if reason:
            raise MisconfigurationException(
                f"{self._label} cannot control {type(optimizer).__name__}: {reason}. Use another optimizer, or leave "
                f"{self._label} out."
            )

    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """No step is under way: pure rates."""
        for run in self._session.runs.values() if self._session is not None else ():
            run.rates.reset()

    def on_before_backward(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", loss: Tensor) -> None:
        """Add the loss to this window's."""
        if self._session is not None:
            self._session.see_loss(self, loss)

    def _inspect(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Take the norms before anybody acts."""
        own = self._own[view.index]
        own.norms = own.segments.fold(view.reading())
        return record

    def _act(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Ask the rule, and scale the rates of this step."""
        own, groups = self._own[view.index], view.optimizer.param_groups
        factors, own.state = self.rule(self._measurement(own, record), own.state)
        factors = factors.clamp(self.min_factor, self.max_factor)
        every: list[float | Tensor] = [1.0] * len(groups)
        on_host = factors.device.type == "cpu" or not all(isinstance(group["lr"], Tensor) for group in groups)
        each = factors.tolist() if on_host else factors.unbind()
        for group, factor in zip(own.groups, each, strict=True):
            every[group] = factor
        used = self._session.runs[id(view.optimizer)].rates.scale(every) if self._session is not None else every
        return record if record.rates is None else record._replace(rates=record.rates.scaled(used[0]))

    def _measurement(self, own: RuleMemory, record: StepRecord) -> Measurement:
        session = self._session
        if not self.rule.needs_loss or session is None:
            return own.measurement(None)
        loss = session.loss.mean(session.trainer, record)
        if loss is None:
            raise MisconfigurationException(
                f"{self._label} needs the loss of every step for {self.rule}, and there was none since the last one. "
                "Call `self.manual_backward(loss)` right before each optimizer's own step."
            )
        return own.measurement(loss)

    def _row(self, view: GradientView, record: StepRecord, memory: OptimizerMemory) -> Row:
        """The rates."""
        rates = rates_of(record) if record.turn else Row()
        return {tag: rate for tag, rate in rates.items() if tag.startswith("calib/lr")}
