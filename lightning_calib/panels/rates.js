// The learning rate that was set and taken; how far the weights really moved; the scale of the loss.

import { createChart, overlays } from "./chart.js";

const line = (app, label, name, colour, more) => {
  const { globals: g } = app.model;
  return { label, values: g[name], steps: g.steps, colour, ...more };
};

export const createRates = (app) =>
  createChart(app, {
    name: "rates",
    title: "Learning rate",
    how: "What the scheduler set, and what the step took where a rule or the optimizer made something else of it.",
    content(theme) {
      const { globals: g } = app.model;
      const differs = g.lr_effective?.some((v, i) => v !== -1 && Math.abs(v - g.lr[i]) > 1e-6 * Math.abs(v));
      return {
        lines: [
          line(app, "set", "lr", theme.lr),
          ...(differs ? [line(app, "effective", "lr_effective", theme.effective, { dash: [4, 2] })] : []),
          ...overlays(app, theme, "set", "lr"),
        ],
      };
    },
  });

export const createUpdates = (app) =>
  createChart(app, {
    name: "updates",
    title: "Measured update",
    how: "How far the weights really moved: under Adam this does not follow from the rate or the gradient.",
    content(theme) {
      const { globals: g } = app.model;
      const ratio = { label: "median |Δw| / |w|", values: g.update_ratio, steps: g.steps, colour: "transparent" };
      return {
        lines: [
          line(app, "update norm |Δw|", "update_norm", theme.update, { smooth: true }),
          ...overlays(app, theme, "update norm", "update_norm", { smooth: true }),
        ],
        more: g.update_ratio ? [ratio] : [],
      };
    },
  });

export const createLossScale = (app) =>
  createChart(app, {
    name: "loss-scale",
    title: "Loss scale",
    how: "The GradScaler's: below 1 the loss overflows by itself.",
    content: (theme) => ({ lines: [line(app, "loss scale", "loss_scale", theme.muted)] }),
  });
