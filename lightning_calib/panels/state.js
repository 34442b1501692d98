// What the user chose. One object; whoever listens is told once per frame which of its fields changed.

export const CHOICES = {
  run: null, // name of the run
  optimizer: null, // its number in the run
  compare: null, // a second run, of which ratios are shown
  stat: "before",
  sort: "model", // or "anomaly"
  filter: "",
  depth: null, // how deep modules are open; null: as fits
  layer: "", // path of the module or tensor that is shown in detail; "" is the whole model
  step: null, // where the crosshair was pinned
  zoom: null, // [first step, last step] or null
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
