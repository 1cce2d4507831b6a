// The end of the engine's log in a box of fixed height; follows while the reader is at the bottom.
const { h, t, api, poll, feed } = window.Studio;
const KEPT = 200000;
// Colour codes are of no use here, and a carriage return means that the line is written again.
export const clean = (text) => text.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, "").split("\n").map((line) => line.slice(line.lastIndexOf("\r", line.length - 2) + 1)).join("\n");

export function mount({ element }) {
  const host = element.querySelector(".mount");
  const box = h("pre.log", { tabindex: "0", role: "log", "aria-live": "off", "aria-label": t("log.title") });
  const path = h("span.quiet", {});
  host.append(h("section.card.log-card", {}, h("div.grid-bar", {}, h("h3", {}, t("log.title")), path), box));
  let id = null; let offset = 0; let text = "";
  const show = () => {
    const bottom = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    box.textContent = text ? clean(text) : t("log.empty");
    if (bottom) box.scrollTop = box.scrollHeight;
  };
  const tick = async () => {
    const state = feed.state;
    host.hidden = !state || !state.id || state.missing;
    if (host.hidden) return;
    if (state.id !== id) { id = state.id; offset = 0; text = ""; path.textContent = `${id}/engine.log`; show(); }
    const part = await api(`/api/log?run=${encodeURIComponent(id)}&after=${offset}`);
    if (feed.state.id !== id) return;
    if (part.restart) text = "";
    offset = part.offset;
    if (!part.text) return;
    text = ((part.skipped ? "" : text) + part.text).slice(-KEPT);
    show();
  };
  poll(element, tick, 1000);
  addEventListener("studio:run", () => { tick().catch(() => {}); });
}
