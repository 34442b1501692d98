"""What writer and tab agree on; imports nothing, so that TensorBoard can load it without torch or numpy."""

from typing import NamedTuple

PLUGIN = "lightning_calib"
VERSION = 1

# A norm is never negative: this stands where there is none (no gradient, no step taken, not measured).
ABSENT = -1.0
# A loss may be negative, and is never -inf: one that is not finite is written as inf.
ABSENT_SIGNED = float("-inf")

# Kinds of records, and their tags: "calib/<kind>", with ".<digest of the rows>" where there are rows, then the
# optimizer's suffix ("/0", "/1", ... with several optimizers).
LAYERS, GLOBALS, HISTOGRAMS, EVENTS, FACTS = "layers", "globals", "hist", "events", "facts"
SHADOWS = "shadows"

# Columns of a layer record, shape (rows, columns), and how a module's value follows from those of its tensors:
# "l2" is the root of the sum of squares, "max" the largest.
STATISTICS = {
    "before": "l2",  # norm of the gradient as the first of our callbacks saw it, in the step that is logged
    "after": "l2",  # norm that the optimizer used
    "peak": "max",  # the largest `before` since the last record, spikes between two logged steps included
    "weight": "l2",  # norm of the weights before the step
    "update": "l2",  # norm of the change of the weights in the step
}


class Scalar(NamedTuple):
    """A number of a globals record.

    Attributes:
        name: Of the record's entry; the scalar's tag is ``calib/<name>``.
        meaning: What it is.
        reading: How to read its chart.
        chart: The chart of Custom Scalars that it is drawn in; empty for none.
        latest: Of several rows in one record the last value stands for all, and not the largest.
        logged: Whether it has a tag; without one it stands in the record only.
        signed: Whether it may be negative, so that ``ABSENT_SIGNED`` stands where there is none.
    """

    name: str
    meaning: str
    reading: str
    chart: str = ""
    latest: bool = False
    logged: bool = True
    signed: bool = False


_NORMS, _RATES = "gradient norm before and after", "learning rate and effective"
_QUANTILE, _TAB = "quantile of the norms of the run so far", "in the tab only"
_REPORT = "for the report"
SCALARS = (
    Scalar(
        "grad_norm_before",
        "norm as the first of our callbacks saw it",
        "its level matters less than its jumps; use a log axis",
        _NORMS,
    ),
    Scalar("grad_norm_max", "the largest since the last row", "far above `before`: spikes between two rows"),
    Scalar(
        "grad_norm_after",
        "norm that the optimizer used",
        "equal to `before`: nothing was clipped; absent for a skipped step",
        _NORMS,
    ),
    Scalar(
        "clip_fraction",
        "share of the steps since the last row on which the gradient was reduced, by us or by the Trainer. The steps "
        "are those that had a gradient, those that were skipped afterwards among them",
        "0: the threshold never fires; 1: it always does, which with SGD is a lower rate",
        "share of steps clipped",
    ),
    Scalar(
        "clip_threshold",
        "target norm (median over segments)",
        "an adaptive one should follow `before` at a distance",
        latest=True,
    ),
    Scalar("lr", "learning rate of the first group in this step", "what the scheduler set", _RATES, latest=True),
    Scalar(
        "lr_effective",
        "the same times `LearningRateControl`'s factor, and times `d` for Prodigy and D-Adaptation",
        "what the step took",
        _RATES,
        latest=True,
    ),
    Scalar(
        "nonfinite_total",
        "steps whose norm was inf or nan",
        "should stay 0; a GradScaler's overflows do not count",
        "counters",
    ),
    Scalar(
        "skipped_total",
        "steps that the optimizer did not take",
        "a handful at the start under a GradScaler is normal",
        "counters",
    ),
    Scalar("loss_scale", "the GradScaler's scale", "below 1: the loss overflows by itself; use bf16", latest=True),
    Scalar("update_norm", "norm of the change of the weights", "under Adam the only honest measure of the step's size"),
    Scalar(
        "update_ratio",
        "median of |dw| / |w| over weights of more than one dimension that had a gradient",
        "around 1e-3 is a rule of thumb, not a law",
        "update to weight ratio",
    ),
    Scalar("norm_p10", f"10 % {_QUANTILE}", _TAB, latest=True, logged=False),
    Scalar("norm_p50", f"50 % {_QUANTILE}", _TAB, latest=True, logged=False),
    Scalar("norm_p90", f"90 % {_QUANTILE}", _TAB, latest=True, logged=False),
    Scalar("loss", "mean loss of the steps since the last row", _REPORT, latest=True, logged=False, signed=True),
    Scalar("loss_max", "the largest of them", _REPORT, logged=False, signed=True),
    Scalar("loss_first", "loss of the first step", _REPORT, latest=True, logged=False, signed=True),
    Scalar("val_loss", "the last validation loss", _REPORT, latest=True, logged=False, signed=True),
    Scalar("factor", "mean share of the norm left since the last row", _REPORT, latest=True, logged=False),
    Scalar(
        "norm_shift",
        "distance of the batch's means from BatchNorm's running means, in running standard deviations: the median over "
        "the channels, of the worst layer",
        _REPORT,
        logged=False,
    ),
    Scalar("rewound", "steps that were taken, and undone by a rewind", "should stay 0", logged=False),
    Scalar("spikes", "steps that SpikeGuard dropped; among the skipped", "should stay 0", logged=False),
)
QUANTILES = {"norm_p10": 0.1, "norm_p50": 0.5, "norm_p90": 0.9}  # of the norms of the run, which have no scalar tag
LOGGED = tuple(scalar for scalar in SCALARS if scalar.logged)  # those with a tag
GLOBAL_NAMES = tuple(scalar.name for scalar in SCALARS)
ABSENT_GLOBALS = {scalar.name: ABSENT_SIGNED if scalar.signed else ABSENT for scalar in SCALARS}

# Columns of a histogram record, shape (sides, rows, columns): elements that are exactly zero, elements that are inf or
# nan, the largest exponent (ABSENT_EXPONENT without one), then one column for each exponent e: elements with
# 2^e <= |x| < 2^(e+1). The first and the last of those take in what lies beyond.
SIDES = ("before", "after")
LOW_EXPONENT, HIGH_EXPONENT = -48, 15
HISTOGRAM_COLUMNS = ("zero", "nonfinite", "top", *map(str, range(LOW_EXPONENT, HIGH_EXPONENT + 1)))
ABSENT_EXPONENT = -9999.0

# Columns of a shadows record, shape (shadows, columns): policies that were judged and never applied. All but
# `clip_fraction` and `threshold` are since the shadows began, so that the last record says what became of them.
SHADOW_COLUMNS = (
    "clip_rate",  # share of the steps on which it would have reduced the gradient
    "mean_factor",  # mean over steps of the mean over segments of what a segment would have been multiplied by
    "lowest_factor",  # the least of them
    "threshold",  # target norm in the step that is logged; the median over segments
    "kept",  # mean share of the gradient's norm that would have been left
    "agreement",  # share of the steps on which it would have reduced the gradient and somebody did, or neither
    "clip_fraction",  # as `clip_rate`, since the last row
    "steps",
)

# Kinds of events. One is {"step": int, "kind": str, "text": str, "layer": str or None, "value": float or None}.
# Of what a guard has found (nonfinite, spike, rewind) the step is the very one, and there is no value.
EVENT_KINDS = ("nonfinite", "skip", "spike", "rewind", "dead", "rate", "summary")
GUARDED_KINDS = ("nonfinite", "spike", "rewind")
