// Events as a table: newest first, a click goes to the layer and the step.

import { h, panel, replace } from "./dom.js";
import { plural, shorten } from "./format.js";
import { goTo, kindOf } from "./kinds.js";

const MOST = 200;

export function createAlerts(app) {
  const frame = panel(
    "alerts",
    "Alerts",
    "What GradientMonitor and NonFiniteGuard noticed, newest first. Click one to go to its layer and step.",
  );
  let drawn = null;

  const row = (event) => {
    const kind = kindOf(event.kind);
    const go = () => goTo(app, event);
    return h(
      "tr",
      {
        tabindex: "0",
        "aria-label": `${kind.label} at step ${event.step}: ${event.text}`,
        on: { click: go, keydown: (press) => press.key === "Enter" && go() },
      },
      h("td.step", { text: event.step.toLocaleString("en") }),
      h(
        "td",
        {},
        h(
          "span.kind",
          { style: { color: kind.colour } },
          h("span.shape", { text: kind.shape }),
          h("span.word", { text: kind.label }),
        ),
      ),
      h(
        "td.what",
        {},
        event.layer ? h("div.layer", { text: shorten(event.layer, 60), title: event.layer }) : null,
        h("div.text", { text: event.text, title: event.text }),
      ),
    );
  };

  return {
    node: frame.node,
    draw() {
      if (drawn === app.model.events) return;
      drawn = app.model.events;
      const found = drawn.filter((event) => event.kind !== "summary").reverse();
      frame.headline.textContent =
        found.length > MOST ? `newest ${MOST} of ${found.length.toLocaleString("en")}` : plural(found.length, "alert");
      if (!found.length) {
        replace(frame.body, h("p.nothing", { text: "None were logged." }));
        return;
      }
      const head = h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["step", "kind", "layer and what happened"].map((text) => h("th", { text, scope: "col" })),
        ),
      );
      replace(frame.body, h("div.scrolls", {}, h("table", {}, head, h("tbody", {}, found.slice(0, MOST).map(row)))));
    },
  };
}
