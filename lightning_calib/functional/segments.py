"""Segments: how a scope labels the plan's pieces, and the two ways between pieces and segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_choice, message
from lightning_calib.functional.norms import Reading
from lightning_calib.functional.plan import Plan

Scope = Literal["global", "group", "layer", "parameter", "unit"]
SCOPES: tuple[str, ...] = get_args(Scope)


def check_scope(scope: object) -> None:
    """Accept one of the five scopes; raises ValueError otherwise."""
    remedy = 'Use "global" for one threshold over all gradients, "unit" for one per output row.'
    check_choice("scope", scope, SCOPES, remedy)


@dataclass(frozen=True, eq=False)
class Segments:
    """The K segments of one scope over some of a plan's tensors.

    Attributes:
        plan: The plan that they label.
        scope: What makes a segment.
        members: The labelled tensors' positions in the plan, ascending.
        names: The name of each labelled group of pieces; with ``scope="unit"`` the tensor's name.
        pick: The positions of the members' pieces in a reading's (T,) or (U,) vector; None for all of them.
        owner: Shape (M,): the segment of each member; unused with ``scope="unit"``.
        table: Shape (K, W): the members of each segment, padded with M; None where folding needs no table.
    """

    plan: Plan
    scope: Scope
    members: tuple[int, ...]
    names: tuple[str, ...]
    pick: Tensor | None
    owner: Tensor
    table: Tensor | None

    @staticmethod
    def of(plan: Plan, scope: Scope, members: Sequence[int] | None = None) -> "Segments":
        """Label ``members`` of ``plan`` (all of them by default) by ``scope``.

        Raises:
            ValueError: If ``scope`` is unknown, or the plan's source cannot label it.
        """
        check_scope(scope)
        if scope not in plan.labelled:
            need = {"layer": "a module (`clip_grad_(model, ...)`)", "group": "an optimizer"}[scope]
            raise ValueError(message("scope", "one that the parameters can be labelled by", scope, f"Pass {need}."))
        chosen = tuple(range(len(plan.tensors))) if members is None else tuple(members)
        labels = _labels(plan, scope, chosen)
        names = tuple(dict.fromkeys(labels)) or ("global",) * (scope == "global")
        position = {name: k for k, name in enumerate(names)}
        owner = [position[label] for label in labels]
        every = len(chosen) == len(plan.tensors)
        pick = None if every else _positions(plan, _pieces(plan, scope, chosen))
        table = None if scope in ("parameter", "unit") else _positions(plan, _table(owner, len(names)))
        return Segments(plan, scope, chosen, names, pick, _positions(plan, owner), table)

    def __len__(self) -> int:
        """K."""
        if self.scope == "unit":
            return sum(self.plan.unit_counts[i] for i in self.members)
        return len(self.names)

    @property
    def digest(self) -> str:
        """Of the scope and the members' names and shapes: a checkpoint's state fits if it is the same."""
        plan, by_group = self.plan, self.scope == "group"
        told = [(plan.names[i], tuple(plan.whole_shapes[i]), by_group and plan.groups[i]) for i in self.members]
        return sha256(repr((self.scope, told)).encode()).hexdigest()[:16]

    def fold(self, reading: Reading) -> Tensor:
        """The segments' norms, shape (K,), from the pieces' norms."""
        if self.scope == "global" and self.pick is None:
            return reading.norm.reshape(1)
        pieces = reading.pieces if self.scope == "unit" else reading.tensors
        norms = pieces if self.pick is None else pieces[self.pick]
        if self.table is None or not self.names:
            return norms
        padded = torch.cat([norms, norms.new_zeros(1)])[self.table]
        return reading.fold(padded, 1)

    def spread(self, coefficients: Tensor) -> Tensor:
        """One factor per piece from one per segment: (T,) or (U,), or (1,) where one serves all."""
        if self.pick is None and len(self) == 1:
            return coefficients
        per_piece = coefficients if self.scope == "unit" else coefficients[self.owner]
        if self.pick is None:
            return per_piece
        count = self.plan.unit_starts[-1] if self.scope == "unit" else len(self.plan.tensors)
        return per_piece.new_ones(count).index_copy_(0, self.pick, per_piece)


def _labels(plan: Plan, scope: Scope, members: tuple[int, ...]) -> list[str]:
    if scope == "global":
        return ["global"] * len(members)
    if scope == "group":
        return [f"group {plan.groups[i]}" for i in members]
    return [(plan.layers if scope == "layer" else plan.names)[i] for i in members]


def _pieces(plan: Plan, scope: Scope, members: tuple[int, ...]) -> list[int]:
    if scope != "unit":
        return list(members)
    return [unit for i in members for unit in range(plan.unit_starts[i], plan.unit_starts[i + 1])]


def _positions(plan: Plan, values: list[int] | list[list[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=plan.device)


def _table(owner: list[int], segments: int) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(segments)]
    for member, segment in enumerate(owner):
        rows[segment].append(member)
    width = max([1, *map(len, rows)])
    return [row + [len(owner)] * (width - len(row)) for row in rows]
