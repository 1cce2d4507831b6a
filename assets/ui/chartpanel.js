// One picture of one metric for any number of runs: uPlot with zoom by dragging, marks and the coach's notes.
import { Thinned, nearest } from "./chartdata.js";
const { h, t, format } = window.Studio;

const share = (value) => format.percent(value);
const plain = (value) => format.number(value, value !== null && Math.abs(value) < 10 ? 2 : 0);
const watts = (value) => (value === null || value === undefined ? "–" : `${Math.round(value)} W`);
const time = (value) => (value === null || value === undefined ? "–" : value < 1 ? `${Math.round(value * 1000)} ms` : `${Number(value).toPrecision(3)} s`);
// `lines`: table, column, whether it is smoothed, dashes. `first`: its button is there before there are any values.
export const METRICS = {
  loss: { lines: [["points", "loss", true], ["evals", "eval_loss", false, [6, 4]]], show: format.loss, first: true },
  learning_rate: { lines: [["points", "learning_rate", false]], show: format.rate, first: true },
  grad_norm: { lines: [["points", "grad_norm", true]], show: format.loss, first: true },
  tokens_per_second: { lines: [["points", "tokens_per_second", true]], show: plain, first: true },
  step_seconds: { lines: [["points", "step_seconds", true]], show: time, first: true },
  memory_bytes: { lines: [["points", "memory_bytes", false]], show: format.bytes, first: true },
  padding: { lines: [["points", "padding", true]], show: share },
  gpu_utilization: { lines: [["points", "gpu_utilization", true]], show: share },
  gpu_power_watts: { lines: [["points", "gpu_power_watts", true]], show: watts },
  mfu: { lines: [["points", "mfu", true]], show: share },
  exam: { lines: [["exams", "learned", false], ["exams", "leaked", false, [2, 4]], ["exams", "retained", false, [8, 4]]], show: share },
  perplexity: { lines: [["exams", "perplexity", false]], show: format.loss },
};
// A metric's button and panel appear with its first value; of a column without any only what is new is looked at.
export const hasMetric = (run, name) => METRICS[name].lines.some(([table, column]) => {
  const values = run[table][column];
  const looked = (run.looked ||= {});
  for (let index = Math.max(0, (looked[column] ?? 0) - 1); values && looked[column] !== Infinity && index < values.length; index += 1) looked[column] = values[index] === null ? index + 1 : Infinity;
  return looked[column] === Infinity;
});
// Values at a step: one per line that exists, the smoothed one in its place where there is one.
export const valuesAt = (run, name, step, smoothed) => METRICS[name].lines.map(([table, column, smooth]) => {
  const steps = run[table].step; const values = run[table][column];
  if (!values || !steps.length || (table === "points" && step > steps[steps.length - 1] + 0.5)) return null;
  const index = nearest(steps, values, step);
  if (index === null) return null;
  return { column, step: steps[index], value: values[index], smooth: smooth ? smoothed(run, column)[index] : null, index };
}).filter(Boolean);

const FONT = "12px 'Inter Variable', sans-serif";
const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
export const colour = (index) => css(`--c${(index % 8) + 1}`);

export class Panel {
  // `view` is shared by all panels of a card: {runs, smoothed, weight, log, range, notes, colourOf, onZoom, onPoint}.
  constructor(name, view, height) {
    Object.assign(this, { name, view, height, plot: null, shape: "", flags: [], thin: new WeakMap() });
    this.node = h("div.plot", { "data-metric": name });
    this.size = new ResizeObserver(() => { if (this.plot && this.node.clientWidth) { this.plot.setSize({ width: this.node.clientWidth, height }); this.draw(); } });
    this.size.observe(this.node);
  }

  destroy() { this.size.disconnect(); this.plot?.destroy(); this.plot = null; this.node.remove(); }

  // One table per line with its smoothed values, thinned to what the picture can show.
  data() {
    const { runs, weight, log, smoothed, range } = this.view;
    const pixels = Math.max(100, this.node.clientWidth - 70);
    const [from, to] = range || this.view.span;
    const shown = (ys) => (log ? ys.map((value) => (value > 0 ? value : null)) : ys);
    const tables = [];
    for (const run of [...runs].reverse()) {
      if (!this.thin.has(run)) this.thin.set(run, METRICS[this.name].lines.map(() => new Thinned()));
      METRICS[this.name].lines.forEach(([table, column, smooth], line) => {
        const values = run[table][column];
        const [xs, ys, smooths] = this.thin.get(run)[line].of(run[table].step, values, smooth && weight && values ? smoothed(run, column) : null, { from, to, pixels, rewinds: run.rewinds });
        tables.push(smooth ? [xs, shown(ys), smooths.length ? shown(smooths) : xs.map(() => null)] : [xs, shown(ys)]);
      });
    }
    return window.uPlot.join(tables);
  }

  series() {
    const { runs, weight, colourOf } = this.view;
    const list = [{}];
    // The selected run is drawn last, so that it lies on top.
    [...runs].reverse().forEach((run) => {
      const ink = colour(colourOf(run.id));
      METRICS[this.name].lines.forEach(([table, , smooth, dash], line) => {
        const other = runs.length === 1 && line > 0 ? colour(line) : ink;
        const dots = { show: (u, index) => table !== "points" || u.data[index].length < 3, size: table === "points" ? 7 : 6, fill: css("--card") };
        list.push({ stroke: smooth && weight ? `${ink}4d` : other, width: smooth && weight ? 1 : 2, dash, spanGaps: true, points: dots });
        if (smooth) list.push({ stroke: ink, width: 2, spanGaps: true, points: { show: false } });
      });
    });
    return list;
  }

  options() {
    const { show } = METRICS[this.name];
    const muted = css("--muted");
    const axis = { stroke: muted, grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: FONT };
    const small = this.height < 240;
    const shares = ["gpu_utilization", "exam"].includes(this.name) && !this.view.log;
    return {
      width: this.node.clientWidth, height: this.height, legend: { show: false }, series: this.series(),
      cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false }, sync: { key: "studio-curves", setSeries: false, filters: { pub: (type) => type === "mousemove" || type === "mouseleave", sub: () => true } }, bind: { dblclick: () => () => { this.view.onZoom(null); return null; } } },
      scales: { x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { distr: this.view.log ? 3 : 1, ...(shares ? { range: [0, 1] } : {}) } },
      axes: [{ ...axis, size: 30, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? format.number(tick, 0) : "")) },
        { ...axis, size: small ? 56 : 62, space: small ? 26 : 34, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : show(tick))) }],
      hooks: {
        draw: [(u) => this.marks(u)],
        setSelect: [(u) => { if (u.select.width > 4) this.view.onZoom([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]); u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false); }],
        setCursor: [(u) => { const { left } = u.cursor; this.view.onPoint(left === null || left === undefined || left < 0 ? null : u.posToVal(left, "x")); }],
      },
    };
  }

  // Draws what is there now; makes the picture anew only when its lines are others.
  draw() {
    if (!window.uPlot || !this.node.clientWidth || !this.view.runs.length) return;
    const { runs, weight, log, theme, colourOf } = this.view;
    const shape = JSON.stringify([runs.map((run) => [run.id, colourOf(run.id)]), weight > 0, log, theme]);
    const range = this.view.range || this.view.span;
    const data = this.data();
    if (!this.plot || shape !== this.shape) {
      this.shape = shape;
      this.plot?.destroy();
      this.flags = [];
      this.flagKey = null;
      this.plot = new window.uPlot(this.options(), data, this.node);
      this.plot.over.setAttribute("aria-hidden", "false");
    } else this.plot.setData(data, false);
    this.plot.setScale("x", { min: range[0], max: range[1] });
  }

  // Ticks where a checkpoint was saved, dots where the prompts were answered, flags for the coach's notes.
  marks(u) {
    const [run] = this.view.runs;
    if (!run) return;
    const { ctx, bbox } = u; const ratio = window.devicePixelRatio || 1;
    const bottom = bbox.top + bbox.height; const inside = (step) => step >= u.scales.x.min && step <= u.scales.x.max;
    const at = (step) => u.valToPos(step, "x", true);
    ctx.save();
    const each = (steps, draw) => { let before = -Infinity; for (const step of steps) { if (!inside(step)) continue; const x = at(step); if (x - before < 5 * ratio) continue; before = x; draw(x); } };
    ctx.fillStyle = css("--muted");
    each(run.asked.step, (x) => { ctx.beginPath(); ctx.arc(x, bottom - 3 * ratio, 1.8 * ratio, 0, 7); ctx.fill(); });
    ctx.fillStyle = css("--c2");
    each(run.saved.step, (x) => { ctx.beginPath(); ctx.moveTo(x - 4 * ratio, bottom); ctx.lineTo(x + 4 * ratio, bottom); ctx.lineTo(x, bottom - 8 * ratio); ctx.fill(); });
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    ctx.lineWidth = ratio;
    for (const note of this.view.notes) if (inside(note.step)) { ctx.strokeStyle = css(note.level === "error" ? "--bad" : note.level === "warning" ? "--warn" : "--muted"); ctx.beginPath(); ctx.moveTo(at(note.step), bbox.top); ctx.lineTo(at(note.step), bottom); ctx.stroke(); }
    ctx.restore();
    this.flag(u, inside);
  }

  // The numbers of the notes at the upper edge, as buttons that lead to their text.
  flag(u, inside) {
    const shown = this.view.notes.map((note, index) => [note, index + 1]).filter(([note]) => inside(note.step));
    const key = shown.map(([note, number]) => `${number}${note.level}${note.message}`).join("|");
    if (key !== this.flagKey || !this.flags.every((node) => node.isConnected)) {
      this.flagKey = key;
      for (const node of this.flags) node.remove();
      this.flags = shown.map(([note, number]) => h(`button.flag.${note.level}`, { type: "button", title: note.message, "aria-label": t("coach.flag", { n: number, text: note.message }), onclick: () => this.view.onNote(number - 1) }, String(number)));
      u.over.append(...this.flags);
    }
    shown.forEach(([note], index) => { this.flags[index].style.left = `${u.valToPos(note.step, "x")}px`; });
  }
}
