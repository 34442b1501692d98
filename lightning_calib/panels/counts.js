// How many steps: of what was counted since the last row, where, and of how many.

import { plural } from "./format.js";

/** The counts that the report has of the optimizer on show; null as long as there is no report. */
export const counted = (app) =>
  app.report?.optimizers?.find((one) => one.optimizer === app.model.about.optimizer) ?? null;

/** Steps since the row before each row; before the first as many as usual. */
export function windows(steps) {
  const gaps = steps.map((step, i) => (i ? step - steps[i - 1] : 0));
  const usual = [...gaps.slice(1)].sort((a, b) => a - b)[(gaps.length - 1) >> 1] ?? 1;
  gaps[0] = Math.min(usual, steps[0] + 1);
  return gaps;
}

/** Stretches of steps (from, step] in which something was counted, each with how often: of shares or of a total. */
export function stretches(g, name) {
  const values = g?.[name];
  if (!values) return [];
  const wide = windows(g.steps);
  const total = name.endsWith("_total");
  let before = 0;
  return g.steps.flatMap((step, i) => {
    const value = values[i];
    if (!(value >= 0)) return [];
    const count = total ? value - before : Math.round(value * wide[i]);
    if (total) before = value;
    return count > 0 ? [{ step, from: step - wide[i] + 1, count, share: Math.min(1, count / wide[i]) }] : [];
  });
}

export const sum = (found) => found.reduce((all, { count }) => all + count, 0);

// Kinds that the rows count, in which column, and what the report calls their number. Others are told one by one.
export const COUNTED = {
  clip: ["clip_fraction", "clipped"],
  nonfinite: ["nonfinite_total", "nonfinite"],
  skip: ["skipped_total", "skipped"],
};

/** Where rows count something of a kind. */
export const places = (app, kind) => (COUNTED[kind] ? stretches(app.model.globals, COUNTED[kind][0]) : []);

/** How many there were of a kind: steps where the rows count them, else events. */
export function many(app, kind) {
  const events = app.model.events.filter((event) => event.kind === kind).length;
  if (!COUNTED[kind]) return events.toLocaleString("en");
  const steps = counted(app)?.[COUNTED[kind][1]] ?? sum(places(app, kind));
  return plural(app.model.globals ? steps : Math.max(steps, events), "step");
}

/** "12 of 300 steps clipped (4 %)" */
export function clippedSteps(app) {
  const { globals: g } = app.model;
  const known = counted(app);
  const of = known?.steps ?? (g.steps.length ? windows(g.steps).reduce((a, b) => a + b, 0) : 0);
  const clipped = known?.clipped ?? sum(stretches(g, "clip_fraction"));
  const share = of ? ` (${Number(((100 * clipped) / of).toPrecision(2))} %)` : "";
  return `${clipped.toLocaleString("en")} of ${plural(of, "step")} clipped${share}`;
}
