"""What writer and tab agree on; imports nothing, so that TensorBoard can load it without torch or numpy."""

PLUGIN = "lightning_calib"
VERSION = 1

# A norm is never negative: this stands where there is none (no gradient, no step taken, not measured).
ABSENT = -1.0

# Kinds of records, and their tags: "calib/<kind>", with ".<digest of the rows>" where there are rows, then the
# optimizer's suffix ("/0", "/1", ... with several optimizers).
LAYERS, GLOBALS, HISTOGRAMS, EVENTS = "layers", "globals", "hist", "events"

# Columns of a layer record, shape (rows, columns), and how a module's value follows from those of its tensors:
# "l2" is the root of the sum of squares, "max" the largest.
STATISTICS = {
    "before": "l2",  # norm of the gradient as the first of our callbacks saw it, in the step that is logged
    "after": "l2",  # norm that the optimizer used
    "peak": "max",  # the largest `before` since the last record, spikes between two logged steps included
    "weight": "l2",  # norm of the weights before the step
    "update": "l2",  # norm of the change of the weights in the step
}

# Entries of a globals record.
GLOBAL_NAMES = (
    "grad_norm_before",
    "grad_norm_max",
    "grad_norm_after",
    "clip_fraction",
    "clip_threshold",
    "lr",
    "lr_effective",
    "nonfinite_total",
    "skipped_total",
    "loss_scale",
    "update_norm",
    "update_ratio",
    "norm_p10",  # quantiles of the norms of the run so far
    "norm_p50",
    "norm_p90",
)

# Columns of a histogram record, shape (sides, rows, columns): elements that are exactly zero, elements that are inf or
# nan, the largest exponent (ABSENT_EXPONENT without one), then one column for each exponent e: elements with
# 2^e <= |x| < 2^(e+1). The first and the last of those take in what lies beyond.
SIDES = ("before", "after")
LOW_EXPONENT, HIGH_EXPONENT = -48, 15
HISTOGRAM_COLUMNS = ("zero", "nonfinite", "top", *map(str, range(LOW_EXPONENT, HIGH_EXPONENT + 1)))
ABSENT_EXPONENT = -9999.0

# Kinds of events. One is {"step": int, "kind": str, "text": str, "layer": str or None, "value": float or None}.
EVENT_KINDS = ("nonfinite", "skip", "spike", "dead", "rate", "summary")
