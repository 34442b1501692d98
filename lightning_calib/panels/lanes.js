// Panel 3: what happened when, one lane per kind; an empty lane says that it never did.

import { h, fit, panel } from "./dom.js";
import { KINDS, goTo } from "./kinds.js";

const LANE = 14;

export function createLanes(app) {
  const frame = panel(
    "lanes",
    "Events",
    "Clips and skipped steps are marked at the row that counts them, the rest at its step. Click a mark to go there.",
  );
  const canvas = h("canvas", { role: "img", "data-plot": "lanes" });
  frame.body.append(canvas);

  canvas.addEventListener("pick", (pick) => {
    const { event } = pick.detail;
    const box = canvas.getBoundingClientRect();
    const kind = KINDS[Math.floor((event.clientY - box.top) / LANE)];
    const x = event.clientX - box.left;
    const { at } = app.view;
    const near = marks(app, kind?.key).filter((one) => Math.abs(at.x(one.step) - x) < 6);
    near.sort((a, b) => Math.abs(at.x(a.step) - x) - Math.abs(at.x(b.step) - x));
    if (!near.length) return;
    pick.preventDefault();
    goTo(app, near[0]);
  });

  return {
    node: frame.node,
    draw({ at, theme }) {
      const context = fit(canvas, at.left + at.width + 16, KINDS.length * LANE + 2);
      context.font = theme.font;
      const counts = KINDS.map((kind, i) => lane(context, at, theme, kind, i, marks(app, kind.key)));
      const said = KINDS.map((kind, i) => `${kind.label} ${counts[i]}`).join(", ");
      canvas.setAttribute("aria-label", `Events over steps: ${said}.`);
      const events = app.model.events.filter((event) => event.kind !== "summary").length;
      frame.headline.textContent = events ? `${events} beside clipping` : "none beside clipping";
    },
  };
}

function lane(context, at, theme, kind, i, found) {
  const middle = i * LANE + LANE / 2;
  context.fillStyle = found.length ? theme.ink : theme.muted;
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillText(`${kind.label}  ${found.length.toLocaleString("en")}`, at.left - 7, middle);
  context.strokeStyle = theme.line;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(at.left, Math.round(middle) + 0.5);
  context.lineTo(at.left + at.width, Math.round(middle) + 0.5);
  context.stroke();
  context.fillStyle = kind.colour;
  for (const { step, end } of found) {
    if ((end ?? step) < at.from || step > at.to) continue;
    const x = Math.max(at.left, at.x(step));
    const right = Math.min(at.left + at.width, at.x(end ?? step));
    context.fillRect(x - 1.5, i * LANE + 2, Math.max(3, right - x + 3), LANE - 4);
  }
  return found.length;
}

/** Events of a kind; those of clipping come from the share of clipped steps. */
function marks(app, kind) {
  if (kind !== "clip") return app.model.events.filter((event) => event.kind === kind);
  const g = app.model.globals;
  if (!g?.clip_fraction) return [];
  return g.steps.flatMap((step, i) => (g.clip_fraction[i] > 0 ? [{ step, kind, layer: null }] : []));
}
