// What the Export and Chat tabs draw from JSON (data.js: Data, train.js: Train). All text is set as text (`h` makes text nodes).
const { t, api, goTab, format, poll } = window.Studio;
export const h = (spec, options, ...children) => window.Studio.h(spec, options, ...children.flat(9));

export const button = (spec, text, onclick, options = {}) => h("button." + spec, { type: "button", onclick, ...options }, text);
export const plural = (key, n, values = {}) => t(`tabs.${key}.${n === 1 ? "one" : "many"}`, { n: format.number(n), ...values });
export const empty = (title, text, ...actions) => h("div.empty", {}, h("h3", {}, title), h("p", {}, text), h("div.row", {}, actions));
export const notes = (texts) => (texts || []).map((text) => h("p.note.warn", { role: "status" }, text));
export const copy = async (text, node) => {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = h("textarea", {}, text); document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
  }
  const before = node.textContent;
  node.textContent = t("tabs.copied");
  setTimeout(() => { node.textContent = before; }, 1200);
};
export const save = (name, text) => {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/yaml" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

// What is wrong with a field, beneath it. Gradio's own messages vanish when any other event ends; these stay.
export function markFields(scope, wrong) {
  for (const node of document.querySelectorAll(scope)) {
    const text = wrong[node.id];
    let note = node.querySelector(":scope > .field-error");
    node.classList.toggle("wrong", !!text);
    node.querySelector("input, textarea")?.toggleAttribute("aria-invalid", !!text);
    if (!text) { note?.remove(); continue; }
    if (!note) { note = h("p.field-error", { role: "alert" }); node.append(note); }
    if (note.textContent !== text) note.textContent = text;
  }
}

// ---- Export: follow a merge, then its proof ----------------------------------------------------------------------------
function proofCard(report) {
  const proof = report.proof || {};
  const fact = (good, label, value) => h("li" + (good ? ".good" : ".bad"), {}, h("span.mark"), h("span", {}, label), h("b.num", {}, value));
  const yes = (value) => t(value ? "tabs.yes" : "tabs.no");
  const small = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(2));
  const path = h("button.path.btn.link", { type: "button" }, report.out || "");
  path.onclick = () => copy(report.out || "", path);
  return h("section.card.merge-proof", {},
    h("div.card-head", {}, h("h3", {}, t(proof.passed ? "tabs.proof.passed" : "tabs.proof.failed")), h("span.spring"), h("span.chip" + (proof.passed ? ".finished" : ".failed"), {}, t(proof.passed ? "tabs.proof.ok" : "tabs.proof.bad"))),
    h("ul.facts", {},
      fact(proof.max_logit_difference <= proof.tolerance, t("tabs.proof.difference"), `${small(proof.max_logit_difference)} ≤ ${small(proof.tolerance)}`.replace("≤", proof.max_logit_difference <= proof.tolerance ? "≤" : ">")),
      fact(proof.answers_equal === proof.prompts || proof.answers_equal === true, t("tabs.proof.answers"), proof.prompts ? `${proof.answers_equal === true ? proof.prompts : Number(proof.answers_equal)} / ${proof.prompts}` : yes(proof.answers_equal)),
      fact(proof.weights_differ_from_base, t("tabs.proof.weights"), yes(proof.weights_differ_from_base)),
      fact(proof.template_identical, t("tabs.proof.template"), yes(proof.template_identical))),
    (proof.rows || []).length > 0 && h("div.scroll", { tabindex: 0, role: "region", "aria-label": t("tabs.proof.answers") }, h("table.rows", {},
      h("thead", {}, h("tr", {}, ["prompt", "adapter", "merged"].map((key, i) => h("th", { style: i ? "width:36%" : null }, t("tabs.proof." + key))))),
      h("tbody", {}, proof.rows.map((row) => h("tr", {}, h("td", {}, row.prompt), h("td", {}, row.adapter), h("td", {}, row.merged)))))),
    h("p.where", {}, h("span.quiet", {}, t("tabs.proof.where", { size: format.bytes(report.size_bytes), shards: Array.isArray(report.shards) ? report.shards.length : report.shards || 1 })), path));
}

function merge({ props, draw, element }) {
  let run = null;
  let drawn = "";
  let seen = { offset: 0, progress: null, phase: "", status: null };
  const show = (report) => draw(() => {
    const { status, progress, phase } = seen;
    if (!status) return [h("div.card.skeleton", {})];
    if (status.state === "finished" && report) return [proofCard(report)];
    if (status.error) return [h("section.card.failed", {}, h("h3", {}, t("tabs.merge.failed")), h("p", {}, status.error.message), h("p.quiet", {}, status.error.hint))];
    if (!["queued", "starting", "running", "stopping"].includes(status.state)) return [h("section.card.failed", {}, h("h3", {}, t("tabs.merge.failed")), h("p", {}, t("tabs.merge.ended", { state: t("state." + status.state) })))];
    const share = progress && progress.total ? progress.done / progress.total : null;
    return [h("section.card", { "aria-live": "polite" }, h("div.card-head", {}, h("h3", {}, t("tabs.merge.running")), h("span.spring"), h("span.chip.running", {}, phase ? t("phase." + phase) : t("state." + status.state))),
      h("div.progress" + (share === null ? ".unknown" : ""), { role: "progressbar", "aria-label": t("tabs.merge.running"), "aria-valuenow": share === null ? null : Math.round(share * 100) }, h("i", { style: `width:${share === null ? 100 : Math.round(share * 100)}%` })),
      h("p.quiet.num", {}, progress ? `${progress.label || ""} ${progress.done} / ${progress.total}` : t("tabs.merge.loading"), status.started_at ? " · " + format.seconds(Date.now() / 1000 - status.started_at) : ""))];
  });
  const tick = async () => {
    if (!run || (drawn === run)) return;
    const mine = run;
    const part = await api(`/api/metrics?run=${encodeURIComponent(mine)}&after=${seen.offset}`);
    if (mine !== run) return;
    seen = { offset: part.offset, progress: part.progress || seen.progress, phase: part.phases.length ? part.phases[part.phases.length - 1].name : seen.phase, status: part.status };
    const over = !part.status.live && part.status.state !== "queued";
    const report = part.status.state === "finished" ? await api(`/api/report?run=${encodeURIComponent(mine)}`) : null;
    show(report);
    if (over && (report || part.status.state !== "finished")) drawn = mine;
  };
  poll(element, tick, 700);
  return () => {
    const v = props.value;
    if (v && v.run) {
      if (v.run !== run) { run = v.run; drawn = ""; seen = { offset: 0, progress: null, phase: "", status: null }; show(null); tick(); }
      return;
    }
    run = null;
    draw(() => (v && v.empty ? [] : [empty(t("tabs.merge.empty"), t("tabs.merge.empty.body"))]));
  };
}

const exportEmpty = ({ draw }) => () => draw((v) => (v && v.empty ? [empty(t("tabs.export.none"), t("tabs.export.none.body"), button("btn.go", t("tabs.go_train"), () => goTab("train")))] : []));
const chatEmpty = ({ draw }) => () => draw((v) => (v && v.empty ? [empty(t("tabs.chat.none"), t("tabs.chat.none.body"), button("btn.go", t("tabs.go_home"), () => goTab("home")), button("btn", t("tabs.go_train"), () => goTab("train")))] : []));

// ---- Chat ------------------------------------------------------------------------------------------------------------
function chatStatus({ props, trigger, draw, element }) {
  let since = 0;
  const text = (v) => {
    if (v.state === "loading") return [h("span.chip.running", {}, t("tabs.chat.loading")), h("span.num.quiet", {}, format.seconds((Date.now() - since) / 1000))];
    if (v.state === "ready") return [h("span.chip.finished", {}, t("tabs.chat.ready"))];
    const said = v.state === "failed" ? v.message || t("tabs.chat.failed") : t(v.state === "none" ? "tabs.chat.none_state" : "tabs.chat." + v.state);
    const again = button("btn.go", t(v.state === "none" ? "tabs.chat.start" : "tabs.chat.again"), () => { props.value = { state: "loading", seconds: 0 }; since = Date.now(); render(); trigger("apply", {}); });
    return [h("span", { class: "chip " + (v.state === "none" ? "stopped" : "failed") }, t("tabs.chat.off")), h("span.said", {}, said), again];
  };
  const render = () => draw((v) => (v ? [h("div.chat-status", { role: "status" }, text(v))] : []));
  poll(element, () => { if (props.value && props.value.state === "loading") render(); }, 500);
  return () => {
    const v = props.value;
    if (v && v.state === "loading") since = Date.now() - (v.seconds || 0) * 1000;
    const ready = !!v && v.state === "ready";
    document.querySelector("#chat-room")?.classList.toggle("chat-ready", ready);
    render();
  };
}

const chips = ({ trigger, draw }) => () => draw((v) => (v && v.chips && v.chips.length
  ? [h("div.chips", {}, h("span.quiet", {}, t("tabs.chat.try")), v.chips.map((text) => button("btn.small.chip-ask", text, () => trigger("select", { text }))))] : []));

const WIDGETS = { merge, export_empty: exportEmpty, chat_empty: chatEmpty, chat_status: chatStatus, chips };

// `mount` of a module of widgets: each is a function of {element, props, trigger, draw} that gives one to call when the value changed.
export const mounting = (widgets) => ({ element, props, trigger, watch, widget, ...more }) => {
  const target = () => element.querySelector(":scope > div") || element;
  const draw = (make) => target().replaceChildren(...make(props.value).flat(5).filter((node) => node !== null && node !== undefined && node !== false));
  const changed = widgets[widget]({ element, props, trigger, draw, ...more });
  watch("value", changed);
  changed();
};
export const mount = mounting(WIDGETS);
