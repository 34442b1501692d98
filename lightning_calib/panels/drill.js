// One layer in detail: its norms, how far it moves, and how its gradients are distributed.

import { axis } from "./axis.js";
import { fit, h, panel } from "./dom.js";
import { plural, shorten } from "./format.js";
import { legend } from "./legend.js";
import { ridge } from "./ridge.js";
import { quotient } from "./statistics.js";
import { readStep } from "./stack.js";
import { strip } from "./strip.js";

const LEFT = 54;
const LONGEST = 160; // characters of a name

export function createDrill(app) {
  const frame = panel(
    "drill",
    "Layer",
    "Dashed: a change of 1e-3 per step, a rule of thumb. Far above is unstable, far below hardly learns.",
  );
  const back = h("button", {
    type: "button",
    text: "whole model",
    "data-do": "whole",
    on: { click: () => app.state.set({ layer: "" }) },
  });
  const facts = h("p.facts");
  const [norms, moves, spread] = ["norms", "moves", "spread"].map((name) =>
    h(`canvas.${name}`, { role: "img", "aria-label": name }),
  );
  const [above, below] = [h("div.legend"), h("div.legend")];
  const caption = h("p.how");
  frame.tools.append(back);
  frame.body.append(
    facts,
    above,
    norms,
    below,
    moves,
    h("h3", { text: "Distribution of |gradient|" }),
    caption,
    spread,
  );
  let [key, shown, turn] = ["", null, 0];

  async function load() {
    const { about } = app.model;
    const node = app.state.values.layer ? app.selection.find(app.state.values.layer) : null;
    const path = node ? node.path : "";
    const now = JSON.stringify([about.run, about.optimizer, path, about.last_step]);
    if (now === key || !about.kinds.includes("layers")) return;
    key = now;
    const mine = ++turn;
    frame.node.setAttribute("aria-busy", "true");
    const ask = [about.run, about.optimizer];
    const histogram = about.kinds.includes("hist") ? app.data.hist(...ask, module(node)).catch((error) => error) : null;
    try {
      const [found, hist] = await Promise.all([app.data.node(...ask, path), histogram]);
      if (mine !== turn) return;
      shown = { path, node, hist, ...split(found) };
    } catch (error) {
      if (mine !== turn) return;
      shown = { path, node, failed: error.message };
    }
    frame.node.setAttribute("aria-busy", "false");
    if (app.view) draw(app.view);
  }

  function draw(view) {
    load();
    title();
    frame.node.hidden = !app.model.frames;
    if (!shown || frame.node.hidden) return;
    const { failed } = shown;
    facts.textContent = failed ? `Could not load this layer. ${failed}` : told();
    for (const part of [norms, moves, spread]) part.hidden = Boolean(failed);
    if (failed) return;
    const width = frame.body.clientWidth;
    const at = axis(LEFT, width - LEFT - 10, view.at.from, view.at.to);
    const cursor = readStep(app);
    lines(norms, at, width, 104, view.theme, shown.norms, cursor, []);
    lines(moves, at, width, 84, view.theme, shown.moves, cursor, [
      { value: 1e-3, colour: view.theme.limit, label: "1e-3" },
    ]);
    norms.setAttribute("aria-label", `Norms of ${frame.heading.textContent} before and after, over steps.`);
    moves.setAttribute("aria-label", `Relative change of ${frame.heading.textContent} per step, over steps.`);
    legend(above, cursor, shown.norms(view.theme));
    legend(below, cursor, shown.moves(view.theme));
    spread.setAttribute(
      "aria-label",
      `Distribution of the gradients of ${frame.heading.textContent}, by size and step.`,
    );
    distribution(width, view);
  }

  function title() {
    const path = app.state.values.layer;
    frame.heading.textContent = path === "" ? "Whole model" : shorten(path, LONGEST);
    frame.heading.title = path;
    back.hidden = path === "";
  }

  function told() {
    const { frames } = app.model;
    const rows = shown.rows ?? [];
    const mine = new Set(rows);
    const estimated = frames.rows.filter((name, row) => frames.estimated?.[row] && mine.has(name)).length;
    const note = estimated ? ` Weights and updates of ${estimated} of them are estimated from 65,536 elements.` : "";
    return `${plural(rows.length, "tensor")}.${note}`;
  }

  function lines(canvas, at, width, height, theme, series, cursor, guides) {
    const context = fit(canvas, width, height);
    const box = { top: 4, height: height - 24 };
    strip(context, at, box, theme, { series: series(theme), guides });
    if (cursor === null || cursor < at.from || cursor > at.to) return;
    context.fillStyle = theme.ink;
    context.globalAlpha = 0.35;
    context.fillRect(at.x(cursor) - 0.5, box.top, 1, box.height);
    context.globalAlpha = 1;
  }

  function distribution(width, view) {
    const { hist } = shown;
    spread.hidden = !hist || hist instanceof Error;
    if (!hist)
      caption.textContent =
        "Not logged in this run. GradientMonitor(histograms=True) draws here how large single elements are.";
    else if (hist instanceof Error) caption.textContent = hist.message;
    else caption.textContent = ridge(spread, hist, width, view);
  }

  return { node: frame.node, draw, hover: (view) => shown && !shown.failed && draw(view) };
}

/** Histograms are per module: a tensor shows those of the module that owns it. */
const module = (node) => {
  if (!node) return "";
  return node.leaf ? (node.also.at(-1) ?? node.parent.path) : node.path;
};

function split({ stats, rows, steps, data }) {
  const place = (name) => stats.findIndex((one) => one.name === name);
  const row = (name) => data.subarray(place(name) * steps.length, (place(name) + 1) * steps.length);
  const ratio = quotient(row("update"), row("weight"));
  const there = ({ values }) => values.some((value) => value !== -1);
  return {
    rows,
    norms: (theme) =>
      [
        { label: "before", values: row("before"), steps, colour: theme.before, width: 1.5 },
        { label: "after", values: row("after"), steps, colour: theme.after, width: 1.3 },
      ].filter(there),
    moves: (theme) => [{ label: "|Δw| / |w|", values: ratio, steps, colour: theme.update }].filter(there),
  };
}
