// Figures of the selected run, each with the course it took.
import { sparkline } from "./stepper.js";
const { h, t, render, feed, format, elapsed } = window.Studio;
const last = (values) => { for (let index = (values || []).length - 1; index >= 0; index -= 1) if (values[index] !== null) return values[index]; return null; };
const TILES = [
  ["step", (state) => (state.status.max_steps ? `${state.status.step} / ${state.status.max_steps}` : "–"), null],
  ["loss", (state) => format.loss(last(state.points.loss)), "loss"],
  ["learning_rate", (state) => format.rate(last(state.points.learning_rate)), "learning_rate"],
  ["grad_norm", (state) => format.loss(last(state.points.grad_norm)), "grad_norm"],
  ["tokens_per_second", (state) => format.number(last(state.points.tokens_per_second), 0), "tokens_per_second"],
  ["memory_bytes", (state) => format.bytes(last(state.points.memory_bytes)), "memory_bytes"],
  ["eta", (state) => (state.status.live ? format.seconds(state.eta ?? null) : format.seconds(elapsed(state))), null],
];

export function mount({ element }) {
  const host = element.querySelector(".mount");
  const draw = (state) => {
    host.hidden = !state || !state.id || !state.status || state.missing || state.status.kind === "merge";
    if (host.hidden) { render(host); return; }
    render(host, h("dl.tiles", {}, TILES.map(([name, value, column]) => {
      const label = name === "eta" && !state.status.live ? "took" : name;
      const share = name === "step" && state.status.max_steps ? state.status.step / state.status.max_steps : null;
      const meter = share === null ? null : h("span.meter", { "aria-hidden": "true" }, h("span"));
      if (meter) meter.firstChild.style.width = `${share * 100}%`;
      return h("div.tile", { id: `tile-${name}` }, h("dt", {}, t("tile." + label)), h("dd.num", {}, value(state)), meter, column && sparkline((state.points[column] || []).slice(-240), { width: 120, height: 26, className: "tile-spark" }));
    })));
  };
  feed.listen(element, draw);
}
