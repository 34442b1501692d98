// What the heat-map can show, and how a module's value follows from those of its tensors.

import { ABSENT, ZERO, NAN, encode, isValue } from "./codes.js";

export const STATISTICS = [
  { key: "before", label: "norm before", parts: ["before"], unit: "gradient norm before clipping" },
  { key: "after", label: "norm after", parts: ["after"], unit: "gradient norm that the optimizer used" },
  {
    key: "kept",
    label: "after / before",
    parts: ["after", "before"],
    unit: "share of the gradient that was kept",
    centred: true,
  },
  {
    key: "ratio",
    label: "|Δw| / |w|",
    parts: ["update", "weight"],
    unit: "change of the weights in one step, relative to them",
  },
  { key: "weight", label: "weight norm", parts: ["weight"], unit: "norm of the weights" },
  { key: "update", label: "update norm", parts: ["update"], unit: "norm of the change of the weights in one step" },
  {
    key: "peak",
    label: "peak since last row",
    parts: ["peak"],
    unit: "largest norm before clipping since the last logged row",
  },
];

export const statistic = (key) => STATISTICS.find((one) => one.key === key) ?? STATISTICS[0];

/** The values of some rows as one row: root of the sum of squares, or largest; NaN stays, -1 means nothing there. */
export function fold(frame, rows) {
  const steps = frame.steps.length;
  const first = frame.data.subarray(rows[0] * steps, (rows[0] + 1) * steps);
  if (rows.length === 1) return first;
  const sum = new Float64Array(steps).fill(-1);
  const squares = frame.fold === "l2";
  for (const row of rows) {
    const at = row * steps;
    for (let i = 0; i < steps; i++) {
      const value = frame.data[at + i];
      if (value === -1) continue;
      if (sum[i] === -1) sum[i] = squares ? value * value : value;
      else if (squares) sum[i] += value * value;
      else sum[i] = Math.max(sum[i], value);
    }
  }
  return Float32Array.from(sum, (value) => (value === -1 || !squares ? value : Math.sqrt(value)));
}

/** Values of a node under a statistic; `frames` maps the names of its parts to what was loaded. */
export function values(frames, chosen, rows) {
  const parts = chosen.parts.map((name) => fold(frames[name], rows));
  return parts.length === 1 ? parts[0] : quotient(parts[0], parts[1]);
}

export function quotient(above, below) {
  return above.map((a, i) => {
    const b = below[i];
    if (a === -1 || b === -1) return -1;
    return b === 0 ? (a === 0 ? 0 : -1) : a / b;
  });
}

export const codes = (frames, chosen, rows) => encode(values(frames, chosen, rows));

/** How differently each row behaves from the others, in decades: the largest distance from its own median that the
 *  others do not share. Rows with NaN come first, then those that were zero throughout. */
export function anomalies(rows, from, to) {
  const every = Math.max(1, Math.ceil((to - from) / 256));
  const medians = rows.map((row) => median(sample(row, from, to, every)));
  const shared = rows.length > 3 ? common(rows, medians, from, to) : new Float32Array(to - from);
  return rows.map((row, r) => {
    let [far, at, bad, zeros, seen] = [0, from, 0, 0, 0];
    for (let i = from; i < to; i++) {
      const v = row[i];
      if (v === NAN && bad++ === 0) at = i;
      if (v === ZERO) zeros++;
      if (v !== ABSENT) seen++;
      if (bad || !isValue(v)) continue;
      const distance = Math.abs(v - medians[r] - shared[i - from]);
      if (distance > far) [far, at] = [distance, i];
    }
    const dead = seen > 0 && zeros === seen;
    return { score: bad ? 1000 + bad : dead ? 500 : far, at, bad, zeros, seen, dead, far, high: row[at] > medians[r] };
  });
}

function common(rows, medians, from, to) {
  const every = Math.max(1, Math.ceil(rows.length / 200));
  const shared = new Float32Array(to - from);
  for (let i = from; i < to; i++) {
    const distances = [];
    for (let r = 0; r < rows.length; r += every) if (isValue(rows[r][i])) distances.push(rows[r][i] - medians[r]);
    shared[i - from] = median(distances);
  }
  return shared;
}

function sample(row, from, to, every) {
  const found = [];
  for (let i = from; i < to; i += every) if (isValue(row[i])) found.push(row[i]);
  return found;
}

export function median(numbers) {
  if (!numbers.length) return 0;
  const sorted = Float32Array.from(numbers).sort();
  return sorted[sorted.length >> 1];
}
