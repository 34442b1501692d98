// What is shown when no run has anything for this tab.

import { h } from "./dom.js";

const LINES =
  "from lightning_calib import GradientMonitor\n\ntrainer = Trainer(callbacks=[GradientMonitor()])\ntrainer.fit(model)";

/** `problems`: why data that are there cannot be read. */
export const emptyPage = (problems) =>
  h(
    "main.empty",
    {},
    problems.length ? h("div.notice", { role: "alert", text: problems.join(" ") }) : null,
    h("h2", { text: "No gradients yet" }),
    h("p", {
      text:
        "This tab shows, for every layer and step, how large gradients and updates were, what was clipped, and where " +
        "things went wrong. Add these lines to the training script:",
    }),
    h("pre", {}, h("code", { text: LINES })),
    h("p.how", {
      text:
        "The first row appears after log_every_n_steps steps of the Trainer (50 unless set). Then reload TensorBoard " +
        "with the round arrow above; nothing else needs to be started.",
    }),
  );
