// What the user chose. One object; whoever listens is told once per frame which of its fields changed.

export const CHOICES = {
  run: null, // name of the run
  optimizer: null, // its number in the run
  compare: null, // a second run: its lines, and of the layers the ratios
  third: null, // a third run: its lines
  stat: "before",
  sort: "model", // or "anomaly"
  filter: "",
  depth: null, // how deep modules are open; null: as fits
  layer: "", // path of the module or tensor that is shown in detail; "" is the whole model
  step: null, // where the crosshair was pinned
  zoom: null, // [first step, last step] or null
  finding: "", // the finding that is open
  axes: "", // names of the charts whose axis was changed from how it was drawn, with dots between them
  smooth: 0, // weight of what came before in smoothed lines, below 1; 0: not smoothed
  shadows: "", // names of the shadows whose thresholds are drawn, with line breaks between them
  epochs: "", // "yes": the axis of steps counts epochs
};

export function createState(initial) {
  const values = { ...CHOICES, hover: null, ...initial };
  const listeners = [];
  let changed = new Set();
  const flush = () => {
    const now = changed;
    changed = new Set();
    for (const listener of listeners) listener(values, now);
  };
  return {
    values,
    listen: (listener) => listeners.push(listener),
    set(patch) {
      const waiting = changed.size > 0;
      for (const [name, value] of Object.entries(patch))
        if (JSON.stringify(values[name]) !== JSON.stringify(value)) {
          values[name] = value;
          changed.add(name);
        }
      if (!waiting && changed.size) requestAnimationFrame(flush);
    },
  };
}
