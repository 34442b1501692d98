// The tab as a whole: loads what the choices ask for, and has every panel draw what was loaded.

import { palette } from "./colours.js";
import { loadFrames, loadRun, createData } from "./data.js";
import { expose } from "./debug.js";
import { emptyPage } from "./empty.js";
import { createLayout } from "./layout.js";
import { shorten } from "./format.js";
import { followTheme, onReload } from "./host.js";
import { readLink, writeLink } from "./link.js";
import { createState } from "./state.js";
import { createSelection } from "./selection.js";

const LOADS = ["run", "optimizer", "stat", "compare", "third"];

/** `data` answers what the panels ask: the server's, unless another has it. */
export async function start(body, data = createData()) {
  const app = {
    state: createState(readLink()),
    data,
    runs: [],
    about: null, // the run and optimizer that were asked for
    model: null, // what of them is loaded
    report: null,
    dark: false,
    timings: {},
  };
  app.selection = createSelection(app);
  app.layout = createLayout(app);
  body.replaceChildren(app.layout.node);
  followTheme((dark) => {
    app.dark = dark;
    app.theme = palette();
    app.layout.draw();
  });
  app.state.listen((values, changed) => {
    if (changed.size === 1 && changed.has("hover")) {
      app.layout.hover();
      return;
    }
    writeLink(values);
    if (LOADS.some((name) => changed.has(name))) load(app);
    else app.layout.draw();
  });
  new ResizeObserver(() => app.layout.draw()).observe(app.layout.node);
  onReload(() => reload(app));
  expose(app);
  await reload(app);
}

async function reload(app) {
  app.data.forget();
  try {
    app.runs = await app.data.runs();
  } catch (error) {
    app.layout.failed(error);
    return;
  }
  if (!app.runs.some((one) => one.optimizers.length)) {
    app.model = null;
    app.layout.empty(emptyPage(app.runs.flatMap((one) => one.problems ?? [])));
    return;
  }
  await load(app);
}

/** The run and optimizer that the choices mean; those of the first run when the link names one that is gone. */
function chosen(app) {
  const { run, optimizer } = app.state.values;
  const readable = app.runs.filter((one) => one.optimizers.length);
  const about = readable.find((one) => one.run === run) ?? readable[0];
  const which = about.optimizers.find((one) => one.optimizer === optimizer) ?? about.optimizers[0];
  return {
    run: about.run,
    problems: about.problems ?? [],
    gone: run !== null && about.run !== run ? run : null,
    ...which,
  };
}

async function load(app) {
  const began = performance.now();
  const turn = (app.turn = (app.turn ?? 0) + 1);
  const about = chosen(app);
  const { stat, compare, third } = app.state.values;
  app.layout.busy(true);
  app.about = about;
  loadReport(app, about.run);
  try {
    const asked = [compare, third].filter((run, i, all) => run && run !== about.run && all.indexOf(run) === i);
    const [model, ...others] = await Promise.all([
      loadRun(app.data, about, stat),
      ...asked.map((run, i) => loadOther(app, about, run, i === 0 ? stat : null)),
    ]);
    if (turn !== app.turn) return;
    const there = others.filter(Boolean);
    const { other, apart } = compared(about, model.frames, there[0]);
    app.model = { ...model, others: there, other, apart };
    app.timings.fetch = performance.now() - began;
    app.layout.loaded(about);
    app.timings.load = performance.now() - began;
    app.timings.everything ??= performance.now();
  } catch (error) {
    if (turn === app.turn) app.layout.failed(error);
  } finally {
    if (turn === app.turn) app.layout.busy(false);
  }
}

/** What the report says comes when it comes: neither waits for the other, the verdict or the pictures. */
async function loadReport(app, run) {
  const began = performance.now();
  if (app.report?.run !== run) app.report = null;
  const found = await app.data
    .report(run)
    .catch((error) => ({ failed: error.message, severity: "none", findings: [] }));
  if (chosen(app).run !== run) return;
  app.report = { ...found, run };
  app.timings.report = performance.now() - began;
  app.layout.judge();
  app.timings.verdict ??= performance.now(); // since the page began
  app.layout.draw();
}

/** The run whose layers are compared, or why there is none. */
function compared(about, mine, other) {
  if (!other?.frames || !mine) return { other: null, apart: "" };
  const names = new Set(other.frames.rows);
  const steps = new Set(other.frames.steps);
  const pair = `“${shorten(about.run, 60)}” and “${shorten(other.about.run, 60)}”`;
  const alone = "The picture shows the first alone.";
  if (!mine.rows.some((name) => names.has(name)))
    return { other: null, apart: `${pair} have no layer in common. ${alone}` };
  if (!mine.steps.some((step) => steps.has(step)))
    return { other: null, apart: `${pair} logged no step in common. ${alone}` };
  return { other, apart: "" };
}

/** Another run; its layers only with a statistic. */
async function loadOther(app, about, run, stat) {
  const found = app.runs.find((one) => one.run === run);
  const which = found?.optimizers.find((one) => one.optimizer === about.optimizer) ?? found?.optimizers[0];
  if (!which) return null;
  const other = { run, ...which };
  const [globals, frames] = await Promise.all([
    which.kinds.includes("globals") ? app.data.globals(run, which.optimizer) : null,
    stat && which.kinds.includes("layers") ? loadFrames(app.data, other, stat) : null,
  ]);
  return { about: other, globals, frames };
}
