// Values as the heat-map holds them: log10 for what is positive, and three numbers far outside for what has no
// logarithm. Their order makes a plain maximum right: NaN hides a value, a value a zero, a zero "not logged".

export const NAN = Math.fround(3e38);
export const ZERO = Math.fround(-1e38);
export const ABSENT = Math.fround(-3e38);

export const isValue = (one) => one > -1e37 && one < 1e37;

/** Float32 measurements (-1: none) as codes. */
export function encode(values) {
  const codes = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) codes[i] = code(values[i]);
  return codes;
}

export function code(value) {
  if (value > 0) return value === Infinity ? NAN : Math.log10(value);
  if (value === 0) return ZERO;
  return value === -1 ? ABSENT : NAN;
}

/** log2 of a / b, on the codes of both. */
export function encodeRatio(a, b) {
  const codes = new Float32Array(a.length);
  for (let i = 0; i < a.length; i++) {
    if (isValue(a[i]) && isValue(b[i])) codes[i] = (a[i] - b[i]) * Math.LOG2E * Math.LN10;
    else if (a[i] === NAN || b[i] === NAN) codes[i] = NAN;
    else codes[i] = a[i] === ABSENT || b[i] === ABSENT ? ABSENT : ZERO;
  }
  return codes;
}

/** What hides what when several steps share a pixel, for scales whose centre is "nothing happened". */
export function farther(one, other) {
  if (isValue(one) && isValue(other)) return Math.abs(one) >= Math.abs(other) ? one : other;
  return Math.max(one, other);
}

/** Quantiles of all codes between two columns of all rows, from 4,096 equal bins: exact to a 4,096th of the span. */
export function quantiles(rows, from, to, shares) {
  let [low, high, total] = [Infinity, -Infinity, 0];
  for (const row of rows)
    for (let i = from; i < to; i++) {
      const v = row[i];
      if (!isValue(v)) continue;
      total++;
      if (v < low) low = v;
      if (v > high) high = v;
    }
  if (!total) return null;
  if (low === high) return shares.map(() => low);
  const bins = new Uint32Array(4096);
  const scale = 4095 / (high - low);
  for (const row of rows)
    for (let i = from; i < to; i++) if (isValue(row[i])) bins[((row[i] - low) * scale + 0.5) | 0]++;
  return shares.map((share) => {
    let seen = 0;
    for (let i = 0; i < 4096; i++) if ((seen += bins[i]) >= share * total) return low + i / scale;
    return high;
  });
}
