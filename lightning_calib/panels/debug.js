// What the tab shows, for tests and for bug reports: window.__calib, read-only.

import { table } from "./csv.js";
import { word } from "./tip.js";

export function expose(app) {
  const rows = () => (app.view ? app.selection.list(app.view.at.from, app.view.at.to) : { rows: [], steps: [] });
  const debug = {
    get choices() {
      return { ...app.state.values };
    },
    get rows() {
      return rows().rows.map(({ node, open }) => ({ path: node.path, open, leaf: node.leaf }));
    },
    get steps() {
      return Array.from(rows().steps);
    },
    get timings() {
      return { ...app.timings };
    },
    get axis() {
      const { left, width, from, to } = app.view.heat;
      return { left, width, from, to };
    },
    get ready() {
      return Boolean(app.model && app.view);
    },
    /** What a cell means, in words. */
    cell(path, step) {
      const { rows: all, steps } = rows();
      const row = all.find((one) => one.node.path === path);
      return row?.codes ? word(row.codes[steps.indexOf(step)], Boolean(app.model.other)) : null;
    },
    csv: () => table(app),
    /** Where a row lies in its canvas, in CSS pixels: {top, height}; null while it is scrolled out of view. */
    place(path) {
      const { rows: all, rowHeight, scrollTop, height } = app.layout.heat();
      const top = all.findIndex((one) => one.node.path === path) * rowHeight - scrollTop;
      return top < 0 || top + rowHeight > height ? null : { top, height: rowHeight };
    },
  };
  Object.defineProperty(window, "__calib", { value: Object.freeze(debug), configurable: true });
}
