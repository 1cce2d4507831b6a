// The selected run, while it waits: its place in the queue, and what it waits for.
import { act, listen, remove } from "./queue.js";
const { h, t, render, run, feed } = window.Studio;

export function mount({ element }) {
  const host = element.querySelector(".mount");
  let queue = null;
  const draw = () => {
    const entry = queue && queue.waiting.find((one) => one.id === run());
    // A run that was never started has no figures, curves and log to show.
    document.body.toggleAttribute("data-unstarted", Boolean(entry && !entry.resume));
    if (!entry) { render(host); return; }
    render(host, h("section.card.queue-place", { id: "run-queued" },
      h("div", { role: "status" }, h("b.num", {}, t("queue.place", { n: entry.place, total: queue.waiting.length })), h("p", { dir: "auto" }, entry.why), entry.resume && h("p.quiet", {}, t("queue.resume.note"))),
      h("div.run-actions", {},
        (entry.place > 1 || entry.paused) && h("button.btn.go", { type: "button", id: `place-first-${entry.id}`, onclick: () => act({ do: "first", run: entry.id }) }, t("queue.first.short")),
        h("button.btn", { type: "button", id: `place-${entry.paused ? "unpause" : "pause"}-${entry.id}`, onclick: () => act({ do: entry.paused ? "unpause" : "pause", run: entry.id }) }, t(entry.paused ? "queue.unpause.short" : "queue.pause.short")),
        h("button.btn.stop", { type: "button", id: `place-remove-${entry.id}`, onclick: () => remove(entry) }, t("queue.remove")))));
  };
  listen(element, (found) => { queue = found; draw(); });
  feed.listen(element, draw);
  addEventListener("studio:run", draw);
}
