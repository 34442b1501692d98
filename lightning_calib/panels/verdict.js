// Across the top: what the report of the run says, the same words as in the console, and its findings as chips.

import { CLIP_VALUE, briefly, clipValue } from "./clipvalue.js";
import { h, replace } from "./dom.js";
import { clock, plural, shorten } from "./format.js";
import { choose } from "./kinds.js";
import { MEANINGS } from "./meanings.js";
import { level, sign } from "./severity.js";

const MOST_LAYERS = 12;
const NOTHING = ["Nothing is wrong", "No optimizer step"];

/** What the address calls a finding: its code, and the optimizer if it is of one. */
export const keyOf = ({ code, optimizer }) => (optimizer === null ? code : `${code}.${optimizer}`);

export const chosenFinding = (app) => {
  const { finding } = app.state.values;
  const all = (finding && app.report?.findings) || [];
  return all.find((one) => keyOf(one) === finding) ?? all.find((one) => one.code === finding) ?? null;
};

export function createVerdict(app) {
  const name = h("span.name");
  const state = h("span.state");
  const sentence = h("p.sentence");
  const more = h("p.more");
  const chips = h("div.chips", { role: "group", "aria-label": "Findings, and which clip value" });
  const details = h("div.finding", { id: "calib-finding", hidden: true });
  const node = h(
    "section.verdict",
    { "aria-label": "Verdict" },
    h("h1", {}, name, state),
    h("div.said", { "aria-live": "polite" }, sentence, more),
    chips,
    details,
  );
  let drawn = null;

  const chip = (one, open) =>
    h(
      `button.chip.${one.severity}${open ? ".open" : ""}`,
      {
        type: "button",
        title: one.sentence,
        "aria-expanded": String(open),
        "aria-controls": details.id,
        "data-finding": keyOf(one),
        on: { click: () => (open ? app.state.set({ finding: "" }) : goToFinding(app, one)) },
      },
      sign(one.severity),
      h("span", { text: one.code }),
      h("span.where", { text: where(one) }),
    );

  const answer = (one, open) =>
    h(
      `button.answer${open ? ".open" : ""}`,
      {
        type: "button",
        title: one.said,
        "aria-expanded": String(open),
        "aria-controls": details.id,
        "data-finding": CLIP_VALUE,
        on: { click: () => app.state.set({ finding: open ? "" : CLIP_VALUE }) },
      },
      h("span", { text: "clip value" }),
      h("span.where", { text: briefly(one) }),
    );

  function explain(one, value) {
    details.hidden = !one && !value;
    if (value) replace(details, h("p", {}, h("b", { text: "Which clip value: " }), value.said));
    if (!one) return;
    const layer = (path) =>
      h("button.link", {
        type: "button",
        text: shorten(path, 80),
        title: path,
        on: { click: () => app.state.set(choose(app, path)) },
      });
    const rest = one.layer_count - Math.min(MOST_LAYERS, one.layers.length);
    replace(
      details,
      h("p", {}, sign(one.severity), h("b", { text: `${level(one.severity).title}. ` }), one.sentence),
      one.advice ? h("p", {}, h("b", { text: "What to do: " }), one.advice) : null,
      MEANINGS[one.code] ? h("p", {}, h("b", { text: "What it means: " }), MEANINGS[one.code]) : null,
      one.layers.length
        ? h(
            "p.layers",
            {},
            h("b", { text: "Where: " }),
            one.layers.slice(0, MOST_LAYERS).map(layer),
            rest > 0 ? `and ${plural(rest, "more layer")}` : null,
          )
        : null,
    );
  }

  return {
    node,
    draw() {
      const { about, report } = app;
      if (!about) return;
      const open = chosenFinding(app);
      const value = clipValue(app);
      const asked = value && !open && app.state.values.finding === CLIP_VALUE;
      const now = [report, about.run, about.optimizer, open, value, asked, app.model?.events];
      if (drawn?.every((one, i) => one === now[i])) return;
      drawn = now;
      const run = app.runs.find((one) => one.run === about.run);
      name.textContent = shorten(about.run, 120);
      name.title = about.run;
      const running = report?.optimizers?.some((one) => one.unfinished);
      state.textContent = [run?.started ? `started ${clock(run.started)}` : "", running ? "not at its end yet" : ""]
        .filter(Boolean)
        .join(" · ");
      node.className = `verdict ${report?.severity ?? "waiting"}`;
      const { sign: lead, words, small } = said(app);
      replace(sentence, lead, words);
      more.textContent = small;
      more.hidden = !small;
      replace(
        chips,
        (report?.findings ?? []).map((one) => chip(one, one === open)),
        value ? answer(value, Boolean(asked)) : null,
      );
      explain(open, asked ? value : null);
    },
  };
}

/** The verdict; without a report why there is none, with what the monitor itself has said. */
function said(app) {
  const { report } = app;
  if (!report) return { sign: null, words: "Reading the event files of this run …", small: "" };
  if (report.failed) {
    const told = (app.model?.events ?? []).filter((event) => event.kind === "summary").at(-1);
    return { sign: null, words: told?.text ?? "No verdict on this run.", small: report.failed };
  }
  const calm = report.severity === "fine" && NOTHING.some((begin) => report.verdict.startsWith(begin));
  return { sign: calm ? sign("fine") : sign(report.severity), words: report.verdict, small: report.more };
}

function where({ layer_count: layers, steps }) {
  const parts = [];
  if (layers) parts.push(plural(layers, "layer"));
  if (steps)
    parts.push(steps[0] === steps[1] ? `step ${count(steps[0])}` : `steps ${count(steps[0])}–${count(steps[1])}`);
  return parts.join(", ");
}

const count = (step) => (typeof step === "number" ? step.toLocaleString("en") : step);

/** Open a finding: its optimizer, its first layer, its first step; a zoom that hides the step is given up. */
function goToFinding(app, one) {
  const patch = { finding: keyOf(one) };
  const [step] = one.steps ?? [];
  const { zoom, optimizer } = app.state.values;
  if (typeof step === "number") {
    patch.step = step;
    if (zoom && (step < zoom[0] || step > zoom[1])) patch.zoom = null;
  }
  const known = app.runs
    .find((run) => run.run === app.about.run)
    ?.optimizers.some((each) => each.optimizer === one.optimizer);
  const elsewhere = known && one.optimizer !== app.about.optimizer;
  if (elsewhere) Object.assign(patch, { optimizer: one.optimizer, layer: one.layers[0] ?? "" });
  else if (one.layers.length) Object.assign(patch, choose(app, one.layers[0]));
  else if (optimizer !== null) patch.layer = "";
  app.state.set(patch);
}
