// Two or more runs side by side: results, the settings that differ, the last answers; the curves are drawn together below.
const { h, t, render, api, run, select, format } = window.Studio;
import { library } from "./library.js";
import { spreadText } from "./ranks.js";
import { promptNode } from "./samples.js";
import { marked } from "./worddiff.js";

const cell = (text, options = {}) => h("td", { dir: "auto", ...options }, text === null || text === undefined || text === "" ? h("span.quiet", {}, t("compare.unset")) : text);
const percent = (light) => (light ? h(light.ok ? "span.yes" : "span.no", {}, format.percent(light.share)) : h("span.quiet", {}, "–"));

function results(found) {
  const { runs, verdicts } = found;
  const light = (name) => verdicts.map((verdict) => verdict.lights[name]);
  const lowest = (values) => { const known = values.filter((value) => value !== null && value !== undefined); return known.length > 1 && new Set(known).size > 1 ? Math.min(...known) : null; };
  const numbers = (values, show, best) => values.map((value) => h("td.num", {}, show(value), best !== null && value === best && h("span.best", { title: t("compare.best") }, "★", h("span.sr-only", {}, t("compare.best")))));
  const losses = runs.map((line) => line.loss); const evals = runs.map((line) => line.eval_loss);
  const rows = [
    [t("compare.state"), runs.map((line) => h("td", {}, h(`span.chip.${line.state}`, {}, t("state." + line.state))))],
    verdicts.some((verdict) => verdict.passed !== null && verdict.passed !== undefined) && [t("compare.verdict"), verdicts.map((verdict) => h("td", {}, typeof verdict.passed === "boolean" ? h(verdict.passed ? "span.passed" : "span.missed", {}, t(verdict.passed ? "passed" : "missed")) : "–"))],
    ...["learned", "leaked", "forgot"].map((name) => light(name).some(Boolean) && [t(`compare.${name}`), light(name).map((one) => h("td.num", {}, percent(one)))]),
    verdicts.some((verdict) => verdict.perplexity) && [t("compare.perplexity"), numbers(verdicts.map((verdict) => verdict.perplexity?.after ?? null), format.loss, lowest(verdicts.map((verdict) => verdict.perplexity?.after)))],
    [t("compare.loss"), numbers(losses, format.loss, lowest(losses))],
    evals.some((value) => value !== null) && [t("compare.eval_loss"), numbers(evals, format.loss, lowest(evals))],
    [t("compare.steps"), runs.map((line) => h("td.num", {}, line.max_steps ? `${line.step} / ${line.max_steps}` : "–"))],
    runs.some((line) => line.processes > 1) && [t("ranks.title"), runs.map((line) => h("td", {}, spreadText(line) || "1"))],
    [t("compare.duration"), numbers(runs.map((line) => line.duration_seconds), format.seconds, null)],
    [t("compare.size"), numbers(runs.map((line) => line.size_bytes), format.bytes, null)],
    verdicts.some((verdict) => verdict.diagnosis) && [t("compare.diagnosis"), verdicts.map((verdict) => h("td.answered", { dir: "auto" }, verdict.diagnosis ? verdict.diagnosis.message : "–"))],
  ];
  return rows.filter(Boolean).map(([name, cells]) => h("tr", {}, h("th", { scope: "row" }, name), cells));
}

const differing = (rows, label) => rows.map((row) => h("tr", {}, h("th", { scope: "row" }, label(row)), row.values.map((value) => cell(value))));
const environmentName = (row) => (row.path.startsWith("data ") ? t("compare.env.data", { name: row.path.slice(5) }) : ["commit", "gpus"].includes(row.path) ? t(`compare.env.${row.path}`) : row.path);
const answers = (found) => found.prompts.map((row) => h("tr", {}, h("th", { scope: "row" }, promptNode(row.prompt), row.before && h("span.quiet", { dir: "auto" }, t("compare.before", { text: row.before }))),
  row.answers.map((entry, at) => h("td.answered", { dir: "auto" }, entry ? [h("span", {}, marked(at ? row.answers[0]?.answer : null, entry.answer)), h("span.quiet.num", {}, t("compare.at", { n: entry.step }))] : h("span.quiet", {}, "–")))));

// What needs room comes below the curves: its place is another piece of the page.
let below = null;
export const rest = (node) => { below = node; };

export function mount({ element }) {
  const host = element.querySelector(".mount");
  let ids = []; let drawn = ""; let asked = 0;
  const address = () => { const url = new URL(location.href); if (ids.length) url.searchParams.set("compare", ids.join(",")); else url.searchParams.delete("compare"); history.replaceState(null, "", url); };
  const end = () => { if (!ids.length) return; ids = []; drawn = ""; address(); document.body.removeAttribute("data-compare"); dispatchEvent(new CustomEvent("studio:overlay", { detail: [] })); render(host); if (below) render(below); };
  const column = (line, index) => h("th", { scope: "col" }, h("button.run-open", { type: "button", id: `compare-${line.id}`, title: line.id, dir: "auto", onclick: () => { end(); select(line.id); } }, h(`span.dot.d${index + 1}`, { "aria-hidden": "true" }), line.name));
  const section = (title, lines, rows, empty) => [h("h4", {}, title), rows.length ? h("div.grid-scroll", {}, h("table.grid.side", {}, h("thead", {}, h("tr", {}, h("th", {}), lines.map(column))), h("tbody", {}, rows))) : h("p.quiet", {}, empty)];
  const draw = (found) => {
    const lines = found.runs;
    render(host, h("section.card.compare", { id: "compare", "aria-label": t("compare.title", { n: lines.length }) },
      h("div.grid-bar", {}, h("h3", {}, t("compare.title", { n: lines.length })), h("span.spring"), h("button.btn.small", { type: "button", id: "compare-end", onclick: end }, t("compare.end"))),
      section(t("compare.results"), lines, results(found))));
    if (below) render(below, h("section.card.compare", { id: "compare-rest" },
      section(t("compare.fields"), lines, differing(found.fields, (row) => [h("span", {}, row.label), h("code", {}, row.path)]), t("compare.same")),
      found.environment.length > 0 && section(t("compare.environment"), lines, differing(found.environment, environmentName)),
      found.prompts.length > 0 && section(t("compare.samples"), lines, answers(found))));
  };
  const load = async () => {
    const mine = (asked += 1); const wanted = ids;
    try {
      const found = await api(`/api/compare?${wanted.map((id) => `run=${encodeURIComponent(id)}`).join("&")}`);
      if (mine !== asked || !ids.length) return;
      const text = JSON.stringify(found);
      if (text !== drawn) { drawn = text; draw(found); }
    } catch (error) {
      if (mine === asked && ids.length) { drawn = ""; render(host, h("section.card.compare", {}, h("p", { role: "alert" }, t("compare.failed")), h("button.btn.small", { type: "button", id: "compare-end", onclick: end }, t("compare.end")))); }
    }
  };
  const begin = (wanted) => {
    ids = [...new Set(wanted)].slice(0, 8);
    if (ids.length < 2) { end(); return; }
    select(ids[0]);
    address();
    document.body.toggleAttribute("data-compare", true);
    render(host, h("section.card.compare", { "aria-busy": "true" }, h("p.quiet", {}, t("compare.wait"))));
    dispatchEvent(new CustomEvent("studio:overlay", { detail: ids }));
    load();
  };
  addEventListener("studio:compare", (event) => begin(event.detail));
  addEventListener("studio:run", () => { if (ids.length && !ids.includes(run())) end(); });
  // Live runs change while they are compared.
  setInterval(() => { if (ids.length && !document.hidden && host.offsetParent && ids.some((id) => library.runs.get(id)?.live)) load(); }, 4000);
  const linked = (new URL(location.href).searchParams.get("compare") || "").split(",").filter(Boolean);
  if (linked.length > 1) begin(linked);
}
