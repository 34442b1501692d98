"""A cell of the grid as a callback: scope x policy, with rules, dry run and state."""

from collections.abc import Mapping, Sequence
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.fit.parameter_names import check_globs, check_name, first_match
from lightning_calib.fit.participant import FitStart, Needs, Row
from lightning_calib.functional.checks import check_flag, message
from lightning_calib.functional.clip import check_norm_type
from lightning_calib.functional.judge import Policy
from lightning_calib.functional.max_norm import MaxNorm, policy_of
from lightning_calib.functional.norms import Reading
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.segments import Scope, Segments, check_scope
from lightning_calib.policies.warmup import Warmup
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.policy_parts import Part, PartsMemory
from lightning_calib.steps.step_record import Fired, StepRecord

PolicyLike = Policy | float | None


def as_policy(name: str, rule: object) -> Policy | None:
    """A number is a fixed threshold, None leaves alone."""
    if isinstance(rule, (tuple, list)):
        remedy = "For several optimizers give `rules`: the `repr` of what `clip_find` returns is such a line."
        raise TypeError(message(name, "one number, policy or None", rule, remedy))
    return None if rule is None else policy_of(name, rule, "a number, a policy or None")


class SegmentRescaler(CalibratedCallback):
    """Rescales every segment of its scope towards its policy's target: to min(t, n), or to t itself."""

    norm_type: float
    dry_run: bool
    name: str | None

    def __init__(
        self,
        policy: PolicyLike,
        scope: Scope,
        *,
        clip: bool,
        norm_type: float = 2.0,
        rules: Mapping[str, PolicyLike] | None = None,
        dry_run: bool = False,
        name: str | None = None,
        exclude: Sequence[str] | Literal["auto"] = (),
    ) -> None:
        super().__init__()
        check_scope(scope)
        check_norm_type(norm_type)
        check_flag("dry_run", dry_run, "Use True to log what would be clipped without clipping.")
        check_name(name)
        self.policy: Policy | None = as_policy("target" if not clip else "policy", policy)
        self.rules: dict[str, Policy | None] = {
            glob: as_policy(f"rules[{glob!r}]", rule) for glob, rule in _check_rules(rules).items()
        }
        self.scope, self.norm_type, self.dry_run, self.name = scope, float(norm_type), dry_run, name
        self.exclude = exclude if isinstance(exclude, str) and exclude == "auto" else _check_exclude(exclude)
        fixed = scope == "global" and isinstance(self.policy, MaxNorm) and not self.rules
        self._needs = Needs(
            acts=not dry_run,
            clips="normalise" if not clip else "fixed" if fixed else "adaptive",
            units=scope == "unit",
            norm_types=(self.norm_type,),
            fabric=True,
        )
        self._clip, self._tag = clip, f".{name}" if name else ""

    def _start(self, fit: FitStart) -> str | None:
        """Look at the model; say what is left out, and what a warm-up leaves unbounded."""
        names = self._learn(fit)
        alike = [one for one in fit.participants if isinstance(one, SegmentRescaler) and one.dry_run == self.dry_run]
        unnamed = [one for one in alike if one.name is None]
        self._tag = f".{self.name}" if self.name else "" if unnamed[0] is self else f".{type(self).__name__}"
        self._check_tag(alike[: alike.index(self)])
        left_out = f"leaves out {_shortened(sorted(self._left_out))}" if self._left_out else ""
        parts = [part for part in (left_out, self._unbounded(names)) if part]
        return f"{self._label} {', and '.join(parts)}" if parts else None

    def _learn(self, fit: FitStart) -> list[str]:
        """Check the globs against the model's names, which it returns; find what is left out."""
        held = [name for view in fit.views for name in view.plan.names]
        names = list(dict.fromkeys([*Plan.of(fit.module).names, *held]))
        check_globs("rules", self.rules, names)
        if self.exclude != "auto":
            check_globs("exclude", self.exclude, names)
        self._left_out = frozenset(self._excluded(fit.module, names))
        return names

    def _unbounded(self, names: Sequence[str]) -> str:
        """In which steps it acts on no norm, however large: those of the warm-ups that have no bound."""
        used = {first_match(name, self.rules) for name in names}
        steps: dict[int, list[str]] = {}
        for glob, policy in [*self.rules.items(), (None, self.policy)]:
            if self._needs.acts and glob in used and isinstance(policy, Warmup) and policy.unbounded_steps:
                part = "what no rule names" if glob is None else repr(glob)
                steps.setdefault(policy.unbounded_steps, []).append(part)
        whole = "its first {} steps" if not self.rules else "the first {} steps of {}"
        spans = " and ".join(whole.format(count, _shortened(parts)) for count, parts in steps.items())
        verb = "clips" if self._clip else "rescales"
        return f"{verb} nothing in {spans} (set warmup_max_norm to bound them)" if spans else ""

    def _check_tag(self, before: "Sequence[SegmentRescaler]") -> None:
        """Two callbacks must not log under one tag: the last one's numbers would win."""
        for one in before:
            if one._tag == self._tag:
                tag = f"calib/{'would_' if self.dry_run else ''}clip_fraction{self._tag}"
                raise MisconfigurationException(
                    f"`name` must tell callbacks apart: {one._label} and {self._label} would both log `{tag}`. "
                    f"Give one of them another name, such as {type(self).__name__}(..., name={self._tag[1:] + '_2'!r})."
                )

    def _excluded(self, module: "pl.LightningModule", names: Sequence[str]) -> list[str]:
        if self.exclude != "auto":
            return [name for name in names if first_match(name, self.exclude) is not None]
        plan = Plan.of(module)
        heads = [one for _, one in module.named_modules() if isinstance(one, nn.Linear)]
        head = {id(tensor) for tensor in heads[-1].parameters()} if heads else set()
        each = zip(plan.names, plan.tensors, plan.whole_shapes, strict=True)
        return [name for name, tensor, shape in each if len(shape) < 2 or id(tensor) in head]

    def _lay(self, view: GradientView) -> PartsMemory:
        """Label the plan's tensors by rule and scope."""
        plan = view.plan
        chosen: dict[str | None, list[int]] = {glob: [] for glob in (*self.rules, None)}
        for i, name in enumerate(plan.names):
            glob = first_match(name, self.rules)
            if glob is not None or name not in self._left_out:
                chosen[glob].append(i)
        rules: dict[str | None, Policy | None] = {None: self.policy}
        rules.update(self.rules)
        every = len(chosen[None]) == len(plan.tensors)
        return PartsMemory(
            [
                Part(policy, Segments.of(plan, self.scope, None if every else members))
                for glob, members in chosen.items()
                if members and (policy := rules[glob]) is not None
            ]
        )

    def _judges(self, own: PartsMemory) -> bool:
        """Not where its rules leave all parameters alone."""
        return bool(own.parts)

    def _reading(self, view: GradientView) -> Reading:
        if self.dry_run:
            return view.read_aside(self.norm_type, units=self._needs.units)
        return view.reading(self.norm_type)

    def _act(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Judge each part, and rescale unless this is a dry run."""
        reduced = []
        for part in self._own[view.index].parts:
            report = part.judge(part.observe(self._reading(view)), clip=self._clip)
            reduced.append(report.clipped.any())
            if not self.dry_run:
                view.rescale(part.segments.spread(report.coefficients))
        if not reduced:
            return record
        anywhere = reduced[0] if len(reduced) == 1 else torch.stack(reduced).any()
        fired = Fired(self.state_key, anywhere, acted=not self.dry_run)
        return record._replace(fired=(*record.fired, fired))

    def _row(self, view: GradientView, record: StepRecord, memory: OptimizerMemory) -> Row:
        """The threshold, and how often it fired under a name of its own."""
        own, prefix, row = self._own[view.index], "calib/would_" if self.dry_run else "calib/", Row()
        counts = memory.clips.get(self.state_key)
        if (self.dry_run or self._tag) and counts is not None and counts.window_steps:
            row[f"{prefix}clip_fraction{self._tag}"] = counts.fraction
        threshold = own.threshold() if record.turn and record.live else None
        if threshold is not None:
            row[f"{prefix}clip_threshold{self._tag}"] = threshold
        return row


def _check_rules(rules: Mapping[str, PolicyLike] | None) -> Mapping[str, PolicyLike]:
    if rules is not None and not (isinstance(rules, Mapping) and all(isinstance(glob, str) for glob in rules)):
        remedy = 'Use for instance {"encoder.*": 0.1, "head.*": None}.'
        raise TypeError(message("rules", "a mapping from globs to numbers, policies or None", rules, remedy))
    return rules or {}


def _check_exclude(exclude: object) -> tuple[str, ...]:
    texts = isinstance(exclude, Sequence) and all(isinstance(glob, str) for glob in exclude)
    if isinstance(exclude, str) or not texts:
        remedy = 'Use for instance ("head.*",), or () for none.'
        raise TypeError(message("exclude", '"auto" or a sequence of globs on parameter names', exclude, remedy))
    return tuple(exclude)  # type: ignore[arg-type]


def _shortened(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + rest
