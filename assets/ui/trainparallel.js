// Train: what each way to divide a run costs in the numbers of the form, and the line that starts it on each machine.
import { copyable } from "./exportrun.js";
import { button, h } from "./tabs.js";

const { t, format } = window.Studio;
const STAGES = { none: null, zero1: "ZeRO-1", zero2: "ZeRO-2", zero2_offload: "ZeRO-2 + offload", zero3: "ZeRO-3", zero3_offload: "ZeRO-3 + offload", fsdp2: "FSDP2" };
const CHIP = { fits: "finished", tight: "stopped", no: "failed" };

// The review beside the form is asked anew at every change; what it finds is drawn here as well. A panel of a fold that
// is opened later draws what was found last.
let latest = null;
let apply = () => {};
const panels = new Set();
export const tell = (found, change) => {
  if (JSON.stringify(found) === JSON.stringify(latest)) return;
  [latest, apply] = [found, change];
  for (const panel of panels) if (panel.element.isConnected) panel.show(); else panels.delete(panel);
};
const listening = (content) => ({ element, draw }) => {
  const show = () => {
    const focus = element.contains(document.activeElement) ? document.activeElement.id : "";
    draw(() => content(latest));
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  };
  panels.add({ element, show });
  return show;
};

const saved = (row) => (row.name === "none" || Math.abs(row.saves) < 5e7 ? "–" : row.saves > 0 ? `−${format.bytes(row.saves)}` : `+${format.bytes(-row.saves)}`);
const line = (row, most) => {
  const name = STAGES[row.name] || t("parallel.stage.none");
  const bar = h("span.rank-bar.memory", { "aria-hidden": "true" }, h("i"));
  bar.firstChild.style.width = `${Math.round((100 * row.bytes) / most)}%`;
  return h(row.now ? "tr.now" : row.problem ? "tr.cannot" : "tr", {},
    h("th", { scope: "row" }, h("span", {}, name), h("span.quiet.stage-what", {}, row.problem || t("parallel.stage." + row.name + ".what"))),
    h("td.num", {}, h("span.stage-size", {}, format.bytes(row.bytes)), bar, row.host > 0 && h("span.quiet.stage-host", {}, t("parallel.stage.host", { size: format.bytes(row.host) }))),
    h("td.num", {}, saved(row)), h("td.num", {}, row.sent ? format.bytes(row.sent) : "–"),
    h("td", {}, h("span.chip." + CHIP[row.verdict], {}, t("train.fit.verdict." + row.verdict))),
    h("td.do", {}, row.now ? h("span.stage-now", {}, t("parallel.stage.now")) : row.problem ? null : button("btn.small", t("train.fit.use"), () => apply(row.set), { id: "stage-" + row.name, "aria-label": `${t("train.fit.use")} ${name}` })));
};
export const spread = listening((v) => {
  if (!v) return [h("p.note", {}, t("parallel.stages.wait"))];
  if (!v.rows.length) return [h("p.note", {}, t("parallel.stages.unknown"))];
  const most = Math.max(1, ...v.rows.map((row) => row.bytes));
  const heads = ["way", v.gpu ? "gpu" : "process", "saves", "sent", "fits"].map((key) => h("th", { scope: "col" }, t("parallel.stages." + key)));
  return [h("div.stages", { role: "region", tabindex: 0, "aria-label": t("parallel.stages") },
    h("h4", {}, t(v.processes > 1 ? "parallel.stages.title" : "parallel.stages.title.one", { n: v.processes })),
    h("table.stages", {}, h("thead", {}, h("tr", {}, heads, h("th", {}, h("span.sr-only", {}, t("train.fit.use"))))), h("tbody", {}, v.rows.map((row) => line(row, most)))),
    v.own && h("p.note", {}, t("parallel.stages.own")))];
});
export const machines = listening((v) => {
  if (!v || v.machines < 2) return [];
  return [h("div.rank-lines", {}, h("p", {}, t("parallel.lines")),
    v.lines.map((text, n) => h("div.rank-line", {}, h("b", {}, t("ranks.machine", { n }), n === v.machine && h("span.quiet", {}, ` ${t("parallel.lines.this")}`)), copyable(text))),
    v.machines > v.lines.length && h("p.quiet", {}, t("parallel.lines.more", { n: v.machines - v.lines.length, last: v.machines - 1 })))];
});
