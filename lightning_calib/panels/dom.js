// Elements from names, properties and children. Text only ever becomes a text node: names of layers and runs are
// chosen by users and may look like markup.

const ATTRIBUTES = new Set(["for", "role", "tabindex", "scope"]);

/** h("button.primary", {text, on: {click}, "aria-label": ...}, ...children) */
export function h(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [kind, call] of Object.entries(value)) node.addEventListener(kind, call);
    else if (name === "style") Object.assign(node.style, value);
    else if (name.includes("-") || ATTRIBUTES.has(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function replace(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
}

let count = 0;

/** A panel: title, a headline beside it, a place for tools or a legend, and the sentence that says how to read it. */
export function panel(name, title, how) {
  const id = `calib-${name}-${count++}`;
  const headline = h("span.headline");
  const tools = h("div.tools");
  const body = h("div.body");
  const sentence = h("p.how", { text: how });
  const heading = h("h2", { id, text: title });
  const node = h(
    `section.panel.${name}`,
    { "aria-labelledby": id },
    h("header", {}, heading, headline, tools),
    how ? sentence : null,
    body,
  );
  return { node, heading, headline, tools, how: sentence, body };
}

/** A canvas of the given size in CSS pixels, sharp on dense screens; returns its context, scaled. */
export function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [w, hgt] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== hgt) canvas.height = hgt;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
