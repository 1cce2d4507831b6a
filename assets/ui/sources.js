// Controls of the form that are drawn here: a list of sections, and a choice that takes a long text as well. Each keeps
// what is typed in `props.value`; it draws anew only when something else has changed that.
import { button, h, mounting } from "./tabs.js";

const { t, api, lang } = window.Studio;

// ---- lists of choices, shared by all controls and read again when one is used ----------------------------------------
let lists = { at: 0, found: Promise.resolve({}) };
const choices = () => {
  if (Date.now() - lists.at > 3000) lists = { at: Date.now(), found: api("/api/choices").catch(() => ({})) };
  return lists.found;
};
let serial = 0;
const freshId = () => "drawn-" + (serial += 1);

const texts = (field) => field.texts[lang()] || field.texts.en;
const heading = (field, id) => h("div.drawn-head", {}, h("span.drawn-label", { id }, texts(field).label),
  h("code", {}, field.names.join(" · ")), h("p.info-text", {}, texts(field).help));

// ---- a list of sections: one line per entry, rare fields behind "more" -----------------------------------------------
const inLine = (field) => field.required || field.number;
const isSet = (field, value) => (value ?? "") !== field.first;

function entries({ element, props, draw, settings }) {
  const label = freshId();
  const datalists = new Map(); // name of a list of choices -> its datalist
  let items = [];
  let open = [];
  let sent = "";

  const send = () => { sent = JSON.stringify(items); props.value = JSON.parse(sent); };
  const refresh = async () => {
    const found = await choices();
    for (const [name, node] of datalists) node.replaceChildren(...(found[name] || []).map(([text, value]) => h("option", { value, label: text })));
  };
  const listOf = (name) => {
    if (!datalists.has(name)) datalists.set(name, h("datalist", { id: freshId() }));
    return datalists.get(name).id;
  };

  const input = (field, index) => {
    const id = freshId();
    const look = { id, "data-name": field.name, placeholder: field.required ? t(`${settings.name}.needed`) : null,
      list: field.choices ? listOf(field.choices) : null, inputmode: field.number ? "decimal" : null, autocomplete: "off", spellcheck: "false" };
    const node = field.multiline ? h("textarea", { ...look, rows: 2 }) : h("input", { ...look, type: "text" });
    node.value = items[index][field.name] ?? "";
    node.addEventListener("input", () => { items[index][field.name] = node.value; send(); });
    node.addEventListener("focus", refresh);
    return h("div.entry-field" + (field.number ? ".narrow" : "") + (field.multiline ? ".wide" : ""), {},
      h("label", { for: id, title: texts(field).help }, texts(field).label), node);
  };

  const entry = (_, index) => {
    const rest = settings.fields.filter((field) => !inLine(field));
    const box = h("div.entry-more", { id: freshId(), hidden: !open[index] }, rest.map((field) => input(field, index)));
    const more = button("btn.small", t("sources.more"), () => {
      open[index] = !open[index];
      box.hidden = !open[index];
      more.setAttribute("aria-expanded", String(open[index]));
    }, { "aria-expanded": String(!!open[index]), "aria-controls": box.id });
    const remove = button("btn.small", "✕", () => {
      items.splice(index, 1); open.splice(index, 1); send(); redraw();
      (element.querySelectorAll(".entry-remove")[Math.min(index, items.length - 1)] || element.querySelector(".entry-add")).focus();
    }, { "aria-label": t(`${settings.name}.remove`, { n: index + 1 }) });
    remove.classList.add("entry-remove");
    return h("li.entry", { "data-entry": index + 1, "aria-label": t(`${settings.name}.entry`, { n: index + 1 }) },
      h("div.entry-line", {}, h("span.num.entry-number", { "aria-hidden": "true" }, String(index + 1)),
        settings.fields.filter(inLine).map((field) => input(field, index)), h("div.entry-buttons", {}, rest.length ? more : null, remove)), box);
  };

  const add = () => {
    items.push(Object.fromEntries(settings.fields.map((field) => [field.name, field.first])));
    open.push(false);
    send();
    redraw();
    element.querySelector(".entry:last-child [data-name]").focus();
  };

  const redraw = () => {
    draw(() => {
      datalists.clear();
      const list = h("ol.entries", {}, items.map(entry));
      return [h("div.drawn", { role: "group", "aria-labelledby": label }, heading(settings, label),
        items.length ? list : h("p.quiet.small", {}, t(`${settings.name}.none`)), [...datalists.values()],
        button("btn.small.entry-add", "+ " + t(`${settings.name}.add`), add))];
    });
    refresh();
  };

  return () => {
    const now = JSON.stringify(props.value || []);
    if (now === sent && element.querySelector(".drawn")) return;
    sent = now;
    items = JSON.parse(now);
    open = items.map((item) => settings.fields.some((field) => !inLine(field) && isSet(field, item[field.name])));
    redraw();
  };
}

// ---- a text that is mostly one of the named choices ------------------------------------------------------------------
const WRITTEN = "\u0001";

function choice({ element, props, draw, settings }) {
  const label = freshId();
  let writing = false;
  let sent = null;
  const send = (value) => { sent = value; props.value = value; };

  const redraw = async (focus) => {
    const known = (await choices())[settings.choices] || [];
    const value = props.value || "";
    if (/[\n{]/.test(value)) writing = true;
    const others = value && !writing && !known.some(([, name]) => name === value) ? [[value, value]] : [];
    const options = [[t("choice.empty." + settings.choices), ""], ...others, ...known, [t("choice.write." + settings.choices), WRITTEN]];
    const select = h("select", { "aria-labelledby": label }, options.map(([text, name]) => h("option", { value: name }, text)));
    select.value = writing ? WRITTEN : value;
    select.addEventListener("change", () => {
      writing = select.value === WRITTEN;
      send(writing ? "" : select.value);
      redraw(writing);
    });
    const area = h("textarea.template-text", { rows: 6, "aria-labelledby": label, spellcheck: "false" });
    area.value = value;
    area.addEventListener("input", () => send(area.value));
    draw(() => [h("div.drawn", {}, heading(settings, label), select, writing && area)]);
    if (focus) area.focus();
  };

  return () => {
    if ((props.value || "") === sent && element.querySelector(".drawn")) return;
    sent = props.value || "";
    writing = false;
    redraw(false);
  };
}

export const mount = mounting({ entries, choice });
