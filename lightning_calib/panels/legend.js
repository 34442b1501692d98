// Names of lines with their colours, and their values at the crosshair.

import { h, replace } from "./dom.js";
import { measured } from "./format.js";
import { valueAt } from "./strip.js";

/** items: [{label, colour, dash, values, steps, swatch}] */
export function legend(place, step, items) {
  replace(
    place,
    items.map((item) =>
      h(
        "span.item",
        { title: item.title },
        h(`span.key${item.block ? ".block" : ""}${item.dash ? (item.dash[0] > 2 ? ".dashed" : ".dotted") : ""}`, {
          style: { color: item.colour },
        }),
        h("span.label", { text: item.label }),
        item.values ? h("b", { text: measured(valueAt(item, step)) }) : null,
      ),
    ),
  );
}
