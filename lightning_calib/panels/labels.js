// Names of the heat-map's rows: a tree that the keyboard can walk. Only the rows in view exist.

import { h, replace } from "./dom.js";
import { shorten } from "./format.js";
import { stepKey } from "./stack.js";

/** A number alone says little: "layers.3" instead of "3". */
const named = ({ label, parent }) => (/^\d+$/.test(label) && parent?.label ? `${parent.label}.${label}` : label);

export function createLabels(app, { scrollTo, scroller }) {
  const node = h("div.labels", {
    role: "treegrid",
    tabindex: "0",
    "aria-label": "Layers. Up and down choose a row, Enter looks closer, right and left open and close.",
  });
  let active = null; // the node that the keyboard is on
  let drawn = { rows: [] };

  function draw(next) {
    drawn = next;
    const { rows, first, count, rowHeight, left } = next;
    node.style.width = `${left}px`;
    node.setAttribute("aria-rowcount", rows.length);
    const every = Math.ceil(12 / rowHeight);
    const made = [];
    for (let i = first; i < Math.min(rows.length, first + count); i++)
      if (i % every === 0 || rows[i].node.path === app.state.values.layer) made.push(label(rows[i], i));
    replace(node, made);
    const focused = node.querySelector(".active");
    if (focused) node.setAttribute("aria-activedescendant", focused.id);
    else node.removeAttribute("aria-activedescendant");
  }

  function label(row, i) {
    const { rowHeight, left, flat } = drawn;
    const { node: one, open } = row;
    const folder = one.children.length > 0;
    const { group } = row;
    const chosen = one.path === app.state.values.layer;
    const indent = flat ? 0 : Math.min(group ? group.depth : one.depth, 8) * 10;
    const bare = !folder;
    const room = Math.floor((left - indent - (bare ? 12 : 26)) / 6.1);
    const text = flat ? one.path : group ? `${named(group)}.${one.label}` : named(one);
    const parts = folder && !open ? ` ${one.rows.length}` : "";
    return h(
      ["div.row", chosen && "selected", one === active && "active", open && "open"].filter(Boolean).join("."),
      {
        id: `calib-row-${i}`,
        role: "row",
        title: group ? `${one.path}\nDouble click closes ${group.path}` : one.path,
        "aria-level": flat ? 1 : one.depth + 1,
        "aria-rowindex": i + 1,
        "aria-expanded": folder ? String(open) : undefined,
        "aria-selected": String(chosen),
        "data-path": one.path,
        style: {
          top: `${i * rowHeight - scroller.scrollTop}px`,
          height: `${Math.max(12, rowHeight)}px`,
          lineHeight: `${Math.max(12, rowHeight)}px`,
          paddingLeft: `${indent + 4}px`,
          fontSize: rowHeight < 14 ? "10px" : "",
        },
      },
      bare ? null : h("span.twist", { text: folder ? (open ? "▾" : "▸") : "", "aria-hidden": "true" }),
      h("span.name", { role: "gridcell", text: shorten(text, Math.max(8, room - parts.length)) }),
      parts ? h("span.count", { text: parts, title: `${one.rows.length} tensors` }) : null,
    );
  }

  const place = () => drawn.rows.findIndex((row) => row.node === active);
  const toggle = (row) => {
    active = row.group ?? row.node;
    app.selection.toggle(active);
    app.layout.draw();
  };

  function go(i) {
    const row = drawn.rows[Math.max(0, Math.min(drawn.rows.length - 1, i))];
    if (!row) return;
    active = row.node;
    scrollTo(drawn.rows.indexOf(row));
    draw({ ...drawn, first: Math.floor(scroller.scrollTop / drawn.rowHeight) });
  }

  node.addEventListener("click", (event) => {
    const element = event.target.closest(".row");
    const row = element && drawn.rows.find((one) => one.node.path === element.dataset.path);
    if (!row) return;
    active = row.node;
    if (event.target.closest(".twist")) toggle(row);
    else app.state.set({ layer: row.node.path });
  });
  node.addEventListener("dblclick", (event) => {
    const row = drawn.rows.find((one) => one.node === active);
    if (row && (row.group || active.children.length) && !event.target.closest(".twist")) toggle(row);
  });
  // A mouse gives focus too, and then a new list would take the row away from under the click.
  node.addEventListener("focus", () => place() < 0 && node.matches(":focus-visible") && go(0));
  node.addEventListener("keydown", (event) => {
    const i = place();
    const row = drawn.rows[i];
    const page = Math.max(1, drawn.count - 2);
    const keys = {
      ArrowDown: () => go(i + 1),
      ArrowUp: () => go(i - 1),
      PageDown: () => go(i + page),
      PageUp: () => go(Math.max(0, i - page)),
      Home: () => go(0),
      End: () => go(drawn.rows.length - 1),
      ArrowRight: () => row && (row.open ? go(i + 1) : row.node.children.length && toggle(row)),
      ArrowLeft: () =>
        row && (row.open || row.group ? toggle(row) : go(drawn.rows.findIndex((one) => one.node === row.node.parent))),
      Enter: () => row && enter(row),
      " ": () => row && row.node.children.length && toggle(row),
    };
    event.stopPropagation();
    if (event.key in keys && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      keys[event.key]();
    } else if (stepKey(app, event)) event.preventDefault();
  });

  function enter(row) {
    app.state.set({ layer: row.node.path });
    if (row.node.children.length && !row.open) toggle(row);
  }

  return { node, draw };
}
