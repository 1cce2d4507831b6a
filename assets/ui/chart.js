// Curves of the selected run: uPlot with smoothing, log scale, zoom by dragging, values under the pointer.
const { h, t, feed, format, script, root } = window.Studio;
const COLUMNS = ["loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"];
const SHOWN = { loss: format.loss, learning_rate: format.rate, grad_norm: format.loss, tokens_per_second: (value) => format.number(value, 0), memory_bytes: format.bytes };
const HEIGHT = 300;

// Exponential moving average with the start corrected; gaps stay gaps.
export const smooth = (values, weight) => {
  let mean = 0; let seen = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    seen += 1;
    return mean / (1 - weight ** seen);
  });
};

export function mount({ element }) {
  const host = element.querySelector(".mount");
  let column = "loss"; let weight = 0.6; let log = false; let plot = null; let shownId = null; let version = -1;
  const area = h("div.plot");
  const readout = h("p.readout.num", { "aria-live": "off" });
  const tabs = h("div.segments", { role: "group", "aria-label": t("chart.which") }, COLUMNS.map((name) =>
    h("button", { type: "button", "data-column": name, "aria-pressed": String(name === column), onclick: () => { column = name; for (const button of tabs.children) button.setAttribute("aria-pressed", String(button.dataset.column === name)); make(); } }, t("tile." + name))));
  const slider = h("input", { type: "range", min: "0", max: "0.98", step: "0.02", value: String(weight), id: "chart-smooth", oninput: (event) => { weight = +event.target.value; fill(); } });
  const box = h("input", { type: "checkbox", id: "chart-log", onchange: (event) => { log = event.target.checked; make(); } });
  const reset = h("button.btn.small", { type: "button", hidden: true, onclick: () => fill() }, t("chart.reset"));
  const waiting = h("p.plot-wait.quiet", {}, t("chart.wait"));
  host.append(h("section.card.chart", { "aria-label": t("chart.title") }, h("div.chart-bar", {}, tabs, h("span.spring"), reset,
    h("label", { for: "chart-smooth" }, t("chart.smooth"), slider), h("label", { for: "chart-log" }, box, t("chart.log"))), waiting, area, readout));

  const data = () => {
    const { points, evals } = feed.state;
    const y = (points[column] || []).map((value) => (log && value !== null && value <= 0 ? null : value));
    const rows = [points.step, y, weight > 0 ? smooth(y, weight) : y];
    if (column === "loss") { const at = new Map(evals.step.map((step, index) => [step, evals.eval_loss[index]])); rows.push(points.step.map((step) => at.get(step) ?? null)); }
    return rows;
  };
  const say = (index) => {
    if (!plot || index === null || index === undefined) { readout.textContent = t("chart.hint"); return; }
    const rows = plot.data;
    readout.textContent = t("chart.at", { step: rows[0][index], value: SHOWN[column](rows[1][index]), smooth: SHOWN[column](rows[2][index]) });
  };
  const make = () => {
    if (!window.uPlot || !feed.state || !feed.state.points.step.length || !area.clientWidth) return;
    if (plot) plot.destroy();
    const css = getComputedStyle(document.body); const get = (name) => css.getPropertyValue(name).trim();
    const axis = { stroke: get("--muted"), grid: { stroke: get("--line"), width: 1 }, ticks: { show: false }, font: "12px 'Inter Variable', sans-serif" };
    const series = [{}, { stroke: get("--c1") + "55", width: 1, points: { show: false } }, { stroke: get("--c1"), width: 2.2, points: { show: false } }];
    if (column === "loss") series.push({ stroke: get("--c2"), width: 2, spanGaps: true, points: { show: true, size: 6 } });
    plot = new window.uPlot({
      width: area.clientWidth, height: HEIGHT, legend: { show: false },
      cursor: { drag: { x: true, y: false }, points: { size: 7 } },
      scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
      axes: [{ ...axis, size: 32 }, { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : column === "memory_bytes" ? format.bytes(tick) : column === "learning_rate" ? format.rate(tick) : format.number(tick, 4))) }],
      series, hooks: { setCursor: [(u) => say(u.cursor.idx)], setScale: [(u, key) => { if (key === "x" && u.data[0].length) { const x = u.scales.x; reset.hidden = !(x.min > u.data[0][0] || x.max < u.data[0][u.data[0].length - 1]); } }] },
    }, data(), area);
    say(null);
  };
  // A zoomed view stays where it is when new points come; "show all" follows again.
  const fill = (keepZoom = false) => { if (!plot) make(); else plot.setData(data(), !keepZoom); };
  const draw = (state) => {
    host.hidden = !state || !state.id || state.missing || (state.status && state.status.kind === "merge");
    const any = state && state.points.step.length > 0;
    waiting.hidden = Boolean(any); area.hidden = readout.hidden = !any;
    if (host.hidden || !any) { if (plot) { plot.destroy(); plot = null; } version = -1; shownId = state && state.id; return; }
    if (state.id !== shownId) { shownId = state.id; make(); version = state.version; return; }
    if (!plot) { make(); version = state.version; return; }
    if (plot.data[0].length !== state.points.step.length || version < 0) fill(!reset.hidden);
    version = state.version;
  };
  new ResizeObserver(() => { if (plot && area.clientWidth) plot.setSize({ width: area.clientWidth, height: HEIGHT }); else make(); }).observe(area);
  addEventListener("studio:theme", make);
  script("/studio-assets/vendor/uPlot.iife.min.js").then(() => feed.listen(element, draw));
}
