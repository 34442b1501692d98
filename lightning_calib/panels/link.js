// The address of the page holds the choices, so that a link shows what its sender saw. TensorBoard's own answer to
// "GetURLPluginData" is empty when the page opens, hence the parent's address is read, which has the same origin.

import { CHOICES } from "./state.js";
import { STATISTICS } from "./statistics.js";

const PREFIX = "p.lightning_calib.";

const page = () => {
  try {
    return window.parent.location.hash === undefined ? window : window.parent;
  } catch {
    return window; // another origin embeds TensorBoard
  }
};

export function readLink() {
  const found = {};
  for (const pair of page().location.hash.replace(/^#/, "").split("&")) {
    const [name, value] = pair.split("=").map(decode);
    const key = name.startsWith(PREFIX) ? name.slice(PREFIX.length) : null;
    if (key !== null && Object.hasOwn(CHOICES, key) && value !== undefined) {
      const read = parse(key, value);
      if (read !== null) found[key] = read;
    }
  }
  return found;
}

const decode = (text) => {
  try {
    return decodeURIComponent(text.replace(/\+/g, " "));
  } catch {
    return text;
  }
};

function parse(key, text) {
  if (key === "zoom") {
    const ends = text.split("-").map(Number);
    return ends.length === 2 && ends.every(Number.isFinite) && ends[0] < ends[1] ? ends : null;
  }
  if (key === "optimizer" || key === "depth" || key === "step")
    return text !== "" && Number.isInteger(Number(text)) ? Number(text) : null;
  if (key === "smooth") return Number(text) > 0 && Number(text) < 1 ? Number(text) : null;
  if (key === "epochs") return text === "yes" ? text : null;
  if (key === "stat") return STATISTICS.some((one) => one.key === text) ? text : null;
  if (key === "sort") return text === "anomaly" ? text : null;
  return text;
}

/** Write the choices that differ from the defaults; other keys of the address stay. */
export function writeLink(values) {
  const { location, history } = page();
  const kept = location.hash
    .replace(/^#/, "")
    .split("&")
    .filter((pair) => pair && !decode(pair).startsWith(PREFIX));
  for (const [key, standard] of Object.entries(CHOICES)) {
    const value = values[key];
    if (value === standard || value === null || value === "") continue;
    kept.push(`${PREFIX}${key}=${encodeURIComponent(key === "zoom" ? value.join("-") : value)}`);
  }
  const hash = `#${kept.join("&")}`;
  if (hash === location.hash) return;
  try {
    history.replaceState(history.state, "", hash);
  } catch {
    // a frame without an address of its own, as in a notebook
  }
}
