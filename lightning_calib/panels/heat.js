// Panel 4: every layer at every step as one picture.

import { quantiles } from "./codes.js";
import { scheme } from "./colours.js";
import { createControls } from "./controls.js";
import { h, panel } from "./dom.js";
import { plural, shorten } from "./format.js";
import { describe, createTip } from "./tip.js";
import { createLabels } from "./labels.js";
import { columns, paint } from "./paint.js";
import { colourBar } from "./colourbar.js";
import { statistic } from "./statistics.js";
import { stepAxis } from "./strip.js";

const AXIS = 24;
const HOW =
  "One row is one module or tensor, one column one logged step. A bright row is a loud layer, a bright column a bad " +
  "batch. Click to look closer, drag to zoom.";
const HOW_COMPARED =
  "This run as a multiple of the other, layer by layer: red is larger here, blue smaller, pale the same. " +
  "Click to look closer, drag to zoom.";

export function createHeat(app) {
  const frame = panel("heat", "Layer × step", HOW);
  const canvas = h("canvas", { "data-plot": "heat", "aria-hidden": "true" });
  const steps = h("canvas.steps", { "aria-hidden": "true" });
  const chosen = h("div.chosen", { hidden: true });
  const window_ = h("div.window");
  const spacer = h("div.spacer", {}, window_);
  const scroller = h("div.scroller", {}, spacer);
  const nothing = h("p.nothing", { hidden: true });
  const apart = h("p.apart", { role: "status", hidden: true });
  const tip = createTip();
  const labels = createLabels(app, { scrollTo, scroller });
  const controls = createControls(app);
  window_.append(labels.node, canvas, chosen);
  frame.tools.append(controls.node);
  frame.body.append(apart, scroller, nothing, steps);
  frame.node.append(controls.legend, tip.node);

  let shown = { rows: [], steps: [] }; // what was drawn last
  let [rowHeight, squeezed] = [16, null];

  /** Rows of the tree; squeezed to fit, without its headings. */
  function onShow(at) {
    const list = app.selection.list(at.from, at.to);
    if (!controls.squeezed()) return list;
    if (squeezed?.of !== list) squeezed = { ...list, of: list, rows: list.rows.filter((row) => !row.open) };
    return squeezed;
  }

  function measure(count) {
    const most = Math.max(260, Math.min(620, window.innerHeight - 190));
    const roomy = count <= 30 ? 20 : count <= 60 ? 16 : 14;
    rowHeight = controls.squeezed() ? Math.max(1, Math.min(roomy, Math.floor(most / Math.max(1, count)))) : roomy;
    return Math.min(most, count * rowHeight);
  }

  function draw({ heat: at, theme, dark, perEpoch }) {
    frame.node.hidden = !app.model.frames;
    if (frame.node.hidden) return;
    const began = performance.now();
    const list = onShow(at);
    const height = measure(list.rows.length);
    shown = { ...list, at, height, compared: Boolean(app.model.other?.frames) };
    shown.range = colourRange(list, at, shown.compared);
    shown.scheme = scheme(dark, shown.compared);
    scroller.style.height = `${height}px`;
    spacer.style.height = `${list.rows.length * rowHeight}px`;
    window_.style.height = `${height}px`;
    size(canvas, at.width, height);
    canvas.style.left = `${at.left}px`;
    if (app.scrollTo) scrollTo(list.rows.findIndex((row) => row.node === app.scrollTo));
    app.scrollTo = null;
    repaint();
    size(steps, at.left + at.width + 16, AXIS);
    const context = steps.getContext("2d");
    context.setTransform(ratio(), 0, 0, ratio(), 0, 0);
    stepAxis(context, at, 0, theme, perEpoch);
    say(list);
    controls.draw();
    colourBar(controls.legend, shown, statistic(app.model.frames.stat), app.model.other?.about.run);
    app.timings.heat = performance.now() - began;
  }

  function repaint() {
    const { rows, at } = shown;
    const began = performance.now();
    const first = Math.floor(scroller.scrollTop / rowHeight);
    const visible = rows.slice(first, first + Math.ceil(shown.height / rowHeight) + 1);
    paint(
      canvas,
      visible.map((row) => row.codes),
      {
        top: (first * rowHeight - scroller.scrollTop) * ratio(),
        rowHeight: rowHeight * ratio(),
        gap: rowHeight >= 8 ? Math.round(ratio()) : 0,
        pixels: columns(shown.steps, at.from, at.to, canvas.width),
        centred: shown.centred,
        range: shown.range,
        scheme: shown.scheme,
      },
    );
    labels.draw({
      rows,
      first,
      count: visible.length,
      rowHeight,
      left: at.left,
      flat: app.state.values.sort === "anomaly" || controls.squeezed(),
    });
    mark();
    app.timings.paint = performance.now() - began;
  }

  /** A frame around the row of the layer that is shown in detail. */
  function mark() {
    const place = app.state.values.layer ? shown.rows.findIndex((row) => row.node.path === app.state.values.layer) : -1;
    const top = place * rowHeight - scroller.scrollTop;
    chosen.hidden = place < 0 || top < -rowHeight || top > shown.height;
    Object.assign(chosen.style, {
      top: `${top}px`,
      height: `${Math.max(2, rowHeight - 1)}px`,
      left: `${shown.at.left}px`,
      width: `${shown.at.width}px`,
    });
  }

  function say({ rows, steps: logged }) {
    const heads = rows.filter((row) => row.open).length;
    const run = app.model.other?.frames ? ` in common with “${shorten(app.model.other.about.run, 60)}”` : "";
    const thinned = app.model.frames.before?.thinned ? ", thinned" : "";
    const all = app.model.frames.rows.length;
    const of = all > rows.length - heads ? ` for ${plural(all, "tensor")}` : "";
    const shape = `${plural(rows.length - heads, "row")}${of} × ${plural(logged.length, "logged step")}`;
    frame.how.textContent = shown.compared ? HOW_COMPARED : HOW;
    apart.textContent = app.model.apart;
    apart.hidden = !app.model.apart;
    frame.headline.textContent = `${shape}${thinned}${run}`;
    nothing.hidden = rows.length > 0 && logged.length > 0;
    nothing.textContent = rows.length ? "No step was logged." : "No layer fits the filter.";
  }

  function scrollTo(place) {
    if (place < 0) return;
    const top = place * rowHeight;
    const inView = top >= scroller.scrollTop && top + rowHeight <= scroller.scrollTop + shown.height;
    if (!inView) scroller.scrollTop = top - shown.height / 2;
  }

  function rowAt(event) {
    const y = event.clientY - scroller.getBoundingClientRect().top + scroller.scrollTop;
    return shown.rows[Math.floor(y / rowHeight)];
  }

  scroller.addEventListener("scroll", () => requestAnimationFrame(() => app.view && app.model?.frames && repaint()));
  canvas.addEventListener("pick", (pick) => {
    const row = rowAt(pick.detail.event);
    if (!row) return;
    pick.preventDefault();
    app.state.set({ layer: row.node.path, step: pick.detail.step });
  });
  canvas.addEventListener("pointermove", (event) => {
    const row = rowAt(event);
    const step = shown.at.step(event.clientX - canvas.getBoundingClientRect().left + shown.at.left);
    tip.show(event, frame.node, row && describe(app, shown, row, step));
  });
  canvas.addEventListener("pointerleave", tip.hide);

  return { node: frame.node, draw, shown: () => ({ ...shown, rowHeight, scrollTop: scroller.scrollTop }) };
}

const ratio = () => window.devicePixelRatio || 1;

function size(canvas, width, height) {
  canvas.width = Math.max(1, Math.round(width * ratio()));
  canvas.height = Math.max(1, Math.round(height * ratio()));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
}

let remembered = { key: null };

/** Ends of the colours: 1 % and 99.5 % of what is on show; around "no difference" for a comparison. */
function colourRange(list, at, compared) {
  if (remembered.list === list && remembered.from === at.from && remembered.to === at.to) return remembered.range;
  const first = Math.max(
    0,
    list.steps.findIndex((step) => step >= at.from),
  );
  const last = list.steps.findLastIndex((step) => step <= at.to) + 1;
  const codes = list.rows.filter((row) => !row.open).map((row) => row.codes);
  const found = quantiles(codes, first, last, compared ? [0.005, 0.995] : [0.01, 0.995]) ?? [-1, 1];
  const far = Math.max(0.05, Math.abs(found[0]), Math.abs(found[1]));
  const flat = found[1] - found[0] < 0.02 ? 0.1 : 0;
  const range = compared ? [-far, far] : [found[0] - flat, found[1] + flat];
  remembered = { list, from: at.from, to: at.to, range };
  return range;
}
