// Head of the selected run: name, state, what it trains, phases, counts, warnings, error, and the two actions.
import { partText, resumeWith, spreadText } from "./ranks.js";
const { h, t, root, goTab, render, feed, format, ask, elapsed, serverNow, part, poll, lang } = window.Studio;
const TRAIN = ["load", "tokenise", "train", "save", "verdict"];
const OTHER = { merge: ["load", "merge", "save", "proof"], convert: ["load", "convert", "save"], export: ["load", "merge", "export", "proof", "upload"], answer: ["load", "answer", "save"] };
const AFTER = ["finished", "stopped", "failed", "lost"];

// Seconds each phase of the latest attempt took; the one at work is counted on.
const durations = (state) => {
  const { phases, status } = state;
  const begin = phases.map((phase) => phase.name).lastIndexOf("load");
  const mine = phases.slice(Math.max(0, begin));
  const now = status.live ? serverNow() : status.updated_at;
  const took = new Map();
  mine.forEach((phase, index) => took.set(phase.name, (took.get(phase.name) || 0) + Math.max(0, (mine[index + 1]?.t ?? now) - phase.t)));
  return took;
};

// Where the result of a run that is no training is to be had.
const resultLine = ({ id, status }) => {
  if (status.state !== "finished" || !OTHER[status.kind]) return null;
  if (status.kind === "answer") return h("p.run-result", {}, h("a.btn.go", { href: `${root()}/api/answers?run=${encodeURIComponent(id)}`, download: "" }, t("result.answers")));
  return h("p.run-result", {}, h("button.btn.go", { type: "button", onclick: () => goTab("export") }, t("result.export")));
};

const strip = (state) => {
  const { status, phases } = state;
  const order = OTHER[status.kind] || TRAIN;
  const phase = status.phase || (status.live ? "load" : phases.length ? phases[phases.length - 1].name : null);
  const at = order.indexOf(phase);
  const over = status.state === "finished";
  const took = durations(state);
  return h("ol.phases", { "aria-label": t("phases") }, order.map((name, index) => {
    const mark = over || index < at ? "done" : index === at ? (status.live ? "now" : AFTER.includes(status.state) ? "end" : "now") : "todo";
    const progress = progressOf(state);
    const part = mark === "now" && name === "train" && status.max_steps ? `${Math.round((100 * status.step) / status.max_steps)}%`
      : mark === "now" && progress ? `${Math.round((100 * progress.done) / progress.total)}%`
        : mark !== "todo" && took.has(name) ? format.seconds(took.get(name)) : "";
    return h(`li.phase.${mark}${mark === "end" && status.state === "stopped" ? ".halted" : ""}`, { "aria-current": mark === "now" ? "step" : null }, h("span", {}, t("phase." + name)), h("span.num.part", {}, part));
  }));
};
// How far the phase at work is; a count of an earlier phase says nothing about this one.
const progressOf = (state) => {
  const { progress, phases, status } = state;
  const since = phases.length ? phases[phases.length - 1].t : 0;
  return progress && progress.total && status.live && status.phase !== "train" && progress.t >= since ? progress : null;
};

// One sentence of what is going on, always there, so that nothing below moves.
const nowLine = (state) => {
  const { status, eta } = state;
  const left = eta === null || eta === undefined ? null : Math.max(0, eta - (Date.now() - state.received) / 1000);
  const progress = progressOf(state);
  const detail = state.phases.length ? state.phases[state.phases.length - 1].detail : "";
  const parts = status.state === "running" && status.phase === "train" && status.max_steps ? [t("now.step", { step: status.step, total: status.max_steps }), left !== null && t("now.left", { left: format.seconds(left), at: new Date(Date.now() + left * 1000).toLocaleTimeString(lang(), { ...(left > 64800 ? { weekday: "short" } : {}), hour: "2-digit", minute: "2-digit" }) })]
    : status.state === "running" && status.phase ? [t("phase." + status.phase), detail, progress && (progress.waits ? t("now.machines", progress.waits) : part(progress))]
      : status.live || status.state === "queued" ? [t("now." + status.state)]
        : [t("now.ended", { ago: format.ago(status.updated_at) }), status.max_steps > 0 && t("now.step", { step: status.step, total: status.max_steps })];
  return h("p.now-line.num", {}, parts.filter(Boolean).flatMap((part, index) => [index ? h("span.arrow", { "aria-hidden": "true" }, "·") : null, h("span", { dir: "auto" }, part)]));
};

const countsLine = (counts) => {
  if (!counts) return h("p.count-line.num", {}, "\u00a0");
  const n = (value) => format.number(value);
  const parts = [t("counts.rows", { n: n(counts.rows_read) }), counts.rows_skipped ? t("counts.skipped", { n: n(counts.rows_skipped) }) : null,
    t("counts.conversations", { n: n(counts.conversations) }), t("counts.tokens", { n: n(counts.tokens), trained: n(counts.trained_tokens) }),
    counts.truncated ? t("counts.truncated", { n: n(counts.truncated) }) : null, t("counts.packs", { n: n(counts.packs) }), t("counts.updates", { n: n(counts.updates) })];
  const line = h("p.count-line.num", {}, parts.filter(Boolean).flatMap((part, index) => (index ? [h("span.arrow", { "aria-hidden": "true" }, "→"), h("span", {}, part)] : [h("span", {}, part)])));
  if (!counts.skipped?.length) return line;
  return [line, h("details.fold", {}, h("summary", {}, t("counts.why", { n: counts.rows_skipped })), h("ul", {}, counts.skipped.slice(0, 50).map((reason) => h("li", { dir: "auto" }, reason))))];
};

// The field has a line of its own.
const plain = ({ field, message }) => { const text = field && message.startsWith(`${field}: `) ? message.slice(field.length + 2) : message; return text.charAt(0).toUpperCase() + text.slice(1); };
const errorCard = (status) => {
  if (status.state === "lost") return h("div.trouble", { role: "alert" }, h("b", {}, t("ended.lost")), h("p", {}, t("ended.lost.hint")));
  if (status.state !== "failed") return null;
  const error = status.error;
  if (!error) return h("div.trouble", { role: "alert" }, h("b", {}, t("ended.failed")), h("p", {}, t("ended.failed.hint")));
  return h("div.trouble", { role: "alert", id: "run-error" }, h("b", {}, t("error." + error.kind)), h("p", { dir: "auto" }, plain(error)), error.hint && h("p.quiet", { dir: "auto" }, error.hint), error.field && h("p.quiet.mono", {}, error.field));
};

const actions = (status) => h("div.run-actions", {},
  status.live && status.state !== "stopping" && h("button.btn.stop", { type: "button", id: "ask-stop", onclick: () => ask({ title: t("stop.title"), body: t("stop.body"), ok: t("stop.ok") }, "#run-stop") }, t("stop")),
  status.state === "stopping" && h("button.btn", { type: "button", disabled: true }, t("stop.waiting")),
  status.resumable && status.kind === "train" && h("button.btn.go", { type: "button", id: "ask-resume", onclick: (event) => { event.target.disabled = true; document.querySelector("#run-resume")?.click(); } }, t("resume")),
  status.resumable && status.processes > 1 && !status.machine && h("button.btn", { type: "button", id: "ask-resume-with", onclick: () => resumeWith(status) }, t("ranks.resume")),
  !status.live && status.state !== "queued" && h("button.btn", { type: "button", id: "run-card", title: t("library.card.title"), onclick: () => dispatchEvent(new CustomEvent("studio:run-card", { detail: status.id })) }, t("library.card")),
  h("button.btn.run-dots", { type: "button", id: "run-dots", "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": t("library.actions", { name: status.name }), title: t("library.actions", { name: status.name }), onclick: (event) => dispatchEvent(new CustomEvent("studio:run-menu", { detail: event.currentTarget })) }, "⋯"));

export function mount({ element }) {
  const host = element.querySelector(".mount");
  let drawn = "";
  const draw = (state) => {
    document.body.toggleAttribute("data-live", feed.live());
    if (!state || !state.id) { render(host); return; }
    if (state.missing) { render(host, h("div.empty", {}, h("h3", {}, t("monitor.gone")))); return; }
    const status = state.status;
    if (!status) { render(host, h("div.card.loading", { "aria-busy": "true" }, h("span.line"), h("span.line.short"))); return; }
    const key = JSON.stringify([state.id, status.name, status.state, status.step, status.phase, state.progress, state.counts?.rows_read, state.warnings.length, lang(), Math.floor(elapsed(state) || 0)]);
    if (key === drawn && host.firstChild) return;
    drawn = key;
    const what = [OTHER[status.kind] ? t("kind." + status.kind) : status.method, status.model, status.dataset, spreadText(status), partText(status)].filter(Boolean);
    render(host, h("section.card.run-head", {},
      h("div.run-top", {}, h("h3.run-title", { dir: "auto" }, status.name), h(`span.chip.${status.state}`, { role: "status" }, t("state." + status.state)), h("span.spring"), actions(status)),
      h("p.run-what", {}, what.map((word) => h("span", { dir: "auto" }, word)), status.state !== "queued" && h("span.num", {}, t("elapsed", { time: format.seconds(elapsed(state)) }))),
      strip(state), nowLine(state), errorCard(status), resultLine(state), !OTHER[status.kind] && countsLine(state.counts),
      OTHER[status.kind] && state.warnings.slice(-3).map((warning) => h("p.warned", { dir: "auto" }, warning.said || warning.message))));
  };
  feed.listen(element, draw);
  poll(element, async () => { if (feed.live()) draw(feed.state); }, 1000);
}
