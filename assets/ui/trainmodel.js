// Train: a base model that is not on this machine, and its download. The progress is read from the server.
import { button, h } from "./tabs.js";

const { t, api, poll } = window.Studio;
const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`); // as hubs count
const typed = { hub: "huggingface", revision: "", endpoint: "", open: false };

export function modelCard(element, trigger, apply) {
  const host = h("div.model-host", {});
  let model = null;
  let download = null;
  let asked = 0;
  let known = "";

  const start = () => { asked = Date.now(); trigger("edit", { id: model.id, hub: typed.hub, revision: typed.revision, endpoint: typed.endpoint }); draw(); };
  const field = (name, key) => {
    const input = h("input", { id: "model-" + name, type: "text", autocomplete: "off", spellcheck: "false", placeholder: name === "endpoint" ? "https://hf-mirror.com" : "main" });
    input.value = typed[name];
    input.addEventListener("input", () => { typed[name] = input.value; });
    return h("div", {}, h("label", { for: "model-" + name }, t(key)), input);
  };
  const from = () => {
    const hub = h("select", { id: "model-hub" }, h("option", { value: "huggingface" }, "Hugging Face"), h("option", { value: "modelscope" }, "ModelScope"));
    hub.value = typed.hub;
    hub.addEventListener("change", () => { typed.hub = hub.value; });
    const fold = h("details.model-from", { open: typed.open }, h("summary", {}, t("train.model.more")),
      h("div.model-fields", {}, h("div", {}, h("label", { for: "model-hub" }, t("train.model.hub")), hub), field("revision", "train.model.revision"), field("endpoint", "train.model.endpoint")));
    fold.addEventListener("toggle", () => { typed.open = fold.open; });
    return fold;
  };
  const progress = () => {
    const share = download && download.total ? Math.round((100 * download.done) / download.total) : null;
    return [h("div.progress" + (share === null ? ".unknown" : ""), { role: "progressbar", "aria-label": t("train.model.download"), "aria-valuenow": share }, h("i", { style: `width:${share ?? 100}%` })),
      h("div.row", {}, h("span.quiet.num", {}, download && download.total ? t("train.model.of", { done: size(download.done), total: size(download.total) }) : ""), h("span.spring"),
        download && button("btn.small", t("train.model.stop"), () => trigger("delete", { id: download.id }), { id: "model-stop" }))];
  };
  const offer = () => (model.size ? t("train.model.download.size", { size: size(model.size) }) : t("train.model.download"));
  const inside = () => {
    if (model.offline) return [h("p.note.warn", { role: "status" }, t("train.model.offline", { id: model.id }))];
    if ((download && download.live) || (asked && Date.now() - asked < 8000 && !(download && download.at > asked))) return [h("p", {}, model.id), progress()];
    if (download && download.state === "finished") return [h("p", { role: "status" }, t("train.model.done")), button("btn", t("train.model.use"), () => apply({ "model.model_name_or_path": download.path }), { id: "model-use" })];
    const failed = download && (download.error ? h("p.note.warn", { role: "alert" }, `${download.error} ${download.hint}`) : h("p.quiet", {}, t("train.model.ended")));
    return [failed || h("p", {}, t("train.model.away", { id: model.id }), " ", h("span.quiet", {}, t("train.model.start"))),
      h("div.row", {}, button("btn", failed ? t("train.model.again") : offer(), start, { id: "model-download" })), from()];
  };
  const draw = () => {
    const focus = document.activeElement && host.contains(document.activeElement) ? document.activeElement.id : "";
    host.replaceChildren(...(model && !model.code ? [h("section.card", { id: "train-model" }, h("div.card-head", {}, h("h3", {}, t("train.model"))), inside())] : []));
    if (focus) document.getElementById(focus)?.focus();
  };
  poll(element, async () => {
    if (!model || model.offline) return;
    const found = (await api("/api/downloads")).find((one) => one.model === model.id) || null;
    const now = JSON.stringify(found) + (asked && Date.now() - asked < 8000);
    if (now === known) return;
    const over = download && download.live && found && !found.live;
    known = now;
    download = found && { ...found, at: Date.now() };
    draw();
    if (over && found.state === "finished") trigger("select", {});
  });
  return { host, show: (found) => { if (JSON.stringify(found) !== JSON.stringify(model)) { model = found; download = null; known = ""; asked = 0; draw(); } } };
}
