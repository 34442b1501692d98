// Panel 1: total norm before and after, what a spike between two rows reached, the threshold, and what was clipped.

import { h, fit, panel } from "./dom.js";
import { legend } from "./legend.js";
import { plural } from "./format.js";
import { readStep } from "./stack.js";
import { strip } from "./strip.js";

const HEIGHT = 112;

export function createNorms(app) {
  const frame = panel(
    "norms",
    "Total gradient norm",
    "Orange is what backward gave, blue what the optimizer used: where they part (shaded), the gradient was reduced.",
  );
  const canvas = h("canvas", { role: "img", "data-plot": "norms" });
  frame.body.append(canvas);
  frame.tools.classList.add("legend");

  function lines() {
    const { globals: g, other } = app.model;
    if (!g) return [];
    const { theme } = app;
    const found = [
      { label: "before", values: g.grad_norm_before, colour: theme.before, width: 1.6 },
      { label: "after", values: g.grad_norm_after, colour: theme.after, width: 1.4 },
      {
        label: "peak since last row",
        values: g.grad_norm_max,
        colour: theme.peak,
        width: 1,
        dash: [1, 2],
        zeros: false,
      },
      { label: "threshold", values: g.clip_threshold, colour: theme.limit, width: 1.2, dash: [5, 4] },
    ].filter(({ values }) => values?.some((value) => value !== -1));
    for (const one of found) one.steps = g.steps;
    if (other?.globals)
      found.push({
        label: `before, ${other.about.run}`,
        values: other.globals.grad_norm_before,
        steps: other.globals.steps,
        colour: theme.muted,
        width: 1,
        dash: [1, 2],
      });
    return found;
  }

  return {
    node: frame.node,
    draw({ at, theme }) {
      const g = app.model.globals;
      frame.node.hidden = !g;
      if (!g) return;
      const context = fit(canvas, at.left + at.width + 16, HEIGHT + 22);
      const all = lines();
      strip(context, at, { top: 4, height: HEIGHT - 4 }, theme, {
        series: [...all.slice(2).reverse(), ...all.slice(0, 2)],
        bands: [
          { steps: g.steps, low: g.norm_p10, high: g.norm_p90, colour: theme.band, alpha: 0.6 },
          { steps: g.steps, low: g.grad_norm_before, high: g.grad_norm_max, colour: theme.peak, alpha: 0.3 },
        ].filter((band) => band.low && band.high),
        shades: shades(g, theme.before),
      });
      const clipped = g.clip_fraction ? g.clip_fraction.reduce((sum, share) => sum + (share > 0 ? 1 : 0), 0) : 0;
      const rows = plural(g.steps.length, "row");
      frame.headline.textContent = `${clipped.toLocaleString("en")} of ${rows} with a clipped step`;
      canvas.setAttribute("aria-label", `Total gradient norm over steps, logarithmic. ${frame.headline.textContent}.`);
    },
    hover() {
      if (!app.model.globals) return;
      const band = {
        label: "p10–p90 so far",
        colour: app.theme.band,
        block: true,
        title: "the middle 80 % of all norms of the run up to there",
      };
      legend(frame.tools, readStep(app), [...lines(), band]);
    },
  };
}

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
