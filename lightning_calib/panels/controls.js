// What the heat-map can be asked: statistic, order, filter, how far modules are open.

import { h } from "./dom.js";
import { STATISTICS } from "./statistics.js";

export function createControls(app) {
  const { values } = app.state;
  let squeezed = false;
  const pick = (label, title, options, name) =>
    h(
      "label",
      { title },
      h("span", { text: label }),
      h(
        "select",
        { "data-choice": name, on: { change: (event) => app.state.set({ [name]: event.target.value }) } },
        options.map(([value, text]) => h("option", { value, text })),
      ),
    );
  const stat = pick(
    "show",
    "What the colours mean",
    STATISTICS.map((one) => [one.key, one.label]),
    "stat",
  );
  const sort = pick(
    "order",
    "Anomaly: how differently a layer behaves from the others over the visible steps",
    [
      ["model", "model"],
      ["anomaly", "anomaly"],
    ],
    "sort",
  );
  const filter = h("input", {
    type: "search",
    placeholder: "filter: attn or *.weight",
    "aria-label": "Filter layers by a part of the name, or by a pattern with * and ?",
    "data-choice": "filter",
    on: { input: (event) => app.state.set({ filter: event.target.value }) },
  });
  const level = (by, text, title) =>
    h("button", {
      type: "button",
      text,
      title,
      "aria-label": title,
      "data-do": by > 0 ? "deeper" : "shallower",
      on: { click: () => app.selection.setLevel(app.selection.level() + by) },
    });
  const fewer = level(-1, "−", "Close modules by one level");
  const more = level(1, "+", "Open modules by one level");
  const fitted = h("button", {
    type: "button",
    text: "fit",
    title: "All rows at once",
    "aria-pressed": "false",
    "data-do": "fit",
    on: {
      click: () => {
        squeezed = !squeezed;
        fitted.setAttribute("aria-pressed", String(squeezed));
        app.layout.draw();
      },
    },
  });
  const depth = h(
    "span.depth",
    { role: "group", "aria-label": "Depth of modules" },
    h("span", { text: "depth" }),
    fewer,
    more,
    fitted,
  );
  return {
    node: h("div.controls", {}, stat, sort, filter, depth),
    legend: h("div.colourbar", { "aria-label": "Colours" }),
    squeezed: () => squeezed,
    draw() {
      stat.lastChild.value = values.stat;
      sort.lastChild.value = values.sort;
      if (document.activeElement !== filter) filter.value = values.filter;
      fewer.disabled = app.selection.level() <= 0;
      more.disabled = app.selection.level() >= app.selection.deepest();
    },
  };
}
