// The runs: newest first, with search, when each began and how it went; which is shown, and which lie over it.

import { h, replace } from "./dom.js";
import { clock, plural, shorten } from "./format.js";
import { sign } from "./severity.js";
import { matcher } from "./tree.js";

const MOST = 100; // rows; the search finds the others
const OVERLAID = 2; // beside the run that is shown

/** What the choices become when a run is laid over the one that is shown, or taken away. */
export function overlaid({ compare, third }, run) {
  const now = [compare, third].filter((one) => one !== null);
  const next = now.includes(run) ? now.filter((one) => one !== run) : [...now, run].slice(-OVERLAID);
  return { compare: next[0] ?? null, third: next[1] ?? null };
}

export function createRunList(app) {
  const verdicts = new Map(); // of runs: their severity, or "none"
  let [open, turn] = [false, 0];
  const button = h("button.runs-button", {
    type: "button",
    "data-choice": "run",
    "aria-haspopup": "dialog",
    on: { click: () => show(!open) },
  });
  const search = h("input", {
    type: "search",
    placeholder: "search runs",
    "aria-label": "Search runs by a part of the name, or by a pattern with * and ?",
    "data-choice": "runs",
    on: { input: () => list() },
  });
  const said = h("span.headline", { role: "status" });
  const rows = h("div.run-rows", { role: "list" });
  const box = h("div.run-list", { role: "dialog", "aria-label": "Runs", hidden: true }, search, said, rows);
  const chips = h("span.overlays");
  const node = h("div.runs", {}, button, chips, box);

  node.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && open) {
      event.stopPropagation();
      show(false);
      button.focus();
    }
    const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!open || !way) return;
    const all = [search, ...rows.querySelectorAll(".run-name")];
    const here = all.indexOf(document.activeElement);
    all[Math.max(0, Math.min(all.length - 1, here + way))].focus();
    event.preventDefault();
  });
  document.addEventListener("pointerdown", (event) => open && !node.contains(event.target) && show(false));

  function show(yes) {
    open = yes;
    box.hidden = !yes;
    button.setAttribute("aria-expanded", String(yes));
    if (!yes) return;
    list();
    search.focus();
    judge();
  }

  const found = () => {
    const fits = matcher(search.value.trim());
    return app.runs.filter((one) => fits(one.run));
  };

  function list() {
    if (!open) return;
    const all = found();
    const count = plural(app.runs.length, "run");
    said.textContent =
      all.length > MOST
        ? `newest ${MOST} of ${all.length.toLocaleString("en")} that fit, of ${count}`
        : all.length < app.runs.length
          ? `${all.length} of ${count}`
          : `${count}, newest first`;
    const where = rows.contains(document.activeElement) ? document.activeElement.dataset.run : null;
    replace(rows, all.slice(0, MOST).map(row));
    if (where) [...rows.querySelectorAll(".run-name")].find((one) => one.dataset.run === where)?.focus();
  }

  function row({ run, started, optimizers }) {
    const { compare, third } = app.state.values;
    const shown = run === app.model?.about.run;
    const over = [compare, third].includes(run);
    const verdict = verdicts.get(run);
    return h(
      `div.run-row${shown ? ".shown" : ""}`,
      { role: "listitem" },
      h(
        "button.run-name",
        {
          type: "button",
          title: run,
          "data-run": run,
          "aria-current": shown ? "true" : undefined,
          disabled: !optimizers.length,
          on: { click: () => choose(run) },
        },
        verdict && verdict !== "none" ? sign(verdict) : h("span.sign", { text: "·", "aria-hidden": "true" }),
        h("span.text", { text: shorten(run, 60) }),
        h("span.when", { text: started ? clock(started) : "" }),
      ),
      h(
        "label.over",
        { title: "Lay over the run that is shown: up to three together" },
        h("input", {
          type: "checkbox",
          checked: over,
          disabled: shown || !optimizers.length,
          "aria-label": `Lay ${shorten(run, 60)} over the run that is shown`,
          on: { change: () => app.state.set(overlaid(app.state.values, run)) },
        }),
        "over",
      ),
    );
  }

  function choose(run) {
    const { compare, third } = app.state.values;
    const rest = [compare, third].filter((one) => one !== null && one !== run);
    app.state.set({ run, optimizer: null, finding: "", compare: rest[0] ?? null, third: rest[1] ?? null });
    show(false);
    button.focus();
  }

  /** Ask for the verdicts of the runs that are listed, one after the other. */
  async function judge() {
    const mine = ++turn;
    for (const { run } of found().slice(0, MOST)) {
      if (!open || mine !== turn) return;
      const told = await app.data.report(run).catch(() => ({ severity: "none" }));
      if (verdicts.get(run) === told.severity) continue;
      verdicts.set(run, told.severity);
      list();
    }
  }

  const chip = (run, k) =>
    h(
      "button.overlay",
      {
        type: "button",
        title: `Take ${run} away`,
        "data-over": run,
        on: { click: () => app.state.set(overlaid(app.state.values, run)) },
      },
      h("span.key", { style: { color: app.theme[k === 0 ? "second" : "third"] } }),
      `${shorten(run, 24)} ×`,
    );

  return {
    node,
    draw() {
      const { about, others } = app.model;
      if (app.report?.run === about.run) verdicts.set(about.run, app.report.severity);
      const lead = verdicts.get(about.run);
      replace(
        button,
        lead && lead !== "none" ? sign(lead) : null,
        h("span.text", { text: shorten(about.run, 32) }),
        h("span", { text: ` ▾ ${plural(app.runs.length, "run")}`, "aria-hidden": "true" }),
      );
      button.title = `${about.run}: choose another run, or lay runs over it`;
      replace(
        chips,
        others.map((one, k) => chip(one.about.run, k)),
      );
      list();
    },
  };
}
