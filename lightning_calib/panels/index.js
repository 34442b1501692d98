// What TensorBoard calls when the tab is opened.

import { start } from "./app.js";
import { h } from "./dom.js";

export async function render() {
  const styled = Promise.all(["style", "panels", "heat", "details", "verdict"].map(styleSheet));
  document.documentElement.lang = "en";
  document.title = "Gradients";
  await styled;
  await start(document.body);
}

function styleSheet(name) {
  const link = h("link", { rel: "stylesheet", href: new URL(`./${name}.css`, import.meta.url).href });
  document.head.append(link);
  return new Promise((done) => ["load", "error"].forEach((kind) => link.addEventListener(kind, done)));
}
