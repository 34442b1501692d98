// What the heat-map's colours mean.

import { fit, h, replace } from "./dom.js";
import { factor, power } from "./format.js";

const WIDTH = 190;

/** `shown`: {range, scheme, compared}. */
export function colourBar(place, { range, scheme, compared }, chosen, otherRun) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const context = fit(canvas, WIDTH, 10);
  for (let x = 0; x < WIDTH; x++) {
    context.fillStyle = scheme.css(Math.round((x / (WIDTH - 1)) * 255));
    context.fillRect(x, 0, 1.5, 10);
  }
  const write = compared ? factor : power;
  const special = [
    ["nan", "NaN or Inf"],
    ["zero", "exactly zero"],
    ["absent", "not logged"],
  ];
  replace(
    place,
    h("span.unit", { text: compared ? `${chosen.label}, as a multiple of “${otherRun}”` : chosen.unit }),
    h("span.scale", {}, h("span.end", { text: write(range[0]) }), canvas, h("span.end", { text: write(range[1]) })),
    special.map(([name, text]) =>
      h("span.item", {}, h("span.key.block", { style: { color: scheme.special[name] } }), text),
    ),
  );
}
