// TensorBoard around us: when it reloads, whether it is dark, whether we can be seen.

/** Call back when TensorBoard has reloaded; while the tab is hidden the call waits until it is shown. */
export function onReload(call) {
  let waiting = false;
  const visible = () => window.innerHeight > 0 && !document.hidden;
  const maybe = () => {
    if (waiting && visible()) {
      waiting = false;
      call();
    }
  };
  listen("experimental.DataReloaded", () => {
    waiting = true;
    maybe();
  });
  window.addEventListener("resize", maybe);
  document.addEventListener("visibilitychange", maybe);
}

function listen(type, call) {
  if (window.parent === window) return;
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.isReply) return;
    if (message.type === type) call();
    port1.postMessage(
      JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }),
    );
  };
  window.parent.postMessage("experimental.bootstrap", "*", [port2]);
}

/** Follow TensorBoard's dark mode: a frame is not told of it, but may look at the page around it. */
export function followTheme(call) {
  const body = outerBody();
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const dark = body ? body.classList.contains("dark-mode") : media.matches;
    document.documentElement.classList.toggle("dark", dark);
    call(dark);
  };
  if (body) new MutationObserver(apply).observe(body, { attributes: true, attributeFilter: ["class"] });
  else media.addEventListener("change", apply);
  apply();
}

function outerBody() {
  try {
    return window.parent === window ? null : window.parent.document.body;
  } catch {
    return null;
  }
}
