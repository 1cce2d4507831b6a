// Figures of the selected run, each with the course it took and one line of what belongs to it.
import { sparkline } from "./stepper.js";
const { h, t, render, feed, format, elapsed } = window.Studio;
const SPARK_POINTS = 240;
const last = (values) => { for (let index = (values || []).length - 1; index >= 0; index -= 1) if (values[index] !== null) return values[index]; return null; };
const some = (values, write) => { const value = last(values); return value === null ? "" : write(value); };
const list = (...parts) => parts.filter(Boolean).join(" · ");
// Name, value, column of the course, and the line beneath.
const TILES = [
  ["step", (state) => (state.status.max_steps ? `${state.status.step} / ${state.status.max_steps}` : "–"), null, (state) => some(state.points.epoch, (value) => t("chart.epoch", { n: format.number(value, 2) }))],
  ["loss", (state) => format.loss(last(state.points.loss)), "loss", (state) => some(state.evals.eval_loss, (value) => t("tile.eval.note", { value: format.loss(value) }))],
  ["learning_rate", (state) => format.rate(last(state.points.learning_rate)), "learning_rate", () => ""],
  ["grad_norm", (state) => format.loss(last(state.points.grad_norm)), "grad_norm", () => ""],
  ["tokens_per_second", (state) => format.number(last(state.points.tokens_per_second), 0), "tokens_per_second", (state) => some(state.points.mfu, (value) => `MFU ${format.percent(value)}`) || some(state.points.padding, (value) => t("tile.padding.note", { share: `${Math.round(100 * value)}%` }))],
  ["memory_bytes", (state) => format.bytes(last(state.points.memory_bytes)), "memory_bytes", (state) => list(some(state.points.gpu_utilization, (value) => `GPU ${Math.round(100 * value)}%`), some(state.points.gpu_power_watts, (value) => `${Math.round(value)} W`))],
  ["eta", (state) => (state.status.live ? format.seconds(state.eta === null ? null : Math.max(0, state.eta - (Date.now() - state.received) / 1000)) : format.seconds(elapsed(state))), null, (state) => some(state.points.step_seconds, (value) => t("tile.step_seconds.note", { time: value < 1 ? `${Math.round(value * 1000)} ms` : `${Number(value).toPrecision(3)} s` }))],
];

export function mount({ element }) {
  const host = element.querySelector(".mount");
  const draw = (state) => {
    host.hidden = !state || !state.id || !state.status || state.missing || !["train", "unreadable"].includes(state.status.kind) || (!state.status.live && state.status.state !== "queued" && !state.points.step.length && !state.status.step); // nothing was measured
    if (host.hidden) { render(host); return; }
    render(host, h("dl.tiles", {}, TILES.map(([name, value, column, note]) => {
      const label = name === "eta" && !state.status.live ? "took" : name;
      const share = name === "step" && state.status.max_steps ? state.status.step / state.status.max_steps : null;
      const meter = share === null ? null : h("span.meter", { "aria-hidden": "true" }, h("span"));
      if (meter) meter.firstChild.style.width = `${share * 100}%`;
      return h("div.tile", { id: `tile-${name}` }, h("dt", {}, t("tile." + label)), h("dd.num", {}, h("span.tile-value", {}, value(state)),
        h("span.tile-course", {}, meter, column && sparkline((state.points[column] || []).slice(-SPARK_POINTS), { width: 120, height: 26, className: "tile-spark" })), h("span.tile-note.num", {}, note(state))));
    })));
  };
  feed.listen(element, draw);
}
