// Signs of single steps for the charts: spikes, steps that were not finite or were skipped; and of the open finding.

import { kindOf } from "./kinds.js";
import { chosenFinding } from "./verdict.js";

const LEFT_OUT = new Set(["summary", "dead", "rate"]); // they have no step of their own in a chart

/** {signs: [{step, shape, colour}], shades: [{from, to, colour}], more: items of the legend}. */
export function happened(app, theme) {
  const found = app.model.events.filter((event) => !LEFT_OUT.has(event.kind));
  const kinds = [...new Set(found.map((event) => event.kind))].map(kindOf);
  const open = chosenFinding(app)?.steps;
  const within = open?.every((step) => typeof step === "number");
  return {
    signs: found.map(({ step, kind }) => ({ step, ...kindOf(kind) })),
    shades: within ? [{ from: open[0], to: open[1], colour: theme.accent, alpha: 0.13 }] : [],
    more: kinds.map(({ label, colour, shape }) => ({ label, colour, shape })),
  };
}
