// Head of the selected run: name, state, what it trains, phases, counts, warnings, error, and the two actions.
const { h, t, render, feed, format, ask, elapsed, poll, lang } = window.Studio;
const TRAIN = ["load", "tokenise", "train", "save", "verdict"];
const MERGE = ["load", "merge", "proof"];
const AFTER = ["finished", "stopped", "failed", "lost"];

const strip = (state) => {
  const { status, phases, progress } = state;
  const order = status.kind === "merge" ? MERGE : TRAIN;
  const phase = status.phase || (status.live ? "load" : phases.length ? phases[phases.length - 1].name : null);
  const at = order.indexOf(phase);
  const over = status.state === "finished";
  return h("ol.phases", { "aria-label": t("phases") }, order.map((name, index) => {
    const mark = over || index < at ? "done" : index === at ? (status.live ? "now" : AFTER.includes(status.state) ? "end" : "now") : "todo";
    const part = mark === "now" && name === "train" && status.max_steps ? `${Math.round((100 * status.step) / status.max_steps)}%`
      : mark === "now" && progress && progress.total && name !== "train" ? `${Math.round((100 * progress.done) / progress.total)}%` : "";
    return h(`li.phase.${mark}`, { "aria-current": mark === "now" ? "step" : null }, h("span", {}, t("phase." + name)), part && h("span.num.part", {}, part));
  }));
};

const countsLine = (counts) => {
  if (!counts) return null;
  const n = (value) => format.number(value);
  const parts = [t("counts.rows", { n: n(counts.rows_read) }), counts.rows_skipped ? t("counts.skipped", { n: n(counts.rows_skipped) }) : null,
    t("counts.conversations", { n: n(counts.conversations) }), t("counts.tokens", { n: n(counts.tokens), trained: n(counts.trained_tokens) }),
    counts.truncated ? t("counts.truncated", { n: n(counts.truncated) }) : null, t("counts.packs", { n: n(counts.packs) }), t("counts.updates", { n: n(counts.updates) })];
  const line = h("p.count-line.num", {}, parts.filter(Boolean).flatMap((part, index) => (index ? [h("span.arrow", { "aria-hidden": "true" }, "→"), h("span", {}, part)] : [h("span", {}, part)])));
  if (!counts.skipped?.length) return line;
  return [line, h("details.fold", {}, h("summary", {}, t("counts.why", { n: counts.rows_skipped })), h("ul", {}, counts.skipped.slice(0, 50).map((reason) => h("li", { dir: "auto" }, reason))))];
};

const errorCard = (status) => {
  if (status.state === "lost") return h("div.trouble", { role: "alert" }, h("b", {}, t("ended.lost")), h("p", {}, t("ended.lost.hint")));
  if (status.state !== "failed") return null;
  const error = status.error;
  if (!error) return h("div.trouble", { role: "alert" }, h("b", {}, t("ended.failed")), h("p", {}, t("ended.failed.hint")));
  return h("div.trouble", { role: "alert", id: "run-error" }, h("b", {}, t("error." + error.kind)), h("p", { dir: "auto" }, error.message), error.hint && h("p.quiet", { dir: "auto" }, error.hint), error.field && h("p.quiet.mono", {}, error.field));
};

const actions = (status) => h("div.run-actions", {},
  status.live && status.state !== "stopping" && h("button.btn.stop", { type: "button", id: "ask-stop", onclick: () => ask({ title: t("stop.title"), body: t("stop.body"), ok: t("stop.ok") }, "#run-stop") }, t("stop")),
  status.state === "stopping" && h("button.btn", { type: "button", disabled: true }, t("stop.waiting")),
  status.resumable && status.kind === "train" && h("button.btn.go", { type: "button", id: "ask-resume", onclick: (event) => { event.target.disabled = true; document.querySelector("#run-resume")?.click(); } }, t("resume")));

export function mount({ element }) {
  const host = element.querySelector(".mount");
  let drawn = "";
  const draw = (state) => {
    if (!state || !state.id) { render(host); return; }
    if (state.missing) { render(host, h("div.empty", {}, h("h3", {}, t("monitor.gone")))); return; }
    const status = state.status;
    if (!status) { render(host, h("div.card.loading", { "aria-busy": "true" }, h("span.line"), h("span.line.short"))); return; }
    const key = JSON.stringify([state.id, status.state, status.step, status.phase, state.progress, state.counts?.rows_read, state.warnings.length, lang(), Math.floor(elapsed(state) || 0)]);
    if (key === drawn && host.firstChild) return;
    drawn = key;
    const what = [status.kind === "merge" ? t("kind.merge") : status.method, status.model, status.dataset].filter(Boolean);
    render(host, h("section.card.run-head", {},
      h("div.run-top", {}, h("h3.run-title", { dir: "auto" }, status.name), h(`span.chip.${status.state}`, { role: "status" }, t("state." + status.state)), h("span.spring"), actions(status)),
      h("p.run-what", {}, what.map((word) => h("span", { dir: "auto" }, word)), h("span.num", {}, t("elapsed", { time: format.seconds(elapsed(state)) }))),
      strip(state), errorCard(status), countsLine(state.counts),
      state.warnings.slice(-3).map((warning) => h("p.warned", { dir: "auto" }, warning.message))));
  };
  feed.listen(element, draw);
  poll(element, async () => { if (feed.live()) draw(feed.state); }, 1000);
}
