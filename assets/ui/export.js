// What the Export tab draws: facts about the chosen model, the goals, what will happen, and the list of earlier exports.
// An export at work and its proof are in exportrun.js. All text is set as text.
import { button, h, markFields, mounting } from "./tabs.js";
import { copyable, follow, show } from "./exportrun.js";
import { job } from "./exportjob.js";

const { t, api, format, goTab, poll } = window.Studio;
const form = () => document.querySelector("#export-form");

// ---- facts about the chosen model ------------------------------------------------------------------------------------
const about = ({ draw }) => () => draw((v) => {
  if (!v) return [h("p.about.quiet", {}, t("export.about.none"), " ", button("btn.link", t("tabs.go_train"), () => goTab("train")))];
  const chip = (kind, text) => h("span", { class: "chip " + kind }, text);
  return [h("p.about", {},
    h("span", {}, v.what === "adapter" ? t("export.about.adapter", { base: v.base }) : t("export.about." + v.what)),
    v.method && h("span.quiet", {}, v.method),
    v.step !== null && h("span.quiet.num", {}, t("export.about.step", { n: v.step })),
    v.bytes > 0 && h("span.quiet.num", {}, format.bytes(v.bytes)),
    v.best && chip("finished", t("export.about.best")),
    ["running", "starting", "stopping"].includes(v.state) && chip("running", t("export.about.running")),
    v.passed === true && chip("finished", t("export.about.passed")),
    v.passed === false && chip("stopped", t("export.about.not_passed"))),
    v.folder && h("p.about.quiet.path", {}, v.folder)];
});

// ---- the goals as cards: one of them is chosen -----------------------------------------------------------------------
const OTHERS = [{ id: "import", level: "", said: "" }, { id: "job", level: "", said: "" }];

function goals({ props, trigger, draw, element }) {
  const apply = () => {
    const v = props.value;
    const node = form();
    if (!v || !node) return;
    node.dataset.goal = v.chosen;
    for (const fact of ["fourbit", "adapter", "layout", "gpu"]) node.toggleAttribute("data-" + fact, !!v[fact]);
  };
  const choose = (id, focus) => {
    if (props.value.chosen !== id) {
      props.value = { ...props.value, chosen: id };
      trigger("select", { goal: id });
    }
    render();
    if (focus) element.querySelector(`[data-goal="${id}"]`)?.focus();
  };
  const card = (one, v, index, all) => {
    const on = one.id === v.chosen;
    const move = (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(all[(index + step + all.length) % all.length].id, true);
    };
    return h("button.goal" + (on ? ".on" : "") + (one.level ? "." + one.level : ""), {
      type: "button", role: "radio", "aria-checked": String(on), tabindex: on ? 0 : -1, "data-goal": one.id,
      onclick: () => choose(one.id, true), onkeydown: move },
      h("span.goal-head", {}, h("span.goal-icon", { "aria-hidden": "true" }), h("b", {}, t("export.goal." + one.id))),
      h("span.goal-for", {}, t(`export.goal.${one.id}.for`)),
      one.said && h("span.goal-said", {}, one.said));
  };
  const render = () => {
    apply();
    draw((v) => {
      if (!v) return [];
      const all = [...v.cards, ...OTHERS];
      return [h("div.goals", { role: "radiogroup", "aria-label": t("export.goals") }, all.map((one, i) => card(one, v, i, all)))];
    });
  };
  return render;
}

// ---- what will happen ------------------------------------------------------------------------------------------------
const STEPS = {
  adapter: ["collect"], safetensors: ["merge", "prove_merge"], bitsandbytes: ["pack", "prove_pack"], gguf: ["gguf", "prove_gguf"],
  ollama: ["gguf", "prove_gguf", "modelfile"], hub: ["token"], import: ["read", "convert", "prove_import"],
};
const steps = (v) => [
  ...(v.merges ? ["merge", "prove_merge"] : []), ...STEPS[v.goal],
  ...(v.goal === "hub" ? [v.adapter ? "upload_adapter" : "upload_model"] : []),
];

function disk(v) {
  if (!v.needed) return t("export.plan.free", { free: format.bytes(v.free) });
  return t("export.plan.disk", { needed: format.bytes(v.needed), free: format.bytes(v.free) });
}

function plan({ props, draw }) {
  const mark = (v) => {
    const wrong = {};
    for (const issue of v.issues) {
      const node = issue.field && document.querySelector(`#export-${issue.field} :is(input, textarea)`);
      // What has not been filled in yet is no mistake.
      if (issue.field && (!node || node.value.trim())) wrong["export-" + issue.field] = issue.message;
    }
    markFields("#export-form .field", wrong);
  };
  const issue = (one) => h("li", { class: one.level }, h("span.mark"),
    h("span", {}, one.label && h("b", {}, one.label + " "), one.message));
  return () => draw(() => {
    const v = props.value;
    if (!v) return [h("section.card", {}, h("p.quiet", {}, t("export.plan.none")))];
    if (v.goal === "job") return [];
    mark(v);
    const stopped = v.issues.some((one) => one.level === "error");
    const full = v.needed > v.free ? [{ level: "warning", message: t("export.plan.full", { needed: format.bytes(v.needed), free: format.bytes(v.free) }) }] : [];
    const issues = [...v.issues, ...full];
    const offer = document.querySelector("#export-start");
    if (offer) offer.toggleAttribute("data-stopped", stopped);
    return [h("section.card.plan", { "aria-live": "polite" },
      h("h3", {}, t(stopped ? "export.plan.stopped" : "export.plan")),
      issues.length > 0 && h("ul.issues", {}, issues.map(issue)),
      h("ol.steps" + (stopped ? ".quiet" : ""), {}, steps(v).map((key) => h("li", {}, t("export.do." + key)))),
      h("dl.plan-facts", {},
        v.out && v.goal !== "hub" && [h("dt", {}, t("export.plan.where")), h("dd.path", {}, v.out)],
        v.goal === "hub" && v.repo && [h("dt", {}, t("export.plan.where")), h("dd.path", {}, v.repo)],
        v.goal !== "hub" && [h("dt", {}, t("export.plan.needs")), h("dd.num", {}, disk(v))]),
      v.goal === "import" && h("p.quiet.small", {}, t("export.upload.limit")),
      v.fourbit && h("p.quiet.small", {}, t("export.fourbit")),
      v.command && h("details.terminal", {}, h("summary", {}, t("export.plan.command")), copyable(v.command)))];
  });
}

// ---- earlier exports -------------------------------------------------------------------------------------------------
function earlier({ trigger, draw, element }) {
  let seen = "";
  const state = (one) => {
    if (one.state === "finished" && !one.there) return h("span.chip", {}, t("export.list.gone"));
    if (one.state === "finished" && one.passed) return h("span.chip.finished", {}, t("export.list.proved"));
    return h("span", { class: "chip " + one.state }, t("state." + one.state));
  };
  const row = (one) => h("tr", {},
    h("td", {}, button("btn.link.open", one.name, () => show(one.id), { "aria-label": t("export.list.open.name", { name: one.name }) })),
    h("td", {}, t("export.goal." + one.goal)), h("td", {}, one.of), h("td.num", {}, one.size ? format.bytes(one.size) : "–"),
    h("td.num", {}, format.ago(one.created_at)), h("td", {}, state(one)),
    h("td", {}, button("btn.small", t("export.list.again"), () => { trigger("apply", { run: one.id }); scrollTo({ top: 0, behavior: "smooth" }); },
      { "aria-label": t("export.list.again.name", { name: one.name }) })));
  const tick = async (at = "") => {
    const list = await api("/api/exports" + (at && `?at=${at}`));
    const now = JSON.stringify(list.map((one) => [one.id, one.state, one.there, one.size, format.ago(one.created_at)]));
    if (now === seen) return;
    seen = now;
    const heads = ["name", "goal", "of", "size", "when", "state"].map((key) => h("th", { scope: "col" }, t("export.list." + key)));
    draw(() => [h("section.card", {}, h("h3", {}, t("export.list")), list.length === 0
      ? h("p.quiet", {}, t("export.list.none"))
      : h("div.scroll", { tabindex: 0, role: "region", "aria-label": t("export.list") }, h("table.rows.exports", {},
        h("thead", {}, h("tr", {}, heads, h("th", { scope: "col" }, h("span.sr-only", {}, t("export.list.again"))))), h("tbody", {}, list.map(row)))))]);
  };
  addEventListener("studio:export", () => tick(String(Date.now())).catch(() => {}));
  poll(element, () => tick(), 2500);
  return () => {};
}

export const mount = mounting({ about, goals, plan, follow, earlier, job });
