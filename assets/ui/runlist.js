// The library of runs: a list beside the run, or a table of all; search, filter, order, a choice of several.
import { library, listen, read } from "./library.js";
import { menu, remove, tags } from "./runmenu.js";
const { h, t, render, poll, run, select, format, goTab, store, lang } = window.Studio;

const SHOWN = 150; // rows drawn at first: more are there at a click
const STATES = ["live", "queued", "finished", "stopped", "failed", "lost", "passed", "missed"];
const SORTS = {
  newest: (a, b) => (a.id < b.id ? 1 : -1),
  loss: (a, b) => (a.loss ?? Infinity) - (b.loss ?? Infinity),
  duration: (a, b) => (b.duration_seconds ?? -1) - (a.duration_seconds ?? -1),
  size: (a, b) => b.size_bytes - a.size_bytes,
  name: (a, b) => a.name.localeCompare(b.name),
};
const COLUMNS = [["name", "name"], ["state"], ["model"], ["dataset"], ["method"], ["verdict"], ["loss", "loss"], ["duration", "duration"], ["size", "size"], ["created", "newest"]];
const verdictOf = (line) => (line.verdict_passed === null ? null : h(line.verdict_passed ? "span.passed" : "span.missed", {}, t(line.verdict_passed ? "passed" : "missed")));
const tagsOf = (line) => line.tags.length > 0 && h("span.run-tags", {}, line.tags.slice(0, 4).map((tag) => h("span.run-tag", { dir: "auto" }, tag)), line.tags.length > 4 && h("span.run-tag", {}, `+${line.tags.length - 4}`));
// A short time: 32 s, 5 min, 1 h 20 min.
const brief = (seconds) => (seconds >= 600 && seconds < 3600 ? t("minutes", { n: Math.round(seconds / 60), s: "" }).replace(/\s*\S*\s*$/, "") : format.seconds(seconds));
// When it began, as short as can be: 5 min ago, 3 h ago, Nov 21, Nov 21, 2025.
const began = (unix) => {
  if (Date.now() / 1000 - unix < 86400) return format.ago(unix);
  const date = new Date(unix * 1000);
  return date.toLocaleDateString(lang(), { month: "short", day: "numeric", ...(date.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" }) });
};
const stateIs = (line, wanted) => ({ "": true, live: line.live, passed: line.verdict_passed === true, missed: line.verdict_passed === false })[wanted] ?? line.state === wanted;

function panel(element) {
  const host = element.querySelector(".mount");
  const view = { query: "", state: "", tag: "", sort: store.get("library.sort") || "newest", wide: false, limit: SHOWN };
  const chosen = new Set();
  let choosing = false;
  if (!SORTS[view.sort]) view.sort = "newest";

  // ---- the frame -----------------------------------------------------------------------------------------------------
  const option = (value, text) => h("option", { value }, text);
  const choice = (id, label, options, change) => h("select", { id, "aria-label": label, title: label, onchange: (event) => { change(event.target.value); view.limit = SHOWN; draw(); } }, options);
  const count = h("span.quiet.num", { role: "status" });
  const many = h("button.btn.link.small", { type: "button", id: "runs-choose", onclick: () => choose(!choosing) });
  const wide = h("button.icon-btn.widen", { type: "button", id: "runs-table", onclick: () => widen(!view.wide) });
  const search = h("input", { type: "search", id: "runs-search", "aria-label": t("library.search"), placeholder: t("library.search.hint"), dir: "auto", autocomplete: "off", spellcheck: "false", oninput: () => { view.query = search.value; view.limit = SHOWN; draw(); } });
  const states = choice("runs-state", t("library.filter"), [option("", t("library.filter.all")), ...STATES.map((name) => option(name, t(["live", "passed", "missed"].includes(name) ? `library.filter.${name}` : `state.${name}`)))], (value) => { view.state = value; });
  const tagChoice = choice("runs-tag", t("library.filter.tag"), [], (value) => { view.tag = value; });
  const sorts = choice("runs-sort", t("library.sort"), Object.keys(SORTS).map((name) => option(name, t(`library.sort.${name}`))), (value) => sortBy(value));
  const picks = h("div.run-picks", { role: "group", "aria-label": t("library.choose") });
  const rows = h("div.run-rows");
  const foot = h("div.run-foot");
  const card = h("nav.card.runs", { "aria-label": t("runs.title") }, h("h3", {}, h("span", {}, t("runs.title"), " ", count), h("span.spring"), many, wide), h("div.run-find", {}, search, h("div.run-filters", {}, states, sorts, tagChoice)), picks, rows, foot);

  const sortBy = (name) => { view.sort = name; sorts.value = name; store.set("library.sort", name); draw(); };
  const choose = (on) => { choosing = on; if (!on) chosen.clear(); draw(); };
  const widen = (on) => { view.wide = on; view.limit = SHOWN; document.body.toggleAttribute("data-library-table", on); kept.clear(); rows.replaceChildren(); draw(); };
  const open = (line) => { if (choosing) { toggle(line.id); return; } if (view.wide) widen(false); select(line.id); };
  const toggle = (id) => { if (!chosen.delete(id)) chosen.add(id); draw(); };
  const compareWith = (line) => { choosing = true; chosen.clear(); chosen.add(line.id); draw(); };
  const compare = () => {
    const ids = [...chosen];
    const first = ids.includes(run()) ? run() : ids[0];
    choose(false);
    if (view.wide) widen(false);
    dispatchEvent(new CustomEvent("studio:compare", { detail: [first, ...ids.filter((id) => id !== first)] }));
  };

  // ---- rows: one is made anew only when something in it changed ------------------------------------------------------
  const kept = new Map();
  const box = (line) => choosing && h("input.run-pick", { type: "checkbox", id: `pick-${line.id}`, checked: chosen.has(line.id), "aria-label": t("library.choose.one", { name: line.name }), onchange: () => toggle(line.id) });
  const more = (line) => h("button.run-more", { type: "button", id: `more-${line.id}`, "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": t("library.actions", { name: line.name }), title: t("library.actions", { name: line.name }), onclick: (event) => menu(library.runs.get(line.id) || line, event.currentTarget, compareWith) }, "⋯");
  const when = (line) => (line.live && line.max_steps ? `${line.step} / ${line.max_steps}` : began(line.created_at));
  const item = (line) => {
    const on = line.id === run();
    const meta = [line.method || t("kind." + line.kind), line.processes > 1 && !line.machine ? t("ranks.spread", { n: line.processes }) : null, line.machine > 0 ? t("ranks.part.short", { address: line.address }) : null, line.loss !== null && !line.live ? t("library.loss", { value: format.loss(line.loss) }) : null, when(line)];
    return h(on ? "li.run-item.on" : "li.run-item", {}, box(line),
      h(on ? "button.run-row.on" : "button.run-row", { type: "button", id: `row-${line.id}`, "aria-pressed": String(choosing ? chosen.has(line.id) : on), onclick: () => open(line) },
        h("span.run-name", { dir: "auto", title: `${line.name}\n${line.id}\n${[line.model, line.dataset].filter(Boolean).join(" · ")}` }, line.name),
        h("span.run-line", {}, h(`span.chip.${line.state}`, {}, t("state." + line.state)), verdictOf(line)),
        h("span.run-meta.num", {}, meta.filter(Boolean).join(" · ")), tagsOf(line)), more(line));
  };
  const tableRow = (line) => h(line.id === run() ? "tr.on" : "tr", {}, h("td.pick", {}, box(line)),
    h("th", { scope: "row" }, h("button.run-open", { type: "button", id: `row-${line.id}`, dir: "auto", title: line.id, onclick: () => open(line) }, line.name), tagsOf(line)),
    h("td", {}, h(`span.chip.${line.state}`, {}, t("state." + line.state))), h("td.clip", { title: line.model, dir: "auto" }, line.model || "–"), h("td.clip", { title: line.dataset, dir: "auto" }, line.dataset || "–"), h("td", {}, line.method || t("kind." + line.kind) || "–"),
    h("td", {}, verdictOf(line) || "–"), h("td.num", {}, format.loss(line.loss)), h("td.num", {}, brief(line.duration_seconds)), h("td.num", {}, format.bytes(line.size_bytes)), h("td.num", {}, when(line)), h("td.do", {}, more(line)));
  const fill = (list, lines, make) => {
    const wanted = lines.map((line) => {
      const mark = [line.id === run(), choosing, chosen.has(line.id), when(line)].join();
      const old = kept.get(line.id);
      if (old && old.line === line && old.mark === mark) return old.node;
      const node = make(line);
      const focus = old && old.node.contains(document.activeElement) ? document.activeElement.id : "";
      if (old) old.node.replaceWith(node);
      if (focus) node.querySelector(`#${CSS.escape(focus)}`)?.focus({ preventScroll: true });
      kept.set(line.id, { line, mark, node });
      return node;
    });
    wanted.forEach((node, index) => { if (list.children[index] !== node) list.insertBefore(node, list.children[index] || null); });
    while (list.children.length > wanted.length) list.lastElementChild.remove();
  };

  // ---- drawing -------------------------------------------------------------------------------------------------------
  const found = () => {
    const words = view.query.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (line) => [line.name, line.config_name, line.id, line.model, line.dataset, line.method, ...line.tags].join("\n").toLowerCase();
    return [...library.runs.values()].filter((line) => stateIs(line, view.state) && (!view.tag || line.tags.includes(view.tag)) && (!words.length || ((all) => words.every((word) => all.includes(word)))(text(line)))).sort((a, b) => SORTS[view.sort](a, b) || SORTS.newest(a, b));
  };
  const head = (lines) => h("thead", {}, h("tr", {}, h("th.pick", {}, choosing && h("input", { type: "checkbox", id: "pick-all", "aria-label": t("library.choose.all"), checked: lines.length > 0 && lines.every((line) => chosen.has(line.id)), onchange: (event) => { for (const line of lines) if (event.target.checked) chosen.add(line.id); else chosen.delete(line.id); draw(); } })),
    COLUMNS.map(([name, sort]) => h("th", { scope: "col", "aria-sort": sort && sort === view.sort ? (sort === "loss" || sort === "name" ? "ascending" : "descending") : null }, sort ? h("button", { type: "button", id: `sort-${sort}`, onclick: () => sortBy(sort) }, t(`library.col.${name}`)) : t(`library.col.${name}`))), h("th", {}, h("span.sr-only", {}, t("library.actions", { name: "" })))));
  const drawTags = () => {
    const known = [...new Set([...library.runs.values()].flatMap((line) => line.tags))].sort();
    tagChoice.hidden = !known.length;
    if (view.tag && !known.includes(view.tag)) view.tag = "";
    const key = known.join("\n");
    if (tagChoice.dataset.key !== key) { tagChoice.dataset.key = key; tagChoice.replaceChildren(option("", t("library.filter.tag.all")), ...known.map((tag) => option(tag, tag))); }
    tagChoice.value = view.tag;
  };
  const drawPicks = () => {
    for (const id of chosen) if (!library.runs.has(id)) chosen.delete(id);
    const ids = [...chosen];
    render(picks, choosing && h("span.num", { role: "status" }, t("library.chosen", { n: ids.length })), choosing && h("span.pick-do", {},
      h("button.btn.small", { type: "button", id: "picks-compare", disabled: ids.length < 2 || ids.length > 8, onclick: compare }, t("library.compare")),
      h("button.btn.small", { type: "button", id: "picks-tags", disabled: !ids.length, onclick: () => tags([...chosen]) }, t("library.tags")),
      h("button.btn.small.stop", { type: "button", id: "picks-delete", disabled: !ids.length, onclick: async () => { if (await remove([...chosen])) choose(false); } }, t("library.delete"))));
    picks.hidden = !choosing;
  };
  const drawFoot = (lines) => {
    const disk = library.disk;
    const left = lines.length - view.limit;
    const places = disk && ["runs", "datasets", "exports", "models", "cache"].filter((name) => disk[name]).map((name) => [t(`library.disk.${name}`), disk[name]]);
    render(foot, left > 0 && h("button.btn.link.small", { type: "button", id: "runs-more", onclick: () => { view.limit += SHOWN; draw(); } }, t("library.more", { n: left })),
      disk && h("details.fold.run-disk", { id: "runs-disk" }, h("summary.num", { title: t("library.disk.title") }, `${t("library.disk", { size: format.bytes(disk.runs) })} · ${t("library.disk.free", { size: format.bytes(disk.free) })}`),
        h("dl", {}, [...places, [t("library.disk.left"), disk.free]].map(([name, size]) => h("div", {}, h("dt", {}, name), h("dd.num", {}, format.bytes(size)))))));
  };
  let drawnAt = 0; // "5 min ago" grows old without any news
  const draw = () => {
    drawnAt = Date.now();
    const total = library.runs.size;
    document.body.toggleAttribute("data-no-runs", !total && library.complete);
    if (!total) {
      if (library.complete) render(host, h("div.empty", {}, h("h3", {}, t("monitor.empty")), h("p", {}, t("monitor.empty.note")), h("button.btn.go", { type: "button", id: "runs-start", onclick: () => goTab("home") }, t("monitor.empty.go"))));
      return;
    }
    if (!card.isConnected) host.replaceChildren(card);
    const lines = found();
    const shown = lines.slice(0, view.limit);
    for (const id of kept.keys()) if (!library.runs.has(id)) kept.delete(id);
    count.textContent = lines.length === total ? String(total) : t("library.of", { n: lines.length, total });
    many.textContent = t(choosing ? "library.choose.end" : "library.choose");
    many.hidden = total < 2;
    for (const [name, text] of [["title", t(view.wide ? "library.list" : "library.table")], ["aria-label", t(view.wide ? "library.list" : "library.table")], ["aria-pressed", String(view.wide)]]) wide.setAttribute(name, text);
    sorts.value = view.sort;
    states.value = view.state;
    drawTags();
    drawPicks();
    drawFoot(lines);
    if (!lines.length) { rows.replaceChildren(h("p.run-none", {}, library.complete ? t("library.none") : t("library.loading"), library.complete && h("button.btn.link.small", { type: "button", id: "runs-clear", onclick: () => { view.query = search.value = view.state = view.tag = ""; draw(); } }, t("library.clear")))); return; }
    if (view.wide) {
      const table = rows.querySelector("table") || h("table", {}, h("thead"), h("tbody"));
      if (!table.isConnected) rows.replaceChildren(table);
      render(table.tHead, ...head(lines).childNodes);
      fill(table.tBodies[0], shown, tableRow);
    } else {
      const list = rows.querySelector("ul") || h("ul");
      if (!list.isConnected) rows.replaceChildren(list);
      fill(list, shown, item);
    }
  };
  listen(element, draw);
  // What is still empty is not shown, and what is not shown is not polled: the page around it is asked instead.
  let beat = 0;
  const going = () => [...library.runs.values()].some((line) => line.live || line.state === "queued");
  poll(element.closest("#monitor-split") || element, async () => { if ((beat += 1) % 2 === 0 && library.complete && !going()) return; const before = library.version; await read(); if (before === library.version && Date.now() - drawnAt > 20000) draw(); }, 2000);
  addEventListener("studio:run", () => { draw(); if (run() && library.complete && !library.runs.has(run())) read(String(Date.now())).catch(() => {}); });
  addEventListener("studio:run-menu", (event) => { const line = library.runs.get(run()); if (line) menu(line, event.detail, compareWith); });
  addEventListener("studio:library-changed", () => read(String(Date.now())).catch(() => {}));
}

// The hidden panel: what the scripts order reaches the server's handlers as its events.
function orders({ trigger }) {
  addEventListener("studio:library-order", ({ detail }) => trigger(detail.event, detail.detail));
}

export const mount = (parts) => (parts.widget === "orders" ? orders(parts) : panel(parts.element));
