// Numbers as people read them.

/** Three significant digits: 0.0123, 45.6, 1.2e-7; names what is not finite. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return String(Number(value.toPrecision(3)));
  return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
}

/** A measured value of which -1 says that there is none; of what may be negative -inf says so. */
export const measured = (value, signed) => (value === (signed ? -Infinity : -1) ? "–" : number(value));

/** A power of ten given by its exponent. */
export const power = (exponent) => number(10 ** exponent);

/** A factor given by its base-2 logarithm: "×4", "×0.5". */
export const factor = (log2) => `×${number(2 ** log2)}`;

export const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** A time in seconds since 1970, as people say it: "26 Nov, 15:42". */
export const clock = (seconds) =>
  new Date(seconds * 1000).toLocaleString("en-GB", {
    day: "numeric",
    month: "short",
    hour: "2-digit",
    minute: "2-digit",
  });

/** The end of a long dotted name, which is where names differ. */
export function shorten(text, most) {
  return text.length <= most ? text : `…${text.slice(text.length - most + 1)}`;
}
