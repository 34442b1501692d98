// The tab as a whole: loads what the choices ask for, and has every panel draw what was loaded.

import { json } from "./api.js";
import { palette } from "./colours.js";
import { loadFrames, loadRun, createData } from "./data.js";
import { expose } from "./debug.js";
import { emptyPage } from "./empty.js";
import { createLayout } from "./layout.js";
import { followTheme, onReload } from "./host.js";
import { readLink, writeLink } from "./link.js";
import { createState } from "./state.js";
import { createSelection } from "./selection.js";

const LOADS = ["run", "optimizer", "stat", "compare"];

export async function start(body) {
  const app = { state: createState(readLink()), data: createData(), runs: [], model: null, dark: false, timings: {} };
  app.selection = createSelection(app);
  app.layout = createLayout(app);
  body.replaceChildren(app.layout.node);
  followTheme((dark) => {
    app.dark = dark;
    app.theme = palette();
    app.layout.draw();
  });
  app.state.listen((values, changed) => {
    if (changed.size === 1 && changed.has("hover")) return app.layout.hover();
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
    app.runs = (await json("runs")).runs;
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
  const { stat, compare } = app.state.values;
  app.layout.busy(true);
  try {
    const [model, other] = await Promise.all([loadRun(app.data, about, stat), loadOther(app, about, compare, stat)]);
    if (turn !== app.turn) return;
    app.model = { ...model, other };
    app.timings.fetch = performance.now() - began;
    app.layout.loaded(about);
    app.timings.load = performance.now() - began;
  } catch (error) {
    if (turn === app.turn) app.layout.failed(error);
  } finally {
    if (turn === app.turn) app.layout.busy(false);
  }
}

async function loadOther(app, about, run, stat) {
  const found = run && run !== about.run ? app.runs.find((one) => one.run === run) : null;
  const which = found?.optimizers.find((one) => one.optimizer === about.optimizer) ?? found?.optimizers[0];
  if (!which) return null;
  const other = { run, ...which };
  const [globals, frames] = await Promise.all([
    which.kinds.includes("globals") ? app.data.globals(run, which.optimizer) : null,
    which.kinds.includes("layers") ? loadFrames(app.data, other, stat) : null,
  ]);
  return { about: other, globals, frames };
}
