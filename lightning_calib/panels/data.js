// What was loaded. Answers are kept until TensorBoard reloads; a new answer replaces the old one only when it is there,
// so that a reload never shows an empty page.

import { frame, json } from "./api.js";
import { statistic } from "./statistics.js";

/** `server` has `json` and `frame`, which answer to a route and a query. */
export function createData(server = { json, frame }) {
  let answers = new Map();
  const once = (key, ask) => {
    if (!answers.has(key)) {
      const answer = ask();
      answers.set(key, answer);
      answer.catch(() => answers.delete(key));
    }
    return answers.get(key);
  };
  const ask = (read, route, query) => once(JSON.stringify([route, query]), () => server[read](route, query));
  return {
    forget: () => (answers = new Map()),
    runs: async () => (await ask("json", "runs", {})).runs,
    report: (run) => ask("json", "report", { run }),
    globals: async (run, optimizer) => named(await ask("frame", "globals", { run, optimizer })),
    events: (run, optimizer) => ask("json", "events", { run, optimizer }),
    layers: (run, optimizer, stat) => ask("frame", "layers", { run, optimizer, stat }),
    node: (run, optimizer, path) => ask("frame", "node", { run, optimizer, path }),
    hist: (run, optimizer, path) => ask("frame", "hist", { run, optimizer, path }),
  };
}

/** Columns by name: {steps, grad_norm_before: Float32Array, ...}. */
function named({ names, steps, data }) {
  const columns = { steps };
  names.forEach((name, k) => {
    columns[name] = Float32Array.from(steps, (_, i) => data[i * names.length + k]);
  });
  return columns;
}

/** Everything that the left column shows of one run; `problems` says what of it cannot be read. */
export async function loadRun(data, about, stat) {
  const has = (kind) => about.kinds.includes(kind);
  const ask = [about.run, about.optimizer];
  const problems = [];
  const readable = (answer, otherwise) =>
    answer.catch((error) => {
      if (error.status !== 400) throw error;
      problems.push(error.message);
      return otherwise;
    });
  const [globals, happened, frames] = await Promise.all([
    has("globals") ? readable(data.globals(...ask), null) : null,
    readable(data.events(...ask), { events: [], problems: [] }), // the run's summary may stand at another optimizer
    has("layers") ? readable(loadFrames(data, about, stat), null) : null,
  ]);
  return { about, globals, events: happened.events, frames, problems: [...problems, ...happened.problems] };
}

/** Frames of the parts of a statistic, and what they share. */
export async function loadFrames(data, about, stat) {
  const parts = statistic(stat).parts;
  const loaded = await Promise.all(parts.map((part) => data.layers(about.run, about.optimizer, part)));
  const { rows, owners, dims, estimated, steps } = loaded[0];
  return {
    rows,
    owners,
    dims,
    estimated,
    steps,
    stat,
    ...Object.fromEntries(parts.map((part, k) => [part, loaded[k]])),
  };
}
