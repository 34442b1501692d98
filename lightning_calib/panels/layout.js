// The frame of the page: toolbar, left column with the shared step axis, right column; who draws when.

import { axis } from "./axis.js";
import { createAlerts } from "./alerts.js";
import { createDrill } from "./drill.js";
import { h, replace } from "./dom.js";
import { shorten } from "./format.js";
import { createHeat } from "./heat.js";
import { createLanes } from "./lanes.js";
import { createLoss } from "./loss.js";
import { createNorms } from "./norms.js";
import { pngButton } from "./png.js";
import { createLossScale, createRates, createUpdates } from "./rates.js";
import { createShadows } from "./shadows.js";
import { createStack } from "./stack.js";
import { createSummary } from "./summary.js";
import { createToolbar } from "./toolbar.js";
import { createVerdict } from "./verdict.js";
import { createWorst } from "./worst.js";

const TALL = 860; // pixels of window from which on the sentences that say how to read a panel have room

export function createLayout(app) {
  const toolbar = createToolbar(app);
  const verdict = createVerdict(app);
  const notice = h("div.notice", { role: "alert", hidden: true });
  const heat = createHeat(app);
  const charts = [createRates(app), createUpdates(app), createLossScale(app)];
  const left = [createLoss(app), createNorms(app), heat, createLanes(app), ...charts];
  const right = [createDrill(app), createShadows(app), createAlerts(app), createWorst(app), createSummary(app)];
  const stack = createStack(
    app,
    left.map((panel) => panel.node),
  );
  const main = h(
    "main",
    {},
    stack.node,
    h(
      "aside",
      { "aria-label": "Details" },
      right.map((panel) => panel.node),
    ),
  );
  const page = h("div.page", {}, toolbar.node, notice, verdict.node, main);
  const panels = [verdict, ...left, ...right];
  for (const { node } of [...left, ...right]) {
    const [, name] = node.classList;
    node.querySelector(".tools").append(
      pngButton(app, { name, text: "PNG", title: `Save as a PNG: ${node.querySelector("h2").textContent}`, node }),
    );
  }
  toolbar.saves.append(pngButton(app, { name: "all", text: "PNG", title: "Save the whole page as a PNG", node: page }));
  let explained = window.innerHeight >= TALL;
  const explain = (yes) => {
    explained = yes;
    page.classList.toggle("brief", !yes);
    toolbar.explained(yes);
  };
  explain(explained);

  /** The step axis: from the zoom, else from everything that was logged or happened, sorted by step. */
  function view() {
    const { model } = app;
    const happened = model.events.filter((event) => event.kind !== "summary").map((event) => event.step);
    const ends = [model.globals?.steps, model.frames?.steps, happened].filter((steps) => steps?.length);
    const all = ends.length ? [Math.min(...ends.map((s) => s[0])), Math.max(...ends.map((s) => s.at(-1)))] : [0, 1];
    const [from, to] = app.state.values.zoom ?? all;
    const [at, wide] = stack.measure().map((place) => axis(...place, from, to > from ? to : from + 1));
    const perEpoch = (app.state.values.epochs && app.report?.steps_per_epoch) || null;
    return { at, heat: wide, all, perEpoch, theme: app.theme, dark: app.dark };
  }

  function draw() {
    if (!page.isConnected || !window.innerHeight) return;
    if (app.model) drawAll();
    else verdict.draw();
  }

  function drawAll() {
    const began = performance.now();
    app.view = view();
    for (const panel of panels) panel.draw(app.view);
    stack.draw(app.view);
    toolbar.draw();
    hover();
    app.timings.draw = performance.now() - began;
  }

  function hover() {
    if (!app.view) return;
    stack.hover(app.view);
    toolbar.hover();
    for (const panel of panels) panel.hover?.(app.view);
  }

  /** The panels again, where there was nothing to show before. */
  function enter() {
    if (!main.isConnected) replace(page, toolbar.node, notice, verdict.node, main);
  }

  function show(text) {
    notice.hidden = !text;
    notice.textContent = text;
  }

  return {
    node: page,
    heat: heat.shown,
    explain() {
      explain(!explained);
      draw();
    },
    draw,
    hover,
    /** The verdict alone, which needs none of the pictures. */
    judge() {
      enter();
      verdict.draw();
    },
    busy: (yes) => page.setAttribute("aria-busy", String(yes)),
    loaded(about) {
      enter();
      const called = (run) => `“${shorten(run, 100)}”`;
      const gone =
        about.gone === null ? [] : [`There is no run ${called(about.gone)} here. This is ${called(about.run)}.`];
      show([...gone, ...about.problems, ...app.model.problems].join(" "));
      const node = app.state.values.layer ? app.selection.find(app.state.values.layer) : null;
      if (node) app.selection.reveal(node);
      toolbar.loaded(about);
      draw();
    },
    say: show,
    failed: (error) => show(`Could not load the gradients. ${error.message}`),
    empty: (node) => replace(page, node),
  };
}
