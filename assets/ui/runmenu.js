// What can be done to runs: a menu for one, buttons for several; every step that cannot be undone asks first.
import { formDialog, library, order } from "./library.js";
const { h, t, root, confirm, format } = window.Studio;

const list = (ids) => ids.map((id) => library.runs.get(id)).filter(Boolean);

export const rename = async (line) => {
  const input = h("input", { type: "text", id: "rename-title", maxlength: "120", value: line.title || line.name, dir: "auto", autocomplete: "off" });
  const body = h("label", { for: "rename-title" }, t("library.rename.label"), input, h("span.quiet", { dir: "auto" }, t("library.rename.note", { name: line.config_name || line.id })));
  const title = await formDialog({ title: t("library.rename.title"), body, ok: t("library.rename.ok"), answer: () => input.value, focus: input });
  if (title !== null && title.trim() !== (line.title || line.name)) order("apply", { do: "rename", runs: [line.id], title: title.trim() === line.config_name ? "" : title });
};

export const tags = async (ids) => {
  const lines = list(ids);
  if (!lines.length) return;
  // Of several runs those tags are shown that all have; what is added or removed is so on each.
  const before = lines[0].tags.filter((tag) => lines.every((line) => line.tags.includes(tag)));
  let now = [...before];
  const known = [...new Set([...library.runs.values()].flatMap((line) => line.tags))].sort();
  const shown = h("div.tag-edit");
  const input = h("input", { type: "text", id: "tag-new", maxlength: "40", list: "tags-known", dir: "auto", autocomplete: "off" });
  const take = () => {
    for (const part of input.value.split(/[,，、;；]/)) { const text = part.trim().replace(/\s+/g, " "); if (text && !now.some((tag) => tag.toLowerCase() === text.toLowerCase())) now.push(text); }
    input.value = "";
    draw();
  };
  const draw = () => shown.replaceChildren(...(now.length ? now.map((tag) => h("span.tag-chip", { dir: "auto" }, tag, h("button", { type: "button", "aria-label": t("library.tags.remove", { tag }), onclick: () => { now = now.filter((one) => one !== tag); draw(); input.focus(); } }, "×"))) : [h("span.quiet", {}, t("library.tags.none"))]));
  input.addEventListener("keydown", (event) => { if (event.key === "Enter" && input.value.trim()) { event.preventDefault(); take(); } });
  draw();
  const body = h("div.tag-form", {}, shown, h("label", { for: "tag-new" }, t("library.tags.label")), h("div.tag-line", {}, input, h("button", { type: "button", onclick: () => { take(); input.focus(); } }, t("library.tags.add"))), h("datalist", { id: "tags-known" }, known.map((tag) => h("option", { value: tag }))));
  const title = lines.length === 1 ? t("library.tags.title.one", { name: lines[0].name }) : t("library.tags.title.many", { n: lines.length });
  const saved = await formDialog({ title, body, ok: t("library.tags.ok"), answer: () => { take(); return now; }, focus: input });
  if (saved === null) return;
  const add = saved.filter((tag) => !before.includes(tag)); const remove = before.filter((tag) => !saved.includes(tag));
  if (add.length || remove.length) order("apply", { do: "tag", runs: ids, add, remove });
};

export const remove = async (ids) => {
  const lines = list(ids);
  const gone = lines.filter((line) => !line.live);
  if (!gone.length) { await confirm({ title: t("library.delete.title", { name: lines[0]?.name || "" }), body: t("library.delete.no"), ok: t("ok"), danger: false }); return false; }
  const size = gone.reduce((sum, line) => sum + line.size_bytes, 0);
  const body = [h("span", {}, t("library.delete.body", { size: format.bytes(size) })),
    gone.length > 1 && h("span.delete-names", {}, gone.slice(0, 6).map((line) => h("span", { dir: "auto" }, line.name)), gone.length > 6 && h("span.quiet", {}, t("library.more", { n: gone.length - 6 }))),
    gone.length < lines.length && h("span.quiet", {}, t("library.delete.live", { n: lines.length - gone.length }))].filter(Boolean);
  const title = gone.length === 1 ? t("library.delete.title", { name: gone[0].name }) : t("library.delete.title.many", { n: gone.length });
  if (!await confirm({ title, body, ok: t("library.delete.ok") })) return false;
  order("apply", { do: "delete", runs: gone.map((line) => line.id) });
  return true;
};

const again = async (line) => {
  const body = t("library.again.body", { name: line.name });
  if (await confirm({ title: t("library.again.title"), body, ok: t("library.again.ok"), danger: false })) order("select", { run: line.id });
};
const card = (line, kind) => {
  const link = h("a", { href: `${root()}/api/card?run=${encodeURIComponent(line.id)}&format=${kind}`, download: `${line.id}.card.${kind}` });
  document.body.append(link);
  link.click();
  link.remove();
};

addEventListener("studio:run-card", (event) => { const line = library.runs.get(event.detail); if (line) card(line, "html"); });

// ---- the menu --------------------------------------------------------------------------------------------------------
let open = null;
const close = (back = false) => { if (!open) return; const { menu, anchor } = open; open = null; menu.remove(); anchor.setAttribute("aria-expanded", "false"); if (back) anchor.focus(); };
const keys = (event) => {
  const items = [...event.currentTarget.querySelectorAll("[role=menuitem]:not([disabled])")]; const at = items.indexOf(document.activeElement);
  const to = { ArrowDown: (at + 1) % items.length, ArrowUp: (at + items.length - 1) % items.length, Home: 0, End: items.length - 1 }[event.key];
  if (to !== undefined) { event.preventDefault(); items[to].focus(); }
  if (event.key === "Escape" || event.key === "Tab") { event.preventDefault(); event.stopPropagation(); close(true); }
};

// Beneath its button, above it where there is no room; gone when the button has left the window.
const place = () => {
  const { menu: node, anchor } = open;
  const box = anchor.getBoundingClientRect(); const { offsetWidth: wide, offsetHeight: high } = node;
  if (!anchor.isConnected || box.bottom < 0 || box.top > innerHeight) { close(); return; }
  node.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - wide - 8))}px`;
  node.style.top = `${Math.max(8, box.bottom + high + 8 > innerHeight ? box.top - high - 4 : box.bottom + 4)}px`;
};

// `compare`: what "compare with…" does; the list of runs begins a choice then.
export function menu(line, anchor, compare) {
  if (open && open.anchor === anchor) { close(true); return; }
  close();
  const item = (name, text, act, options = {}) => h(`button.${name}`, { type: "button", role: "menuitem", id: `menu-${name}`, onclick: () => { close(true); act(); }, ...options }, text);
  const training = line.kind === "train";
  const node = h("div.run-menu", { role: "menu", "aria-label": t("library.actions", { name: line.name }), onkeydown: keys },
    item("rename", t("library.rename"), () => rename(line)), item("tags", t("library.tags.edit"), () => tags([line.id])), h("hr"),
    training && item("clone", t("library.clone"), () => order("edit", { run: line.id })), training && item("again", t("library.again"), () => again(line)), compare && item("compare", t("library.compare.with"), () => compare(line)), h("hr"),
    item("card-html", t("library.card.html"), () => card(line, "html")), item("card-md", t("library.card.md"), () => card(line, "md")), h("hr"),
    item("delete", t("library.delete.one"), () => remove([line.id]), { disabled: line.live, title: line.live ? t("library.delete.no") : null }));
  (document.querySelector(".gradio-container") || document.body).append(node);
  anchor.setAttribute("aria-expanded", "true");
  open = { menu: node, anchor };
  place();
  node.querySelector("[role=menuitem]").focus();
}
addEventListener("pointerdown", (event) => { if (open && !open.menu.contains(event.target) && !open.anchor.contains(event.target)) close(); }, true);
addEventListener("scroll", (event) => { if (open && !open.menu.contains(event.target)) place(); }, true);
addEventListener("resize", () => close());
