// Runs, optimizer, how lines are drawn; back to all steps; export.

import { download } from "./csv.js";
import { h, replace } from "./dom.js";
import { createRunList } from "./runlist.js";
import { readStep } from "./stack.js";

const SMOOTH = [
  ["0", "off"],
  ["0.6", "0.6"],
  ["0.9", "0.9"],
  ["0.98", "0.98"],
];

export function createToolbar(app) {
  const runs = createRunList(app);
  const select = (name, label, options, read) => {
    const box = h(
      "select",
      { "data-choice": name, on: { change: () => app.state.set({ [name]: read(box.value) }) } },
      options.map(([value, text]) => h("option", { value, text })),
    );
    return { box, node: h("label", {}, h("span", { text: label }), box) };
  };
  const button = (name, text, title, click) =>
    h("button", { type: "button", text, title, "data-do": name, on: { click } });
  const optimizer = select("optimizer", "optimizer", [], Number);
  const smooth = select("smooth", "smoothing", SMOOTH, Number);
  const epochs = select(
    "epochs",
    "x",
    [
      ["", "steps"],
      ["yes", "epochs"],
    ],
    String,
  );
  const reset = button("reset", "all steps", "Undo the zoom (double click or Escape)", () =>
    app.state.set({ zoom: null }),
  );
  const save = button("csv", "export CSV", "Rows and steps that are on show, with their values", () => download(app));
  const saves = h("span.saves", {}, save);
  const explain = button("explain", "?", "How to read each panel", () => app.layout.explain());
  const status = h("span.status", { role: "status" });

  return {
    node: h(
      "div.toolbar",
      { role: "group", "aria-label": "What is shown" },
      runs.node,
      optimizer.node,
      smooth.node,
      epochs.node,
      reset,
      saves,
      explain,
      status,
    ),
    saves,
    explained: (yes) => explain.setAttribute("aria-pressed", String(yes)),
    /** Another run or optimizer is shown: the one that `about` describes. */
    loaded(about) {
      const mine = app.runs.find((one) => one.run === about.run);
      replace(
        optimizer.box,
        mine.optimizers.map((one) => h("option", { value: one.optimizer, text: `${one.optimizer}: ${one.name}` })),
      );
      optimizer.box.value = about.optimizer;
      optimizer.node.hidden = mine.optimizers.length < 2;
      save.disabled = !app.model.frames;
    },
    draw() {
      const { zoom, smooth: weight, epochs: wanted } = app.state.values;
      reset.disabled = zoom === null;
      smooth.box.value = String(weight);
      epochs.box.value = wanted;
      epochs.node.hidden = !app.report?.steps_per_epoch;
      runs.draw();
    },
    hover() {
      const { zoom } = app.state.values;
      const { at } = app.view;
      const span = `steps ${at.from.toLocaleString("en")}–${at.to.toLocaleString("en")}`;
      const read = readStep(app);
      const { name } = app.model.about;
      const parts = [
        name,
        `${span}${zoom ? " (zoomed)" : ""}`,
        read === null ? "" : `values at step ${read.toLocaleString("en")}`,
      ];
      status.textContent = parts.filter(Boolean).join(" · ");
    },
  };
}
