"""The numbers of a report, as builtins: rows of optimizers, of clippers, of layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_calib.report.detectors.clip_cuts_rate import recent_factor
from lightning_calib.report.detectors.rate_cut import rate_factor
from lightning_calib.report.measured import Measured


def plain(value: Any) -> Any:
    """Of builtins that JSON knows; a float that is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (np.bool_, bool)):
        return bool(value)
    if isinstance(value, (np.integer, int)):
        return int(value)
    if isinstance(value, (np.floating, float)):
        return float(value) if np.isfinite(value) else None
    return value


def optimizers(seen: Measured) -> dict[str, Any]:
    """One optimizer: what it is, its counts, its recent norms, its loss, what was left of norm and rate."""
    facts, counts, norms, loss = seen.run.facts, seen.run.counts, seen.norms, seen.loss
    known = len(norms) > 0
    row: dict[str, Any] = plain(
        {
            "optimizer": facts.position,
            "name": facts.optimizer,
            "kinds": sorted(seen.kinds),
            "lr": seen.lr,
            "steps": counts.steps,
            "taken": counts.taken,
            "skipped": counts.skipped,
            "spikes": counts.spikes,
            "rewound": counts.rewound,
            "nonfinite": counts.nonfinite,
            "stopped": counts.stopped,
            "window": seen.window,
            "norm_lowest": norms.min() if known else None,
            "norm_median": np.median(norms) if known else None,
            "norm_p95": seen.high,
            "norm_highest": norms.max() if known else None,
            "mean_factor": counts.left,
            "recent_factor": recent_factor(seen),
            "rate_factor": rate_factor(seen),
            "update_ratio": seen.update_ratio,
            "moved": seen.moved,
            "loss_first": loss.first,
            "loss_last": loss.last,
            "loss_noise": loss.noise,
        }
    )
    return row


def clippers(seen: Measured) -> list[dict[str, Any]]:
    """Who reduced the gradient."""
    return [
        plain(
            {
                "name": one.name,
                "clip_rate": one.clip_rate,
                "kind": one.kind,
                "optimizer": seen.run.facts.position,
                "max_norm": one.max_norm,
            }
        )
        for one in seen.run.clippers
    ]


def bad_steps(seen: Measured) -> list[dict[str, Any]]:
    """What guards have found."""
    return [plain({"optimizer": seen.run.facts.position, **one._asdict()}) for one in seen.run.bad_steps]


def layers(seen: Measured) -> list[dict[str, Any]]:
    """Each tensor over the recent window: medians of its norms, its share of the squared norm, its motion."""
    tensors, found = seen.tensors, seen.run.layers
    if tensors is None or found is None:
        return []
    square = np.square(np.where(np.isfinite(tensors.grad), tensors.grad, 0.0))
    share = square / square.sum() if square.sum() > 0 else np.full(len(square), np.nan)
    return [
        plain(
            {
                "name": found.names[i],
                "owner": found.owners[i],
                "optimizer": seen.run.facts.position,
                "size": found.sizes[i],
                "given": found.given[i],
                "trainable": found.trainable[i],
                "grad_norm": tensors.grad[i],
                "share": share[i],
                "weight_norm": tensors.weight[i],
                "update_ratio": tensors.ratio[i],
                "moved": tensors.moved[i],
            }
        )
        for i in range(len(found.names))
    ]
