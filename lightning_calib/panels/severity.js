// How serious a finding or a run is: by word, by shape and by colour, so that no one of them is needed alone.

import { h } from "./dom.js";

const LEVELS = {
  act: { sign: "▲", word: "act", title: "Training is being harmed now" },
  look: { sign: "◆", word: "look", title: "Probably not what you want" },
  note: { sign: "●", word: "note", title: "A fact; nothing has to be done" },
  fine: { sign: "✓", word: "healthy", title: "Nothing that gradients show is wrong" },
};

export const level = (severity) => LEVELS[severity] ?? LEVELS.note;

/** The sign of a severity; the word is read to those who do not see it. */
export const sign = (severity) =>
  h(
    `span.sign.${severity in LEVELS ? severity : "note"}`,
    { title: level(severity).title },
    h("span", { text: level(severity).sign, "aria-hidden": "true" }),
    h("span.unseen", { text: `${level(severity).word}: ` }),
  );
