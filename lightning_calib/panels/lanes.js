// What happened when, one lane per kind; an empty lane says that it never did.

import { many, places } from "./counts.js";
import { fit, h, panel } from "./dom.js";
import { plural } from "./format.js";
import { KINDS, goTo } from "./kinds.js";

const LANE = 16;

export function createLanes(app) {
  const frame = panel(
    "lanes",
    "Events",
    "Clipped, non-finite and skipped steps are counted between two rows, and marked there: the paler, the fewer. " +
      "The rest is marked at its step. Click a mark to go there.",
  );
  const canvas = h("canvas", { role: "img", "data-plot": "lanes" });
  frame.body.append(canvas);

  canvas.addEventListener("pick", (pick) => {
    const { event } = pick.detail;
    const box = canvas.getBoundingClientRect();
    const kind = KINDS[Math.floor((event.clientY - box.top) / LANE)];
    const x = event.clientX - box.left;
    const { heat: at } = app.view;
    const far = ({ step, from }) => Math.max(0, at.x(from ?? step) - x, x - at.x(step));
    const near = kind ? marks(app, kind.key).filter((one) => far(one) < 6) : [];
    near.sort((a, b) => far(a) - far(b) || Number(Boolean(b.text)) - Number(Boolean(a.text)));
    if (!near.length) return;
    pick.preventDefault();
    goTo(app, near[0]);
  });

  return {
    node: frame.node,
    draw({ heat: at, theme }) {
      const context = fit(canvas, at.left + at.width + 16, KINDS.length * LANE + 2);
      context.font = theme.font;
      const counts = KINDS.map((kind) => `${kind.label}: ${many(app, kind.key)}`);
      KINDS.forEach((kind, i) => lane(context, at, theme, kind, i, marks(app, kind.key), counts[i]));
      canvas.setAttribute("aria-label", `Events over steps: ${KINDS.map((_, i) => counts[i]).join(", ")}.`);
      const events = app.model.events.filter((event) => event.kind !== "summary").length;
      frame.headline.textContent = `${plural(events, "alert")}, and what the rows count`;
    },
  };
}

function lane(context, at, theme, kind, i, found, said) {
  const middle = i * LANE + LANE / 2;
  context.fillStyle = found.length ? theme.ink : theme.muted;
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillText(said, at.left - 7, middle, at.left - 10);
  context.strokeStyle = theme.line;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(at.left, Math.round(middle) + 0.5);
  context.lineTo(at.left + at.width, Math.round(middle) + 0.5);
  context.stroke();
  context.fillStyle = kind.colour;
  for (const { step, from, share } of found) {
    if (step < at.from || (from ?? step) > at.to) continue;
    const x = Math.max(at.left, at.x(from ?? step));
    const right = Math.min(at.left + at.width, at.x(step));
    context.globalAlpha = share === undefined ? 1 : 0.35 + 0.65 * share;
    context.fillRect(x - 1.5, i * LANE + 2, Math.max(3, right - x + 3), LANE - 4);
  }
  context.globalAlpha = 1;
}

/** Where something of a kind happened: stretches of rows that count it, and events. */
function marks(app, kind) {
  const events = app.model.events.filter((event) => event.kind === kind);
  return [...places(app, kind).map((one) => ({ ...one, kind, layer: null })), ...events];
}
