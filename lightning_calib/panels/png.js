// A panel, or the whole page, as a PNG: a copy of its elements, with pictures in place of its canvases, is drawn as an
// SVG image. It asks nobody for anything. What a browser cannot or will not draw is said.

import { h } from "./dom.js";
import { save } from "./save.js";

const SVG = "http://www.w3.org/2000/svg"; // the name of the format; nothing is asked for there
const MOST = 16000; // pixels of a side that every browser draws

/** A button that saves `node`. */
export function pngButton(app, { name, text, title, node }) {
  const button = h("button.png", { type: "button", text, title, "aria-label": title, "data-do": `png-${name}` });
  button.addEventListener("click", async () => {
    try {
      save(app, await png(node), name, "png");
      app.layout.say("");
    } catch (error) {
      app.layout.say(`No PNG: ${error.message}`);
    }
  });
  return button;
}

export async function png(node) {
  const { width, height } = node.getBoundingClientRect();
  const ratio = Math.min(Math.max(2, window.devicePixelRatio || 1), MOST / Math.max(width, height));
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(drawing(node, width, height))}`;
  await image.decode();
  const canvas = h("canvas", { width: Math.ceil(width * ratio), height: Math.ceil(height * ratio) });
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.drawImage(image, 0, 0, width, height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png")); // throws where text may not be drawn
  if (!blob) throw new Error("this browser cannot draw a picture of this size. Make the window smaller.");
  return blob;
}

/** The SVG as text. */
function drawing(node, width, height) {
  const copy = node.cloneNode(true);
  const [mine, its] = [node, copy].map((one) => [...one.querySelectorAll("canvas, select, input, .scroller")]);
  its.forEach((one, i) => still(mine[i], one));
  for (const one of copy.querySelectorAll("button.png")) one.style.visibility = "hidden"; // its place stays
  copy.style.margin = "0";
  const body = h("body", {}, h("style", { text: styles() }), h(`div.${around(node)}`, {}, copy));
  const svg = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ width, height })) svg.setAttribute(name, String(value));
  svg.setAttribute("class", document.documentElement.className);
  const inside = document.createElementNS(SVG, "foreignObject");
  for (const name of ["width", "height"]) inside.setAttribute(name, "100%");
  inside.append(body);
  svg.append(inside);
  return new XMLSerializer().serializeToString(svg).replace(NOT_XML, "�");
}

// Letters that a name may have and XML may not.
const NOT_XML = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g;

/** What a copy does not have of itself: what was drawn, chosen, typed, scrolled. */
function still(mine, copy) {
  if (mine.matches("canvas")) {
    const picture = h("img", { src: mine.toDataURL(), alt: "", hidden: mine.hidden });
    picture.className = mine.className;
    picture.style.cssText = mine.style.cssText;
    const { position, top, left } = getComputedStyle(mine);
    Object.assign(picture.style, { position, top, left, display: mine.hidden ? "none" : "block" });
    copy.replaceWith(picture);
  } else if (mine.matches("select")) {
    [...copy.options].forEach((one, i) => one.toggleAttribute("selected", i === mine.selectedIndex));
  } else if (mine.matches("input")) copy.setAttribute("value", mine.value);
  else copy.style.overflow = "hidden";
}

/** The class of the page around a panel; the page itself has its own. */
const around = (node) => (node.closest(".page.brief") && !node.matches(".page") ? "page.brief" : "picture");

/** All rules in force; those that depend on the window's width as they are now. */
const styles = () => [...document.styleSheets].flatMap((sheet) => inForce(sheet.cssRules)).join("\n");

const inForce = (rules) =>
  [...rules].flatMap((rule) => {
    if (!(rule instanceof CSSMediaRule)) return [rule.cssText];
    return window.matchMedia(rule.conditionText).matches ? inForce(rule.cssRules) : [];
  });
