// Answers to the evaluation inputs. One step for all prompts beside the base model's answers, chosen with a slider, or
// a grid prompt × step; words that differ from the step before (or from the base model) are marked.
import { lost, marked } from "./worddiff.js";
const { h, t, render, feed, sampleReader, store } = window.Studio;
const COLUMNS = 6;
const CELLS = 600;
const LONG = 360; // characters, after which an answer is folded
const LINES = 7;

// A prompt is a text, or messages [{role, content}] that end with the user's.
const said = (content) => (typeof content === "string" ? content : (content || []).map((part) => part.text || "").join(" "));
export const promptNode = (prompt) => (typeof prompt === "string" ? h("span", { dir: "auto" }, prompt)
  : h("div.prompt-turns", {}, prompt.map((message) => h(`div.turn.${message.role === "assistant" ? "assistant" : message.role === "system" ? "system" : "user"}`, { dir: "auto" },
    h("span.sr-only", {}, t("role." + (["assistant", "system"].includes(message.role) ? message.role : "user")) + ": "), said(message.content)))));

// [{step, index, prompt, answer, reason}] -> {prompts: Map index -> prompt, steps: [{step, reason, answers: Map}]}.
const collect = (samples) => {
  const prompts = new Map(); const steps = new Map();
  for (const sample of samples) {
    prompts.set(sample.index, sample.prompt);
    if (!steps.has(sample.step)) steps.set(sample.step, { step: sample.step, reason: sample.reason, answers: new Map() });
    steps.get(sample.step).reason = sample.reason;
    steps.get(sample.step).answers.set(sample.index, sample.answer);
  }
  return { prompts: new Map([...prompts].sort((a, b) => a[0] - b[0])), steps: [...steps.values()].sort((a, b) => a.step - b.step) };
};

// A long answer shows its first lines and a button for the rest; `open` remembers which are open.
const answerNode = (id, answer, open, redraw, differing = (text) => [text]) => {
  if (answer === undefined || answer === null) return h("div.answer.quiet", {}, "–");
  if (!answer.trim()) return h("div.answer.quiet", {}, t("samples.nothing"));
  const long = answer.length > LONG || answer.split("\n").length > LINES;
  const text = h(long && !open.has(id) ? "div.answer.folded" : "div.answer", { dir: "auto" }, differing(answer));
  if (!long) return text;
  const toggle = () => { if (!open.delete(id)) open.add(id); redraw(); };
  return [text, h("button.btn.link.more", { type: "button", id: `more-${id}`, "aria-expanded": String(open.has(id)), onclick: toggle }, t(open.has(id) ? "samples.fold" : "samples.unfold"))];
};

export function mount({ element }) {
  const host = element.querySelector(".mount");
  const read = sampleReader();
  const open = new Set();
  let list = []; let view = store.get("samples.view") || "step"; let against = store.get("samples.against") || "base";
  let all = false; let chosen = null; let run = ""; let drawn = "";

  const choice = (name, label, values, now, set) => {
    const buttons = values.map((value) => h("button", { type: "button", "data-choice": value, "aria-pressed": String(value === now()), onclick: () => { set(value); store.set("samples." + name, value); for (const other of buttons) other.setAttribute("aria-pressed", String(other.dataset.choice === value)); show(); } }, t(`samples.${name}.${value}`)));
    return h("div.segments", { role: "group", id: `samples-${name}`, "aria-label": label }, buttons);
  };
  const range = h("input", { type: "range", min: "0", max: "0", step: "1", value: "0", id: "samples-step", oninput: () => { const { steps } = collect(list); chosen = +range.value === steps.length - 1 ? null : steps[+range.value]?.step ?? null; soon(); } });
  // A hand that pulls the slider is faster than fifty answers are drawn.
  let due = 0;
  const soon = () => { cancelAnimationFrame(due); due = requestAnimationFrame(show); };
  const label = h("output.num", { for: "samples-step", id: "samples-at" });
  const scrub = h("div.scrub", {}, h("label", { for: "samples-step" }, t("samples.slider")), range, label);
  const body = h("div.samples-body");
  const card = h("section.card.samples", {},
    h("div.grid-bar", {}, h("h3", {}, t("samples.title")), h("span.spring"), h("span.quiet.small", { id: "samples-marks" }, t("samples.marks")),
      choice("against", t("samples.marks"), ["base", "previous"], () => against, (value) => { against = value; }),
      choice("view", t("samples.view"), ["step", "grid"], () => view, (value) => { view = value; })),
    scrub, body);

  const reason = (at, index, steps) => (at.step === 0 ? t("samples.reason.start") : at.reason === "end" || (index === steps.length - 1 && !feed.live()) ? t("samples.reason.end") : at.reason === "save" ? t("samples.reason.save") : "");
  const stepText = (at, index, steps) => [t("step", { n: at.step }), reason(at, index, steps)].filter(Boolean).join(" · ");
  // The answer that a step's answer is compared with; undefined where there is none.
  const reference = (steps, index, prompt) => (index === 0 ? undefined : steps[against === "base" ? 0 : index - 1].answers.get(prompt));

  const oneStep = ({ prompts, steps }, index) => {
    const at = steps[index]; const base = steps[0];
    const head = (text, more) => h("th", { scope: "col" }, text, more && h("span.tag.num", {}, more));
    return h("table.grid.samples-step", {}, h("thead", {}, h("tr", {}, head(t("samples.prompt")), head(t("samples.base"), base.step ? t("step", { n: base.step }) : ""), head(t("samples.tuned"), t("step", { n: at.step })))),
      h("tbody", {}, [...prompts].map(([key, prompt]) => h("tr", {}, h("th", { scope: "row" }, promptNode(prompt)),
        h("td.base", { "data-label": t("samples.base") }, answerNode(`${key}-base`, base.answers.get(key), open, show, (text) => (against === "base" ? lost(text, at.answers.get(key)) : [text]))),
        h("td", { "data-label": t("samples.tuned") }, answerNode(`${key}-${at.step}`, at.answers.get(key), open, show, (text) => marked(reference(steps, index, key), text)))))));
  };
  const grid = ({ prompts, steps }) => {
    const every = steps.map((at, index) => [at, index]);
    // Very many cells would stop the browser: then evenly spread steps are shown, and the slider has them all.
    const most = Math.max(COLUMNS, Math.floor(CELLS / prompts.size));
    const spread = every.length <= most ? every : Array.from({ length: most }, (_, at) => every[Math.round((at * (every.length - 1)) / (most - 1))]);
    const shown = every.length <= COLUMNS ? every : all ? spread : [every[0], ...every.slice(-(COLUMNS - 1))];
    const table = h("table.grid", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("samples.prompt")), shown.map(([at, index]) => h("th.num", { scope: "col" }, t("step", { n: at.step }), h("span.tag", {}, reason(at, index, steps)))))),
      h("tbody", {}, [...prompts].map(([key, prompt]) => h("tr", {}, h("th", { scope: "row" }, promptNode(prompt)),
        shown.map(([at, index]) => h("td", {}, answerNode(`${key}-${at.step}`, at.answers.get(key), open, show, (text) => marked(reference(steps, index, key), text))))))));
    const more = most > COLUMNS && every.length > COLUMNS && h("button.btn.small", { type: "button", id: "samples-all", onclick: () => { all = !all; show(); } }, t(all ? "samples.few" : spread === every ? "samples.all" : "samples.spread", { n: spread.length, total: every.length }));
    return [h("div.grid-scroll", { tabindex: "0", role: "region", "aria-label": t("samples.title") }, table), more && h("div.samples-more", {}, more)];
  };
  const show = () => {
    const found = collect(list);
    host.hidden = !found.steps.length;
    if (host.hidden) return;
    if (!card.isConnected) host.replaceChildren(card);
    const last = found.steps.length - 1;
    const index = chosen === null ? last : Math.max(0, found.steps.findIndex((at) => at.step === chosen));
    range.max = String(last); range.value = String(index); range.disabled = !last;
    const text = stepText(found.steps[index], index, found.steps);
    range.setAttribute("aria-valuetext", text);
    label.textContent = text;
    scrub.hidden = view !== "step";
    render(body, view === "step" ? h("div.grid-scroll", { tabindex: "0", role: "region", "aria-label": t("samples.title") }, oneStep(found, index)) : grid(found));
  };
  const draw = async (state) => {
    if (!state || !state.id || state.missing) { host.hidden = true; list = []; drawn = ""; return; }
    if (state.id !== run) { run = state.id; chosen = null; all = false; open.clear(); list = []; host.hidden = true; drawn = ""; }
    const samples = await read(state);
    if (state !== feed.state) return;
    // A run that goes on from an earlier step answers again: what came after that step is void until then.
    const valid = state.asked?.step.length ? new Set(state.asked.step) : null;
    const kept = valid ? samples.filter((sample) => valid.has(sample.step)) : samples;
    const key = `${state.id}|${samples.length}|${kept.length}|${feed.live()}`;
    if (key === drawn) return;
    drawn = key;
    list = kept;
    show();
  };
  feed.listen(element, (state) => { draw(state).catch(() => { drawn = ""; }); });
}
