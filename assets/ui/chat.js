// The chat room: who answers, the conversation with both answers side by side, votes, quick questions. All text is set
// as text (`h` makes text nodes).
import { button, copy, empty, h, mounting } from "./tabs.js";
import { drawAnswer, markBoth, parted } from "./chatanswer.js";
import { asJson, asMarkdown, download } from "./chatshare.js";
const { t, api, render, goTab, format, poll, confirm, store } = window.Studio;

// The Enter that ends the choice of a Chinese word does not send yet; Gradio's own handler must not see it.
for (const type of ["keydown", "keypress"]) {
  document.addEventListener(type, (event) => { if (event.key === "Enter" && event.isComposing && event.target.closest?.("#chat-box")) event.stopPropagation(); }, true);
}

// From the click to the server's first word a line runs over the conversation: a busy machine takes its time.
let patience = 0;
const asking = (on) => {
  clearTimeout(patience);
  if (on) patience = setTimeout(asking, 20_000, false);
  document.querySelector("#chat-room")?.classList.toggle("asking", on);
};
const typed = () => document.querySelector("#chat-box textarea")?.value.trim();
document.addEventListener("click", (event) => { if (event.target.closest?.("#chat-send") && typed()) asking(true); }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.closest?.("#chat-box") && typed()) asking(true); }, true);

const KEPT = "studio.chat";
const MOST_KEPT = 8; // pairs
const over = (answer) => answer && !["waiting", "streaming"].includes(answer.state);
// Turns whose answers do not grow any more.
const stopped = (turns) => turns.map((turn) => ({ ...turn, answers: Object.fromEntries(Object.entries(turn.answers).map(([side, answer]) => [side, over(answer) ? answer : { ...answer, state: "stopped" }])) }));
const sidesOf = (value) => ["left", "right"].filter((side) => value.sides[side]);
const label = (who) => [h("b", {}, who.name), h("span.what", {}, who.what)];
const icon = (name, text, onclick, id) => h("button.act.act-" + name, { type: "button", id, title: text, "aria-label": text, onclick });

function chatThread({ props, trigger, element }) {
  let marking = store.get("chat.marks") !== "off";
  let editing = null; // {turn, side}: side "" is the question
  let following = true;
  let drawn = []; // per turn: what it was drawn from
  const host = h("div.thread");
  const bar = h("div.thread-bar");
  const heads = h("div.heads");
  const scroll = h("div.thread-scroll", { tabindex: 0, role: "log", "aria-label": t("chatroom.log") }, heads, host);
  const frame = element.querySelector(":scope > div");
  frame.className = "thread-box";
  frame.replaceChildren(bar, scroll);

  // Only while nothing comes: a stream brings the whole conversation as it knows it.
  const change = (work) => { const value = structuredClone(props.value); work(value); props.value = value; redraw(); };
  const send = (data) => { asking(true); trigger("apply", data); };
  const edit = (place) => { editing = place; redraw(); (scroll.querySelector(".editor textarea"))?.focus(); };
  const busy = () => Boolean(props.value?.busy);
  const end = (turns, number) => { const next = turns.findIndex((turn, n) => n > number && turn.fresh); return next < 0 ? turns.length : next; };
  const last = (value, number) => end(value.turns, number) === number + 1;

  const editor = (text, help, ok, done) => {
    const { turn, side } = editing;
    const back = () => document.getElementById(side ? `a-edit-${turn}-${side}` : `q-edit-${turn}`)?.focus({ preventScroll: true });
    const area = h("textarea", { rows: Math.min(12, text.split("\n").length + 1), "aria-label": help, maxlength: 200000 });
    area.value = text;
    const accept = () => { const now = area.value.trim(); editing = null; if (now && now !== text.trim()) done(now); else redraw(); back(); };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { editing = null; redraw(); back(); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); event.stopPropagation(); accept(); }
    });
    return h("div.editor", {}, area, h("p.quiet.small", {}, help), h("div.row", {}, button("btn.small.go", ok, accept), button("btn.small", t("cancel"), () => { editing = null; redraw(); back(); })));
  };
  const question = (turn, number) => {
    if (editing && editing.turn === number && !editing.side) {
      const lost = last(props.value, number) ? "" : " " + t("chatroom.edit.lost");
      return h("div.asked", {}, editor(turn.question, t("chatroom.edit.help") + lost, t("chatroom.edit.ok"), (text) => send({ act: "edit", turn: number, text })));
    }
    return h("div.asked", {},
      turn.before.length ? h("details.before", {}, h("summary", {}, t("chatroom.before", { n: turn.before.length })), turn.before.map((message) => h("p.verbatim", {}, h("b", {}, t("chatroom.role." + message.role) + " "), message.content))) : null,
      h("p.verbatim.question", {}, turn.question),
      h("div.deeds", {},
        icon("edit", t("chatroom.edit"), () => edit({ turn: number, side: "" }), `q-edit-${number}`),
        last(props.value, number) ? icon("retry", t("chatroom.retry"), () => send({ act: "retry", turn: number }), `q-retry-${number}`) : null));
  };
  const tools = (number, side, answer) => (over(answer) ? h("span.deeds", {},
    icon("copy", t("chatroom.copy"), (event) => copyText(parted(answer.text).said.trim(), event.currentTarget), `a-copy-${number}-${side}`),
    busy() ? null : icon("edit", t("chatroom.correct"), () => edit({ turn: number, side }), `a-edit-${number}-${side}`),
    last(props.value, number) ? icon("retry", t("chatroom.retry.one"), () => send({ act: "retry", turn: number, side }), `a-retry-${number}-${side}`) : null) : null);
  // Until the vote nothing of an answer tells whose it is: no name, no colour, no speed.
  const answer = (turn, number, side, place, secret) => {
    const found = turn.answers[side];
    const value = props.value;
    const told = turn.blind || value.blind;
    const name = secret ? [h("b", {}, t("chatroom.blind." + place))] : sidesOf(value).length > 1 ? label(value.sides[side]) : [];
    const head = h("div.who" + (told ? "" : ".narrow"), {}, name, turn.vote === side ? h("span.chip.finished", {}, t("chatroom.won")) : null);
    const shell = { side, said: null, node: h("section.reply." + (secret ? "hidden" : side) + (over(found) ? "" : found?.state === "waiting" ? ".growing.queued" : ".growing"), {}, head) };
    if (!found) { shell.node.append(h("div.foot", {}, h("span.deeds", {}, last(value, number) && !busy() ? button("btn.small", t("chatroom.ask.this"), () => send({ act: "retry", turn: number, side })) : null))); return shell; }
    if (editing && editing.turn === number && editing.side === side) {
      shell.node.append(editor(found.text, t("chatroom.correct.help"), t("chatroom.correct.ok"), (text) => change((now) => { Object.assign(now.turns[number].answers[side], { text, corrected: true }); })));
      return shell;
    }
    const { node, said } = drawAnswer(found, secret ? null : tools(number, side, found), { secret });
    shell.node.append(...node.flat().filter(Boolean));
    shell.said = over(found) && !found.corrected ? said : null;
    return shell;
  };
  const ballot = (turn, number, order) => {
    const choose = (vote) => { change((value) => { value.turns[number].vote = vote; }); trigger("select", { vote }); };
    return h("div.ballot", { role: "group", "aria-label": t("chatroom.vote") }, h("span", {}, t("chatroom.vote")),
      button("btn.small", t("chatroom.vote.first"), () => choose(order[0])), button("btn.small", t("chatroom.vote.second"), () => choose(order[1])),
      button("btn.small", t("chatroom.vote.both"), () => choose("both")), button("btn.small", t("chatroom.vote.neither"), () => choose("neither")));
  };
  const drawTurn = (turn, number) => {
    const sides = sidesOf(props.value);
    const order = turn.swap ? [...sides].reverse() : sides;
    const secret = turn.blind && sides.length > 1 && !turn.vote;
    const shells = order.map((side, place) => answer(turn, number, side, place, secret));
    const done = order.every((side) => over(turn.answers[side]));
    if (marking && done && shells.length === 2 && shells.every((shell) => shell.said)) {
      const [left, right] = ["left", "right"].map((side) => shells.find((shell) => shell.side === side).said);
      markBoth(left, right);
      if (left.textContent === right.textContent && left.textContent.trim()) shells.forEach((shell) => shell.node.classList.add("alike"));
    }
    const same = shells.length === 2 && shells.every((shell) => shell.node.classList.contains("alike"));
    return [
      turn.fresh && number ? h("p.anew", {}, h("span", {}, t("chatroom.fresh"))) : null,
      question(turn, number),
      h("div.replies" + (order.length > 1 ? ".two" : ""), {}, shells.map((shell) => shell.node)),
      same ? h("p.alike-note", {}, t("chatroom.alike")) : null,
      // What is changed here while a stream still comes would be gone with its next word.
      secret && done && !busy() ? ballot(turn, number, order) : null,
      turn.vote && turn.blind && ["both", "neither"].includes(turn.vote) ? h("p.alike-note", {}, t("chatroom.voted." + turn.vote)) : null,
    ];
  };
  const drawBar = (value) => {
    const two = sidesOf(value).length > 1;
    const has = value.turns.length > 0;
    bar.hidden = !two && !has;
    const press = (id, text, title, on, onclick, disabled = false) => h("button.tool", { type: "button", id, title, "aria-pressed": String(on), onclick, disabled }, text);
    const tool = (id, text, onclick, disabled) => h("button.tool", { type: "button", id, onclick, disabled }, text);
    render(bar,
      two ? press("chat-marks", t("chatroom.marks"), t("chatroom.marks.help"), marking, () => { marking = !marking; store.set("chat.marks", marking ? "on" : "off"); drawn = []; redraw(); }) : null,
      two ? press("chat-blind", t("chatroom.blind"), t("chatroom.blind.help"), value.blind, () => change((now) => { now.blind = !now.blind; }), busy()) : null,
      h("span.spring"),
      has ? tool("chat-undo", t("chatroom.undo"), () => change((now) => { now.turns.pop(); }), busy()) : null,
      has ? tool("chat-clear", t("chatroom.clear"), async () => { if (await confirm({ title: t("chatroom.clear.title"), body: t("chatroom.clear.body"), ok: t("chatroom.clear") })) change((now) => { now.turns = []; }); }, busy()) : null,
      has ? tool("chat-md", "↓ Markdown", () => download("chat.md", "text/markdown", asMarkdown(props.value)), busy()) : null,
      has ? tool("chat-json", "↓ JSON", () => download("chat.json", "application/json", asJson(props.value)), busy()) : null);
  };
  const drawHeads = (value) => {
    const sides = sidesOf(value);
    heads.hidden = sides.length < 2 || value.blind;
    render(heads, heads.hidden ? [] : sides.map((side) => h("div.head." + side, {}, label(value.sides[side]))));
  };
  const nothing = (value) => h("div.hint", {}, h("p", {}, t(sidesOf(value).length > 1 ? "chatroom.hint.two" : "chatroom.hint.one")),
    value.earlier.length ? button("btn", t(value.earlier.length === 1 ? "chatroom.again.one" : "chatroom.again", { n: value.earlier.length }), () => send({ act: "again" })) : null);

  // After a Stop no more comes of that stream, but for what is on its way already.
  let ended = "";
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("#chat-stop") || !busy()) return;
    ended = props.value.stream;
    redraw();
  });
  const settled = (value) => {
    if (!value.busy || value.stream !== ended) return value;
    props.value = { ...value, busy: false, turns: stopped(value.turns) };
    return props.value;
  };

  const redraw = () => {
    if (!props.value || !props.value.turns) return;
    const value = settled(props.value);
    const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
    document.querySelector("#chat-room")?.classList.toggle("busy", busy());
    drawBar(value);
    drawHeads(value);
    remember(value);
    if (!value.turns.length) { drawn = []; host.replaceChildren(nothing(value)); return; }
    if (!drawn.length) host.replaceChildren();
    while (host.children.length > value.turns.length) { host.lastChild.remove(); drawn.pop(); }
    const frameKey = JSON.stringify([marking, value.sides, value.blind, busy()]);
    value.turns.forEach((turn, number) => {
      const key = frameKey + last(value, number) + JSON.stringify(editing && editing.turn === number ? editing : null);
      const was = drawn[number];
      if (was && was.key === key && (was.turn === turn || was.text === JSON.stringify(turn))) return;
      if (!host.children[number]) host.append(h("article.exchange"));
      drawn[number] = { key, turn, text: JSON.stringify(turn) };
      const nodes = drawTurn(turn, number);
      // Handlers of a turn belong to its content: only a growing answer is patched in place.
      if (busy()) render(host.children[number], nodes); else host.children[number].replaceChildren(...nodes.filter(Boolean));
    });
    follow(atEnd);
  };
  // While answers come, the one that grows stays in sight, unless the reader has gone elsewhere.
  const follow = (atEnd) => {
    if (!busy()) { following = true; if (atEnd && !editing) scroll.scrollTop = scroll.scrollHeight; return; }
    const growing = host.querySelector(".growing:not(.queued)")?.closest(".exchange");
    if (following && growing) scroll.scrollTop = growing.offsetTop + growing.offsetHeight - scroll.clientHeight + 24;
  };
  for (const sign of ["wheel", "touchmove", "keydown", "pointerdown"]) scroll.addEventListener(sign, () => { following = false; }, { passive: true });
  // Each pair keeps its conversation: it is there again after a reload, and when a visitor comes back from another pair.
  const pairOf = (value) => JSON.stringify(sidesOf(value).map((side) => value.sides[side].key));
  const remembered = () => { try { const found = JSON.parse(sessionStorage.getItem(KEPT)); return found?.pairs ? found : { pairs: {} }; } catch { return { pairs: {} }; } };
  let asked = ""; // the stream whose questions are remembered already
  const remember = (value) => {
    if (!sidesOf(value).length || (busy() && value.stream === asked)) return;
    asked = value.stream;
    const { pairs } = remembered();
    delete pairs[pairOf(value)]; // the newest stands last
    if (value.turns.length) pairs[pairOf(value)] = stopped(value.turns);
    for (const old of Object.keys(pairs).slice(0, -MOST_KEPT)) delete pairs[old];
    for (;;) {
      try { sessionStorage.setItem(KEPT, JSON.stringify({ blind: value.blind, pairs })); return; } catch { /* too long, or private mode */ }
      const [oldest] = Object.keys(pairs);
      if (!oldest) return;
      delete pairs[oldest];
    }
  };
  let began = false;
  const recall = () => {
    const value = props.value;
    if (!value?.turns || !sidesOf(value).length) return;
    const { blind, pairs } = remembered();
    const turns = pairs[pairOf(value)];
    if (turns && !value.turns.length) props.value = { ...value, turns, blind: began ? value.blind : Boolean(blind), busy: false };
    began = true;
  };
  addEventListener("studio:chat-growing", ({ detail }) => {
    const value = props.value;
    if (!value || !value.busy || detail.stream !== value.stream || !value.turns[detail.number]) return;
    const turns = [...value.turns];
    turns[detail.number] = detail.turn;
    props.value = { ...value, turns };
    redraw();
  });
  host.addEventListener("click", (event) => { const node = event.target.closest(".copy-code"); if (node) copy(node.dataset.copy, node); });
  return () => { recall(); asking(false); redraw(); };
}

const chatGrowing = ({ props }) => () => { if (props.value && props.value.turn) dispatchEvent(new CustomEvent("studio:chat-growing", { detail: props.value })); };

const copyText = async (text, node) => {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = h("textarea", {}, text); document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
  }
  node.classList.add("did");
  setTimeout(() => node.classList.remove("did"), 1200);
};

function chatStatus({ props, trigger, draw, element }) {
  let since = 0;
  const text = (v) => {
    if (v.state === "loading") return [h("span.chip.running", {}, t("chatroom.loading")), h("span.num.quiet", {}, format.seconds((Date.now() - since) / 1000))];
    if (v.state === "ready") return [h("span.chip.finished", {}, t("tabs.chat.ready")), h("span.told.quiet", { title: t(v.copies > 1 ? "chatroom.ready.two" : "chatroom.ready") }, t("chatroom.held", { bits: v.bits }))];
    const said = v.state === "failed" ? v.message || t("tabs.chat.failed") : t(v.state === "none" ? "tabs.chat.none_state" : "tabs.chat." + v.state);
    const again = button("btn.go", t(v.state === "none" ? "tabs.chat.start" : "tabs.chat.again"), () => { props.value = { state: "loading", seconds: 0 }; since = Date.now(); show(); trigger("apply", {}); });
    return [h("span", { class: "chip " + (v.state === "none" ? "stopped" : "failed") }, t("tabs.chat.off")), h("span.told", {}, said), again];
  };
  const show = () => draw((v) => (v ? [h("div.chat-status", { role: "status" }, text(v))] : []));
  poll(element, () => { if (props.value && props.value.state === "loading") show(); }, 500);
  return () => {
    const v = props.value;
    asking(false);
    if (v && v.state === "loading") since = Date.now() - (v.seconds || 0) * 1000;
    show();
  };
}

const chatEmpty = ({ draw, trigger }) => () => draw((v) => (v && v.empty ? [empty(t("tabs.chat.none"), t("tabs.chat.none.body"),
  button("btn.go", t("tabs.go_home"), () => goTab("home")), button("btn", t("tabs.go_train"), () => goTab("train")), button("btn.link", t("chatroom.base_alone"), () => trigger("apply", {})))] : []));

const chatChips = ({ trigger, draw }) => () => draw((v) => {
  if (!v || !(v.chips?.length || v.evaluation || v.held_out)) return [];
  const list = (act, n) => (n ? button("btn.small.ask-list", t("chatroom.list." + act, { n }), () => { asking(true); trigger("select", { act }); }, { title: t(`chatroom.list.${act}.help`) }) : null);
  return [h("div.chips", {}, h("span.quiet", {}, t("tabs.chat.try")), (v.chips || []).map((text) => button("btn.small.chip-ask", text, () => { asking(true); trigger("select", { act: "send", text }); }, { title: text })),
    h("span.spring"), list("evaluation", v.evaluation), list("held_out", v.held_out))];
});

// Other pages may be voting on the same pair: a class sees its count grow.
function chatTally({ props, trigger, draw, element }) {
  let open = false;
  const show = () => draw((v) => {
    const total = v && v.counts ? Object.values(v.counts).reduce((sum, n) => sum + n, 0) : 0;
    if (!total) return [];
    const name = (side) => `${v.names[side].name} · ${v.names[side].what}`;
    const rows = [["left", name("left")], ["right", name("right")], ["both", t("chatroom.vote.both")], ["neither", t("chatroom.vote.neither")]];
    const again = async () => { if (await confirm({ title: t("chatroom.tally.title"), body: t("chatroom.tally.body"), ok: t("chatroom.tally.restart") })) trigger("select", { vote: "restart" }); };
    return [h("details.tally", { open, ontoggle: (event) => { open = event.currentTarget.open; } },
      h("summary", {}, t(total === 1 ? "chatroom.tally.one" : "chatroom.tally", { n: total }), h("span.num.quiet", {}, ` ${v.counts.left} : ${v.counts.right}`)),
      h("dl", {}, rows.map(([side, text]) => [h("dt", {}, text), h("dd", {}, h("i." + side, { style: `width:${Math.round((70 * v.counts[side]) / total)}%` }), h("span.num", {}, v.counts[side]))])),
      button("btn.small", t("chatroom.tally.restart"), again))];
  });
  poll(element, async () => {
    const v = props.value;
    if (!v || !v.counts || !document.querySelector("#chat-room")?.contains(element)) return;
    const counts = await api(`/api/votes?left=${encodeURIComponent(v.names.left.key)}&right=${encodeURIComponent(v.names.right.key)}`);
    if (props.value === v && JSON.stringify(counts) !== JSON.stringify(v.counts)) { props.value = { ...v, counts }; show(); }
  }, 4000);
  return show;
}

const chatTools = ({ trigger, draw }) => () => draw((v) => (v && v.tools ? [h("ul.tool-list", {}, v.tools.map((tool) => h("li" + (tool.off ? ".off" : ""), {},
  h("b", {}, tool.name), h("span", {}, tool.description), tool.off ? h("span.why", {}, tool.off) : null,
  tool.own ? button("btn.small", t("chatroom.tool.remove"), () => trigger("delete", { name: tool.name })) : null))),
  v.said ? h("p.quiet.small", { role: "status" }, v.said) : null] : []));

const chatNotes = ({ draw }) => () => draw((v) => {
  if (!v || !v.bits) return [];
  const size = (bits) => (v.bytes[bits] ? t("chatroom.bits", { bits, size: format.bytes(v.bytes[bits]) }) : "");
  const sizes = ["4", "8", "16"].map(size).filter(Boolean);
  const needed = v.bytes[v.bits];
  return [
    v.warned ? h("p.note.warn", { role: "status" }, t(v.template ? "chatroom.template.changed.named" : "chatroom.template.changed", { name: v.template })) : null,
    sizes.length ? h("p.quiet.small.memory" + (needed > v.free ? ".bad" : ""), {}, t(v.copies > 1 ? "chatroom.memory.two" : "chatroom.memory", { sizes: sizes.join(" · "), free: format.bytes(v.free), where: t(v.gpu ? "chatroom.gpu" : "chatroom.main") }),
      needed > v.free ? " " + t("chatroom.memory.short", { bits: v.bits }) : "") : null,
  ];
});

// The list of saved datasets: its tab is there a moment after the Data tab was opened for the first time.
const openSaved = (tries = 40) => {
  const tab = document.querySelector("#data-ways [data-tab-id=saved]");
  if (tab?.offsetParent) tab.click(); else if (tries) setTimeout(openSaved, 50, tries - 1);
};
const chatKept = ({ draw }) => () => draw((v) => (v && v.name ? [h("p.kept", { role: "status" }, h("span", {}, v.said), button("btn.small", t("chatroom.open_data"), () => { goTab("data"); openSaved(); }))] : []));

export const mount = mounting({ chat_thread: chatThread, chat_growing: chatGrowing, chat_status: chatStatus, chat_empty: chatEmpty, chat_chips: chatChips, chat_tally: chatTally, chat_tools: chatTools, chat_notes: chatNotes, chat_kept: chatKept });
