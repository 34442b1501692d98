// What each finding means, in the words of docs/findings.md; a test holds the two together.

export const MEANINGS = {
  "no-steps-seen": "No optimizer step with a gradient was seen, so nothing can be said.",
  "loss-summed":
    "The loss is the sum over the batch instead of its mean. Rates, thresholds and logged norms then depend on" +
    " the batch size, and the last, smaller batch of an epoch counts less.",
  diverged:
    "Training blew up: the loss or the norm grew until it was not finite, or until all that was learned was " + "lost.",
  nonfinite:
    "A gradient was inf or nan. One that reaches the weights ends a run. Look where every one was skipped: the" +
    " weights never saw it.",
  "rate-too-high": "The steps were so large that the loss was thrown far above its start, and nothing was learned.",
  "clip-below-eps":
    "The clip is so low that the eps of Adam (or Muon) is larger than what it leaves: the optimizer hardly " + "moves.",
  "rate-cut": "A rule of LearningRateControl holds the rate far below what was set.",
  dominated:
    "A few tensors make nearly the whole norm, and a clip of the whole gradient scales all others down for " + "them.",
  "clip-twice": "Two clips reduce the same gradient, one behind the other: the second judges what the first left.",
  "clip-cuts-rate":
    "With SGD the update is proportional to the gradient, so that a clip that fires often is a lower learning " +
    "rate. Act from a tenfold cut on.",
  "dead-layer":
    "The gradient of a layer is exactly zero: it learns nothing. The one nearest to the output is named first," +
    " because zero there makes zero behind it.",
  vanishing: "The gradient gets lost on its way: some layers cannot move while others do.",
  exploding:
    "The gradient grows by decades from the output to the input, or is so large that tiny changes upset the " + "loss.",
  "unused-parameter": "A parameter that is to be trained never got a gradient: no loss depended on it.",
  "batch-norm":
    "What BatchNorm will use in evaluation is not what it saw in training, or its batches are too small to " +
    "mean anything.",
  spike: "One step whose gradient and loss stand far out.",
  "level-shift": "From some step on the loss is higher and stays so.",
  "rate-too-low": "The weights have hardly moved, and the loss cannot have fallen.",
  "layer-rate": "A layer moves far faster than all others, or a group far faster or slower.",
  "skipped-steps": "More steps were not taken than is usual.",
  "clip-always":
    "A fixed clip fires on practically every step. Adam and its kin, Lion and Muon divide the scale out again," +
    " so that it does not matter; every language model clipped at 1.0 is such a run.",
  "clip-never": "A clip that never fired.",
  frozen: "Parameters of the optimizer that are not trained.",
  "loss-scale": "A GradScaler skipped its first steps while it looked for a scale.",
};
