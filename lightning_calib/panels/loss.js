// The loss above the norm, on the same steps: what training is for.

import { createChart, overlays } from "./chart.js";
import { happened } from "./happened.js";

export const createLoss = (app) =>
  createChart(app, {
    name: "loss",
    title: "Loss",
    how:
      "Mean over the steps since the last row, pale across rows where it was not finite; dotted the largest of them. " +
      "Signs mark what happened at a step.",
    stepLabels: false,
    content(theme) {
      const { globals: g } = app.model;
      const line = (label, name, colour, more) => ({
        label,
        values: g[name],
        steps: g.steps,
        colour,
        signed: true,
        ...more,
      });
      return {
        lines: [
          line("training", "loss", theme.loss, { width: 1.6, smooth: true, bridge: true }),
          line("validation", "val_loss", theme.valid, { width: 1.6, dash: [5, 3] }),
          line("peak since last row", "loss_max", theme.loss, { width: 1, dash: [1, 2] }),
          ...overlays(app, theme, "training", "loss", { signed: true, smooth: true, bridge: true }),
        ],
        ...happened(app, theme),
      };
    },
  });
