// Train: what differs from the preset, at every field and side by side; and what a loaded file brought.
import { button, h } from "./tabs.js";

const { t } = window.Studio;
const said = (text) => (text === "" ? t("train.changed.empty") : text === "true" ? t("train.fit.on_value") : text === "false" ? t("train.fit.off_value") : text.length > 300 ? text.slice(0, 300) + " …" : text);

// A mark at every field that differs; pressing it sets the field back.
export function markChanges(changed, reset) {
  const found = new Map(((changed && changed.fields) || []).map((one) => ["f-" + one.path.replaceAll(".", "-"), one]));
  for (const node of document.querySelectorAll("#train-columns .field")) {
    const one = found.get(node.id);
    let mark = node.querySelector(":scope > .field-mark");
    node.classList.toggle("changed", !!one);
    if (!one) { mark?.remove(); continue; }
    if (!mark) { mark = button("field-mark", "↺", () => reset([mark.dataset.path])); node.append(mark); }
    mark.dataset.path = one.path;
    const text = t("train.changed.mark", { label: one.label, value: said(one.base) });
    if (mark.title !== text) { mark.title = text; mark.setAttribute("aria-label", text); }
  }
}

// The counter, and behind it the two values of every field.
let open = false;
export function changesCard(changed, { reset, reveal, redraw }) {
  const n = changed.fields.length;
  if (!n) return null;
  const from = changed.preset ? t("train.changed.from", { preset: changed.preset }) : t("train.changed.from.none");
  const toggle = button("btn.small", t(open ? "train.changed.hide" : "train.changed.show"), () => { open = !open; redraw(); }, { id: "changes-toggle", "aria-expanded": String(open), "aria-controls": "changes-table" });
  const line = (one, index) => h("tr", {}, h("td", {}, button("btn.link", one.label, () => reveal(one.path))), h("td.was", {}, said(one.base)), h("td.now", {}, said(one.now)),
    h("td", {}, button("btn.small", t("train.changed.reset"), () => reset([one.path]), { id: "changes-reset-" + index, "aria-label": `${t("train.changed.reset")}: ${one.label}` })));
  const table = () => h("div.scroll", { id: "changes-table", tabindex: 0, role: "region", "aria-label": t("train.changed", { n }) }, h("table.rows.changes", {},
    h("thead", {}, h("tr", {}, [t("train.changed.field"), t(changed.preset ? "train.changed.base" : "train.changed.base.none"), t("train.changed.now"), ""].map((text) => h("th", {}, text)))),
    h("tbody", {}, changed.fields.map(line))));
  return h("section.card", { id: "train-changes" }, h("div.card-head", {}, h("h3", {}, h("b.num", {}, t("train.changed", { n })), " ", h("span.quiet", {}, from)), h("span.spring"),
    open && n > 1 && button("btn.small", t("train.changed.reset_all"), () => reset(changed.fields.map((one) => one.path)), { id: "changes-reset-all" }), toggle), open && table());
}

// What was read, and what could not be carried over.
export function loaded({ props, draw }) {
  return () => draw((v) => {
    if (!v || !v.origin) return [];
    const counted = (key, n) => t("train.loaded." + key + (n === 1 ? ".one" : ""), { n });
    return [h("section.card.loaded", {}, h("div.card-head", {}, h("h3", {}, t("train.loaded." + v.origin, { name: v.name })), h("span.spring"),
      button("btn.small", t("train.loaded.close"), () => { props.value = null; }, { id: "loaded-close" })),
      h("p.quiet", {}, counted("fields", v.fields)),
      v.left.length > 0 && [h("p", {}, counted("left", v.left.length)), h("ul.left", { tabindex: 0 }, v.left.map((one) => h("li", {},
        h("span.num.quiet", {}, t("train.loaded.line", { n: one.line })), h("div", {}, h("code", {}, one.name), " ", h("span", {}, one.reason)))))])];
  });
}
