// Names of lines with their colours, and their values at the crosshair; signs with their words.

import { h, replace } from "./dom.js";
import { measured, shorten } from "./format.js";
import { valueAt } from "./strip.js";

const LONGEST = 100; // characters of a label; the whole is in its title

/** items: [{label, colour, dash, values, steps, signed, block, shape}] */
export function legend(place, step, items) {
  replace(
    place,
    items.map((item) =>
      h(
        "span.item",
        { title: item.title ?? (item.label.length > LONGEST ? item.label : undefined) },
        item.shape
          ? h("span.shape", { style: { color: item.colour }, text: item.shape, "aria-hidden": "true" })
          : h(`span.key${item.block ? ".block" : ""}${stroke(item.dash)}`, { style: { color: item.colour } }),
        h("span.label", { text: shorten(item.label, LONGEST) }),
        item.values ? h("b", { text: measured(valueAt(item, step), item.signed) }) : null,
      ),
    ),
  );
}

const stroke = (dash) => (dash?.length ? (dash[0] > 2 ? ".dashed" : ".dotted") : "");
