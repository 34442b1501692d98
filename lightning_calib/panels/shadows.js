// Policies that were judged on every step and never applied: what each would have done, and its threshold as a line.

import { counted } from "./counts.js";
import { h, panel, replace } from "./dom.js";
import { number, plural, shorten } from "./format.js";

const COLOURS = ["update", "lr", "third", "second", "ink", "accent"]; // of the theme
const DASHES = [[7, 3], [2, 3], [10, 3, 2, 3]]; // for each round of the colours

/** Those of the optimizer on show; none before there is a report of the run on show. */
export function shadowsOf(app) {
  const { run, optimizer } = app.model.about;
  if (app.report?.run !== run) return [];
  return (app.report.shadow ?? []).filter((one) => one.optimizer === optimizer);
}

/** Names of those whose lines are on, as the address has them. */
const names = (app) => app.state.values.shadows.split("\n").filter(Boolean);

/** Turn the lines of some on or off; those of another run or optimizer stay as they are. */
function turn(app, shadows, on) {
  const mine = shadows.map((one) => one.name);
  const others = names(app).filter((name) => !mine.includes(name));
  app.state.set({ shadows: [...others, ...(on ? mine : [])].join("\n") });
}

const look = (i, theme) => ({
  colour: theme[COLOURS[i % COLOURS.length]],
  dash: DASHES[Math.floor(i / COLOURS.length) % DASHES.length],
});

/** The lines that are on, for the chart of norms. */
export function thresholds(app, theme) {
  const on = new Set(names(app));
  return shadowsOf(app).flatMap((one, i) => {
    if (!on.has(one.name)) return [];
    const { step: steps, threshold } = one.course;
    const values = Float32Array.from(threshold, (value) => value ?? -1);
    return [{ label: `${one.name}, not applied`, values, steps, width: 1.3, ...look(i, theme) }];
  });
}

/** Beside the chart: all lines on, or all off. */
export function createShadowSwitch(app) {
  const node = h("button.axis", {
    type: "button",
    "data-do": "shadows",
    title: "Thresholds of policies that were judged and never applied: all on, or all off",
    on: {
      click: () => {
        const shadows = shadowsOf(app);
        const on = new Set(names(app));
        turn(app, shadows, !shadows.some((one) => on.has(one.name)));
      },
    },
  });
  return {
    node,
    draw() {
      const shadows = shadowsOf(app);
      const on = new Set(names(app));
      node.hidden = !shadows.length;
      node.textContent = plural(shadows.length, "shadow");
      node.setAttribute("aria-pressed", String(shadows.some((one) => on.has(one.name))));
    },
  };
}

const share = (value) => (value === null ? "–" : `${Number((100 * value).toPrecision(3))} %`);

const COLUMNS = [
  ["clips", "Share of the steps with a gradient on which it would have reduced it", (one) => share(one.clip_rate)],
  ["factor", "Mean of what the gradient would have been multiplied by", (one) => number(one.mean_factor)],
  ["threshold", "Norm above which it would reduce the gradient now", (one) => number(one.threshold)],
  ["left", "Mean share of the gradient's norm that would have been left", (one) => share(one.kept)],
  ["agrees", "Share of the steps on which it and who really clips agree", (one) => share(one.agreement)],
];

export function createShadows(app) {
  const frame = panel(
    "shadows",
    "What others would have done",
    "Judged on every step, never applied. To first order: had one of them acted, the norms after it would have been " +
      "others. A tick draws its threshold above the norms.",
  );
  let drawn = null;

  const row = (one, i, on) =>
    h(
      "tbody",
      { "data-shadow": one.name },
      h(
        "tr",
        {},
        h(
          "th",
          { colSpan: COLUMNS.length, scope: "rowgroup" },
          h(
            "label",
            { title: one.name },
            h("input", {
              type: "checkbox",
              checked: on,
              on: { change: (event) => turn(app, [one], event.target.checked) },
            }),
            h("span.key.dashed", { style: { color: look(i, app.theme).colour } }),
            h("span.layer", { text: shorten(one.name, 120) }),
          ),
          one.scope === "global" ? null : h("span.scope", { text: `by ${one.scope}` }),
        ),
      ),
      h(
        "tr",
        {},
        COLUMNS.map(([, , text]) => h("td", { text: text(one) })),
      ),
    );

  const heads = () => COLUMNS.map(([text, title]) => h("th", { text, title, scope: "col" }));
  const table = (shadows, on) =>
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, heads())),
      shadows.map((one, i) => row(one, i, on.has(one.name))),
    );

  return {
    node: frame.node,
    draw() {
      const shadows = shadowsOf(app);
      frame.node.hidden = !shadows.length;
      if (!shadows.length) return;
      const on = new Set(names(app));
      const now = [app.report, app.model.about.optimizer, app.theme];
      if (drawn?.every((one, i) => one === now[i])) {
        const boxes = frame.body.querySelectorAll("input");
        shadows.forEach((one, i) => (boxes[i].checked = on.has(one.name))); // the focus stays where it is
        return;
      }
      drawn = now;
      const all = counted(app)?.shadows ?? shadows.length;
      frame.headline.textContent = all > shadows.length ? `first ${shadows.length} of ${all.toLocaleString("en")}` : "";
      replace(frame.body, h("div.scrolls", {}, table(shadows, on)));
    },
  };
}
