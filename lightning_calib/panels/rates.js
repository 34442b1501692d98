// Panel 2: the learning rate that was set, and how far the weights really moved.

import { h, fit, panel } from "./dom.js";
import { legend } from "./legend.js";
import { readStep } from "./stack.js";
import { strip } from "./strip.js";

const HEIGHT = 46;
const GAP = 10;

export function createRates(app) {
  const frame = panel(
    "rates",
    "Learning rate and measured update",
    "Above the rate that was set, below how far the weights really moved: under Adam this does not follow from that.",
  );
  const canvas = h("canvas", { role: "img", "data-plot": "rates" });
  canvas.setAttribute(
    "aria-label",
    "Learning rate, effective learning rate and measured update norm over steps, logarithmic.",
  );
  frame.body.append(canvas);
  frame.tools.classList.add("legend");

  function strips() {
    const { globals: g, other } = app.model;
    const { theme } = app;
    const line = (label, name, colour, dash) => ({ label, values: g[name], steps: g.steps, colour, dash });
    const there = ({ values }) => values?.some((value) => value !== -1);
    const second = other?.globals
      ? [
          {
            label: `update norm, ${other.about.run}`,
            values: other.globals.update_norm,
            steps: other.globals.steps,
            colour: theme.muted,
            width: 1,
            dash: [1, 2],
          },
        ]
      : [];
    const differs = g.lr_effective?.some(
      (value, i) => value !== -1 && Math.abs(value - g.lr[i]) > 1e-6 * Math.abs(value),
    );
    return [
      [
        line("learning rate", "lr", theme.lr),
        ...(differs ? [line("effective", "lr_effective", theme.effective, [4, 2])] : []),
      ],
      [line("update norm |Δw|", "update_norm", theme.update), ...second],
      [line("loss scale", "loss_scale", theme.muted)],
    ]
      .map((lines) => lines.filter(there))
      .filter((lines) => lines.length);
  }

  return {
    node: frame.node,
    draw({ at, theme }) {
      frame.node.hidden = !app.model.globals;
      if (frame.node.hidden) return;
      const found = strips();
      const height = found.length * (HEIGHT + GAP) - GAP;
      const context = fit(canvas, at.left + at.width + 16, height + 10);
      found.forEach((series, i) => {
        const box = { top: 4 + i * (HEIGHT + GAP), height: HEIGHT };
        strip(context, at, box, theme, { series, stepLabels: false });
      });
      const g = app.model.globals;
      const same = g.lr_effective?.every((value, i) => value === -1 || value === g.lr[i]);
      frame.headline.textContent = same ? "effective rate = learning rate" : "";
    },
    hover() {
      if (!app.model.globals) return;
      const { globals: g } = app.model;
      const ratio = { label: "median |Δw| / |w|", values: g.update_ratio, steps: g.steps, colour: "transparent" };
      legend(frame.tools, readStep(app), [...strips().flat(), ...(g.update_ratio ? [ratio] : [])]);
    },
  };
}
