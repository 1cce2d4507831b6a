// The engine's log in a box of fixed height: follows while the reader is at the end, searches, shows one level only.
import { LogLines } from "./loglines.js";
const { h, t, api, poll, feed, root, store } = window.Studio;
const SHOWN = 1500;
const LEVELS = ["all", "warning", "error"];

export function mount({ element }) {
  const host = element.querySelector(".mount");
  const lines = new LogLines();
  let id = null; let rank = 0; let read = ""; let offset = 0; let first = 0; let shown = SHOWN; let following = true; let query = "";
  let level = LEVELS.includes(store.get("log.level")) ? store.get("log.level") : "all";

  // ---- the card ---------------------------------------------------------------------------------------------------
  const body = h("div.log-lines");
  const earlier = h("button.btn.small.log-earlier", { type: "button", hidden: true, onclick: () => before() }, t("log.earlier"));
  const box = h("div.log", { tabindex: "0", role: "log", "aria-live": "off", "aria-label": t("log.title") }, earlier, body);
  const down = h("button.btn.small.log-follow.unseen", { type: "button", onclick: () => { following = true; bottom(); } }, t("log.follow"));
  const count = h("span.quiet.num.log-count", { role: "status" });
  const search = h("input.log-search", { type: "search", id: "log-search", placeholder: t("log.search"), "aria-label": t("log.search"), oninput: (event) => { query = event.target.value.trim().toLowerCase(); all(); } });
  const choice = h("div.segments", { role: "group", "aria-label": t("log.levels") }, LEVELS.map((name) => h("button", { type: "button", id: `log-${name}`, "aria-pressed": String(name === level), onclick: () => { level = name; store.set("log.level", name); for (const button of choice.children) button.setAttribute("aria-pressed", String(button.id === `log-${name}`)); all(); } }, t(`log.level.${name}`))));
  const link = h("a.btn.small", { id: "log-download", download: "" }, t("log.download"));
  // Of a run with several processes each has a log of its own; those of other machines lie there.
  const who = h("select.log-rank", { id: "log-rank", hidden: true, "aria-label": t("log.rank"), onchange: () => { rank = Number(who.value); tick().catch(() => {}); } });
  const offer = (status) => {
    const each = status && status.processes > 1 ? Math.floor(status.processes / status.machines) : 0;
    const own = Array.from({ length: each }, (_, index) => status.machine * each + index);
    const ranks = each && !own.includes(0) ? [0, ...own] : own; // the first log there is that of what started the others
    who.hidden = ranks.length < 2;
    if (!ranks.includes(rank)) rank = 0;
    const key = ranks.join();
    if (who.dataset.key !== key) { who.dataset.key = key; who.replaceChildren(...ranks.map((n) => h("option", { value: n }, n || own.includes(0) ? t("ranks.process", { n }) : t("log.rank.machine")))); }
    who.value = String(rank);
  };
  host.append(h("section.card.log-card", { "aria-label": t("log.title") }, h("div.grid-bar", {}, h("h3", {}, t("log.title")), who, count, h("span.spring"), search, choice, link), h("div.log-box", {}, box, down)));

  // ---- drawing ----------------------------------------------------------------------------------------------------
  const bottom = () => { box.scrollTop = box.scrollHeight; down.classList.add("unseen"); };
  box.addEventListener("scroll", () => { following = box.scrollHeight - box.scrollTop - box.clientHeight < 24; down.classList.toggle("unseen", following); }, { passive: true });
  const wanted = (line) => (level === "all" || line.level === "error" || (level === "warning" && line.level === "warning")) && (!query || line.text.toLowerCase().includes(query));
  const marked = (text) => {
    if (!query) return text;
    const parts = []; const lower = text.toLowerCase(); let from = 0;
    for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, from)) { parts.push(text.slice(from, at), h("mark", {}, text.slice(at, at + query.length))); from = at + query.length; }
    return [...parts, text.slice(from)];
  };
  const node = (line) => h(`div.line${line.level ? "." + line.level : ""}`, {}, marked(line.text || " "));
  const say = () => {
    const hits = query || level !== "all" ? lines.list.filter(wanted).length : null;
    count.textContent = hits === null ? "" : t("log.count", { n: hits, all: lines.list.length });
    earlier.hidden = first <= 0;
  };
  const all = () => {
    const hits = lines.list.filter(wanted).slice(-shown);
    body.replaceChildren(...(hits.length ? hits.map(node) : [h("div.line.quiet", {}, t(lines.list.length ? "log.nothing" : "log.empty"))]));
    lines.drawn();
    say();
    if (following) bottom();
  };
  // Adds what is new; the line that was not complete yet is written again.
  const more = () => {
    if (lines.redo || !body.querySelector(".line:not(.quiet)")) { all(); return; }
    if (lines.again && body.lastChild && wanted(lines.again)) body.lastChild.remove();
    body.append(...lines.fresh().filter(wanted).map(node));
    while (body.childElementCount > shown) body.firstChild.remove();
    lines.drawn();
    say();
    if (following) bottom();
  };

  // ---- reading ----------------------------------------------------------------------------------------------------
  const tick = async () => {
    const { state } = feed;
    host.hidden = !state || !state.id || state.missing;
    if (host.hidden) return;
    offer(state.status);
    if (`${state.id}|${rank}` !== read) {
      id = state.id; read = `${id}|${rank}`; offset = 0; first = 0; shown = SHOWN; following = true;
      lines.clear();
      link.href = `${root()}/api/log/file?run=${encodeURIComponent(id)}&rank=${rank}`;
      all();
    }
    if (!rank && state.status && state.logSize === offset) return;
    const asked = read; const from = offset;
    const part = await api(`/api/log?run=${encodeURIComponent(id)}&rank=${rank}&after=${from}`);
    if (feed.state.id !== id || asked !== read || from !== offset) return; // of two answers from the same place one counts
    if (part.restart || part.skipped) { lines.clear(); first = part.first; }
    offset = part.offset;
    if (!part.text && !lines.redo) return;
    lines.add(part.text);
    more();
  };
  const before = async () => {
    const mine = read; const from = first;
    const part = await api(`/api/log?run=${encodeURIComponent(id)}&rank=${rank}&before=${from}`);
    if (mine !== read || from !== first) return;
    first = part.first;
    shown += lines.addBefore(part.text);
    const height = box.scrollHeight - box.scrollTop;
    following = false;
    all();
    box.scrollTop = box.scrollHeight - height;
  };
  poll(element, tick, 1000);
  addEventListener("studio:rank-log", (event) => { rank = Number(event.detail) || 0; tick().catch(() => {}); host.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" }); who.focus({ preventScroll: true }); });
  addEventListener("studio:run", () => { tick().catch(() => {}); });
}
