// The heat-map's visible rows and steps as a table, with values and not their logarithms.

import { ABSENT, NAN, ZERO } from "./codes.js";
import { save } from "./save.js";

export function table(app) {
  const { at } = app.view;
  const { rows, steps } = app.selection.list(at.from, at.to);
  const { first, last } = app.selection.span(at.from, at.to);
  const base = app.model.other?.frames ? 2 : 10;
  const head = ["layer", ...steps.slice(first, last)];
  const body = rows
    .filter((row) => !row.open)
    .map(({ node, codes }) => [
      cell(node.path),
      ...Array.from(codes.subarray(first, last), (code) => value(code, base)),
    ]);
  return [head, ...body].map((line) => `${line.join(",")}\r\n`).join("");
}

function value(code, base) {
  if (code === NAN) return "nan";
  if (code === ZERO) return "0";
  return code === ABSENT ? "" : String(Number((base ** code).toPrecision(6)));
}

/** A name, quoted; one that a spreadsheet would take for a formula is made plain text. */
const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;

export const download = (app) =>
  save(app, new Blob([table(app)], { type: "text/csv" }), app.state.values.stat, "csv");
