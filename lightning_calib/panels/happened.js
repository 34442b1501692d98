// Signs of single steps for the charts: spikes, steps that were not finite or were skipped; and of the open finding.

import { many, places } from "./counts.js";
import { kindOf } from "./kinds.js";
import { chosenFinding } from "./verdict.js";

const LEFT_OUT = new Set(["summary", "dead", "rate"]); // they have no step of their own in a chart

const COUNTED = ["nonfinite", "skip"]; // told by stretches of rows, too: not every one of many has an event
const MOST_SIGNS = 12; // of a kind that is counted; of more the first, the bars tell of the others

/** {bars: [{from, step, colour}], signs: [{step, shape, colour}], shades: [{from, to, colour}], more: [{label}]}. */
export function happened(app, theme) {
  const found = app.model.events.filter((event) => !LEFT_OUT.has(event.kind));
  const bars = COUNTED.flatMap((kind) => places(app, kind).map((one) => ({ ...one, colour: kindOf(kind).colour })));
  const counted = COUNTED.filter((kind) => places(app, kind).length);
  const kinds = [...new Set([...found.map((event) => event.kind), ...counted])].map(kindOf);
  const open = chosenFinding(app)?.steps;
  const within = open?.every((step) => typeof step === "number");
  const crowded = counted.filter((kind) => found.filter((event) => event.kind === kind).length > MOST_SIGNS);
  const first = crowded.map((kind) => found.find((event) => event.kind === kind));
  const signed = found.filter((event) => !crowded.includes(event.kind) || first.includes(event));
  return {
    bars,
    signs: signed.map(({ step, kind }) => ({ step, ...kindOf(kind) })),
    shades: within ? [{ from: open[0], to: open[1], colour: theme.accent, alpha: 0.13 }] : [],
    more: kinds.map(({ key, label, colour, shape }) => ({ label: `${label}: ${many(app, key)}`, colour, shape })),
  };
}
