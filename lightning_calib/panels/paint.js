// Codes into pixels. One pixel column stands for one or several logged rows; the largest of them is painted, so that
// a spike of one step never vanishes, however far the view is zoomed out.

import { ABSENT, NAN, ZERO, farther } from "./codes.js";

/** For each of `width` pixels the logged rows [low, high) that fall into it; a row reaches half-way to the next. */
export function columns(steps, from, to, width) {
  const low = new Int32Array(width);
  const high = new Int32Array(width);
  const edge = (i) => (i <= 0 ? -Infinity : i >= steps.length ? Infinity : (steps[i - 1] + steps[i]) / 2);
  let i = 0;
  for (let x = 0; x < width; x++) {
    const left = from + ((to - from) * x) / width;
    const right = from + ((to - from) * (x + 1)) / width;
    while (i < steps.length - 1 && edge(i + 1) <= left) i++;
    let j = i;
    while (j < steps.length - 1 && edge(j + 1) < right) j++;
    [low[x], high[x]] = [i, steps.length ? j + 1 : i];
  }
  return { low, high };
}

/** One row of codes, pooled to pixels. */
export function pool(codes, { low, high }, centred, out) {
  for (let x = 0; x < out.length; x++) {
    let best = ABSENT;
    for (let i = low[x]; i < high[x]; i++) {
      if (centred) best = farther(codes[i], best);
      else if (codes[i] > best) best = codes[i];
    }
    out[x] = best;
  }
  return out;
}

/** Colours of pooled codes into `line`. */
export function colour(pooled, [low, high], scheme, line) {
  const scale = 255 / (high - low || 1);
  for (let x = 0; x < pooled.length; x++) {
    const v = pooled[x];
    if (v === NAN) line[x] = scheme.nan;
    else if (v === ZERO) line[x] = scheme.zero;
    else if (v === ABSENT) line[x] = scheme.absent;
    else line[x] = scheme.lut[Math.max(0, Math.min(255, ((v - low) * scale + 0.5) | 0))];
  }
}

/** Paint rows of equal height into a canvas of device pixels; a row of null is left empty (a heading). `top` is where
 *  the first row begins, in device pixels, and may be negative. */
export function paint(canvas, rows, { top, rowHeight, gap, pixels, centred, range, scheme }) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const target = new Uint32Array(image.data.buffer);
  const pooled = new Float32Array(width);
  const line = new Uint32Array(width);
  rows.forEach((codes, i) => {
    if (!codes) return;
    const first = Math.max(0, Math.round(top + i * rowHeight));
    const last = Math.min(height, Math.round(top + (i + 1) * rowHeight) - gap);
    if (last <= first) return;
    colour(pool(codes, pixels, centred, pooled), range, scheme, line);
    for (let y = first; y < last; y++) target.set(line, y * width);
  });
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.putImageData(image, 0, 0);
}
