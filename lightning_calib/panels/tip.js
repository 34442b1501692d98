// What the heat-map says about the cell under the pointer.

import { nearest, within } from "./axis.js";
import { ABSENT, NAN, ZERO, farther } from "./codes.js";
import { h, replace } from "./dom.js";
import { factor, power, shorten } from "./format.js";
import { statistic } from "./statistics.js";

export function createTip() {
  const node = h("div.tip", { hidden: true, "aria-hidden": "true" });
  return {
    node,
    hide: () => (node.hidden = true),
    show(event, around, lines) {
      node.hidden = !lines;
      if (!lines) return;
      replace(
        node,
        h("b", { text: lines[0] }),
        lines.slice(1).map((text) => h("div", { text })),
      );
      const box = around.getBoundingClientRect();
      const x = event.clientX - box.left;
      const right = x > box.width / 2;
      Object.assign(node.style, {
        left: right ? "auto" : `${x + 14}px`,
        right: right ? `${box.width - x + 14}px` : "auto",
        top: `${event.clientY - box.top + 14}px`,
      });
    },
  };
}

/** Lines about a row at a step: name, step or steps, value. */
export function describe(app, shown, row, step) {
  const name = shorten(row.node.path, 160) + (row.node.leaf ? "" : `  (${row.node.rows.length} tensors together)`);
  const { steps, at } = shown;
  const i = nearest(steps, step);
  if (i < 0) return [name, "no step"];
  const half = (at.to - at.from) / at.width / 2;
  const [first, last] = within(steps, steps[i] - half, steps[i] + half);
  let [best, where] = [ABSENT, i];
  for (let k = first; k < last; k++) {
    const winner = shown.centred ? farther(row.codes[k], best) : Math.max(row.codes[k], best);
    if (winner !== best) [best, where] = [winner, k];
  }
  const label = statistic(app.model.frames.stat).label;
  const pooled = last - first > 1 ? ` (largest of steps ${steps[first]}–${steps[last - 1]})` : "";
  return [name, `step ${steps[where].toLocaleString("en")}${pooled}`, `${label}: ${word(best, shown.compared)}`];
}

export function word(code, compared) {
  if (code === NAN) return "NaN or Inf";
  if (code === ZERO) return "exactly zero";
  if (code === ABSENT) return "not logged";
  return compared ? `${factor(code)} of the other run` : power(code);
}
