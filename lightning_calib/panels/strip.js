// One chart: bands, lines, guides, shaded stretches, signs of single steps. Nothing is cut off.

import { nearest, ticks } from "./axis.js";
import { drawable, ends, isThere, marks, place } from "./scale.js";

/**
 * series: [{steps, values, colour, width, dash, signed, alpha, bridge}], bands: [{steps, low, high, colour}],
 * guides: [{value, colour, label}], shades: [{from, to, colour}], signs: [{step, shape, colour}], bars at
 * the lower edge: [{from, step, colour}].
 * `box` is {top, height}; `log` says how the axis is; `perEpoch` steps make an epoch where the axis counts those.
 */
export function strip(context, at, box, theme, given) {
  const { series = [], bands = [], guides = [], shades = [], bars = [], signs = [], log = true } = given;
  const range = extent(at, series, bands, guides, log);
  const height = (value) => box.top + box.height * (1 - (value - range[0]) / (range[1] - range[0]));
  const y = (value) => height(place(value, log));
  context.font = theme.font;
  grid(context, at, box, theme, marks(range, log, Math.max(2, Math.floor(box.height / 26))), height);
  if (given.stepLabels ?? true) stepAxis(context, at, box.top + box.height, theme, given.perEpoch);
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
  for (const one of bands) band(context, at, y, one, log);
  for (const one of guides) guide(context, at, y, one);
  for (const one of series) line(context, at, y, one, box, log);
  for (const { from, step, colour } of bars) {
    context.fillStyle = colour;
    const x = at.x(from);
    context.fillRect(x, box.top + box.height - 3, Math.max(2, at.x(step) - x), 3);
  }
  for (const one of signs) sign(context, at, box, one);
  context.restore();
  return range;
}

function extent(at, series, bands, guides, log) {
  let [low, high] = [Infinity, -Infinity];
  const take = (value, signed) => {
    if (!drawable(value, log, signed)) return;
    if (value < low) low = value;
    if (value > high) high = value;
  };
  const scan = (steps, values, signed) => {
    for (let i = 0; i < steps.length; i++) if (steps[i] >= at.from && steps[i] <= at.to) take(values[i], signed);
  };
  for (const one of series) scan(one.steps, one.values, one.signed);
  for (const one of bands) [one.low, one.high].forEach((values) => scan(one.steps, values));
  for (const one of guides) take(one.value);
  return ends(low, high, log);
}

function grid(context, at, box, theme, found, height) {
  context.strokeStyle = theme.line;
  context.fillStyle = theme.muted;
  context.lineWidth = 1;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const [tick, text] of found) {
    rule(context, at.left, at.left + at.width, Math.round(height(tick)) + 0.5);
    context.fillText(text, at.left - 7, height(tick));
  }
}

function rule(context, from, to, y) {
  context.beginPath();
  context.moveTo(from, y);
  context.lineTo(to, y);
  context.stroke();
}

/** Labels of the step axis below `top`; of epochs, if so many steps make one. */
export function stepAxis(context, at, top, theme, perEpoch = null) {
  context.font = theme.font;
  context.fillStyle = theme.muted;
  context.textBaseline = "top";
  const unit = perEpoch ?? 1;
  for (const tick of ticks(at.from / unit, at.to / unit, at.width / 75)) {
    if (!Number.isInteger(tick)) continue;
    const x = at.x(tick * unit);
    context.textAlign = x > at.left + at.width - 14 ? "right" : x < at.left + 8 ? "left" : "center";
    context.fillText(`${perEpoch ? "epoch " : ""}${tick.toLocaleString("en")}`, x, top + 5);
  }
}

function line(context, at, y, one, box, log) {
  const { steps, values, colour, width = 1.4, dash = [], nan = "#ff2bd6", zeros = true, signed, alpha = 1 } = one;
  context.strokeStyle = colour;
  context.globalAlpha = alpha;
  context.lineWidth = width;
  context.lineJoin = "round";
  context.setLineDash(dash);
  context.beginPath();
  let drawing = false;
  for (let i = 0; i < steps.length; i++) {
    const value = values[i];
    if (!drawable(value, log, signed)) {
      drawing = false;
      continue;
    }
    const [px, py] = [at.x(steps[i]), y(value)];
    if (drawing) context.lineTo(px, py);
    else context.moveTo(px, py);
    const alone = !drawing && !drawable(values[i + 1], log, signed);
    if (alone) context.lineTo(px + 1, py);
    drawing = true;
  }
  context.stroke();
  if (one.bridge) bridges(context, at, y, one, log);
  context.setLineDash([]);
  context.globalAlpha = 1;
  if (one.marks === false) return;
  for (let i = 0; i < steps.length; i++)
    if (!isThere(values[i], signed)) continue;
    else if (!Number.isFinite(values[i])) mark(context, at.x(steps[i]), box.top, nan);
    else if (log && values[i] === 0 && zeros) mark(context, at.x(steps[i]), box.top + box.height, colour, -1);
}

/** Where values were not finite, a pale line from the last one before to the first one behind. */
function bridges(context, at, y, { steps, values, signed, alpha = 1 }, log) {
  context.globalAlpha = 0.35 * alpha;
  context.beginPath();
  let last = -1;
  for (let i = 0; i < steps.length; i++) {
    if (!drawable(values[i], log, signed)) {
      if (Number.isFinite(values[i]) || !isThere(values[i], signed)) last = -1;
      continue;
    }
    if (last >= 0 && last < i - 1) {
      context.moveTo(at.x(steps[last]), y(values[last]));
      context.lineTo(at.x(steps[i]), y(values[i]));
    }
    last = i;
  }
  context.stroke();
}

function mark(context, x, y, colour, way = 1) {
  context.fillStyle = colour;
  context.beginPath();
  context.moveTo(x - 4, y);
  context.lineTo(x + 4, y);
  context.lineTo(x, y + 7 * way);
  context.fill();
}

function sign(context, at, box, { step, shape, colour }) {
  if (step < at.from || step > at.to) return;
  const [x, low] = [at.x(step), box.top + box.height];
  context.fillStyle = colour;
  context.globalAlpha = 0.5;
  context.fillRect(x - 0.5, box.top, 1, box.height - 12);
  context.globalAlpha = 1;
  context.textAlign = "center";
  context.textBaseline = "bottom";
  context.fillText(shape, x, low);
}

function band(context, at, y, { steps, low, high, colour, alpha = 1 }, log) {
  context.fillStyle = colour;
  context.globalAlpha = alpha;
  const there = (i) => drawable(low[i], log) && drawable(high[i], log);
  for (let first = 0, i = 0; i <= steps.length; i++) {
    if (i < steps.length && there(i)) continue;
    if (i > first) {
      context.beginPath();
      for (let k = first; k < i; k++) context.lineTo(at.x(steps[k]), y(high[k]));
      for (let k = i - 1; k >= first; k--) context.lineTo(at.x(steps[k]), y(low[k]));
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
  const high = y(value);
  rule(context, at.left, at.left + at.width, high);
  context.setLineDash([]);
  if (!label) return;
  context.fillStyle = colour;
  context.textAlign = "right";
  context.textBaseline = high < 18 ? "top" : "bottom";
  context.fillText(label, at.left + at.width - 4, high < 18 ? high + 3 : high - 2);
}

/** Value of a series at the row closest to a step. */
export function valueAt({ steps, values }, step) {
  const i = nearest(steps, step);
  return i < 0 ? null : values[i];
}
