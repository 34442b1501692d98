"""One optimizer's record: who it is, and this step's reading."""

from collections import deque
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from lightning_calib.functional.norms import Reading, measure
from lightning_calib.functional.plan import Plan, tensors_of
from lightning_calib.functional.rescale import rescale_
from lightning_calib.functional.segments import Segments
from lightning_calib.steps.counts import Tally
from lightning_calib.steps.optimizer_facts import pending_scale
from lightning_calib.steps.scaled_rates import Rates, rate_of

_INCIDENTS = 20


class Ledger:
    """What our callbacks share about one optimizer; the first of them opens it at each step.

    Attributes:
        suffix: Of the tags: "" with one optimizer, "/0", "/1", ... with several.
        opened: The hook has run, torch's step has not been settled yet.
        live: This step has a gradient, and it is of this step.
        stepped: torch's optimizer ran.
        turn: It was this optimizer's turn in the batch that has just ended.
        reduced: 0-d bools, one for each of ours that acted: whether it reduced anything.
        fired: The same by callback, those of dry runs among them: whether it would have.
        before: The 2-norm as the first of ours saw it, 0-d.
        final: The 2-norm as the last of ours left it, 0-d; None where nobody needs to know.
        incidents: The last bad steps since the last row of which NonFiniteGuard knows more: step, tensor, sentence.
        completion: What makes the reading that of a whole window of micro-batches: 1 but in a short one.
    """

    def __init__(
        self, index: int, optimizer: Optimizer, module: "pl.LightningModule", *, suffix: str, units: bool, scaler: Any
    ) -> None:
        self.index, self.optimizer, self.module, self.suffix = index, optimizer, module, suffix
        self.units, self.scaler = units, scaler
        self.lay_plan()
        self.tally = Tally.empty(self.plan)
        self.completion = 1.0
        self.incidents: deque[tuple[int, str, str]] = deque(maxlen=_INCIDENTS)
        self.opened = self.live = self.stepped = self.turn = False
        self.rates: dict[str, float | Tensor] = {}
        self.rates_in_step = Rates(optimizer)
        self.visited = False  # whether our hook was called since torch's last step
        self.backwards = 0  # how many backward passes there had been at this optimizer's last step

    @property
    def label(self) -> str:
        """How sentences call the optimizer: its class and, where there are several, its index."""
        return f"{type(self.optimizer).__name__}{self.suffix}"

    @property
    def fused(self) -> bool:
        """Whether the optimizer divides the GradScaler's scale out by itself, and skips by itself."""
        return self.scaler is not None and bool(getattr(self.optimizer, "_step_supports_amp_scaling", False))

    def lay_plan(self) -> None:
        """(Re)build the plan: at the start, and when a parameter group was added."""
        self.plan = Plan.of_optimizer(self.optimizer, self.module)
        self.whole = Segments.of(self.plan, "global")

    def open(self) -> bool:
        """Begin a step: look at the gradients as they are now. True if the plan had to be laid anew."""
        changed = not self.plan.holds(tensors_of(self.optimizer))
        if changed:
            self.lay_plan()
        self.opened, self.stepped = True, False
        self.rates_in_step.lapse()
        self.reduced: list[Tensor] = []
        self.fired: dict[object, Tensor] = {}
        self.before: Tensor | None = None
        self.final: Tensor | None = None
        self.scaled = False  # whether an overflow was seen in this step
        self.forget()
        return changed

    def note_rates(self) -> None:
        """Keep what schedulers and GradScaler change before the batch ends: the rates that this step uses."""
        group = self.optimizer.param_groups[0] if self.optimizer.param_groups else {}
        rate = rate_of(group)
        self.rates = {} if rate is None else {"calib/lr": rate, "calib/lr_effective": rate * group.get("d", 1.0)}
        if self.scaler is not None:
            self.rates["calib/loss_scale"] = float(self.scaler.get_scale())

    def forget(self) -> None:
        """Somebody changed the gradients: the next reading is a new one."""
        self.gradients = self.plan.gradients()
        self.live = any(gradient is not None for gradient in self.gradients)
        self.scale = pending_scale(self.scaler, self.optimizer)
        self.readings: dict[float, Reading] = {}

    def reading(self, norm_type: float = 2.0) -> Reading:
        """The norms as the gradients are now: unscaled, of a whole window; read once, then kept up by arithmetic."""
        if norm_type not in self.readings:
            self.readings[norm_type] = self.measure(norm_type)
        return self.readings[norm_type]

    def is_finite(self) -> bool:
        """Whether the norm is; waits for the device. One that has only overflowed is read again first, scaled."""
        finite = bool(self.total(self.reading()).isfinite())
        if finite or self.readings[2.0].scaled:
            return finite
        self.scaled, self.readings = True, {}
        norm = self.total(self.reading())
        if self.before is not None and not self.before.isfinite():
            self.before = norm
        return bool(norm.isfinite())

    def drop(self) -> None:
        """Drop the step: without gradients the optimizer changes nothing, neither parameters nor state."""
        for tensor in self.plan.tensors:
            tensor.grad = None
        self.forget()

    def measure(self, norm_type: float = 2.0) -> Reading:
        """Read the gradients, as those of a whole window: Lightning divides those of a short one by as many parts."""
        found = measure(self.plan, self.gradients, norm_type, self.units, self.scaled)
        if self.completion != 1.0:
            found = found.rescaled(found.pieces.new_full((1,), self.completion))
        if self.scale is None:
            return found
        return found.rescaled(self.scale.reciprocal().to(found.pieces).reshape(1))

    def total(self, reading: Reading) -> Tensor:
        """The norm of the whole gradient, 0-d."""
        return self.whole.fold(reading).squeeze(0)

    def unscale(self) -> None:
        """Take the GradScaler's scale out of the gradients before they are changed, once per step."""
        if self.scale is not None:
            self.scaler.unscale_(self.optimizer)
            self.scale = None

    def rescale(self, factors: Tensor) -> None:
        """Multiply the gradients, and the readings with them."""
        self.unscale()
        rescale_(self.plan, self.gradients, factors)
        self.readings = {kind: reading.rescaled(factors) for kind, reading in self.readings.items()}
