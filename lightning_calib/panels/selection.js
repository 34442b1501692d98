// Which rows the heat-map shows, with their codes: tree, filter, order, comparison. Nothing here touches the page.

import { ABSENT, encodeRatio } from "./codes.js";
import { anomalies, codes, statistic } from "./statistics.js";
import { build, depth, find, isOpen, listing, matching, nodes, startingDepth } from "./tree.js";

export function createSelection(app) {
  let [frames, other, made] = [null, null, null];
  const toggled = new Set();
  let version = 0;

  /** The tree and the steps of the run that is shown; rebuilt when other data were loaded. */
  function current() {
    const model = app.model;
    if (!model?.frames) return null;
    if (model.frames === frames && model.other?.frames === other) return made;
    const same = frames && made && String(frames.rows) === String(model.frames.rows);
    [frames, other] = [model.frames, model.other?.frames ?? null];
    const root = same ? made.root : build(frames.rows, frames.owners);
    made = { root, fits: same ? made.fits : startingDepth(root), known: new Map(), ...overlap(frames, other) };
    version++;
    return made;
  }

  const level = () => app.state.values.depth ?? made.fits;

  /** Codes of a node; with a comparison, of its ratio to the other run. */
  function codesOf(node) {
    if (!made.known.has(node)) made.known.set(node, encoded(frames, other, made, node));
    return made.known.get(node);
  }

  let [memo, key] = [null, ""];
  /** {rows: [{node, open, codes}], steps, centred}: what is on show; an open module has a row of its own, too. */
  function list(from, to) {
    if (!current()) return { rows: [], steps: [] };
    const { filter, sort } = app.state.values;
    const now = JSON.stringify([version, filter, sort, level(), sort === "anomaly" ? [from, to] : 0]);
    if (now === key) return memo;
    key = now;
    const matches = matching(made.root, filter);
    let rows = listing(made.root, level(), toggled, matches);
    if (sort === "anomaly")
      rows = byAnomaly(
        rows.filter((row) => !row.open),
        from,
        to,
      );
    for (const row of rows) row.codes = codesOf(row.node);
    memo = { rows, steps: made.steps, centred: other !== null || statistic(frames.stat).centred };
    return memo;
  }

  function byAnomaly(rows, from, to) {
    const { first, last } = span(from, to);
    const found = anomalies(
      rows.map((row) => codesOf(row.node)),
      first,
      last,
    );
    return rows.map((row, i) => ({ ...row, why: found[i] })).sort((a, b) => b.why.score - a.why.score);
  }

  function span(from, to) {
    const { steps } = made;
    const first = steps.findIndex((step) => step >= from);
    const last = steps.findLastIndex((step) => step <= to) + 1;
    return first < 0 ? { first: 0, last: 0 } : { first, last: Math.max(first, last) };
  }

  return {
    current,
    list,
    span,
    codesOf,
    level,
    version: () => version,
    deepest: () => (current() ? depth(made.root) : 0),
    leaves: () => (current() ? Array.from(nodes(made.root)).filter((node) => node.leaf) : []),
    find: (path) => (current() ? find(made.root, path) : null),
    toggle(node) {
      if (!node.children.length) return;
      if (!toggled.delete(node.path)) toggled.add(node.path);
      version++;
    },
    setLevel(value) {
      toggled.clear();
      version++;
      app.state.set({ depth: Math.max(0, Math.min(depth(made.root), value)) });
    },
    /** Open all modules above a node. */
    reveal(node) {
      for (let up = node.parent; up && up.path; up = up.parent) if (!isOpen(up, level(), toggled)) this.toggle(up);
    },
  };
}

/** Steps that both runs logged, where they lie in each, and the rows of the other run by name. */
function overlap(frames, other) {
  if (!other) return { steps: frames.steps };
  const places = new Map(other.steps.map((step, i) => [step, i]));
  const mine = frames.steps.map((step, i) => [step, i]).filter(([step]) => places.has(step));
  return {
    steps: mine.map(([step]) => step),
    here: mine.map(([, i]) => i),
    there: mine.map(([step]) => places.get(step)),
    rowOf: new Map(other.rows.map((name, row) => [name, row])),
  };
}

function encoded(frames, other, made, node) {
  const chosen = statistic(frames.stat);
  const mine = codes(frames, chosen, node.rows);
  if (!other) return mine;
  const rows = node.rows.map((row) => made.rowOf.get(frames.rows[row])).filter((row) => row !== undefined);
  const pick = (all, places) => Float32Array.from(places, (i) => all[i]);
  if (rows.length !== node.rows.length) return new Float32Array(made.steps.length).fill(ABSENT);
  return encodeRatio(pick(mine, made.here), pick(codes(other, chosen, rows), made.there));
}
