// Kinds of events: their words, colours and shapes; and how to go where one happened.

export const KINDS = [
  { key: "clip", label: "clip", colour: "#e07b00", shape: "▬" },
  { key: "nonfinite", label: "non-finite", colour: "#e012b4", shape: "✱" },
  { key: "skip", label: "skipped step", colour: "#9b7bd0", shape: "✕" },
  { key: "spike", label: "spike", colour: "#e0503f", shape: "▲" },
  { key: "rewind", label: "rewind", colour: "#2f7fd8", shape: "↶" },
  { key: "dead", label: "dead", colour: "#858c99", shape: "○" },
  { key: "rate", label: "rate change", colour: "#1f8a70", shape: "◇" },
];

export const kindOf = (key) =>
  KINDS.find((kind) => kind.key === key) ?? { key, label: key, colour: "#858c99", shape: "■" };

/** Show the layer and the step of an event; a zoom that hides the step is given up. */
export function goTo(app, { step, layer }) {
  const patch = { step };
  const { zoom } = app.state.values;
  if (zoom && (step < zoom[0] || step > zoom[1])) patch.zoom = null;
  if (layer) Object.assign(patch, choose(app, layer));
  app.state.set(patch);
}

/** What to set so that a layer is shown: a filter that hides it is cleared, and the modules above it are opened. */
export function choose(app, layer) {
  const node = app.selection.find(layer);
  if (!node) return {};
  app.selection.reveal(node);
  const { filter } = app.state.values;
  const hidden = filter && !app.selection.list(app.view.at.from, app.view.at.to).rows.some((row) => row.node === node);
  app.scrollTo = node;
  return hidden ? { layer: node.path, filter: "" } : { layer: node.path };
}
