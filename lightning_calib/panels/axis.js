// The step axis that all panels of the left column share, and ticks.

/** Geometry: `left` pixels of labels, `width` pixels of plot, steps [from, to]. */
export function axis(left, width, from, to) {
  const span = to - from || 1;
  return {
    left,
    width,
    from,
    to,
    x: (step) => left + ((step - from) / span) * width,
    step: (x) => from + ((x - left) / width) * span,
  };
}

/** Round numbers between two ends, about `count` of them. */
export function ticks(from, to, count) {
  const rough = (to - from) / Math.max(1, count);
  if (!(rough > 0)) return [from];
  const ten = 10 ** Math.floor(Math.log10(rough));
  const unit = [1, 2, 2.5, 5, 10].map((k) => k * ten).find((size) => size >= rough);
  const found = [];
  for (let tick = Math.ceil(from / unit) * unit; tick <= to + unit * 1e-9; tick += unit) found.push(tick);
  return found;
}

/** Ticks of an axis in powers of ten: whole powers, or 1-2-5 steps where few of those fit. */
export function logTicks(low, high, count) {
  const whole = [];
  const every = Math.max(1, Math.ceil((high - low) / count));
  for (let k = Math.ceil(low - 1e-9); k <= high + 1e-9; k++) if (k % every === 0) whole.push(k);
  if (whole.length >= 2) return whole;
  const fine = [];
  for (let k = Math.floor(low); k <= high; k++) fine.push(...[1, 2, 5].map((digit) => k + Math.log10(digit)));
  const inside = fine.filter((at) => at >= low && at <= high);
  if (inside.length >= 2 && inside.length <= count + 2) return inside;
  return ticks(10 ** low, 10 ** high, count).map(Math.log10);
}

/** Index of the logged row that is closest to a step; -1 without rows. */
export function nearest(steps, step) {
  if (!steps || !steps.length || step === null) return -1;
  let [low, high] = [0, steps.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle;
    else high = middle;
  }
  return Math.abs(steps[high] - step) < Math.abs(steps[low] - step) ? high : low;
}

/** Logged rows [first, last) within two steps. */
export function within(steps, from, to) {
  let first = 0;
  while (first < steps.length && steps[first] < from) first++;
  let last = steps.length;
  while (last > first && steps[last - 1] > to) last--;
  return [first, last];
}
