// A line chart over steps as a panel: legend with the values at the crosshair, and an axis that a click turns from
// logarithmic to linear and back. It draws what it is given and asks nobody for anything.

import { fit, h, panel } from "./dom.js";
import { legend } from "./legend.js";
import { isThere, smoothed } from "./scale.js";
import { readStep } from "./stack.js";
import { strip } from "./strip.js";

const AXIS = 20; // pixels of labels below

export const names = (text) => text.split(".").filter(Boolean);

/**
 * `content(theme)` gives {lines, bands, shades, bars, signs, more}, or null without data: lines are
 * [{label, values, steps, colour, width, dash, signed, smooth}], `more` are items of the legend without a line.
 */
export function createChart(app, { name, title, how, height = 160, stepLabels = true, content }) {
  const frame = panel(name, title, how);
  const canvas = h("canvas", { role: "img", "data-plot": name, "aria-label": `${title} over steps` });
  const place = h("div.legend");
  const turn = h("button.axis", {
    type: "button",
    "data-do": `axis-${name}`,
    "aria-label": `${title}: axis`,
    on: {
      click: () => {
        const now = names(app.state.values.axes);
        const next = now.includes(name) ? now.filter((one) => one !== name) : [...now, name];
        app.state.set({ axes: next.join(".") });
      },
    },
  });
  frame.tools.append(place, turn);
  frame.body.append(canvas);
  let [found, log] = [null, true];

  /** Without a choice logarithmic, unless something on show is below zero. */
  function logarithmic(lines) {
    const below = lines.some(({ values, signed }) => signed && values.some((v) => v <= 0 && v !== -Infinity));
    return !below !== names(app.state.values.axes).includes(name);
  }

  function there() {
    const all = content(app.theme);
    if (!all) return null;
    const lines = all.lines.filter(({ values, signed }) => values?.some((value) => isThere(value, signed)));
    return lines.length ? { bands: [], shades: [], bars: [], signs: [], more: [], ...all, lines } : null;
  }

  /** Lines as drawn: a smoothed one lies over its own, which turns pale. */
  function drawn(lines) {
    const weight = app.state.values.smooth;
    return lines.flatMap((one) => {
      if (!weight || !one.smooth) return [one];
      return [
        { ...one, alpha: 0.3, width: 1 },
        { ...one, values: smoothed(one.values, weight, one.signed), marks: false, width: 1.8 },
      ];
    });
  }

  return {
    node: frame.node,
    frame,
    draw({ at, theme, perEpoch }) {
      found = app.model.globals ? there() : null;
      frame.node.hidden = !found;
      if (!found) return;
      log = logarithmic(found.lines);
      const below = stepLabels ? AXIS : 4;
      const context = fit(canvas, at.left + at.width + 16, height);
      strip(context, at, { top: 6, height: height - 6 - below }, theme, {
        ...found,
        series: drawn([...found.lines].reverse()),
        log,
        stepLabels,
        perEpoch,
      });
      turn.textContent = log ? "log" : "linear";
      turn.title = `The axis is ${log ? "logarithmic" : "linear"}: click for ${log ? "linear" : "logarithmic"}`;
      turn.setAttribute("aria-label", `${title}: ${turn.title}`);
      canvas.setAttribute(
        "aria-label",
        `${title} over steps, ${log ? "logarithmic" : "linear"}: ${found.lines.map((one) => one.label).join(", ")}. ` +
          `${frame.headline.textContent}.`,
      );
    },
    hover() {
      if (found) legend(place, readStep(app), [...found.lines, ...found.more]);
    },
  };
}

/** The same number of the runs that lie over this one, as lines. */
export function overlays(app, theme, label, column, more = {}) {
  return app.model.others
    .filter((one) => one.globals?.[column])
    .map(({ about, globals }, k) => ({
      ...more,
      label: `${label}, ${about.run}`,
      values: globals[column],
      steps: globals.steps,
      colour: k === 0 ? theme.second : theme.third,
      width: 1.3,
      dash: k === 0 ? [] : [6, 2],
    }));
}
