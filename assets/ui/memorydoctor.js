// A run that ran out of memory: what it wanted, what there was, and what to change so that it goes on, by one click.
import { tryChange } from "./verdict.js";
const { h, t, render, feed, format, cachedRead, lang } = window.Studio;
const CHIP = { fits: "finished", tight: "stopped", no: "failed" };

const where = (found) => {
  const step = found.activity === "step" ? found.step + 1 : found.step;
  const size = found.rows && found.length ? t("doctor.size", { rows: found.rows, length: format.number(found.length) }) : "";
  return t("doctor.where." + (found.activity || "step"), { step }) + (size && ` ${size}`);
};

// One bar: what others and the run held, what was left, and what was asked for beyond it.
const bar = (found) => {
  const parts = [["others", found.others], ["held", found.used_bytes], ["left", found.available_bytes], ["over", Math.max(0, (found.requested_bytes || 0) - found.available_bytes)]].filter(([, bytes]) => bytes > 0);
  const end = parts.reduce((sum, [, bytes]) => sum + bytes, 0);
  if (!end || !found.limit_bytes) return null;
  return h("div.need", {}, h("div.need-bar", { "aria-hidden": "true" }, parts.map(([name, bytes]) => h("i.need-" + name, { style: `width:${(100 * bytes) / end}%` }))),
    h("ul.need-key.num", {}, parts.map(([name, bytes]) => h("li", {}, h("i.need-" + name, { "aria-hidden": "true" }), h("span", {}, t("doctor.part." + name)), h("b", {}, format.bytes(bytes)))),
      found.requested_bytes && h("li", {}, h("span", {}, t("doctor.asked")), h("b", {}, format.bytes(found.requested_bytes))),
      h("li", {}, h("span", {}, t("doctor.bound." + found.bound)), h("b", {}, format.bytes(found.limit_bytes)))));
};

const times = (n) => format.number(n, 1);
const price = (slowdown) => (slowdown >= 1.05 ? t("train.fit.slower", { n: times(slowdown) }) : slowdown > 0.95 ? t("train.fit.same") : t("train.fit.faster", { n: times(1 / slowdown) }));
const shown = (value) => (value === true ? t("train.fit.on_value") : value === false ? t("train.fit.off_value") : value);
const from = (one) => (!one.continues ? t("doctor.again") : one.from_step ? t("doctor.from", { step: one.from_step }) : t("doctor.from.start"));

const remedy = (one, index, found, apply) => h("li", {},
  h("div.remedy", {}, h("p.remedy-what", {}, one.changes.map((change) => h("span", { title: change.field }, `${change.label}: `, h("b", {}, shown(change.value))))),
    h("p.quiet.num", {}, h(`span.chip.${CHIP[one.verdict]}`, {}, t("doctor.verdict." + one.verdict)),
      [one.bytes && t("doctor.needs", { bytes: format.bytes(one.bytes), of: format.bytes(one.usable) }), price(one.slowdown), from(one), one.cut && t("doctor.cut", { share: format.percent(one.cut) })].filter(Boolean).join(" · "))),
  h(`button.btn${index ? "" : ".go"}`, { type: "button", id: "remedy-" + index, onclick: () => apply(one) }, t(one.continues ? "doctor.apply" : "doctor.clone")));

export function mount({ element, trigger }) {
  const host = element.querySelector(".mount");
  const read = cachedRead("/api/memory");
  let asked = "";
  const draw = async (state) => {
    const status = state && state.status;
    const candidate = status && status.kind === "train" && ((status.state === "failed" && status.error && status.error.kind === "memory") || status.state === "lost");
    if (!candidate) { asked = ""; render(host); return; }
    const id = state.id;
    const found = await read(id, `${status.state}|${status.updated_at}|${lang()}`);
    if (!feed.state || feed.state.id !== id || feed.state.status.state !== status.state) return;
    if (!found) { render(host); return; }
    const apply = (one) => {
      if (!one.continues) { tryChange(id, one.set); return; }
      asked = `${id}|${status.updated_at}`;
      trigger("apply", { run: id, key: one.key });
      draw(feed.state);
      setTimeout(() => { asked = ""; draw(feed.state); }, 8000); // refused: the reason was shown, the buttons come back
    };
    const busy = asked === `${id}|${status.updated_at}`;
    render(host, h("section.card.doctor", { id: "memory-doctor", "aria-busy": busy ? "true" : null },
      h("div.grid-bar", {}, h("h3", {}, t("doctor.title")), h("span.spring"), h("span.quiet", {}, found.checkpoint ? t("doctor.saved", { step: found.checkpoint }) : t("doctor.unsaved"))),
      h("p.doctor-where", {}, where(found)), bar(found),
      found.others > found.limit_bytes / 10 && h("p.note.warn", {}, t("doctor.others", { bytes: format.bytes(found.others) })),
      found.remedies.length ? h("ul.remedies", { "aria-label": t("doctor.remedies") }, found.remedies.map((one, index) => remedy(one, index, found, apply))) : h("p.note", {}, t("doctor.none"))));
    for (const button of host.querySelectorAll(".remedies button")) button.disabled = busy;
  };
  feed.listen(element, draw);
}
