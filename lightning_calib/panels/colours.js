// Colour tables: a perceptually even one that colour-blind people can read, one with a neutral middle for comparisons,
// and three colours of their own for what has no place on a scale.

const EVEN = [
  "440154",
  "482475",
  "414487",
  "355f8d",
  "2a788e",
  "21918c",
  "22a884",
  "44bf70",
  "7ad151",
  "bddf26",
  "fde725",
];
const BLUE_RED = ["1d4f91", "4a86c0", "93bfdf", "f4f4f4", "f3b58d", "d7683f", "9c1f1f"];
const BLUE_RED_DARK = ["79b8f5", "4a8bc9", "2f5880", "3b3d41", "8a4b2b", "d9743f", "ffb27a"];

const channels = (hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));

function table(anchors) {
  const colours = anchors.map(channels);
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (colours.length - 1);
    const low = Math.min(Math.floor(place), colours.length - 2);
    return colours[low].map((c, k) => Math.round(c + (colours[low + 1][k] - c) * (place - low)));
  });
}

const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

/** {lut: 256 packed colours, nan, zero, absent, css(i)} for a theme. */
export function scheme(dark, diverging) {
  const colours = table(diverging ? (dark ? BLUE_RED_DARK : BLUE_RED) : EVEN);
  const special = specials(dark);
  return {
    lut: Uint32Array.from(colours, packed),
    nan: packed(channels(special.nan.slice(1))),
    zero: packed(channels(special.zero.slice(1))),
    absent: packed(channels(special.absent.slice(1))),
    css: (i) => `rgb(${colours[i].join(" ")})`,
    special,
  };
}

export const specials = (dark) => ({ nan: "#ff2bd6", zero: "#000000", absent: dark ? "#55595f" : "#d3d7dc" });

/** The colours of lines and texts, read from the style sheet, so that the theme has one home. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const names = [
    "ink",
    "muted",
    "line",
    "panel",
    "before",
    "after",
    "peak",
    "band",
    "limit",
    "lr",
    "effective",
    "update",
    "loss",
    "valid",
    "second",
    "third",
    "accent",
  ];
  const found = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  found.font = `11px ${style.getPropertyValue("--font").trim()}`;
  return found;
}
