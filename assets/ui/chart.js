// Curves of the selected run and of those laid over it: one metric large, or all of them; smoothing, log scale, zoom by
// dragging, values under the pointer, marks, the coach's notes, PNG and CSV.
import { Smoothed, csv } from "./chartdata.js";
import { METRICS, Panel, colour, hasMetric, valuesAt } from "./chartpanel.js";
import { noteList } from "./chartnotes.js";
import { download, picture } from "./chartfile.js";
const { h, t, render, api, feed, format, script, store, seen, poll } = window.Studio;
const LARGE = 300; const SMALL = 150;
const NOTES_EVERY_MS = 5000;
const stored = (name, fallback) => store.get(`chart.${name}`) ?? fallback;

export function mount({ element }) {
  const host = element.querySelector(".mount");
  let name = METRICS[stored("metric", "loss")] ? stored("metric", "loss") : "loss";
  let all = stored("all", "") === "1";
  let panels = []; let arranged = ""; let drawn = ""; let point = null;
  const smooths = new WeakMap();
  const colours = new Map();
  const smoothed = (run, column) => {
    if (!smooths.has(run)) smooths.set(run, new Map());
    const mine = smooths.get(run);
    if (!mine.has(column)) mine.set(column, new Smoothed());
    return mine.get(column).of(run.points[column] || [], view.weight, run.rewinds);
  };
  const view = {
    runs: [], notes: [], span: [0, 1], range: null, weight: Number(stored("smooth", "0.6")) || 0, log: stored("log", "") === "1", theme: 0, smoothed,
    colourOf: (id) => colours.get(id) ?? 0,
    onZoom: (range) => { view.range = range; reset.classList.toggle("unseen", !range); redraw(); },
    onPoint: (step) => { if (step === point) return; point = step; values(); },
    onNote: (index) => notes.open(index),
  };

  // ---- the card ---------------------------------------------------------------------------------------------------
  const keep = (key, value) => store.set(`chart.${key}`, value);
  const choose = (wanted) => { all = wanted === "all"; if (!all) name = wanted; keep("metric", name); keep("all", all ? "1" : ""); arrange(); };
  const buttons = h("div.segments.metrics", { role: "group", "aria-label": t("chart.which") });
  const slider = h("input", { type: "range", min: "0", max: "0.98", step: "0.02", value: String(view.weight), id: "chart-smooth", oninput: (event) => { view.weight = +event.target.value; keep("smooth", event.target.value); redraw(); } });
  const box = h("input", { type: "checkbox", id: "chart-log", checked: view.log, onchange: (event) => { view.log = event.target.checked; keep("log", view.log ? "1" : ""); redraw(); } });
  const reset = h("button.btn.small.unseen", { type: "button", onclick: () => view.onZoom(null) }, t("chart.reset"));
  const save = (what, make) => h("button.btn.small", { type: "button", id: `chart-${what}`, title: t(`chart.${what}.title`), onclick: make }, what.toUpperCase());
  const area = h("div.plots");
  const waiting = h("p.plot-wait.quiet", {}, t("chart.wait"));
  const readout = h("div.readout.num", { "aria-live": "off" });
  const notes = noteList();
  host.append(h("section.card.chart", { "aria-label": t("chart.title") },
    h("div.chart-bar", {}, buttons), h("div.chart-bar", {},
      h("label", { for: "chart-smooth" }, t("chart.smooth"), slider), h("label", { for: "chart-log" }, box, t("chart.log")), reset, h("span.spring"),
      save("png", () => picture({ panels, view })), save("csv", () => download(`${fileName()}.csv`, new Blob([csv(view.runs)], { type: "text/csv" })))),
    h("div.plot-box", {}, waiting, area), readout, notes.node));
  const fileName = () => (view.runs[0]?.id || "curves").replace(/[^\w.-]+/g, "_");

  // ---- drawing ----------------------------------------------------------------------------------------------------
  const offered = () => Object.keys(METRICS).filter((metric) => METRICS[metric].first || view.runs.some((run) => hasMetric(run, metric)));
  const buttonsFor = (metrics) => ["all", ...metrics].map((metric) => h("button", { type: "button", id: `curve-${metric}`, "data-column": metric, "aria-pressed": String(all ? metric === "all" : metric === name), onclick: () => choose(metric) }, t(metric === "all" ? "chart.all" : "tile." + metric)));
  const arrange = () => {
    const metrics = offered();
    if (!metrics.includes(name)) name = "loss";
    const shown = all ? metrics.filter((metric) => view.runs.some((run) => hasMetric(run, metric))) : [name];
    render(buttons, buttonsFor(metrics));
    const plan = JSON.stringify([shown, all, view.runs.length > 0 && view.runs.some((run) => run.points.step.length)]);
    if (plan !== arranged) {
      arranged = plan;
      for (const panel of panels) panel.destroy();
      area.classList.toggle("many", all);
      panels = shown.map((metric) => new Panel(metric, view, all ? SMALL : LARGE));
      area.replaceChildren(...panels.map((panel) => h("figure.panel-box", {}, all && h("figcaption", {},
        h("button.btn.link", { type: "button", onclick: () => choose(panel.name) }, t("tile." + panel.name)), h("span.spring"), panel.caption = h("span.num.values")), panel.node)));
    }
    redraw();
  };
  const redraw = () => {
    if (!window.uPlot || !view.runs.length) return;
    const ends = view.runs.flatMap((run) => ["points", "evals", "exams"].flatMap((table) => { const steps = run[table].step; return steps.length ? [steps[0], steps[steps.length - 1]] : []; }));
    view.span = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
    view.theme = document.body.classList.contains("dark") ? 1 : 0;
    for (const panel of panels) panel.draw();
    values();
  };
  const worth = (run, metric, step) => valuesAt(run, metric, step, smoothed);
  const lastStep = (run) => run.points.step[run.points.step.length - 1] ?? 0;
  const named = (part) => (part.column.includes("loss") && part.column !== "loss" ? `${t("chart.eval")} ` : ["learned", "leaked", "retained"].includes(part.column) ? `${t("chart.exam." + part.column)} ` : "");
  const told = (run, metric, step) => worth(run, metric, step).map((part) => [`${named(part)}${METRICS[metric].show(part.value)}`, view.weight && part.smooth !== null ? t("chart.smoothed", { value: METRICS[metric].show(part.smooth) }) : null].filter(Boolean).join(" · ")).join(" · ");
  // Of a picture with several lines of one run, each value shows which line is its.
  const keyed = (run, metric, step) => {
    if (view.runs.length > 1 || METRICS[metric].lines.length < 3) return told(run, metric, step) || "–";
    const parts = worth(run, metric, step);
    return parts.length ? parts.map((part) => {
      const line = METRICS[metric].lines.findIndex(([, column]) => column === part.column);
      const swatch = h(`i.line-key.line-${line}`, { "aria-hidden": "true" });
      swatch.style.color = colour(line === 0 ? view.colourOf(run.id) : line);
      return h("span.keyed", {}, swatch, `${named(part)}${METRICS[metric].show(part.value)}`);
    }) : "–";
  };
  // Under the pointer, or the newest values while there is none.
  const values = () => {
    if (!view.runs.length) return;
    const step = point === null ? null : Math.max(0, Math.round(point));
    const [first] = view.runs;
    const index = step === null ? first.points.step.length - 1 : worth(first, "loss", step)[0]?.index ?? -1;
    const when = first.points.t?.[index]; const epoch = first.points.epoch?.[index];
    render(readout, h("p.readout-head", {}, h("span", {}, step === null ? t("chart.hint") : [t("chart.step", { step: format.number(first.points.step[index] ?? step, 0) }), when ? new Date(when * 1000).toLocaleTimeString() : null, epoch !== null && epoch !== undefined ? t("chart.epoch", { n: format.number(epoch, 2) }) : null].filter(Boolean).join(" · ")),
      h("span.spring"), first.saved.step.length > 0 && h("span.key.saved", {}, t("chart.saved")), first.asked.step.length > 0 && h("span.key.asked", {}, t("chart.asked"))),
    h("ul.readout-runs", {}, view.runs.map((run) => {
      const swatch = h("i.swatch", { "aria-hidden": "true" });
      swatch.style.background = `var(--c${(view.colourOf(run.id) % 8) + 1})`;
      return h("li", {}, swatch, h("span.readout-name", { dir: "auto", title: run.id }, run.status?.name || run.id), h("span.readout-value", {}, all ? "" : keyed(run, name, step ?? lastStep(run))),
        run !== first && h("button.btn.link", { type: "button", id: `off-${run.id}`, "aria-label": t("chart.without", { name: run.status?.name || run.id }), onclick: () => dispatchEvent(new CustomEvent("studio:overlay", { detail: feed.overlay.filter((id) => id !== run.id) })) }, "✕"));
    })));
    if (all) for (const panel of panels) render(panel.caption, view.runs.slice(0, 4).map((run) => { const [part] = worth(run, panel.name, step ?? lastStep(run)); const text = h("span", {}, part ? METRICS[panel.name].show(part.value) : "–"); text.style.color = colour(view.colourOf(run.id)); return text; }));
  };
  // A run keeps its colour for as long as it is shown.
  const paint = () => {
    const shown = feed.shown; // in its order, also those whose points are still on their way
    for (const id of [...colours.keys()]) if (!shown.some((run) => run.id === id)) colours.delete(id);
    for (const run of shown) if (!colours.has(run.id)) { let free = 0; while ([...colours.values()].includes(free)) free += 1; colours.set(run.id, free); }
  };
  const draw = (state) => {
    host.hidden = !state || !state.id || state.missing || Boolean(state.status && !["train", "unreadable"].includes(state.status.kind));
    if (host.hidden) return;
    const before = view.runs[0];
    view.runs = feed.shown.filter((run) => run.status && ["train", "unreadable"].includes(run.status.kind));
    paint();
    if (before !== view.runs[0]) { view.range = null; view.notes = []; reset.classList.add("unseen"); asked = 0; notes.show(state, []); }
    const any = view.runs.some((run) => run.points.step.length);
    waiting.textContent = t(state.status && !state.status.live && state.status.state !== "queued" ? "chart.none" : "chart.wait");
    waiting.hidden = any; area.hidden = !any; readout.classList.toggle("unseen", !any);
    // A run that ended before its first step has nothing to choose a picture of.
    host.firstElementChild.classList.toggle("without", !any && Boolean(state.status) && !state.status.live && state.status.state !== "queued" && !state.warnings.length);
    const key = view.runs.map((run) => [run.id, run.points.step.length, run.rewinds, run.evals.step.length, run.exams.step.length, run.saved.step.length, run.asked.step.length].join()).join("|");
    if (key === drawn) return;
    drawn = key;
    arrange();
  };

  // ---- the coach --------------------------------------------------------------------------------------------------
  let asked = 0; let askedOffset = -1;
  const listen = async () => {
    const { state } = feed;
    if (host.hidden || !state?.status || Date.now() - asked < NOTES_EVERY_MS) return;
    const mark = `${state.id}|${state.offset}|${state.status.state}`;
    if (mark === askedOffset) return;
    asked = Date.now();
    const found = await api(`/api/notes?run=${encodeURIComponent(state.id)}`);
    if (state !== feed.state) return;
    askedOffset = mark;
    if (JSON.stringify(found.notes) !== JSON.stringify(view.notes)) { view.notes = found.notes; redraw(); }
    notes.show(state, view.notes);
  };

  new ResizeObserver(() => { if (panels.some((panel) => !panel.plot)) redraw(); }).observe(area);
  addEventListener("studio:theme", redraw);
  addEventListener("studio:curve", ({ detail }) => { if (!METRICS[detail]) return; choose(detail); host.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" }); });
  script("/studio-assets/vendor/uPlot.iife.min.js").then(() => { feed.listen(element, draw); poll(element, listen, 1000); });
}
