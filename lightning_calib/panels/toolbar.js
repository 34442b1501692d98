// Run, optimizer, comparison; back to all steps; export.

import { download } from "./csv.js";
import { h, replace } from "./dom.js";
import { readStep } from "./stack.js";

export function createToolbar(app) {
  const select = (name, label, read = String) => {
    const box = h("select", {
      "data-choice": name,
      on: { change: () => app.state.set({ [name]: read(box.value), ...after(name) }) },
    });
    return { box, node: h("label", {}, h("span", { text: label }), box) };
  };
  const after = (name) => (name === "run" ? { optimizer: null } : {});
  const run = select("run", "run");
  const optimizer = select("optimizer", "optimizer", Number);
  const compare = select("compare", "compare with", (value) => (value === "" ? null : value));
  const reset = h("button", {
    type: "button",
    text: "all steps",
    title: "Undo the zoom (double click or Escape)",
    "data-do": "reset",
    on: { click: () => app.state.set({ zoom: null }) },
  });
  const save = h("button", {
    type: "button",
    text: "export CSV",
    title: "Rows and steps that are on show, with their values",
    "data-do": "csv",
    on: { click: () => download(app) },
  });
  const status = h("span.status", { role: "status" });

  /** Options, each with its own value: a run may be called "" or anything else. */
  const fill = ({ box }, options, value) => {
    replace(
      box,
      options.map(([key, text]) => h("option", { value: key, text, title: text })),
    );
    box.value = value;
  };

  return {
    node: h(
      "div.toolbar",
      { role: "group", "aria-label": "What is shown" },
      run.node,
      optimizer.node,
      compare.node,
      reset,
      save,
      status,
    ),
    /** Another run or optimizer is shown: the one that `about` describes. */
    loaded(about) {
      const mine = app.runs.find((one) => one.run === about.run);
      fill(
        run,
        app.runs.map((one) => [one.run, one.run]),
        about.run,
      );
      fill(
        optimizer,
        mine.optimizers.map((one) => [one.optimizer, `${one.optimizer}: ${one.name}`]),
        about.optimizer,
      );
      optimizer.node.hidden = mine.optimizers.length < 2;
      const others = app.runs.filter((one) => one.run !== about.run).map((one) => [one.run, one.run]);
      fill(compare, [["", "nothing"], ...others], app.model.other?.about.run ?? "");
      compare.node.hidden = !others.length;
      save.disabled = !app.model.frames;
    },
    draw: () => (reset.disabled = app.state.values.zoom === null),
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
