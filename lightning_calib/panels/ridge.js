// Distributions of |g| over time as a ridge: each row one logged step, oldest on top; before filled, after as a line.

import { fit } from "./dom.js";
import { number } from "./format.js";

const MOST = 22;
const LEFT = 54;
const AXIS = 26;

const superscript = (exponent) => String(exponent).replace(/./g, (sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign] ?? "⁻");

/** Draws, and returns the sentence that says how to read it. */
export function ridge(canvas, hist, width, { at, theme }) {
  const inside = hist.steps.map((_, i) => i).filter((i) => hist.steps[i] >= at.from && hist.steps[i] <= at.to);
  if (!inside.length) {
    fit(canvas, width, 1);
    return "No histogram was logged at the visible steps.";
  }
  const every = Math.ceil(inside.length / MOST);
  const picked = inside.filter((_, k) => (inside.length - 1 - k) % every === 0);
  const rows = picked.map((i) => ({ step: hist.steps[i], sides: [0, 1].map((side) => bins(hist, i, side)) }));
  const [low, high] = bounds(rows);
  const spacing = Math.max(9, Math.min(18, 230 / rows.length));
  const tall = spacing * 2.2;
  const height = tall + spacing * (rows.length - 1) + AXIS;
  const context = fit(canvas, width, height);
  context.font = theme.font;
  const plot = width - LEFT - 10;
  const x = (bin) => LEFT + ((bin - low) / (high - low + 1)) * plot;
  rows.forEach((row, k) => draw(context, row, k, { x, low, high, base: tall + k * spacing, tall, theme, plot, rows }));
  scale(context, x, low, high, height - AXIS, theme, hist.low);
  return said(hist, picked.at(-1));
}

/** Counts per exponent of one step and side; null where nothing was logged. */
function bins(hist, i, side) {
  const [, sides, size] = hist.shape;
  const start = (i * sides + side) * size;
  const all = hist.data.subarray(start, start + size);
  const counts = Array.from(all.subarray(3), (count) => Math.max(0, count) || 0);
  return counts.some((count) => count > 0) ? counts.map(Math.sqrt) : null;
}

function bounds(rows) {
  let [low, high] = [Infinity, -Infinity];
  for (const { sides } of rows)
    for (const counts of sides)
      counts?.forEach((count, bin) => {
        if (count > 0) [low, high] = [Math.min(low, bin), Math.max(high, bin)];
      });
  return low === Infinity ? [0, 1] : [Math.max(0, low - 1), high + 1];
}

function draw(context, { step, sides }, k, { x, low, high, base, tall, theme, plot, rows }) {
  context.strokeStyle = theme.line;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(LEFT, base + 0.5);
  context.lineTo(LEFT + plot, base + 0.5);
  context.stroke();
  if (k % Math.ceil(rows.length / 9) === 0) {
    context.fillStyle = theme.muted;
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText(step.toLocaleString("en"), LEFT - 7, base - 3);
  }
  const most = Math.max(...sides.flatMap((counts) => counts ?? [0]));
  if (!most) return;
  sides.forEach((counts, side) => {
    if (!counts) return;
    context.beginPath();
    context.moveTo(x(low), base);
    for (let bin = low; bin <= high; bin++) {
      context.lineTo(x(bin + 0.5), base - (counts[bin] / most) * (tall - 2));
    }
    context.lineTo(x(high + 1), base);
    if (side === 0) {
      context.fillStyle = theme.panel;
      context.fill();
      context.globalAlpha = 0.45;
      context.fillStyle = theme.before;
      context.fill();
      context.globalAlpha = 1;
    }
    context.strokeStyle = side === 0 ? theme.before : theme.after;
    context.lineWidth = 1.2;
    context.stroke();
  });
}

function scale(context, x, low, high, top, theme, first) {
  context.fillStyle = theme.muted;
  context.textAlign = "center";
  context.textBaseline = "top";
  const every = Math.max(2, Math.ceil((high - low) / 7));
  for (let bin = low; bin <= high; bin++) {
    const exponent = bin + first;
    if (exponent % every === 0) context.fillText(`2${superscript(exponent)}`, x(bin), top + 6);
  }
}

function said(hist, i) {
  const [, sides, size] = hist.shape;
  const all = hist.data.subarray(i * sides * size, i * sides * size + size).map((count) => Math.max(0, count));
  const total = all.subarray(3).reduce((sum, count) => sum + count, 0) + all[0] + all[1];
  const share = (count) => `${number(Number(((100 * count) / (total || 1)).toPrecision(2)))} %`;
  const bad = all[1] > 0 ? `, ${share(all[1])} not finite` : "";
  return (
    "How large single elements are, oldest step on top: orange before, blue after, heights as roots of counts. " +
    "A drift to the left is vanishing, to the right exploding. " +
    `At step ${hist.steps[i].toLocaleString("en")} ${share(all[0])} are exactly zero${bad}.`
  );
}
