// One small chart on a logarithmic axis: bands, lines, guides, shaded stretches. Nothing is smoothed or cut off.

import { logTicks, nearest, ticks } from "./axis.js";
import { power } from "./format.js";

/**
 * series: [{steps, values, colour, width, dash}], bands: [{steps, low, high, colour}],
 * guides: [{value, colour, label}],
 * shades: [{from, to, colour}]. `box` is {top, height}; returns the range in log10.
 */
export function strip(
  context,
  at,
  box,
  theme,
  { series = [], bands = [], guides = [], shades = [], stepLabels = true },
) {
  const range = extent(at, series, bands, guides);
  const y = (log) => box.top + box.height * (1 - (log - range[0]) / (range[1] - range[0]));
  context.font = theme.font;
  grid(context, at, box, theme, range, y, stepLabels);
  context.save();
  context.beginPath();
  context.rect(at.left, box.top - 1, at.width, box.height + 2);
  context.clip();
  for (const { from, to, colour, alpha } of shades) {
    context.globalAlpha = alpha ?? 1;
    context.fillStyle = colour;
    context.fillRect(at.x(from), box.top, Math.max(1.5, at.x(to) - at.x(from)), box.height);
  }
  context.globalAlpha = 1;
  for (const one of bands) band(context, at, y, one);
  for (const one of guides) guide(context, at, y, one);
  for (const one of series) line(context, at, y, one, box);
  context.restore();
  return range;
}

function extent(at, series, bands, guides) {
  let [low, high] = [Infinity, -Infinity];
  const take = (value) => {
    if (!(value > 0) || value === Infinity) return;
    if (value < low) low = value;
    if (value > high) high = value;
  };
  const scan = (steps, values) => {
    for (let i = 0; i < steps.length; i++) if (steps[i] >= at.from && steps[i] <= at.to) take(values[i]);
  };
  for (const one of series) scan(one.steps, one.values);
  for (const one of bands) [one.low, one.high].forEach((values) => scan(one.steps, values));
  for (const one of guides) take(one.value);
  if (low === Infinity) return [-1, 1];
  const [a, b] = [Math.log10(low), Math.log10(high)];
  const margin = Math.max(0.06, (b - a) * 0.06);
  return [a - margin, b + margin];
}

function grid(context, at, box, theme, range, y, stepLabels) {
  context.strokeStyle = theme.line;
  context.fillStyle = theme.muted;
  context.lineWidth = 1;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const tick of logTicks(...range, Math.max(2, Math.floor(box.height / 26)))) {
    rule(context, at.left, at.left + at.width, Math.round(y(tick)) + 0.5);
    context.fillText(power(tick), at.left - 7, y(tick));
  }
  if (stepLabels) stepAxis(context, at, box.top + box.height, theme);
}

function rule(context, from, to, y) {
  context.beginPath();
  context.moveTo(from, y);
  context.lineTo(to, y);
  context.stroke();
}

/** Labels of the step axis below `top`. */
export function stepAxis(context, at, top, theme) {
  context.font = theme.font;
  context.fillStyle = theme.muted;
  context.textBaseline = "top";
  for (const tick of ticks(at.from, at.to, at.width / 75)) {
    if (!Number.isInteger(tick)) continue;
    const x = at.x(tick);
    context.textAlign = x > at.left + at.width - 14 ? "right" : x < at.left + 8 ? "left" : "center";
    context.fillText(tick.toLocaleString("en"), x, top + 5);
  }
}

function line(context, at, y, { steps, values, colour, width = 1.4, dash = [], nan = "#ff2bd6", zeros = true }, box) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineJoin = "round";
  context.setLineDash(dash);
  context.beginPath();
  let drawing = false;
  for (let i = 0; i < steps.length; i++) {
    const value = values[i];
    if (!(value > 0) || value === Infinity) {
      drawing = false;
      continue;
    }
    const [px, py] = [at.x(steps[i]), y(Math.log10(value))];
    if (drawing) context.lineTo(px, py);
    else context.moveTo(px, py);
    const alone = !drawing && !(values[i + 1] > 0 && values[i + 1] < Infinity);
    if (alone) context.lineTo(px + 1, py);
    drawing = true;
  }
  context.stroke();
  context.setLineDash([]);
  for (let i = 0; i < steps.length; i++)
    if (Number.isNaN(values[i]) || values[i] === Infinity) mark(context, at.x(steps[i]), box.top, nan);
    else if (values[i] === 0 && zeros) mark(context, at.x(steps[i]), box.top + box.height, colour, -1);
}

function mark(context, x, y, colour, way = 1) {
  context.fillStyle = colour;
  context.beginPath();
  context.moveTo(x - 4, y);
  context.lineTo(x + 4, y);
  context.lineTo(x, y + 7 * way);
  context.fill();
}

function band(context, at, y, { steps, low, high, colour, alpha = 1 }) {
  context.fillStyle = colour;
  context.globalAlpha = alpha;
  const there = (i) => low[i] > 0 && high[i] > 0 && high[i] < Infinity;
  for (let first = 0, i = 0; i <= steps.length; i++) {
    if (i < steps.length && there(i)) continue;
    if (i > first) {
      context.beginPath();
      for (let k = first; k < i; k++) context.lineTo(at.x(steps[k]), y(Math.log10(high[k])));
      for (let k = i - 1; k >= first; k--) context.lineTo(at.x(steps[k]), y(Math.log10(low[k])));
      context.fill();
    }
    first = i + 1;
  }
  context.globalAlpha = 1;
}

function guide(context, at, y, { value, colour, label }) {
  context.strokeStyle = colour;
  context.lineWidth = 1.2;
  context.setLineDash([5, 4]);
  rule(context, at.left, at.left + at.width, y(Math.log10(value)));
  context.setLineDash([]);
  if (!label) return;
  context.fillStyle = colour;
  context.textAlign = "right";
  const high = y(Math.log10(value));
  context.textBaseline = high < 18 ? "top" : "bottom";
  context.fillText(label, at.left + at.width - 4, high < 18 ? high + 3 : high - 2);
}

/** Value of a series at the row closest to a step. */
export function valueAt({ steps, values }, step) {
  const i = nearest(steps, step);
  return i < 0 ? null : values[i];
}
