// Which clip value: the report's answer for one optimizer.

import { number } from "./format.js";

export const CLIP_VALUE = "clip-value"; // what the address calls the answer when it is open

/** The answer for the optimizer on show; null where the run does not tell. */
export function clipValue(app) {
  const found = app.report?.suggestion?.find((one) => one.optimizer === app.about.optimizer);
  return found && found.answer !== "unknown" ? found : null;
}

/** In a word or two. */
export function briefly({ answer, value }) {
  if (answer === "none") return "none needed";
  if (value === null) return answer === "keep" ? "keep it" : "by layer or parameter";
  return `${answer === "keep" ? "keep" : "use"} ${number(value)}`;
}
