// A report that is one file: the same panels over the answers that the page itself holds.

import { start } from "./app.js";
import { createData } from "./data.js";
import { h } from "./dom.js";
import { fold } from "./statistics.js";

/** Without a row the words that stand in the page are all there is. */
export async function open() {
  const held = JSON.parse(document.getElementById("calib-held").textContent);
  if (!held.runs.some((one) => one.optimizers.length)) return;
  await start(document.body, createData(answers(held.runs)));
  document.body.append(h("footer.held", { text: held.about }));
}

const refusal = (text, status) => Object.assign(new Error(text), { status });

/** What a server would answer. */
function answers(runs) {
  const mine = ({ run, optimizer }) =>
    runs.find((one) => one.run === run)?.optimizers.find((one) => one.about.optimizer === optimizer);
  const words = {
    runs: () => ({
      runs: runs.map(({ run, started, report, optimizers }) => ({
        run,
        started,
        optimizers: optimizers.map((one) => one.about),
        problems: report?.problems ?? [],
      })),
    }),
    report: ({ run }) => runs.find((one) => one.run === run).report,
    events: (query) => ({ events: mine(query).events, problems: [] }),
  };
  const frames = { globals: (query) => totals(mine(query)), layers, node, hist };

  async function layers({ stat, ...query }) {
    const { values, stats, ...header } = mine(query).layers;
    const known = stats.find((one) => one.name === stat);
    if (!known) throw refusal(`This run has no “${stat}”.`, 400);
    return { ...header, fold: known.fold, data: await numbers(values[stat], header.rows.length * header.steps.length) };
  }

  async function node({ path, ...query }) {
    const { rows, owners, stats, steps, thinned } = mine(query).layers;
    const inside = (name) => name === path || name.startsWith(`${path}.`);
    const places = rows.map((_, i) => i).filter((i) => !path || inside(rows[i]) || inside(owners[i]));
    if (!places.length) throw refusal("There is no such layer.", 404);
    const data = new Float32Array(stats.length * steps.length);
    for (const [i, { name }] of stats.entries())
      data.set(fold(await layers({ stat: name, ...query }), places), i * steps.length);
    return { path, rows: places.map((i) => rows[i]), stats, steps, thinned, data };
  }

  return {
    json: async (route, query) => words[route](query),
    frame: async (route, query) => frames[route](query),
  };
}

async function hist() {
  throw refusal("Distributions are left out of this file. The tab in TensorBoard has them, if they were logged.", 404);
}

async function totals({ globals: { names, steps, columns } }) {
  const byColumn = await numbers(columns, names.length * steps.length);
  const data = byColumn.map((_, i) => byColumn[(i % names.length) * steps.length + Math.floor(i / names.length)]);
  return { names, steps, data };
}

/** Numbers from their text: deflated, all first bytes before all second ones. */
async function numbers(text, size) {
  if (!size) return new Float32Array(0);
  if (!globalThis.DecompressionStream)
    throw refusal("This browser is too old to unpack the numbers of this page (DecompressionStream).", 400);
  const deflated = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const unpacked = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(unpacked).arrayBuffer());
  const bits = new Uint32Array(size);
  for (let plane = 0; plane * size < bytes.length; plane++)
    for (let i = 0; i < size; i++) bits[i] |= bytes[plane * size + i] << (24 - 8 * plane);
  return new Float32Array(bits.buffer);
}
