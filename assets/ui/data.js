// The Data tab: rows as bubbles or table, my datasets, imports at work. All text is set as text (`h` makes text nodes).
import { button, empty, h, markFields, mounting, notes } from "./tabs.js";

const { t, api, confirm, format, poll, root, store } = window.Studio;
const plural = (key, n, values = {}) => t(`data.${key}.${n === 1 ? "one" : "many"}`, { n: format.number(n), ...values });
const known = (key, fallback) => { const text = t(key); return text === key ? fallback : text; };
const flat = (nodes) => [nodes].flat(9).filter((node) => node !== null && node !== undefined && node !== false);
const ROLES = ["system", "user", "assistant", "tool"];
const LONG = 500; // characters from which a bubble may scroll, so that the keyboard must reach it

// A native dialog with fields; the answer is {name: value}, or null when it was called off.
const askFor = ({ title, body, ok, fields }) => new Promise((done) => {
  const inputs = fields.map((field) => {
    const input = field.choices ? h("select", {}, field.choices.map(([value, text]) => h("option", { value }, text)))
      : h("input", { type: field.type || "text", maxlength: 200, step: "any" });
    if (field.type === "checkbox") input.checked = !!field.value; else if (field.value !== undefined) input.value = field.value;
    return input;
  });
  const rows = fields.map((field, i) => h("label.ask" + (field.type === "checkbox" ? ".tick" : ""), {}, h("span", {}, field.label), inputs[i]));
  const no = h("button", { type: "button" }, t("cancel"));
  const yes = h("button.good", { type: "submit" }, ok || t("data.ok"));
  const dialog = h("dialog.studio-dialog.data-dialog", { "aria-labelledby": "data-dialog-title" },
    h("h2", { id: "data-dialog-title" }, title), h("p", {}, body), h("form", {}, rows, h("div.row", {}, no, yes)));
  (document.querySelector(".gradio-container") || document.body).append(dialog);
  const end = (answer) => { dialog.close(); dialog.remove(); done(answer); };
  const read = (input) => (input.type === "checkbox" ? input.checked : input.type === "number" ? Number(input.value) : input.value);
  no.onclick = () => end(null);
  dialog.oncancel = (event) => { event.preventDefault(); end(null); };
  dialog.querySelector("form").onsubmit = (event) => { event.preventDefault(); end(Object.fromEntries(fields.map((field, i) => [field.name, read(inputs[i])]))); };
  dialog.showModal();
  (inputs[0] || no).focus();
  inputs[0]?.select?.();
});

// ---- one row -----------------------------------------------------------------------------------------------------------
const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 1));
const called = (call) => {
  const made = call.function || call;
  return h("pre.call", { tabindex: 0 }, h("b", {}, made.name || t("data.calls")), " ", pretty(made.arguments ?? {}));
};
const said = (message, extra = "") => {
  const label = message.role === "tool" ? t("data.role.tool") + (message.name ? " · " + message.name : "") : extra;
  return h(`div.bubble.${ROLES.includes(message.role) ? message.role : "system"}${extra ? ".rejected" : ""}`, { tabindex: message.content.length > LONG ? 0 : null },
    h("span.sr-only", {}, known("data.role." + message.role, message.role) + ": "), label && h("span.label", {}, label),
    message.content, (message.tool_calls || []).map(called), message.loss === false && h("span.label.off", {}, t("data.not_learned")));
};
const toolNames = (tools) => tools.map((tool) => (tool.function || tool).name || "?").join(", ");
const offered = (row) => row.tools && h("details.tools", {}, h("summary", {}, plural("tools", row.tools.length, { names: toolNames(row.tools) })), h("pre", { tabindex: 0 }, pretty(row.tools)));
const pictures = (row) => row.images && h("p.pictures", {}, row.images.map((name) => h("span", {}, t("data.image"), ": ", String(name).split(/[\\/]/).pop())));
const content = (row) => (row.text !== undefined ? h("div.plain-text", { tabindex: row.text.length > LONG ? 0 : null }, row.text)
  : [pictures(row), row.messages.map((message) => said(message)), (row.rejected || []).map((message) => said(message, t("data.rejected")))]);
const originName = (origin) => known("data.origin." + origin, origin);

// The editor of one row: its texts, turns that come and go, and which answers are learned.
function editor(row, { save, cancel, remove }) {
  let turns = row.text === undefined ? row.messages.map((message, at) => ({ role: message.role, content: message.content, loss: message.loss !== false, at, calls: message.tool_calls })) : [];
  const whole = row.text !== undefined && h("textarea", { rows: 8, "aria-label": t("data.role.text") });
  if (whole) whole.value = row.text;
  const worse = (row.rejected || []).map((message) => { const field = h("textarea", { rows: 3, "aria-label": t("data.rejected") }); field.value = message.content; return field; });
  const list = h("div.turns");
  const box = h("div.row-edit");
  const finish = () => save({ turns: turns.map(({ role, content: text, loss, at }) => ({ role, content: text, loss, at })), rejected: worse.map((field) => field.value), text: whole ? whole.value : null });
  const draw = (focus) => {
    list.replaceChildren(...turns.map((turn, i) => {
      const name = known("data.role." + turn.role, turn.role);
      const field = h("textarea", { rows: Math.min(8, 2 + Math.floor(turn.content.length / 70)), "aria-label": name });
      field.value = turn.content;
      field.oninput = () => { turn.content = field.value; };
      const tick = turn.role === "assistant" && h("label.learn", {}, h("input", { type: "checkbox", onchange: (event) => { turn.loss = event.target.checked; } }), t("data.learn"));
      if (tick) tick.querySelector("input").checked = turn.loss;
      const gone = button("btn.small.x", "✕", () => { turns.splice(i, 1); draw(); box.querySelector("textarea, button")?.focus(); }, { "aria-label": `${t("data.remove_turn")} (${name} ${i + 1})`, title: t("data.remove_turn") });
      return h("div.turn", {}, h("div.turn-head", {}, h("span", {}, name), tick, h("span.spring"), turns.length > 1 && gone), field, (turn.calls || []).map(called));
    }));
    if (focus !== undefined) list.querySelectorAll("textarea")[focus]?.focus();
  };
  const addSystem = button("btn.small", t("data.add_system"), () => { if (turns[0]?.role !== "system") turns.unshift({ role: "system", content: "", loss: true, at: null }); draw(0); });
  const addTurns = button("btn.small", t("data.add_turns"), () => { turns.push({ role: "user", content: "", loss: true, at: null }, { role: "assistant", content: "", loss: true, at: null }); draw(turns.length - 2); });
  box.append(...flat([whole || [list, worse.length > 0 && worse.map((field) => h("div.turn", {}, h("div.turn-head", {}, t("data.rejected")), field)), h("div.row", {}, addSystem, addTurns)],
    h("div.row.actions", {}, button("btn.go", t("data.save"), finish), button("btn", t("data.cancel"), cancel), h("span.spring"), remove && button("btn.link.bad", t("data.delete"), remove))]));
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); event.stopPropagation(); finish(); }
  });
  draw();
  queueMicrotask(() => box.querySelector("textarea")?.focus());
  return box;
}

// ---- the viewer: what it is, counts, search, one page of rows ------------------------------------------------------------
const PAGE = { bubbles: 8, table: 20 };
const FIRST = ["", "identity", "hard_negative", "replay", "upload"];

function rows({ props, trigger, element }) {
  let mode = store.get("rows") === "table" ? "table" : "bubbles";
  let editing = null; // number of the row that is edited, -1: a new one
  let picked = new Set();
  let seenSaved = "";
  let seen = ""; // source and fingerprint the picked rows belong to
  const now = () => props.value || {};
  let asked = 0; // questions so far: answers may come in another order
  let wish = null; // what was asked for last and has not come yet
  let shown = null; // what is shown
  const here = () => { const v = wish && wish.source === now().source ? wish : now(); return { source: v.source, origin: v.origin, intent: v.intent, query: v.query, offset: v.offset, size: PAGE[mode] }; };
  const ask = (extra) => { list.setAttribute("aria-busy", "true"); asked += 1; wish = { ...here(), ...extra }; trigger("select", { ...wish, asked }); };
  const guarded = (event, extra) => trigger(event, { ...here(), sha256: now().sha256, ...extra });

  // These parts stay where they are, so that the cursor stays in the search field while rows come and go.
  const top = h("div.rows-top");
  const counts = h("div.counts");
  const search = h("input.rows-search", { type: "search", placeholder: t("data.search"), "aria-label": t("data.search"), maxlength: 200 });
  const intent = h("select.rows-intent", { "aria-label": t("data.intent"), onchange: () => ask({ intent: intent.value, offset: 0 }) });
  const flip = Object.fromEntries(["bubbles", "table"].map((name) => [name, button("seg", t("data.as." + name), () => { mode = name; store.set("rows", name); ask({}); }, { "aria-pressed": "false" })]));
  const tools = h("div.rows-tools", {}, search, intent, h("span.spring"), h("div.segs", {}, flip.bubbles, flip.table));
  const bar = h("div.rows-picked", { role: "status" });
  const list = h("div.rows-list");
  const pager = h("nav.pager", { "aria-label": t("data.pages") });
  let typing = 0;
  search.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => ask({ query: search.value, offset: 0 }), 250); });

  const stopEditing = () => { editing = null; draw(); };
  const remove = async (numbers) => {
    const title = numbers.length === 1 ? t("data.delete_row") : t("data.delete_rows", { n: format.number(numbers.length) });
    if (await confirm({ title, body: t("data.delete_row.body"), ok: t("data.delete") })) guarded("delete", { numbers });
  };
  const edit = (row) => editor(row, { save: (texts) => guarded("edit", { n: row.n, ...texts }), cancel: stopEditing, remove: row.n >= 0 && (() => remove([row.n])) });
  const mine = (row) => now().editable && row.origin !== "heldout";
  const pencil = (row) => mine(row) && !row.cut && button("btn.small", t("data.edit"), () => { editing = row.n; draw(); }, { "aria-label": t("data.edit_row", { n: row.n + 1 }) });
  const box = (row) => {
    if (!mine(row)) return null;
    const tick = h("input.pick", { type: "checkbox", "aria-label": t("data.select_row", { n: row.n + 1 }), onchange: () => { if (tick.checked) picked.add(row.n); else picked.delete(row.n); drawPicked(); } });
    tick.checked = picked.has(row.n);
    return tick;
  };
  const isEdited = (row) => editing === row.n && mine(row);

  const talk = (row) => h("li.talk", {},
    h("div.talk-head", {}, box(row), h("span.num", {}, format.number(row.n + 1)), h("span", { class: "tag " + row.origin }, originName(row.origin)),
      row.intent && h("span.intent", {}, known("data.intent." + row.intent, row.intent)), h("span.spring"), pencil(row)),
    isEdited(row) ? edit(row) : [offered(row), content(row), row.cut && h("p.quiet.small", {}, t("data.cut"))],
    row.expect && row.expect.length > 0 && h("p.expect", {}, t("data.expect"), " ", row.expect.map((word) => h("b", {}, word))));

  const pairs = (row) => {
    if (row.text !== undefined) return [[h("td.wide", { colspan: 2 }, row.text)]];
    const found = [];
    let question = [];
    for (const message of row.messages) {
      if (message.role !== "assistant") { question.push(message); continue; }
      found.push([question, [message]]);
      question = [];
    }
    if (question.length) found.push([question, []]);
    if (row.rejected && found.length) found[found.length - 1][1].push({ ...row.rejected[0], worse: true });
    const cell = (messages) => h("td", {}, messages.map((message) => h("div.line", {},
      !["user", "assistant"].includes(message.role) && h("span.label", {}, known("data.role." + message.role, message.role)), message.worse && h("span.label", {}, t("data.rejected")),
      message.content, (message.tool_calls || []).map(called))));
    return found.map(([asked, answered]) => [cell(asked), row.expect ? h("td", {}, row.expect.join(" · ")) : cell(answered)]);
  };
  const lines = (row) => (isEdited(row) ? [h("tr", {}, h("td", { colspan: 5 }, edit(row)))]
    : pairs(row).map((cells, i) => h("tr", {}, h("td.first", {}, i ? null : [box(row), h("span.num", {}, format.number(row.n + 1))]), cells,
      h("td", {}, i ? null : h("span", { class: "tag " + row.origin }, originName(row.origin))), h("td", {}, i ? null : pencil(row)))));
  const table = (shown) => h("div.scroll", { tabindex: 0, role: "region", "aria-label": t("data.rows") }, h("table.rows", {},
    h("thead", {}, h("tr", {}, h("th", {}, "#"), h("th", {}, t("data.role.user")), h("th", {}, t("data.role.assistant")), h("th", {}, h("span.sr-only", {}, t("data.rows"))), h("th", {}, h("span.sr-only", {}, t("data.edit"))))),
    h("tbody", {}, shown.flatMap(lines))));

  const facts = (v) => {
    const f = v.facts;
    const told = [];
    if (f.kind) told.push(t("data.kind." + f.kind));
    if (f.label || f.format) told.push(f.label || f.format);
    if (f.encoding) told.push(t("data.encoding", { encoding: f.encoding }));
    if (f.rows_read) told.push(plural("rows_read", f.rows_read), plural("usable", f.usable));
    if (f.from) told.push(t("data.from", { source: f.from }));
    for (const [lang, n] of Object.entries(f.phrasings || {})) told.push(t("data.phrasings." + lang, { n }));
    return told.join(" · ");
  };
  const head = (v) => [
    h("div.rows-head", {},
      h("div.what", {}, h("h3", {}, v.title, " ", v.editable && h("span.chip.finished", {}, t("data.saved"))), h("p.quiet", {}, facts(v))),
      h("div.row", {}, v.editable && button("btn", t("data.add_row"), () => { editing = -1; draw(); }, { id: "data-add-row" }),
        v.editable && button("btn.go", t("data.train_on"), () => trigger("apply", { name: v.facts.name }), { id: "data-train-on" }))),
    v.just_saved && h("p.note.good", { role: "status" }, t("data.just_saved", { n: format.number(v.counts[""]) })),
    v.facts.head > 0 && h("p.note", {}, t("data.head", { n: format.number(v.facts.head) })),
    v.facts.self_replay > 0 && h("p.note", {}, t("data.self_replay", { n: format.number(v.facts.self_replay) })),
    notes(v.notes),
    v.skipped_total > 0 && h("details.skipped", {}, h("summary", {}, plural("skipped", v.skipped_total)),
      h("ul", { tabindex: 0 }, v.skipped.map(([row, reason]) => h("li", {}, t("data.skipped.row", { row: format.number(row) }), " ", reason)), v.skipped_total > v.skipped.length && h("li", {}, "…"))),
  ];
  const drawCounts = (v) => {
    const origins = [...FIRST, ...Object.keys(v.counts).filter((origin) => !FIRST.includes(origin) && origin !== "heldout"), "heldout"];
    const shown = origins.filter((origin) => v.counts[origin] || origin === v.origin);
    counts.replaceChildren(...(shown.length > 2 || v.origin ? shown : shown.slice(0, 1)).map((origin) =>
      button("count", [h("b.num", {}, format.number(v.counts[origin] || 0)), h("span", {}, !origin && v.counts[""] === 1 ? t("tabs.flow.conversations.one") : originName(origin))], () => ask({ origin, offset: 0 }), { "aria-pressed": String(v.origin === origin) })));
    // A mark that every row has says nothing.
    element.closest(".panel-rows")?.classList.toggle("single", shown.length <= 2 && !v.origin);
    const kinds = Object.entries(v.intents || {});
    intent.hidden = !kinds.length;
    intent.replaceChildren(...["", ...kinds.map(([kind]) => kind)].map((kind) => h("option", { value: kind }, known("data.intent." + kind, kind) + (kind ? ` (${format.number(v.intents[kind])})` : ""))));
    intent.value = v.intent || "";
    if (document.activeElement !== search) search.value = v.query || "";
    for (const [name, node] of Object.entries(flip)) node.setAttribute("aria-pressed", String(mode === name));
  };
  const drawPicked = () => bar.replaceChildren(...(picked.size === 0 ? [] : [h("span", {}, plural("selected", picked.size)),
    button("btn.small.bad", t("data.delete_selected"), () => remove([...picked])), button("btn.small", t("data.unselect"), () => { picked.clear(); draw(); })]));
  const drawPager = (v) => {
    const last = Math.max(0, Math.floor((v.total - 1) / v.page) * v.page);
    const step = (sign, offset, key, off) => button("btn", sign, () => ask({ offset }), { disabled: off, "aria-label": t("data." + key) });
    const jump = h("input.jump", { type: "number", min: 1, max: v.total, "aria-label": t("data.go_to"), placeholder: t("data.go_to") });
    jump.onchange = () => { const n = Math.round(Number(jump.value)); if (n >= 1) ask({ offset: Math.floor((Math.min(n, v.total) - 1) / PAGE[mode]) * PAGE[mode] }); };
    pager.replaceChildren(...flat([step("«", 0, "first", v.offset <= 0), step("‹", Math.max(0, v.offset - v.page), "previous", v.offset <= 0),
      h("span.num.quiet", { "aria-live": "polite" }, t("data.range", { from: format.number(v.total ? v.offset + 1 : 0), to: format.number(Math.min(v.offset + v.page, v.total)), total: format.number(v.total) })),
      step("›", v.offset + v.page, "next", v.offset >= last), step("»", last, "last", v.offset >= last), v.total > 2 * v.page && jump]));
  };
  const shownRows = (v) => {
    const fresh = editing === -1 && h("div.talk.new", {}, edit({ n: -1, origin: "upload", messages: [{ role: "user", content: "" }, { role: "assistant", content: "" }] }));
    if (!v.rows.length && !fresh) return [empty(t("data.none_found"), t("data.none_found.body"), button("btn", t("data.show_all"), () => { search.value = ""; ask({ origin: "", intent: "", query: "", offset: 0 }); }))];
    return [fresh, mode === "table" ? table(v.rows) : h("ol.talks", {}, v.rows.map(talk))];
  };
  const host = () => element.querySelector(":scope > div") || element;
  const draw = () => {
    const v = props.value;
    if (v && v.busy) { host().replaceChildren(h("div.card.skeleton", { role: "status", "aria-label": t("data.busy") }, t("data.reading"))); return; }
    if (!v || v.empty) {
      const wrong = Object.entries((v && v.wrong) || {}).map(([name, text]) => `${v.labels[name]}: ${text}`);
      host().replaceChildren(...flat([notes(v && [...(v.notes || []), ...wrong]), empty(t("data.empty"), known("data.empty." + ((v && v.source) || "builder"), t("data.empty.builder")))]));
      return;
    }
    if (!top.isConnected) host().replaceChildren(top, counts, tools, bar, list, pager);
    list.removeAttribute("aria-busy");
    top.replaceChildren(...flat(head(v)));
    drawCounts(v);
    drawPicked();
    list.replaceChildren(...flat(shownRows(v)));
    drawPager(v);
    if (v.just_saved && seenSaved !== v.sha256) { // said where it is seen, though the button was pressed further down
      seenSaved = v.sha256;
      const note = top.querySelector(".note.good");
      if (note && note.getBoundingClientRect().top < 70) top.scrollIntoView({ block: "start", behavior: "smooth" });
    }
  };
  return () => {
    const v = now();
    // A later question is under way or answered, or another dataset was opened meanwhile.
    if (v.asked && shown && (v.asked < asked || v.source !== shown.source)) { props.value = shown; return; }
    shown = v;
    if (v.asked === asked) wish = null;
    if (v.wrong) markFields("#data-way-identity .field", Object.fromEntries(Object.entries(v.wrong).map(([name, text]) => ["data-" + name.replaceAll("_", "-"), text])));
    if (seen !== `${v.source} ${v.sha256}`) { seen = `${v.source} ${v.sha256}`; picked = new Set(); }
    editing = null;
    draw();
  };
}

// ---- my datasets -------------------------------------------------------------------------------------------------------
const field = (name, value, type) => ({ name, value, type, label: t("data.ask." + name) });
const OPERATIONS = {
  rename: (item) => [field("title", item.title || item.name)],
  copy: () => [field("title", "")],
  split: () => [field("share", 70, "number"), field("seed", 42, "number")],
  distinct: () => [field("loose", false, "checkbox")],
  shuffle: () => [field("seed", 42, "number")],
  sample: (item) => [field("amount", Math.min(100, item.rows), "number"), field("seed", 42, "number")],
};

async function download(item) {
  const name = item.title || item.name;
  const choices = ["messages", "conversation", "alpaca"].map((to) => [to, t("data.to." + to)]);
  const answer = await askFor({ title: t("data.ask.download", { name }), body: t("data.ask.download.body"), ok: t("data.ok.download"), fields: [{ name: "to", label: t("data.ask.to"), choices }] });
  if (!answer) return;
  const path = `/api/datasets/${encodeURIComponent(item.name)}/`;
  const to = t("data.to." + answer.to);
  try {
    const found = await api(`${path}convertible?to=${answer.to}`);
    const fault = { row: format.number(found.row), reason: found.reason };
    if (!found.rows) { await confirm({ title: t("data.ask.download", { name }), body: t("data.left.none", { to, ...fault }), ok: t("ok"), danger: false }); return; }
    const title = t("data.left.some", { left: format.number(found.left), all: format.number(found.left + found.rows), to });
    if (found.left && !(await confirm({ title, body: t("data.left.body", fault), ok: t("data.ok.download"), danger: false }))) return;
    h("a", { href: `${root()}${path}download?to=${answer.to}`, download: "" }).click();
  } catch { await confirm({ title: t("data.ask.download", { name }), body: t("data.left.fault"), ok: t("ok"), danger: false }); }
}

function saved({ props, trigger, draw }) {
  let opened = ""; // the dataset whose operations are shown
  let picked = new Set();
  let busy = false;
  const send = (order) => { busy = true; redraw(); trigger("apply", order); setTimeout(() => { if (busy) { busy = false; redraw(); } }, 15000); };
  const run = async (op, item) => {
    const name = item.title || item.name;
    const answer = await askFor({ title: t("data.ask." + op, { name }), body: t(`data.ask.${op}.body`, { name }), fields: OPERATIONS[op](item) });
    if (!answer) return;
    if ("share" in answer) answer.share /= 100;
    send({ op, names: [item.name], ...answer });
  };
  const remove = async (item) => {
    const title = t("data.delete_dataset", { name: item.title || item.name });
    if (await confirm({ title, body: t("data.delete_dataset.body"), ok: t("data.delete") })) trigger("delete", { name: item.name });
  };
  const merge = async () => {
    const answer = await askFor({ title: t("data.ask.merge", { n: picked.size }), body: t("data.ask.merge.body"), fields: [field("title", "")] });
    if (answer) { send({ op: "merge", names: [...picked], ...answer }); picked = new Set(); }
  };
  const meta = (item) => [t("data.kind." + item.kind), plural("rows", item.rows), item.languages.map((lang) => t("data.lang." + lang)).join(" + "),
    item.source && t("data.from", { source: item.source }), new Date(item.created_at).toLocaleString(window.Studio.lang(), { dateStyle: "medium", timeStyle: "short" })].filter(Boolean).join(" · ");
  const entry = (item) => {
    const name = item.title || item.name;
    const tick = h("input.pick", { type: "checkbox", "aria-label": t("data.choose", { name }), onchange: () => { if (tick.checked) picked.add(item.name); else picked.delete(item.name); redraw(); } });
    tick.checked = picked.has(item.name);
    const open = opened === item.name;
    return h("li" + (open ? ".opened" : ""), {}, h("div.dataset-line", {}, tick,
      button("open", [h("b", {}, name), h("span.quiet", {}, meta(item))], () => trigger("select", { name: item.name })),
      button("btn.small", t("data.more"), () => { opened = open ? "" : item.name; redraw(); }, { "aria-expanded": String(open), "aria-label": t("data.more_of", { name }) })),
    open && h("div.operations", {}, Object.keys(OPERATIONS).map((op) => button("btn.small", t("data.op." + op), () => run(op, item), { disabled: busy })),
      button("btn.small", t("data.op.download"), () => download(item)), button("btn.small.bad", t("data.op.delete"), () => remove(item))));
  };
  const redraw = () => draw((v) => {
    if (!v || !v.datasets.length) return [notes(v && v.notes), empty(t("data.saved.empty"), t("data.saved.empty.body"))];
    return [notes(v.notes), v.said && !busy && h("p.note.good", { role: "status" }, v.said), busy && h("p.note", { role: "status" }, t("data.busy")),
      v.datasets.length > 1 && h("div.merge-bar", {}, picked.size > 1 ? button("btn.small", t("data.merge", { n: picked.size }), merge, { disabled: busy }) : h("span.quiet.small", {}, t("data.merge.hint"))),
      h("ul.saved", {}, v.datasets.map(entry))];
  });
  return () => {
    busy = false;
    const names = new Set(((props.value && props.value.datasets) || []).map((item) => item.name));
    picked = new Set([...picked].filter((name) => names.has(name)));
    redraw();
  };
}

// ---- imports at work -----------------------------------------------------------------------------------------------------
function imports({ props, trigger, draw, element }) {
  let jobs = [];
  let following = new Set(); // started from this page: shown when they are done
  let beat = 0;
  const amount = (job) => {
    if (!job.done) return "";
    const whole = job.hub === "file";
    if (!job.total) return t("data.import.some", { done: format.number(job.done) });
    return whole ? format.percent(job.done / job.total) : t("data.import.rows", { done: format.number(job.done), total: format.number(job.total) });
  };
  const sentence = (job) => {
    if (job.error) return h("p.quiet.fault", { role: "alert" }, job.error, " ", job.hint);
    if (job.state === "stopped" || job.state === "lost") return h("p.quiet", {}, t("data.import." + job.state));
    if (job.dataset) return h("p.quiet", {}, t("data.import.saved", { name: job.dataset }), job.skipped > 0 && [" ", plural("skipped", job.skipped), job.first_skipped.length > 0 && ` (${t("data.skipped.row", { row: format.number(job.first_skipped[0][0]) })} ${job.first_skipped[0][1]})`]);
    return null;
  };
  const card = (job) => {
    const share = job.total ? Math.min(1, job.done / job.total) : null;
    return h("li.import", { id: "import-" + job.id },
      h("div.row", {}, h("b", {}, job.name), h("span.spring"), h("span", { class: "chip " + job.state }, job.live ? t("data.import." + job.phase) : t("state." + job.state)),
        job.live ? button("btn.small", t("data.import.stop"), () => { trigger("stop", { name: job.id }); beat = 0; }, { "aria-label": `${t("data.import.stop")}: ${job.name}` })
          : button("btn.small.x", "✕", () => { jobs = jobs.filter((other) => other !== job); redraw(); trigger("clear", { name: job.id }); }, { "aria-label": `${t("data.import.forget")}: ${job.name}`, title: t("data.import.forget") })),
      job.live && h("div.progress" + (share === null ? ".unknown" : ""), { role: "progressbar", "aria-label": job.name, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": share === null ? null : Math.round(share * 100) }, h("i", { style: `width:${share === null ? 100 : Math.round(share * 100)}%` })),
      job.live && h("p.quiet.num", {}, amount(job)), sentence(job),
      job.dataset && button("btn.small", t("data.import.open"), () => trigger("select", { name: job.dataset })));
  };
  let drawn = "";
  const redraw = () => {
    const text = JSON.stringify(jobs);
    if (text === drawn) return;
    drawn = text;
    draw(() => (jobs.length ? [h("section.card.imports", {}, h("h3", {}, t("data.imports")), h("ul", {}, jobs.map(card)))] : []));
  };
  const tick = async () => {
    jobs = await api("/api/imports");
    for (const job of jobs) {
      if (!following.has(job.id) || job.live) continue;
      following.delete(job.id);
      if (job.dataset) trigger("select", { name: job.dataset });
    }
    redraw();
  };
  // The panel is empty while nothing is at work, so its own visibility says nothing: the columns around it are asked.
  poll(document.querySelector("#data-columns") || element, async () => { if (jobs.some((job) => job.live) || following.size || beat % 5 === 0) await tick(); beat += 1; }, 800);
  return () => {
    if (!props.value || !props.value.follow) return;
    following.add(props.value.follow);
    tick().then(() => element.scrollIntoView({ block: "nearest", behavior: "smooth" })).catch(() => {});
  };
}

export const mount = mounting({ rows, saved, imports });
