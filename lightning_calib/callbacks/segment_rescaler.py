"""A cell of the grid as a callback: scope x policy, with rules, dry run and state."""

from collections.abc import Mapping, Sequence
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.fit.parameter_names import check_globs, check_name, first_match
from lightning_calib.fit.scalar_row import Row
from lightning_calib.fit.session import Session
from lightning_calib.functional.checks import check_flag, message
from lightning_calib.functional.clip import check_norm_type
from lightning_calib.functional.judge import Policy
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.segments import Scope, Segments, check_scope
from lightning_calib.policies import MaxNorm
from lightning_calib.policies.warmup import Warmup
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.policy_parts import Book, Part

Rule = Policy | float | None


def as_policy(name: str, rule: object) -> Policy | None:
    """A number is a fixed threshold, None leaves alone."""
    if rule is None or isinstance(rule, Policy):
        return rule
    if isinstance(rule, (int, float)) and not isinstance(rule, bool):
        try:
            return MaxNorm(rule)
        except ValueError as reason:
            raise ValueError(f"`{name}` is taken for MaxNorm: {reason}") from reason
    raise TypeError(message(name, "a number, a policy or None", rule, "Use for instance 1.0 or Percentile(95)."))


class Rescaler(CalibratedCallback):
    """Rescales every segment of its scope towards its policy's target: to min(t, n), or to t itself."""

    clips = works_loose = True

    def __init__(
        self,
        policy: Rule,
        scope: Scope,
        *,
        clip: bool,
        norm_type: float = 2.0,
        rules: Mapping[str, Rule] | None = None,
        dry_run: bool = False,
        name: str | None = None,
        exclude: Sequence[str] | Literal["auto"] = (),
    ) -> None:
        super().__init__()
        check_scope(scope)
        check_norm_type(norm_type)
        check_flag("dry_run", dry_run, "Use True to log what would be clipped without clipping.")
        check_name(name)
        self.policy = as_policy("target" if not clip else "policy", policy)
        self.rules = {glob: as_policy(f"rules[{glob!r}]", rule) for glob, rule in _check_rules(rules).items()}
        self.scope, self.norm_type, self.dry_run, self.name = scope, float(norm_type), dry_run, name
        self.exclude = exclude if isinstance(exclude, str) and exclude == "auto" else _check_exclude(exclude)
        self.needs_units, self.norm_types = scope == "unit", (self.norm_type,)
        self.acts = not dry_run
        fixed = scope == "global" and isinstance(self.policy, MaxNorm) and not self.rules
        self.how = "normalise" if not clip else "fixed" if fixed else "adaptive"
        self._clip, self._tag = clip, f".{name}" if name else ""

    def start(self, session: Session) -> str | None:
        """Check the globs against the model's names; tell what is left out, and what a warm-up leaves unbounded."""
        held = [name for ledger in session.ledgers.values() for name in ledger.plan.names]
        names = list(dict.fromkeys([*Plan.of(session.module).names, *held]))
        check_globs("rules", self.rules, names)
        if self.exclude != "auto":
            check_globs("exclude", self.exclude, names)
        unnamed = [
            one for one in session.ours if isinstance(one, Rescaler) and one.name is None and one.acts == self.acts
        ]
        self._tag = f".{self.name}" if self.name else "" if unnamed[0] is self else f".{type(self).__name__}"
        self._check_tag(session)
        self._left_out = frozenset(self._excluded(session.module, names))
        left_out = f"leaves out {_shortened(sorted(self._left_out))}" if self._left_out else ""
        told = [one for one in (left_out, self._unbounded(names)) if one]
        return f"{self.label} {', and '.join(told)}" if told else None

    def _unbounded(self, names: Sequence[str]) -> str:
        """In which steps it acts on no norm, however large: those of the warm-ups that have no bound."""
        used = {first_match(name, self.rules) for name in names}
        steps: dict[int, list[str]] = {}
        for glob, policy in [*self.rules.items(), (None, self.policy)]:
            if self.acts and glob in used and isinstance(policy, Warmup) and policy.unbounded_steps:
                part = "what no rule names" if glob is None else repr(glob)
                steps.setdefault(policy.unbounded_steps, []).append(part)
        whole = "its first {} steps" if not self.rules else "the first {} steps of {}"
        told = " and ".join(whole.format(count, _shortened(parts)) for count, parts in steps.items())
        verb = "clips" if self._clip else "rescales"
        return f"{verb} nothing in {told} (set warmup_max_norm to bound them)" if told else ""

    def _check_tag(self, session: Session) -> None:
        """Two callbacks must not log under one tag: the last one's numbers would win."""
        for one in session.ours[: session.ours.index(self)]:
            if isinstance(one, Rescaler) and (one._tag, one.acts) == (self._tag, self.acts):
                tag = f"calib/{'' if self.acts else 'would_'}clip_fraction{self._tag}"
                raise MisconfigurationException(
                    f"`name` must tell callbacks apart: {one.label} and {self.label} would both log `{tag}`. "
                    f"Give one of them another name, such as {type(self).__name__}(..., name={self._tag[1:] + '_2'!r})."
                )

    def _excluded(self, module: "pl.LightningModule", names: Sequence[str]) -> list[str]:
        if self.exclude != "auto":
            return [name for name in names if first_match(name, self.exclude) is not None]
        plan = Plan.of(module)
        heads = [one for _, one in module.named_modules() if isinstance(one, nn.Linear)]
        head = {id(tensor) for tensor in heads[-1].parameters()} if heads else set()
        pairs = zip(plan.names, plan.tensors, strict=True)
        return [name for name, tensor in pairs if tensor.ndim < 2 or id(tensor) in head]

    def lay(self, ledger: Ledger) -> None:
        """Label the plan's tensors by rule and scope, and take up what was saved."""
        chosen: dict[str | None, list[int]] = {glob: [] for glob in (*self.rules, None)}
        for i, name in enumerate(ledger.plan.names):
            glob = first_match(name, self.rules)
            if glob is not None or name not in self._left_out:
                chosen[glob].append(i)
        rules: dict[str | None, Policy | None] = {None: self.policy}
        rules.update(self.rules)
        every = len(chosen[None]) == len(ledger.plan.tensors)
        book = Book(
            ledger,
            [
                Part(policy, Segments.of(ledger.plan, self.scope, None if every else members))
                for glob, members in chosen.items()
                if members and (policy := rules[glob]) is not None
            ],
        )
        self.keep(ledger, book)

    def act(self, ledger: Ledger) -> None:
        """Judge each part, and rescale unless this is a dry run."""
        book = self._books[ledger.index]
        fired = []
        for part in book.parts:
            report = part.judge(ledger, self.norm_type, clip=self._clip)
            fired.append(report.clipped.any())
            if not self.dry_run:
                ledger.rescale(part.segments.spread(report.coefficients))
        if fired:
            any_fired = torch.stack(fired).any()
            ledger.fired[self] = any_fired
            ledger.reduced += [] if self.dry_run else [any_fired]

    def observe(self, ledger: Ledger) -> None:
        """Count the step, also one that somebody skips; not where its rules leave this optimizer alone."""
        book = self._books[ledger.index]
        if book.parts:
            book.count = book.count.add(ledger.fired.get(self) if ledger.live else None)

    def row(self, ledger: Ledger) -> Row:
        """The threshold, and how often it fired under a name of its own."""
        book, prefix, row = self._books[ledger.index], "calib/would_" if self.dry_run else "calib/", Row()
        if (self.dry_run or self._tag) and book.count.window_steps:
            row[f"{prefix}clip_fraction{self._tag}"] = book.count.fraction
        threshold = book.threshold() if ledger.turn and ledger.live else None
        if threshold is not None:
            row[f"{prefix}clip_threshold{self._tag}"] = threshold
        book.count = book.count.new_window()
        return row


def _check_rules(rules: Mapping[str, Rule] | None) -> Mapping[str, Rule]:
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
