// Train: does it fit, how long does it take, what would help. Numbers come from the server; all text is set as text.
import { button, h } from "./tabs.js";

const { t, format, store } = window.Studio;

// The chosen card is the value of a hidden component, so that every review is asked about it.
let chosen = null;
export function card({ props }) {
  chosen = props;
  const kept = store.get("card");
  if (kept && !props.value) props.value = kept;
  return () => {};
}
const choose = (value) => { store.set("card", value); if (chosen) chosen.value = value; };

const CHIP = { fits: "finished", tight: "stopped", no: "failed" };
const nameOf = (one) => {
  const name = `${one.kind === "cpu" ? t("train.fit.memory") : one.name} · ${format.bytes(one.bytes)}`;
  return one.here ? t("train.fit.present", { name }) : one.kind === "cpu" ? name : one.name;
};
const times = (n) => format.number(n, 1);
const price = (slowdown) => (slowdown >= 1.05 ? t("train.fit.slower", { n: times(slowdown) }) : slowdown > 0.95 ? t("train.fit.same") : t("train.fit.faster", { n: times(1 / slowdown) }));
const shown = (value) => (value === true ? t("train.fit.on_value") : value === false ? t("train.fit.off_value") : String(value));

const meter = (fit) => {
  const end = Math.max(fit.high, fit.free) * 1.04;
  const at = (bytes) => `${(100 * bytes) / end}%`;
  return h("div.fit-meter." + fit.verdict, { "aria-hidden": "true" },
    h("div.fit-bar", {}, fit.parts.map(([name, bytes]) => h("i.part-" + name, { style: `width:${at(bytes)}` })),
      h("span.fit-spread", { style: `left:${at(fit.low)};width:${at(fit.high - fit.low)}` }), h("span.fit-limit", { style: `left:${at(fit.free)}` })));
};
const legend = (fit) => h("ul.fit-parts", {}, fit.parts.map(([name, bytes]) => h("li", {}, h("i.part-" + name, { "aria-hidden": "true" }), h("span", {}, t("train.fit.part." + name)), h("b.num", {}, format.bytes(bytes)))));
const range = (fit) => t("train.fit.range", { expected: format.bytes(fit.expected), low: format.bytes(fit.low), high: format.bytes(fit.high), free: format.bytes(fit.free) });
const duration = (seconds) => (seconds < 10 ? format.number(seconds, seconds < 1 ? 2 : 1) + " s" : format.seconds(seconds));
const time = (fit) => h("p.fit-time", {}, fit.seconds !== null && h("b", {}, t("train.fit.time", { time: duration(fit.seconds) })),
  h("span.quiet", {}, [t("train.fit.step", { time: duration(fit.step) }), t("train.fit.speed." + fit.speed.source, { n: format.number(fit.speed.tokens_per_second, 0) })].join(" · ")));

const fixes = (fit, apply) => {
  if (fit.verdict === "fits") return null;
  if (!fit.fixes.length) return fit.verdict === "no" && h("p.note.warn", {}, t("train.fit.no_fix"));
  return h("div", {}, h("h4", {}, t("train.fit.fixes")), h("ul.fit-fixes", {}, fit.fixes.map((fix, index) => h("li", {},
    h("div", {}, fix.changes.map((one) => h("span.fit-change", {}, `${one.label}: `, h("b", {}, shown(one.value)))),
      h("span.quiet.num", {}, `${price(fix.slowdown)} · ${format.bytes(fix.bytes)} · ${t("train.fit.verdict." + fix.verdict)}`)),
    button("btn.small", t("train.fit.apply"), () => apply(fix.set), { id: "fit-fix-" + index })))));
};
const methods = (fit, apply) => h("div", {}, h("h4", {}, t("train.fit.methods")), h("ul.fit-methods", {}, fit.methods.map((one) => h("li" + (one.now ? ".now" : ""), {},
  h("span.mark." + one.verdict, { role: "img", "aria-label": t("train.fit.verdict." + one.verdict) }),
  h("div", {}, h("b", {}, one.method), one.best && one.verdict !== "no" && h("span.fit-best", {}, t("train.fit.best")), h("span.quiet", {}, one.message)),
  one.now ? null : button("btn.small", t("train.fit.use"), () => apply({ method: one.method }, true), { id: "fit-use-" + one.method, "aria-label": `${t("train.fit.use")} ${one.method}` })))));

export function fitCard(fit, apply) {
  const select = h("select", { id: "fit-card", "aria-label": t("train.fit.on") }, fit.cards.map((one) => h("option", { value: one.value }, nameOf(one))));
  select.value = fit.card;
  select.addEventListener("change", () => choose(select.value));
  const head = h("div.card-head", {}, h("h3", {}, t("train.fit")), h("span.spring"), fit.verdict && h("span.chip." + CHIP[fit.verdict], { id: "fit-verdict", role: "status" }, t("train.fit.verdict." + fit.verdict)));
  const where = h("div.fit-where", {}, h("label", { for: "fit-card" }, t("train.fit.on")), select);
  if (!fit.verdict) return h("section.card.fit", { id: "train-fit" }, head, where, h("p.quiet", {}, t("train.fit.unknown")));
  return h("section.card.fit", { id: "train-fit" }, head, where, meter(fit),
    h("p.fit-range.num", {}, range(fit), fit.host ? " " + t("train.fit.host", { size: format.bytes(fit.host) }) : ""), legend(fit), time(fit), fixes(fit, apply) || null, methods(fit, apply));
}
