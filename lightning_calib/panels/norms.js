// The total norm before and after, what a spike between two rows reached, the threshold, and what was clipped.

import { createChart, overlays } from "./chart.js";
import { clippedSteps } from "./counts.js";
import { happened } from "./happened.js";
import { createShadowSwitch, thresholds } from "./shadows.js";

export function createNorms(app) {
  const chart = createChart(app, {
    name: "norms",
    title: "Total gradient norm",
    how: "Orange is what backward gave, blue what the optimizer used: where they part (shaded), it was reduced.",
    content(theme) {
      const { globals: g } = app.model;
      const line = (label, name, colour, more) => ({ label, values: g[name], steps: g.steps, colour, ...more });
      const signs = happened(app, theme);
      return {
        ...signs,
        lines: [
          line("before", "grad_norm_before", theme.before, { width: 1.6, smooth: true }),
          line("after", "grad_norm_after", theme.after, { width: 1.4, smooth: true }),
          line("peak since last row", "grad_norm_max", theme.peak, { width: 1, dash: [1, 2], zeros: false }),
          line("threshold", "clip_threshold", theme.limit, { width: 1.2, dash: [5, 4] }),
          ...thresholds(app, theme),
          ...overlays(app, theme, "before", "grad_norm_before", { smooth: true }),
        ],
        bands: [
          { steps: g.steps, low: g.norm_p10, high: g.norm_p90, colour: theme.band, alpha: 0.6 },
          { steps: g.steps, low: g.grad_norm_before, high: g.grad_norm_max, colour: theme.peak, alpha: 0.3 },
        ].filter((band) => band.low && band.high),
        shades: [...shades(g, theme.before), ...signs.shades],
        more: [...(g.norm_p10 ? [soFar(theme)] : []), ...signs.more],
      };
    },
  });
  const shadows = createShadowSwitch(app);
  chart.frame.tools.append(shadows.node);
  return {
    ...chart,
    draw(view) {
      shadows.draw();
      if (app.model.globals) chart.frame.headline.textContent = clippedSteps(app);
      chart.draw(view);
    },
  };
}

const soFar = (theme) => ({
  label: "p10–p90 so far",
  colour: theme.band,
  block: true,
  title: "the middle 80 % of all norms of the run up to there",
});

/** Stretches of rows on which anybody reduced the gradient; the stronger, the larger the share of their steps. */
function shades(g, colour) {
  const found = [];
  const edge = (i) => (g.steps[Math.max(0, i - 1)] + g.steps[Math.min(g.steps.length - 1, i)]) / 2;
  g.clip_fraction?.forEach((share, i) => {
    if (!(share > 0)) return;
    const alpha = 0.1 + 0.2 * Math.min(1, share);
    const last = found.at(-1);
    if (last && last.alpha === alpha && last.next === i) Object.assign(last, { to: edge(i + 1), next: i + 1 });
    else found.push({ from: edge(i), to: edge(i + 1), colour, alpha, next: i + 1 });
  });
  return found;
}
