// The vertical axis of a chart, logarithmic or linear: which values have a place on it, and where its ticks are.

import { logTicks, ticks } from "./axis.js";
import { number, power } from "./format.js";

/** Whether a value stands for a measurement: -1 says that there is none, of what may be negative -inf does. */
export const isThere = (value, signed) => (signed ? value !== -Infinity : value !== -1);

/** Whether a value can be drawn; `log` axes have no place for zero and below. */
export const drawable = (value, log, signed) =>
  Number.isFinite(value) && isThere(value, signed) && (log ? value > 0 : true);

export const place = (value, log) => (log ? Math.log10(value) : value);

/** Ends of the axis over some values that are drawn, with some air. */
export function ends(low, high, log) {
  if (low === Infinity) return log ? [-1, 1] : [0, 1];
  const [a, b] = [place(low, log), place(high, log)];
  const margin = Math.max(log ? 0.06 : Math.abs(b) * 0.02 || 0.05, (b - a) * 0.06);
  return [!log && a >= 0 ? Math.max(0, a - margin) : a - margin, b + margin];
}

/** Ticks as [place, text]. */
export function marks([low, high], log, count) {
  if (log) return logTicks(low, high, count).map((tick) => [tick, power(tick)]);
  return ticks(low, high, count).map((tick) => [tick, number(Math.abs(tick) < (high - low) * 1e-9 ? 0 : tick)]);
}

/** Each value with what came before, as TensorBoard smooths: a mean with weights that fall by `weight` each row. */
export function smoothed(values, weight, signed) {
  let [sum, total] = [0, 0];
  return Float32Array.from(values, (value) => {
    if (!Number.isFinite(value) || !isThere(value, signed)) return value;
    sum = sum * weight + value;
    total = total * weight + 1;
    return sum / total;
  });
}
