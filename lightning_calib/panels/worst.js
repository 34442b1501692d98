// The layers that behave least like the others, over the visible steps.

import { h, panel, replace } from "./dom.js";
import { number, plural, shorten } from "./format.js";
import { goTo } from "./kinds.js";
import { anomalies, statistic } from "./statistics.js";

const MOST = 8;

export function createWorst(app) {
  const frame = panel(
    "worst",
    "Unusual layers",
    "Tensors whose course differs most from what the others share, over the visible steps. Click one to go there.",
  );
  let key = "";

  const row = ({ node, why }) => {
    const { steps } = app.selection.current();
    const go = () => goTo(app, { step: steps[why.at], layer: node.path });
    return h(
      "tr",
      { tabindex: "0", on: { click: go, keydown: (press) => press.key === "Enter" && go() } },
      h(
        "td.what",
        {},
        h("div.layer", { text: shorten(node.path, 40), title: node.path }),
        h("div", { text: reason(why, steps) }),
      ),
    );
  };

  let timer = null;
  return {
    node: frame.node,
    /** Looks at every value, so it lets the pictures go first. */
    draw({ at }) {
      frame.node.hidden = !app.selection.current();
      const now = JSON.stringify([app.selection.version(), at.from, at.to]);
      if (frame.node.hidden || now === key) return;
      key = now;
      clearTimeout(timer);
      timer = setTimeout(() => look(at), 60);
    },
  };

  function look(at) {
    if (!app.selection.current()) return;
    const { first, last } = app.selection.span(at.from, at.to);
    const leaves = app.selection.leaves();
    const found = anomalies(
      leaves.map((node) => app.selection.codesOf(node)),
      first,
      last,
    );
    const worst = leaves.map((node, i) => ({ node, why: found[i] })).filter(({ why }) => why.score > 0.6);
    worst.sort((a, b) => b.why.score - a.why.score);
    frame.headline.textContent = `by ${statistic(app.model.frames.stat).label}`;
    if (!worst.length) replace(frame.body, h("p.nothing", { text: "None: all layers move together." }));
    else replace(frame.body, h("table", {}, h("tbody", {}, worst.slice(0, MOST).map(row))));
  }
}

function reason({ bad, dead, far, high, at }, steps) {
  if (bad) return `NaN or Inf in ${plural(bad, "row")}, first at step ${steps[at].toLocaleString("en")}`;
  if (dead) return "exactly zero throughout: it does not learn";
  const times = number(Number((10 ** far).toPrecision(2)));
  return `${times} times ${high ? "above" : "below"} its usual at step ${steps[at].toLocaleString("en")}`;
}
