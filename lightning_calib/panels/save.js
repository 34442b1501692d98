// A file for the reader to keep.

import { h } from "./dom.js";

/** `what` is a part of its name, beside the run's. */
export function save(app, blob, what, ending) {
  const url = URL.createObjectURL(blob);
  const name = `gradients-${app.model.about.run}-${what}`.replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 120);
  const link = h("a", { href: url, download: `${name}.${ending}` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
