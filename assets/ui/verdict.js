// The verdict: three lights, what failed folded beneath, and answers before and after. For a merge: its proof.
import { lights } from "./stepper.js";
const { h, t, render, feed, format, cachedRead } = window.Studio;

const failing = (verdict) => ["learned", "leaked", "forgot"].map((name) => {
  const list = verdict[name]?.failing || [];
  if (!list.length) return null;
  return h("details.fold", {}, h("summary", {}, t(`failing.${name}`, { n: list.length })), h("div.fails", {}, list.slice(0, 30).map((item) => h("div.fail", {},
    h("b", { dir: "auto" }, item.prompt), h("span", { dir: "auto" }, item.answer ?? item.after ?? ""),
    h("span.quiet", { dir: "auto" }, item.before !== undefined ? t("failing.before", { text: item.before }) : item.expected !== undefined ? t("failing.expected", { text: [item.expected].flat().join(", ") }) : "")))));
});

const pairs = (rows) => rows.length && h("details.fold", { open: true }, h("summary", {}, t("pairs.title")), h("div.pairs", {},
  h("div.pair.head", {}, h("span", {}, t("home.question")), h("span", {}, t("home.before")), h("span", {}, t("home.after"))),
  rows.slice(0, 12).map((row) => h("div.pair", {}, h("span", { dir: "auto" }, row.prompt), h("span.quiet", { dir: "auto" }, row.before), h(row.ok ? "span.after" : "span", { dir: "auto" }, row.after)))));

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
  const read = cachedRead("/api/report");
  let drawn = "";
  const draw = async (state) => {
    const ended = state && state.id && state.status && !state.status.live && !state.missing;
    const report = ended ? await read(state.id, `${state.status.state}|${state.status.updated_at}`) : null;
    if (state !== feed.state) return;
    const key = `${state && state.id}|${report ? state.status.updated_at : ""}`;
    if (key === drawn) return;
    drawn = key;
    if (!report) render(host);
    else if (report.proof) render(host, proof(report));
    else if (report.verdict) render(host, h("section.card.verdict", { id: "run-verdict" },
      h("div.grid-bar", {}, h("h3", {}, t(report.verdict.passed ? "verdict.passed" : "verdict.missed")), h("span.spring"), report.seconds && h("span.quiet.num", {}, t("verdict.seconds", { s: format.seconds(Object.values(report.seconds).reduce((a, b) => a + (b || 0), 0)) }))),
      lights(report.verdict), failing(report.verdict), pairs(report.before_after || [])));
  };
  feed.listen(element, (state) => { draw(state).catch(() => { drawn = ""; }); });
}
