// The monitor's own sentences on the run so far.

import { h, panel, replace } from "./dom.js";

export function createSummary(app) {
  const frame = panel("summary", "In words");
  return {
    node: frame.node,
    draw() {
      const found = app.model.events.filter((event) => event.kind === "summary").at(-1);
      frame.headline.textContent = found ? `at step ${found.step.toLocaleString("en")}` : "";
      const text =
        found?.text ?? "Nothing yet: GradientMonitor sums up after epoch 1, 2, 4, 8, … and at the end of training.";
      replace(frame.body, h(`p${found ? "" : ".how"}`, { text }));
    },
  };
}
