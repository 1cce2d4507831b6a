// What the scripts of the tabs share (data.js, train.js, export.js, chat.js). All text is set as text (`h` makes text nodes).
const { t, format } = window.Studio;
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

// `mount` of a module of widgets: each is a function of {element, props, trigger, draw} that gives one to call when the value changed.
export const mounting = (widgets) => ({ element, props, trigger, watch, widget, ...more }) => {
  const target = () => element.querySelector(":scope > div") || element;
  const draw = (make) => target().replaceChildren(...make(props.value).flat(5).filter((node) => node !== null && node !== undefined && node !== false));
  const changed = widgets[widget]({ element, props, trigger, draw, ...more });
  watch("value", changed);
  changed();
};
