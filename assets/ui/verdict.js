// The verdict: what it means and the one change to try next, the lights, the checks during the training, what failed,
// and answers before and after. For a merge: its proof.
import { lights } from "./lights.js";
import { marked } from "./worddiff.js";
const { h, t, api, render, feed, format, confirm, cachedRead } = window.Studio;
const SHOWN = 30;

// ---- the checks during the training --------------------------------------------------------------------------------
const SERIES = ["learned", "leaked", "retained"];
// The curves themselves are among those of the chart, where they can be zoomed and laid over others.
const toCurve = (spec = "button.btn.small") => h(spec, { type: "button", id: "exam-curve", onclick: () => dispatchEvent(new CustomEvent("studio:curve", { detail: "exam" })) }, t("trend.show"));
const newest = (checks, name) => [...checks].reverse().find((check) => check[name] !== null && check[name] !== undefined)?.[name] ?? null;
const trend = (checks) => h("ul.trend-key", {}, SERIES.filter((name) => newest(checks, name) !== null).map((name) => h("li", {}, t("trend." + name), h("b.num", {}, format.percent(newest(checks, name))))),
  newest(checks, "perplexity") !== null && h("li", {}, t("trend.perplexity"), h("b.num", {}, format.number(newest(checks, "perplexity"), 2))));
const checksOf = (state) => ((state && state.exams ? state.exams.step.map((step, index) => ({ step, ...Object.fromEntries([...SERIES, "perplexity"].map((name) => [name, state.exams[name]?.[index] ?? null])) })) : []));

// ---- what it means -------------------------------------------------------------------------------------------------
export const differences = (changes) => h("ul.differences", {}, changes.map((change) => h("li", {}, h("span.what", { title: change.field }, change.label), h("del", {}, change.old || t("clone.empty")), h("span", { "aria-hidden": "true" }, "→"), h("ins", {}, change.new || t("clone.empty")))));

// Asks with the differences in sight; a yes clones the run. `changes`: {field path: value}.
export const tryChange = async (run, changes) => {
  let shown;
  try { shown = await api(`/api/clone?run=${encodeURIComponent(run)}&changes=${encodeURIComponent(JSON.stringify(changes))}`); } catch (error) { shown = { problem: t("offline") }; }
  if (shown.problem) { await confirm({ title: t("clone.no"), body: shown.problem, ok: t("ok"), danger: false }); return; }
  const body = [h("span", {}, t("clone.body", { name: shown.name })), differences(shown.differences), shown.waits && h("span.quiet", {}, t("clone.waits"))];
  if (await confirm({ title: t("clone.title"), body, ok: t(shown.waits ? "clone.queue" : "clone.start"), danger: false })) dispatchEvent(new CustomEvent("studio:clone", { detail: { run, changes } }));
};

const diagnosisBox = (run, found) => found && h("div", { class: `diagnosis ${found.kind === "good" ? "good" : "hint"}`, id: "run-diagnosis" },
  h("div", {}, h("b", { dir: "auto" }, found.message), found.hint && h("p", { dir: "auto" }, found.hint)),
  found.differences.length > 0 && [differences(found.differences), h("button.btn.go", { type: "button", id: "try-change", onclick: () => tryChange(run, found.changes) }, t("clone.try"))]);
const bestLine = (best) => best && h("p.best.num", { id: "run-best" }, h("span.star", { "aria-hidden": "true" }, "★"), h("span", { dir: "auto" }, t("best.step", { n: best.step }), best.why && ` ${best.why}`));

// ---- details ---------------------------------------------------------------------------------------------------------
// Of a taught answer every text must be there, "|" between alternatives; of a general question one is enough.
const wanted = (name, value) => [value].flat().filter(Boolean).map((text) => String(text).split("|").join(t("failing.or"))).join(t(name === "forgot" ? "failing.or" : "failing.and"));
const failing = (verdict) => ["learned", "leaked", "forgot"].map((name) => {
  const list = verdict[name]?.failing || [];
  if (!list.length) return null;
  const all = { learned: (verdict[name].total ?? 0) - (verdict[name].right ?? 0), leaked: verdict[name].hits, forgot: (verdict[name].total ?? 0) - (verdict[name].kept ?? 0) }[name] || list.length;
  const line = (label, text, spec = "span") => text !== undefined && text !== null && text !== "" && h("div.fail-line", {}, h("span.quiet", {}, label), h(spec, { dir: "auto" }, text));
  return h("details.fold", {}, h("summary", {}, t(`failing.${name}${name === "learned" && !verdict.leaked ? ".own" : ""}${all === 1 ? ".one" : ""}`, { n: all })), h("div.fails", {}, list.slice(0, SHOWN).map((item) => h("div.fail", {},
    h("b", { dir: "auto" }, item.prompt),
    line(t("failing.answered"), item.answer ?? item.after ?? ""), line(t("failing.wanted"), wanted(name, item.expected)), line(t("home.before"), item.before)))),
  all > Math.min(list.length, SHOWN) && h("p.quiet", {}, t("failing.more", { n: all - Math.min(list.length, SHOWN) })));
});
const FEW = 4;
const pairs = (rows, all, toggle) => rows.length > 0 && h("details.fold", { open: true }, h("summary", {}, t("pairs.title")), h("div.pairs", {},
  h("div.pair.head", {}, h("span", {}, t("home.question")), h("span", {}, t("home.before")), h("span", {}, t("home.after"))),
  rows.slice(0, all ? rows.length : FEW).map((row) => h("div.pair", {}, h("span", { dir: "auto" }, row.prompt), h("span.quiet", { dir: "auto" }, row.before), h(row.ok ? "span.after" : "span", { dir: "auto" }, marked(row.before, row.after))))),
  rows.length > FEW && h("button.btn.small.more-pairs", { type: "button", id: "pairs-all", onclick: toggle }, t(all ? "pairs.few" : "pairs.all", { n: rows.length })));

const proof = (report) => {
  const { proof: result } = report;
  const line = (ok, text) => h(ok ? "li.yes" : "li.no", {}, text);
  return h("section.card.verdict", {}, h("h3", {}, t(result.passed ? "proof.passed" : "proof.failed")), h("ul.proof", {},
    line(result.max_logit_difference <= result.tolerance, t("proof.logits", { d: Number(result.max_logit_difference).toExponential(1), tolerance: result.tolerance })),
    line(result.answers_equal === result.prompts || result.answers_equal === true, t("proof.answers", { n: result.prompts })),
    line(result.weights_differ_from_base, t("proof.differs")), line(result.template_identical, t("proof.template"))),
  h("p.quiet.mono", { dir: "auto" }, `${report.out} · ${format.bytes(report.size_bytes)}`));
};

export function mount({ element }) {
  const host = element.querySelector(".mount");
  const readReport = cachedRead("/api/report"); const readMeaning = cachedRead("/api/diagnosis");
  let drawn = ""; let allPairs = "";
  const title = (verdict) => t(verdict.passed === null || verdict.passed === undefined ? "verdict.unchecked" : verdict.passed ? "verdict.passed" : "verdict.missed");
  const whole = (id, report, meaning, checks) => h("section.card.verdict", { id: "run-verdict" },
    h("div.grid-bar", {}, h("h3", {}, title(report.verdict)), h("span.spring"), checks.length > 1 && toCurve("button.btn.link.small"), report.seconds && h("span.quiet.num", {}, t("verdict.seconds", { s: format.seconds(Object.values(report.seconds).reduce((a, b) => a + (b || 0), 0)) }))),
    diagnosisBox(id, meaning.diagnosis), lights(report.verdict, { limits: true }), bestLine(meaning.best), failing(report.verdict),
    pairs(report.before_after || [], allPairs === id, () => { allPairs = allPairs === id ? "" : id; drawn = ""; redraw(); }));
  const draw = async (state) => {
    const there = state && state.id && state.status && !state.missing;
    const ended = there && !state.status.live && state.status.state !== "queued";
    const mark = there ? `${state.status.state}|${state.status.updated_at}` : "";
    const [report, meaning] = ended ? await Promise.all([readReport(state.id, mark), readMeaning(state.id, mark)]) : [null, null];
    if (state !== feed.state) return;
    const checks = there ? checksOf(state) : [];
    const key = `${state && state.id}|${report ? mark : ""}|${Boolean(meaning)}|${checks.length}`;
    if (key === drawn) return;
    drawn = key;
    const asked = meaning || { diagnosis: null, best: null };
    if (report?.proof) render(host, proof(report));
    else if (report?.verdict) render(host, whole(state.id, report, asked, checks));
    else if (checks.length) render(host, h("section.card.verdict", { id: "run-checks" },
      h("div.grid-bar", {}, h("h3", {}, t("trend.title")), h("span.quiet.num", {}, t("step", { n: checks[checks.length - 1].step })), h("span.spring"), checks.length > 1 && toCurve()), trend(checks), bestLine(asked.best)));
    else render(host);
  };
  const redraw = () => draw(feed.state).catch(() => { drawn = ""; });
  feed.listen(element, redraw);
}
