"""What the two guards accept as arguments."""

from pathlib import Path
from typing import Any

from lightning_calib.functional.checks import check_choice, check_count, check_number, message
from lightning_calib.functional.judge import Policy


def check_non_finite_guard(
    action: object, max_consecutive: Any, max_total: Any, save_batch_to: object, trace: object
) -> None:
    """Raises TypeError or ValueError for what `NonFiniteGuard` cannot take."""
    check_choice("action", action, ("warn", "skip", "raise"), 'Use "skip" to drop bad steps and carry on.')
    check_count("max_consecutive", max_consecutive, "Use 5, or 0 to raise at the first bad step.")
    if max_total is not None:
        check_count("max_total", max_total, "Use for instance 100, or None, the default, for no limit.")
    if save_batch_to is not None and not isinstance(save_batch_to, (str, Path)):
        raise TypeError(message("save_batch_to", "a folder's path or None", save_batch_to, 'Use "bad_batches".'))
    if not (isinstance(trace, bool) or callable(trace)):
        raise TypeError(message("trace", "True, False, or a callable of the module and a batch", trace, "Use True."))


def check_spike_guard(
    policy: object, min_ratio: Any, max_skips: Any, max_rewinds: Any, every: Any, gb: Any, lr_factor: Any, lr_steps: Any
) -> None:
    """The same of `SpikeGuard`, in the order of its arguments."""
    if not isinstance(policy, Policy):
        raise TypeError(message("policy", "a policy", policy, "Use ZScore(z_max=4.0)."))
    if policy.needs_weights:
        raise ValueError(message("policy", "one that needs no weights", policy, "Use ZScore(z_max=4.0)."))
    check_number("min_ratio", min_ratio, "Use 3.0; at 2 healthy steps are dropped.", 1)
    check_count("max_skips", max_skips, "Use 20.", 1)
    check_count("max_rewinds", max_rewinds, 'Use 2, or leave "rewind" out of `ladder`.', 1, 100)
    check_count("snapshot_every_n_steps", every, "Use 50.", 1)
    check_number("max_snapshot_gb", gb, "Use 16.0, or math.inf for no limit.", 0, ends="(]")
    check_number("lr_factor", lr_factor, "Use 0.5 to halve the rate after a rewind.", 0, 1, ends="(]")
    check_count("lr_steps", lr_steps, "Use 100.", 1)
