// The first page while a lesson runs: data -> train -> exam -> chat, each step with what is really happening.
import { lights } from "./lights.js";
const { h, t, render, api, run, feed, format, poll, goTab, select, store, elapsed, part, cachedRead, sampleReader, taught, teachingFailed } = window.Studio;
const ORDER = ["data", "train", "exam", "chat"];

const icon = (state, number) => h("span.step-icon", { "aria-hidden": "true" }, state === "done" ? "✓" : state === "bad" ? "!" : String(number));

const bubble = (kind, who, text) => h(`div.speech.${kind}`, {}, h("span.who", {}, who), h("span.say", { dir: "auto" }, text));

const bar = (share) => {
  const fill = h("span.fill");
  if (share === null) fill.classList.add("unknown"); else fill.style.width = `${Math.max(2, Math.min(100, share * 100))}%`;
  return h("div.bar", { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": t("home.progress"), "aria-valuenow": share === null ? null : String(Math.round(share * 100)) }, fill);
};

export const sparkline = (values, { width = 300, height = 56, className = "spark" } = {}) => {
  const real = values.filter((value) => value !== null && value !== undefined);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", className);
  svg.setAttribute("aria-hidden", "true");
  if (real.length < 2) return svg;
  const low = Math.min(...real); const high = Math.max(...real); const span = high - low || 1;
  const thin = real.length > 400 ? real.filter((_, index) => index % Math.ceil(real.length / 400) === 0) : real;
  const at = (value, index) => `${((index / (thin.length - 1)) * width).toFixed(1)},${(height - 4 - ((value - low) / span) * (height - 8)).toFixed(1)}`;
  const line = document.createElementNS(svg.namespaceURI, "polyline");
  line.setAttribute("points", thin.map(at).join(" "));
  svg.append(line);
  return svg;
};

// Where the lesson is: the state of each of the four steps.
const states = (status, phases, report) => {
  const phase = status.phase || (phases.length ? phases[phases.length - 1].name : "load");
  const at = phase === "verdict" ? 2 : 1;
  if (status.state === "finished") return ["done", "done", !(report && report.verdict) ? "skip" : report.verdict.passed === false ? "bad" : "done", "now"];
  if (["failed", "lost", "stopped"].includes(status.state)) return ORDER.map((_, index) => (index < at ? "done" : index === at ? "bad" : "todo"));
  return ORDER.map((_, index) => (index < at ? "done" : index === at ? "now" : "todo"));
};

const dataBody = (dataset, beat) => {
  if (!dataset) return [];
  const examples = dataset.examples.filter((messages) => messages.length > 1);
  const shown = examples.length ? examples[Math.floor(beat / 4) % examples.length].filter((message) => message.role !== "system") : [];
  return [h("p.step-note", {}, t("home.data.counts", { rows: dataset.info.rows, heldout: dataset.heldout })),
    h("div.lesson-talk", {}, shown.slice(0, 2).map((message) => bubble(message.role === "user" ? "ask" : "answer", t(message.role === "user" ? "home.question" : "home.answer"), message.content)))];
};

const phaseText = (state) => {
  const { status, progress } = state;
  const name = status.phase || "load";
  if (name === "train" && status.max_steps) {
    const left = status.eta_seconds ?? (state.eta || null);
    return t(left === null ? "home.train.step" : "home.train.left", { step: status.step, total: status.max_steps, left: format.seconds(left) });
  }
  if (progress && progress.total && name !== "train" && name === "load") return `${t("phase." + name)} · ${part(progress)}`;
  return t("phase." + name);
};

const answersBody = (samples) => {
  const latest = new Map();
  for (const sample of samples) latest.set(sample.index, { ...sample, first: latest.get(sample.index)?.first ?? sample.answer });
  return h("div.answers", {}, [...latest.values()].map((sample) => h("div.answer-row", {},
    h("span.q", { dir: "auto" }, sample.prompt), h(sample.answer === sample.first ? "span.a" : "span.a.fresh", { dir: "auto" }, sample.answer),
    h("span.at.num", {}, t("step", { n: sample.step })))));
};

const trainBody = (state, samples, active) => {
  const { status, points } = state;
  if (status.state === "queued") return [h("p.step-note", { id: "home-queued" }, t("home.queued")), h("div.step-actions", {}, h("button.btn", { type: "button", id: "home-queue", onclick: () => goTab("monitor") }, t("home.queue")))];
  const loss = (points.loss || []).filter((value) => value !== null);
  const share = status.phase === "train" && status.max_steps ? status.step / status.max_steps : active ? null : 1;
  const rows = [];
  if (active) rows.push(bar(share), h("p.step-note.num", {}, h("span", {}, phaseText(state)), h("span.clock", {}, format.seconds(elapsed(state)))));
  if (loss.length > 1) rows.push(h("div.lossline", {}, sparkline(loss), h("span.num", {}, t("home.loss", { first: format.loss(loss[0]), last: format.loss(loss[loss.length - 1]) }))));
  if (samples.length) rows.push(answersBody(samples));
  return rows;
};

const examBody = (state, report, active) => {
  const { progress } = state;
  if (report && report.verdict) return [lights(report.verdict)];
  if (!active) return [];
  const known = progress && progress.total;
  return [bar(known ? progress.done / progress.total : null), h("p.step-note.num", {}, known ? t("home.exam.progress", { done: progress.done, total: progress.total }) : t("phase.verdict"), h("span.clock", {}, format.seconds(elapsed(state))))];
};

const chatBody = (state, report, name) => {
  if (state.status.state !== "finished") return [];
  const pairs = ((report && report.before_after) || []).slice(0, 4);
  const table = pairs.length && h("div.pairs", {}, h("div.pair.head", {}, h("span", {}, t("home.question")), h("span", {}, t("home.before")), h("span", {}, t("home.after"))),
    pairs.map((pair) => h("div.pair", {}, h("span", { dir: "auto" }, pair.prompt), h("span.quiet", { dir: "auto" }, pair.before), h("span.after", { dir: "auto" }, pair.after))));
  return [table, h("div.step-actions", {},
    h("button.btn.go.big", { type: "button", id: "home-chat", onclick: () => goTab("chat") }, t("home.chat", { name })),
    h("button.btn", { type: "button", id: "home-take", onclick: () => goTab("export") }, t("home.take")),
    h("button.btn.link", { type: "button", id: "home-curves", onclick: () => goTab("monitor") }, t("home.curves")))];
};

const trouble = (status) => {
  const error = status.error;
  const text = error ? [h("b", {}, t("error." + error.kind)), h("p", {}, error.message), error.hint && h("p.quiet", {}, error.hint)] : [h("b", {}, t("ended." + status.state))];
  return h("div.trouble", { role: "alert" }, text, h("div.step-actions", {}, h("button.btn", { type: "button", id: "home-details", onclick: () => goTab("monitor") }, t("home.details"))));
};

export function mount({ element }) {
  const host = element.querySelector(".mount");
  const readReport = cachedRead("/api/report"); const readDataset = cachedRead("/api/dataset"); const readSamples = sampleReader();
  let pending = 0; let dismissed = ""; let beat = 0; let drawn = "";

  const typed = () => (document.querySelector("#home-name textarea, #home-name input")?.value || "").trim();
  // A lesson of somebody else that is only heard of now does not take the form from who has begun to fill it in.
  const filling = () => !taught() && document.body.dataset.home === "form" && Boolean(typed());
  const wanted = (state) => Boolean(state && state.id && state.id !== dismissed && state.status && state.status.kind === "train"
    && (state.id === store.get("home") || (state.status.live && !filling())) && !state.missing);
  const show = (mode) => { if (document.body.dataset.home !== mode) document.body.dataset.home = mode; };

  const steps = (list) => h("ol.steps", {}, list.map(({ state, title, body }, index) =>
    h(`li.step.${state}`, { "aria-current": state === "now" ? "step" : null }, icon(state, index + 1),
      h("div.step-text", {}, h("h3", {}, title), body))));

  const drawPending = () => render(host, h("div.card.lesson", {}, h("div.lesson-head", {}, h("h2", {}, t("home.lesson.new"))),
    steps(ORDER.map((name, index) => ({ state: index ? "todo" : "now", title: t(`home.step.${name}`, { name: typed() }),
      body: index ? [] : [bar(null), h("p.step-note.num", {}, t("home.writing"), h("span.clock", {}, `${((Date.now() - pending) / 1000).toFixed(1)} s`))] })))));

  const draw = async () => {
    const state = feed.state;
    if (pending && !(state && state.id === pendingRun && state.status)) { drawPending(); return; }
    if (!wanted(state)) { show("form"); render(host); drawn = ""; return; }
    pending = 0;
    if (state.status.live && store.get("home") !== state.id) store.set("home", state.id);
    const [report, dataset, samples] = await Promise.all([
      readReport(state.id, state.status.state), readDataset(state.id, ""), readSamples(state)]);
    if (feed.state !== state) return;
    if (state.status.live) beat += 1;
    const key = [state.id, state.version, beat, Boolean(report), Boolean(dataset), samples.length].join("|");
    if (key === drawn) return;
    drawn = key;
    const name = dataset?.info.identity?.name || state.status.name;
    const marks = states(state.status, state.phases, report);
    const bodies = [dataBody(dataset, Math.floor(beat / 2)), trainBody(state, samples, marks[1] === "now"), examBody(state, report, marks[2] === "now"), chatBody(state, report, name)];
    const bad = marks.indexOf("bad");
    if (bad >= 0 && state.status.state !== "finished") bodies[bad] = [...bodies[bad], trouble(state.status)];
    render(host, h("div.card.lesson", {}, h("div.lesson-head", {}, h("h2", {}, t(state.status.live ? "home.lesson.live" : "home.lesson.done", { name })),
      h("span.spring"), h(`span.chip.${state.status.state}`, {}, t("state." + state.status.state)),
      h("button.btn", { type: "button", id: "home-again", onclick: again }, t("home.again"))),
    steps(ORDER.map((part, index) => ({ state: marks[index], title: t(`home.step.${part}`, { name }), body: bodies[index] })))));
    show("run");
  };
  const again = () => { dismissed = run(); drawn = ""; draw(); document.querySelector("#home-name input, #home-name textarea")?.focus(); };

  let pendingRun = null;
  addEventListener("studio:teach", () => { pending = Date.now(); pendingRun = null; dismissed = run(); show("pending"); drawPending(); host.scrollIntoView({ block: "nearest" }); });
  addEventListener("studio:teach-failed", () => { pending = 0; show("form"); draw(); });
  addEventListener("studio:run", (event) => { if (pending) { pendingRun = event.detail; dismissed = ""; store.set("home", event.detail); } });

  feed.listen(element, () => { draw().catch(() => { drawn = ""; }); });
  poll(element, async () => {
    if (pending && Date.now() - pending > 400 && document.querySelector("#home-form .validation-error")) teachingFailed();
    await draw();
  }, 400);
}
