// The left column: crosshair, drag to zoom, and the keys that do the same.

import { nearest } from "./axis.js";
import { h } from "./dom.js";

const MARGIN = 16; // right of the plots; a scroll bar fits in

export function createStack(app, panels) {
  const cross = h("div.cross", { hidden: true });
  const pin = h("div.cross.pin", { hidden: true });
  const range = h("div.range", { hidden: true });
  const node = h("div.stack", { tabindex: "0", role: "group" }, panels, pin, cross, range);
  node.setAttribute(
    "aria-label",
    "Charts over steps. Left and right move the crosshair, with Shift by ten rows; plus and minus zoom; " +
      "Escape shows all steps.",
  );
  let drag = null;

  const inner = () => node.querySelector(".lanes .body").getBoundingClientRect();
  const offset = () => inner().left - node.getBoundingClientRect().left;
  const plotX = (event) => event.clientX - inner().left;
  const inside = (x) => app.view && x >= app.view.at.left && x <= app.view.at.left + app.view.at.width;
  const onPlot = (event) => under(event) && inside(plotX(event));
  const snap = (x) => {
    const steps = loggedSteps(app);
    const i = nearest(steps, app.view.at.step(x));
    return i < 0 ? null : steps[i];
  };

  node.addEventListener("pointermove", (event) => {
    if (!app.view) return;
    const x = Math.max(app.view.at.left, Math.min(app.view.at.left + app.view.at.width, plotX(event)));
    if (drag) stretch(range, offset(), drag.x, (drag.to = x));
    app.state.set({ hover: drag || onPlot(event) ? snap(x) : null });
  });
  node.addEventListener("pointerleave", () => app.state.set({ hover: null }));
  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !onPlot(event)) return;
    drag = { x: plotX(event), to: plotX(event) };
    node.setPointerCapture?.(event.pointerId);
  });
  node.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { x, to } = drag;
    drag = null;
    range.hidden = true;
    if (Math.abs(to - x) > 5) zoomTo(app, app.view.at.step(Math.min(x, to)), app.view.at.step(Math.max(x, to)));
    else picked(app, event, snap(x));
  });
  node.addEventListener("dblclick", (event) => onPlot(event) && app.state.set({ zoom: null }));
  node.addEventListener("keydown", (event) => {
    if (event.target.closest("input,select,button")) return;
    if (stepKey(app, event)) event.preventDefault();
  });

  const place = (line, step, { at }) => {
    line.hidden = step === null || step < at.from || step > at.to;
    if (!line.hidden) line.style.transform = `translateX(${offset() + at.x(step)}px)`;
  };
  return {
    node,
    measure() {
      const width = inner().width;
      const left = width < 560 ? 112 : width < 760 ? 150 : 208;
      return [left, Math.max(80, width - left - MARGIN)];
    },
    draw: (view) => place(pin, app.state.values.step, view),
    hover: (view) => place(cross, app.state.values.hover, view),
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

function stretch(range, shift, from, to) {
  range.hidden = false;
  range.style.left = `${shift + Math.min(from, to)}px`;
  range.style.width = `${Math.abs(to - from)}px`;
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
