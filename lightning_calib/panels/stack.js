// The left column: crosshair, drag to zoom, and the keys that do the same.

import { nearest } from "./axis.js";
import { h } from "./dom.js";

const MARGIN = 16; // right of the plots; a scroll bar fits in

const GUTTER = 54; // left of a chart, for the numbers of its axis
const WIDE = new Set(["heat", "lanes"]); // plots that have names on their left

/** Which of the two step axes of a view a plot has. */
const axisOf = (plot, view) => (WIDE.has(plot) ? view.heat : view.at);

export function createStack(app, panels) {
  const node = h("div.stack", { tabindex: "0", role: "group" }, panels);
  const lines = panels.map((panel) => {
    const [pin, cross, range] = ["cross.pin", "cross", "range"].map((name) => h(`div.${name}`, { hidden: true }));
    const body = panel.querySelector(".body");
    body.append(pin, cross, range);
    return { plot: panel.querySelector("[data-plot]").dataset.plot, pin, cross, range };
  });
  node.setAttribute(
    "aria-label",
    "Charts over steps. Left and right move the crosshair, with Shift by ten rows; plus and minus zoom; " +
      "Escape shows all steps.",
  );
  let drag = null;

  const inner = () => node.querySelector(".lanes .body").getBoundingClientRect();
  const plotX = (event) => event.clientX - inner().left;
  /** The step axis under the pointer; null beside the plots. */
  const onPlot = (event) => {
    const plot = app.view && under(event)?.dataset.plot;
    if (!plot) return null;
    const at = axisOf(plot, app.view);
    const x = plotX(event);
    return x >= at.left && x <= at.left + at.width ? at : null;
  };
  const snap = (at, event) => {
    const steps = loggedSteps(app);
    const i = nearest(steps, at.step(within(at, event)));
    return i < 0 ? null : steps[i];
  };
  const within = (at, event) => Math.max(at.left, Math.min(at.left + at.width, plotX(event)));

  node.addEventListener("pointermove", (event) => {
    if (!app.view) return;
    const at = drag?.at ?? onPlot(event);
    if (drag) {
      drag.to = within(at, event);
      const ends = [drag.x, drag.to].map(at.step);
      for (const { plot, range } of lines) stretch(range, axisOf(plot, app.view), Math.min(...ends), Math.max(...ends));
    }
    app.state.set({ hover: at ? snap(at, event) : null });
  });
  node.addEventListener("pointerleave", () => app.state.set({ hover: null }));
  node.addEventListener("pointerdown", (event) => {
    const at = event.button === 0 && onPlot(event);
    if (!at) return;
    drag = { at, x: plotX(event), to: plotX(event) };
    node.setPointerCapture?.(event.pointerId);
  });
  node.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { at, x, to } = drag;
    drag = null;
    for (const { range } of lines) range.hidden = true;
    if (Math.abs(to - x) > 5) zoomTo(app, at.step(Math.min(x, to)), at.step(Math.max(x, to)));
    else picked(app, event, snap(at, event));
  });
  node.addEventListener("dblclick", (event) => onPlot(event) && app.state.set({ zoom: null }));
  node.addEventListener("keydown", (event) => {
    if (event.target.closest("input,select,button")) return;
    if (stepKey(app, event)) event.preventDefault();
  });

  const place = (which, step, view) => {
    for (const { plot, [which]: line } of lines) {
      const at = axisOf(plot, view);
      line.hidden = step === null || step < at.from || step > at.to;
      if (!line.hidden) line.style.transform = `translateX(${at.x(step)}px)`;
    }
  };
  return {
    node,
    /** [left, width] of the charts, and of the layers, whose names need more room. */
    measure() {
      const width = inner().width;
      const names = width < 560 ? 112 : width < 760 ? 150 : 208;
      return [GUTTER, names].map((left) => [left, Math.max(80, width - left - MARGIN)]);
    },
    draw: (view) => place("pin", app.state.values.step, view),
    hover: (view) => place("cross", app.state.values.hover, view),
  };
}

/** The plot below the pointer; an event's own target is the whole column once a drag has begun. */
const under = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-plot]");

/** A click: whatever lies under it may take it (a row, an event); otherwise the crosshair is pinned there. */
function picked(app, event, step) {
  const target = under(event);
  const taken =
    target && target.dispatchEvent(new CustomEvent("pick", { cancelable: true, detail: { event, step } })) === false;
  if (!taken) app.state.set({ step: app.state.values.step === step ? null : step });
}

function stretch(range, at, from, to) {
  range.hidden = false;
  range.style.left = `${at.x(from)}px`;
  range.style.width = `${at.x(to) - at.x(from)}px`;
}

export const loggedSteps = (app) => app.model?.globals?.steps ?? app.model?.frames?.steps ?? [];

/** Zoom to whole steps, at least one logged distance wide. */
export function zoomTo(app, from, to) {
  const [first, last] = app.view.all;
  const ends = [Math.max(first, Math.floor(from)), Math.min(last, Math.ceil(to))];
  if (ends[1] - ends[0] < 2) return;
  app.state.set({ zoom: ends[0] <= first && ends[1] >= last ? null : ends });
}

/** What a key does to the step axis; whether it did anything. */
export function stepKey(app, event) {
  const { values } = app.state;
  const steps = loggedSteps(app);
  const { at } = app.view ?? {};
  if (!at || !steps.length || event.ctrlKey || event.metaKey || event.altKey) return false;
  const here = values.step ?? Math.min(at.to, steps.at(-1));
  const move = (by) => {
    const i = Math.max(0, Math.min(steps.length - 1, nearest(steps, here) + by));
    app.state.set({ step: steps[i] });
  };
  const zoom = (by) => zoomTo(app, here - (here - at.from) * by, here + (at.to - here) * by);
  const far = event.shiftKey ? 10 : 1;
  const keys = {
    ArrowLeft: () => move(-far),
    ArrowRight: () => move(far),
    Home: () => app.state.set({ step: steps[0] }),
    End: () => app.state.set({ step: steps.at(-1) }),
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(2),
    Escape: () => app.state.set({ zoom: null, step: null }),
  };
  if (!(event.key in keys)) return false;
  keys[event.key]();
  return true;
}

/** The step that read-outs speak of: under the pointer, else pinned, else the last on show. */
export function readStep(app) {
  const { hover, step } = app.state.values;
  if (hover !== null || step !== null) return hover ?? step;
  const steps = loggedSteps(app);
  const i = nearest(steps, app.view.at.to);
  return i < 0 ? null : steps[i];
}
