// One export of the Export tab: its progress while it is at work, then the proof, where the result lies and how to use it.
import { button, copy, h } from "./tabs.js";

const { t, api, confirm, format, goTab, poll, select } = window.Studio;
const GOING = ["queued", "starting", "running", "stopping"];
// Opens an earlier export in the place of the one that is followed.
let opened = null;
export const show = (run) => opened && opened(run);

export function copyable(text) {
  const done = button("btn.small.copy", t("tabs.copy"), () => copy(text, done));
  return h("div.copyable", {}, h("pre.code.command", { tabindex: 0 }, text), done);
}

// ---- the proof -------------------------------------------------------------------------------------------------------
const small = (value) => (value === null || value === undefined ? "–" : value === 0 ? "0" : Number(value).toPrecision(2));
const yes = (value) => t(value ? "export.proof.yes" : "export.proof.no");
const fact = (good, label, value) => h("li" + (good === null ? ".plain" : good ? ".good" : ".bad"), {}, h("span.mark"), h("span", {}, label), h("b.num", {}, value));
const count = (n, total) => t("export.proof.of", { n: n === true ? total : Number(n), total });

// Each fact is drawn where the report has it: every goal proves what matters for it. Of a passed proof nothing is red:
// what differs there was allowed to.
function facts(p, report = {}) {
  const has = (key) => p[key] !== undefined && p[key] !== null;
  const list = [];
  const measured = (key, limited, free) => {
    if (!has(key)) return;
    const limits = has("tolerance");
    const good = !limits || p[key] <= p.tolerance;
    const said = { value: small(p[key]), limit: small(p.tolerance) };
    list.push(fact(limits ? good : null, t(limits ? limited : free), limits ? t(good ? "export.proof.allowed" : "export.proof.above", said) : said.value));
  };
  const all = (key, total, label) => {
    if (!has(key) || !p[total]) return;
    const same = p[key] === true || p[key] >= p[total];
    list.push(fact(same ? true : p.passed ? null : false, t(label), count(p[key], p[total])));
  };
  measured("max_logit_difference", "export.proof.difference", "export.proof.moves");
  measured("max_logprob_difference", "export.proof.logprob", "export.proof.logprob");
  if (p.skipped !== "memory") all("answers_equal", "prompts", "export.proof.answers");
  if (has("answers_changed") && p.prompts) list.push(fact(p.answers_changed > 0 ? true : null, t("export.proof.changed"), count(p.answers_changed, p.prompts)));
  if (has("weights_differ_from_base")) list.push(fact(p.weights_differ_from_base, t("export.proof.weights"), p.layers ? t("export.proof.layers", { n: p.layers_changed ?? 0, total: p.layers }) : yes(p.weights_differ_from_base)));
  all("layers_packed", "layers", "export.proof.packed");
  all("texts_equal", "texts", "export.proof.tokens");
  all("conversations_equal", "conversations", "export.proof.rendered");
  if (has("template_identical")) list.push(fact(p.template_identical, t("export.proof.template"), yes(p.template_identical)));
  if (Number.isFinite(p.files)) list.push(fact(true, t("export.proof.files"), format.number(p.files)));
  if (has("checked_with")) list.push(fact(null, t("export.proof.engine"), String(p.checked_with)));
  if (report.modelfile) list.push(fact(!!report.modelfile.passed, t("export.proof.modelfile"), count(true, report.modelfile.conversations)));
  if (p.skipped === "memory") list.push(fact(null, t("export.proof.answers"), t("export.proof.no_memory")));
  if (report.lora) list.push(fact(null, t("export.proof.lora"), t("export.proof.lora.value", { r: report.lora.r, alpha: report.lora.lora_alpha })));
  if (report.lora && report.tensors) list.push(fact(true, t("export.proof.tensors"), format.number(report.tensors)));
  return h("ul.facts", {}, list);
}

// What follows the end of an answer was compared too, but means nothing to a person.
const ENDS = /\s*(?:<\|[^|>\s]+\|>|<\/s>|<end_of_turn>|<eos>)[\s\S]*$/;
const answerOf = (text) => text.replace(ENDS, "");

function rows(list) {
  if (!Array.isArray(list) || !list.length) return null;
  const keys = Object.keys(list[0]).filter((key) => typeof list[0][key] === "string");
  const head = (key) => { const name = "export.proof.col." + key; const text = t(name); return text === name ? key : text; };
  return h("details.answers", { open: true }, h("summary", {}, t("export.proof.rows")), h("div.scroll", { tabindex: 0, role: "region", "aria-label": t("export.proof.rows") }, h("table.rows", {},
    h("thead", {}, h("tr", {}, keys.map((key) => h("th", { scope: "col" }, head(key))))),
    h("tbody", {}, list.map((row) => h("tr", {}, keys.map((key) => h("td", {}, key === "prompt" ? row[key] : answerOf(row[key])))))))));
}

// A run on 4-bit weights: both bases it can be merged into, each with its measured distance from what was trained.
function bases(found, chosen, again) {
  if (!found || typeof found !== "object") return null;
  const widest = Math.max(...Object.values(found).map((one) => one.max_logit_difference || 0)) || 1;
  const one = (name) => {
    const it = found[name];
    if (!it) return null;
    const share = Math.max(2, Math.round(100 * (it.max_logit_difference || 0) / widest));
    return h("div.base" + (name === chosen ? ".on" : ""), {},
      h("p.base-head", {}, h("b", {}, t("export.bases." + name)), name === chosen && h("span.chip.finished", {}, t("export.bases.this"))),
      h("p.base-figure", {}, h("b.num", {}, small(it.max_logit_difference)), h("span.quiet", {}, t("export.bases.difference"))),
      h("div.base-bar", { "aria-hidden": "true" }, h("i", { style: `width:${share}%` })),
      it.prompts && h("p.quiet.num", {}, `${count(it.answers_equal, it.prompts)} ${t("export.bases.answers")}`),
      h("p.quiet", {}, t(`export.bases.${name}.for`)),
      name !== chosen && again && button("btn.small", t("export.bases.instead"), () => again({ merge_base: name })));
  };
  return h("div.bases-box", {}, h("h4", {}, t("export.bases")), h("p.quiet", {}, t("export.bases.body")), h("div.bases", {}, one("original"), one("dequantized")));
}

const said = (notes) => (notes || []).map((note) => h("p.note", {}, note));

function price(it) {
  if (!it) return null;
  return h("div.price", {}, h("h4", {}, t("export.price")), h("p.quiet", {}, t("export.price.body")),
    h("ul.facts", {}, fact(null, t("export.proof.difference"), small(it.max_logit_difference)),
      it.prompts && fact(null, t("export.proof.answers"), count(it.answers_equal, it.prompts))), rows(it.rows));
}

// ---- the result ------------------------------------------------------------------------------------------------------
function place(found, report) {
  if (!found.there) return h("p.where.bad", {}, t("export.gone"));
  const size = format.bytes(found.size);
  const shards = Array.isArray(report.shards) ? report.shards.length : report.shards;
  const said = found.goal === "hub" ? t("export.where.hub") : shards > 1 ? t("export.where.files", { size, n: shards }) : t("export.where", { size });
  const path = button("path.btn.link", found.out, () => copy(found.out, path));
  return h("p.where", {}, h("span.quiet", {}, said), path);
}

function next(found, again) {
  const go = (goal) => button("btn", t("export.next." + (goal === "gguf" ? "gguf" : goal === "hub" ? "upload" : "merge")), () => again({ next: goal }));
  const buttons = [
    found.chat && button("btn.go", t("export.next.chat"), () => { select(found.id); goTab("chat"); }),
    found.there && found.whole && found.goal !== "bitsandbytes" && go("gguf"),
    found.there && !found.whole && found.goal === "import" && go("safetensors"),
    found.there && (found.whole || ["adapter", "import"].includes(found.goal)) && go("hub"),
  ].filter(Boolean);
  if (found.state !== "finished" || (!buttons.length && !found.uses.length)) return null;
  const programs = [...new Set(found.uses.map((one) => one.program))];
  return h("div.next", {}, h("h4", {}, t("export.next")), buttons.length > 0 && h("div.row", {}, buttons),
    programs.length > 0 && h("dl.uses", {}, programs.map((program) => [h("dt", {}, program),
      h("dd", {}, found.uses.filter((one) => one.program === program).map((one) => copyable(one.command)))])));
}

function result(found, again) {
  const report = found.report || {};
  const proof = report.proof;
  const passed = proof ? proof.passed : null;
  const title = t(passed ? "export.proof.passed" : passed === false ? "export.proof.failed" : "export.proof.done");
  const head = h("div.card-head", {}, h("h3", {}, title), h("span.quiet.who", {}, `${t("export.goal." + found.goal)} · ${found.name}`), h("span.spring"),
    passed !== null && h("span", { class: "chip " + (passed ? "finished" : "failed") }, t(passed ? "export.proof.ok" : "export.proof.bad")));
  return h("section.card.result", { "aria-live": "polite" }, head, h("div.result-parts", {},
    h("div.result-proof", {}, proof && facts(proof, report), said(found.notes), bases(report.bases, report.merge_base, again), proof && rows(proof.rows),
      price(report.price), report.merge && report.merge.proof && h("details.answers", {}, h("summary", {}, t("export.merged_first")),
        facts(report.merge.proof), bases(report.merge.bases, report.merge.merge_base, again), rows(report.merge.proof.rows))),
    h("div.result-next", {}, place(found, report), next(found, again))));
}

// ---- progress and failure --------------------------------------------------------------------------------------------
function working(found, seen, stop) {
  const { progress, phase } = seen;
  const share = progress && progress.total ? Math.min(1, progress.done / progress.total) : null;
  const waits = found.state === "queued";
  const what = waits ? found.waiting && t("export.run.queued", { place: found.waiting.place, why: found.waiting.why })
    : progress ? `${progress.label || ""} ${progress.done} / ${progress.total}` : t("export.run.loading");
  const busy = t("export.run.busy." + found.goal);
  return h("section.card.working", {}, h("div.card-head", {}, h("h3", {}, busy), h("span.quiet.who", {}, found.name), h("span.spring"),
    h("span", { class: "chip " + (waits ? "" : "running"), role: "status" }, phase && !waits ? t("phase." + phase) : t("state." + found.state)),
    button("btn.small.bad", t("export.run.stop"), stop, found.state === "stopping" ? { disabled: true } : {})),
    !waits && h("div.progress" + (share === null ? ".unknown" : ""), { role: "progressbar", "aria-label": busy, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": share === null ? null : Math.round(share * 100) },
      h("i", { style: `width:${share === null ? 100 : Math.round(share * 100)}%` })),
    h("p.quiet.num", {}, what || "", !waits && found.started_at ? " · " + format.seconds(found.now - found.started_at) : ""));
}

function failed(found, again, log) {
  const error = found.error;
  const proof = found.report && found.report.proof;
  const title = found.state === "stopped" ? "export.run.stopped" : "export.run.failed";
  return h("section.card", { class: "card " + (found.state === "stopped" ? "" : "failed"), role: "alert" }, h("div.card-head", {}, h("h3", {}, t(title)), h("span.quiet.who", {}, `${t("export.goal." + found.goal)} · ${found.name}`)),
    h("p", {}, error ? error.message : found.state === "stopped" ? t("export.run.stopped.body") : t("export.run.ended", { state: t("state." + found.state) })),
    error && error.hint && h("p.quiet", {}, error.hint),
    proof && facts(proof), proof && rows(proof.rows),
    h("div.row", {}, button("btn", t("export.run.again"), () => again({})), found.state !== "stopped" && button("btn.link", t("export.run.log"), log)));
}

// One that was taken out of the queue leaves nothing to start again from.
const gone = (found) => h("section.card", { role: "status" }, h("div.card-head", {}, h("h3", {}, t("export.run.stopped")), h("span.quiet.who", {}, found.name)), h("p.quiet", {}, t("export.run.stopped.body")));

// ---- following one ---------------------------------------------------------------------------------------------------
export function follow({ props, trigger, draw, element }) {
  let run = "";
  let over = false;
  let last = null;
  let seen = { offset: 0, progress: null, phase: "" };
  const again = (more) => { trigger("apply", { ...more, run }); scrollTo({ top: 0, behavior: "smooth" }); };
  const log = () => { select(run); goTab("monitor"); };
  const stop = async (found) => {
    const body = t(found.goal === "hub" ? "export.run.stop.upload" : "export.run.stop.body");
    const asked = { title: t("export.run.stop.title", { name: found.name }), body, ok: t("export.run.stop.yes"), cancel: t("export.run.go_on") };
    if (await confirm(asked)) trigger("delete", { run: found.id });
  };
  const tell = () => dispatchEvent(new CustomEvent("studio:export", { detail: run }));
  const tick = async () => {
    if (!run || over) return;
    const mine = run;
    let found;
    try {
      const part = await api(`/api/metrics?run=${encodeURIComponent(mine)}&after=${seen.offset}`);
      if (mine !== run) return;
      const phases = part.phases.map((one) => one.name);
      // The progress of a phase ends with it.
      seen = { offset: part.offset, progress: part.progress || (phases.length ? null : seen.progress), phase: phases.at(-1) || seen.phase };
      found = await api(`/api/export?run=${encodeURIComponent(mine)}`);
    } catch (error) {
      if (error.status !== 404) throw error;
      over = true; // taken out of the queue, or deleted
      if (mine === run) draw(() => (last ? [gone(last)] : []));
      tell();
      return;
    }
    if (mine !== run) return;
    last = found;
    const going = GOING.includes(found.state);
    over = !going && (found.state !== "finished" || !!found.report);
    draw(() => [going ? working(found, seen, () => stop(found)) : found.state === "finished" ? result(found, again) : failed(found, again, log)]);
    if (over) tell();
  };
  const open = (id, place) => {
    run = id; over = false; last = null; seen = { offset: 0, progress: null, phase: "" };
    draw(() => (id ? [h("div.card.skeleton", {})] : []));
    tick().then(() => place && element.scrollIntoView({ block: place, behavior: "smooth" })).catch(() => {});
  };
  opened = (id) => open(id, "start");
  poll(element, tick, 800);
  return () => {
    const v = props.value;
    if (v && v.run !== undefined && (v.run !== run || v.started)) { open(v.run, v.started ? "nearest" : ""); tell(); }
  };
}
