// X-ray: the first batches of a training token by token, lengths, findings, and a row in two chat templates.
// All text of rows and models is set as text. Asks the server only while it is in view.
import { button, empty, h, mounting } from "./tabs.js";

const { t, format, poll, goTab } = window.Studio;
const CONTEXT = 0; const TRAINED = 1; const CUT = 2; const PADDING = 3;
const CLASSES = ["tok", "tok on", "tok cut", "tok pad"];
const number = (n) => format.number(n);
const plural = (key, n, values) => t(`${key}.${n === 1 ? "one" : "many"}`, { n: number(n), ...values });
const svg = (tag, attributes, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

// ---- tokens: one span each, one tip for all, arrow keys move ---------------------------------------------------------
const tip = (() => {
  let node = null;
  return {
    show: (target, text, piece) => {
      node ||= h("div.tok-tip", { "aria-hidden": "true" });
      if (!node.isConnected) (document.querySelector(".gradio-container") || document.body).append(node);
      node.replaceChildren(h("b", {}, piece), h("span", {}, text));
      const box = target.getClientRects()[0];
      if (!box) return;
      node.style.left = Math.min(Math.max(8, box.left), innerWidth - node.offsetWidth - 8) + "px";
      node.style.top = (box.top > 60 ? box.top - node.offsetHeight - 6 : box.bottom + 6) + "px";
    },
    hide: () => node?.remove(),
  };
})();
addEventListener("scroll", tip.hide, { passive: true, capture: true });

const visible = (piece) => piece.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t") || "∅";
const named = (piece) => JSON.stringify(piece).slice(1, -1) || "∅";

// `list`: [id, text, state] of each; `length`: how many are trained on (those behind it are cut off).
function tokens(list, special, length) {
  const box = h("div.tokens", { tabindex: 0, role: "group", "aria-label": t("xray.tokens") });
  const live = h("span.sr-only", { "aria-live": "polite" });
  const known = new Set(special);
  const cut = list.findIndex((token) => token[2] === CUT);
  const fragment = document.createDocumentFragment();
  list.forEach(([id, piece, state]) => {
    const node = document.createElement("span");
    node.className = known.has(id) ? CLASSES[state] + " sp" : CLASSES[state];
    node.textContent = visible(piece);
    fragment.append(node);
  });
  box.append(fragment);
  const spans = box.children;
  const said = (place) => {
    const [id, , state] = list[place];
    const position = cut >= 0 && place >= cut ? length + place - cut : place;
    return t("xray.readout", { place: number(position), id, state: t("xray.state." + state) });
  };
  let at = -1;
  const mark = (place) => {
    if (at >= 0) spans[at].classList.remove("at");
    at = place;
    if (at < 0) { tip.hide(); return; }
    spans[at].classList.add("at");
    tip.show(spans[at], said(at), named(list[at][1]));
  };
  const placeOf = (node) => (node.parentNode === box ? Array.prototype.indexOf.call(spans, node) : -1);
  box.addEventListener("pointerover", (event) => mark(placeOf(event.target)));
  box.addEventListener("pointerleave", () => mark(-1));
  box.addEventListener("blur", () => mark(-1));
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -list.length, End: list.length }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    mark(Math.min(Math.max(at < 0 ? (step < 0 ? list.length - 1 : 0) : at + step, 0), list.length - 1));
    spans[at].scrollIntoView({ block: "nearest" });
    tip.show(spans[at], said(at), named(list[at][1]));
    live.textContent = `${named(list[at][1])}: ${said(at)}`;
  });
  return h("div.token-box", {}, box, live);
}

// ---- batches ---------------------------------------------------------------------------------------------------------
const calls = (message) => (message.tool_calls || []).map((call) => {
  const made = call.function || call;
  return h("code.call", {}, t("xray.calls", { name: made.name }), " ", typeof made.arguments === "string" ? made.arguments : JSON.stringify(made.arguments));
});
const said = (message) => h("div.said." + message.role + (message.trained ? ".on" : ""), {},
  h("span.who", {}, t("xray.role." + message.role), message.trained ? h("b", {}, t("xray.state.1")) : message.role === "assistant" && h("i", {}, t("xray.untrained"))),
  message.content && h("span.text", {}, String(message.content)), calls(message));

const example = (one, v) => {
  const name = v.sources > 1 ? t("xray.row.source", { row: number(one.row), source: one.source + 1 }) : t("xray.row", { row: number(one.row) });
  const size = t(one.cut ? "xray.example.cut" : "xray.example", { length: number(one.length), trained: number(one.trained), cut: number(one.cut) });
  return h("div.example", {}, h("div.example-head", {}, h("b", {}, name), h("span.quiet.num", {}, size)),
    h("div.example-body", {}, h("div.dialogue", {}, (one.messages || []).map(said)),
      h("div", {}, tokens(one.tokens, v.special, one.length), one.hidden > 0 && h("p.quiet.small", {}, t("xray.hidden", { n: number(one.hidden) })))));
};
const row = (one, v) => h("li.batch-row" + (one.examples.length > 1 ? ".joined" : ""), {},
  one.examples.length > 1 && h("p.quiet.small", {}, t("xray.packed_row", { n: one.examples.length })),
  one.examples.map((each) => example(each, v)),
  one.padding > 0 && h("div.pads", {}, h("span." + CLASSES[PADDING].replace(" ", "."), { title: "id " + one.pad_id }, t("xray.pad", { n: number(one.padding) }))));
const ROWS_FIRST = 4;
const batch = (one, place, v, open) => h("section.batch", {},
  h("div.batch-head", {}, h("h4", {}, t("xray.batch", { n: place + 1 })),
    h("span.chip.plain", { title: t("xray.shape.help") }, t("xray.shape", { rows: one.shape[0], width: number(one.shape[1]) })), h("span.quiet.small", {}, t("xray.shape.help"))),
  h("ol.batch-rows", {}, (open.has(place) ? one.rows : one.rows.slice(0, ROWS_FIRST)).map((each) => row(each, v))),
  !open.has(place) && one.rows.length > ROWS_FIRST && button("btn.small.batch-rest", plural("xray.batch.rest", one.rows.length - ROWS_FIRST), (event) => {
    open.add(place);
    event.target.previousSibling.append(...one.rows.slice(ROWS_FIRST).map((each) => row(each, v)));
    event.target.remove();
  }),
  one.more > 0 && h("p.quiet.small", {}, t("xray.rows_more", { n: number(one.more) })));

const legend = () => h("div.legend", { role: "note", "aria-label": t("xray.legend") },
  [TRAINED, CONTEXT, CUT, PADDING].map((state) => h("span." + CLASSES[state].replace(" ", "."), {}, t("xray.state." + state))), h("span.tok.sp", {}, t("xray.special")));

// ---- lengths and findings --------------------------------------------------------------------------------------------
const WIDE = 560; const TALL = 132; const FOOT = 20; const HEAD = 18;
function lengths(found) {
  const { edges, counts } = found;
  const last = Math.max(edges[edges.length - 1], 1);
  const inside = found.max_length <= last * 1.3;
  const reach = inside ? Math.max(last, found.max_length) * 1.02 : last;
  const most = Math.max(...counts, 1);
  const x = (n) => (n / reach) * WIDE;
  const y = (n) => HEAD + (TALL - HEAD - FOOT) * (1 - n / most);
  const bars = counts.map((n, i) => n > 0 && svg("rect", { class: edges[i] >= found.max_length ? "span over" : "span", x: x(edges[i]) + 0.5, width: Math.max(x(edges[i + 1]) - x(edges[i]) - 1, 1.5), y: y(n), height: TALL - FOOT - y(n), rx: 1.5 },
    svg("title", {}, t("xray.lengths.bar", { from: number(edges[i]), to: number(edges[i + 1]), n: number(n) })))).filter(Boolean);
  const limit = t("xray.lengths.limit", { n: number(found.max_length) });
  const at = inside ? x(found.max_length) : WIDE;
  const line = inside ? [svg("line", { class: "limit", x1: at, x2: at, y1: HEAD - 4, y2: TALL - FOOT })] : [];
  const text = t("xray.lengths.said", { rows: number(found.rows), median: number(found.median), p95: number(found.p95), longest: number(found.longest) });
  return h("section.card", {}, h("h3", {}, t("xray.lengths")),
    svg("svg", { class: "lengths", viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", "aria-label": `${text} ${limit}` }, ...bars, ...line,
      svg("line", { class: "axis", x1: 0, x2: WIDE, y1: TALL - FOOT, y2: TALL - FOOT }),
      svg("text", { class: "limit", x: Math.min(Math.max(at, 40), WIDE), y: 10, "text-anchor": at > WIDE - 60 ? "end" : "middle" }, inside ? limit : limit + " →"),
      svg("text", { x: 0, y: TALL - 4 }, "0"), svg("text", { x: x(last), y: TALL - 4, "text-anchor": "end" }, number(last))),
    h("p.quiet.small", {}, text));
}

const finding = (one) => {
  const listed = one.rows.slice(0, 8).map(number).join(", ") + (one.count > 8 && one.rows.length >= 8 ? " …" : "");
  const rows = one.rows.length ? plural("xray.rows", one.rows.length, { rows: listed }) : "";
  const text = one.count ? plural("xray.finding." + one.code, one.count, { rows }) : t(`xray.finding.${one.code}.none`);
  return h("li." + one.level, {}, h("span.mark", { role: "img", "aria-label": t("tabs.level." + one.level) }), h("div", {}, text));
};
const findings = (v) => h("section.card", {}, h("h3", {}, t("xray.findings")),
  v.findings.length ? h("ul.issues", {}, v.findings.map(finding)) : h("p.note.good", {}, t("xray.findings.none")));

const totals = (v) => {
  const c = v.counts;
  const tiles = [["rows", number(v.lengths.rows)], ["tokens", number(c.tokens)], ["trained", format.percent(c.trained)], ["truncated", number(c.truncated)], ["padding", format.percent(c.padding)], ["updates", number(c.updates)]];
  return h("dl.numbers.even", {}, tiles.map(([key, value]) => h("div", {}, h("dt", {}, t("xray.total." + key)), h("dd.num", {}, value))));
};

// ---- a row in two chat templates -------------------------------------------------------------------------------------
const usedName = (used) => (used.kind === "name" ? used.name : t("xray.templates." + used.kind));
const side = (head, one) => h("div.template-side", {}, head, one.problem !== undefined ? h("p.note.warn", {}, one.problem) : [
  tokens(one.tokens, one.special, one.length),
  one.hidden > 0 && h("p.quiet.small", {}, t("xray.hidden", { n: number(one.hidden) })),
  h("p.quiet.small", {}, t("xray.templates.count", { n: number(one.length), trained: number(one.trained) }), " · ",
    one.stop_words.length ? [t("xray.templates.stop"), " ", one.stop_words.map((word) => h("code.stop", {}, named(word)))] : t("xray.templates.no_stop")),
  one.split.length > 0 && h("p.note.warn", {}, t("xray.templates.split", { words: one.split.map(named).join(", ") }))]);
const templates = (v, ask) => {
  const found = v.templates;
  const pick = h("select", { id: "xray-template", "aria-label": t("xray.templates.other") }, found.choices.map(([text, value]) => h("option", { value }, text)));
  pick.value = found.other;
  pick.addEventListener("change", () => ask({ template: pick.value }));
  const move = (step) => ask({ example: found.number + step });
  return h("section.card.two-templates", {},
    h("div.card-head", {}, h("h3", {}, t("xray.templates")), h("span.spring"),
      button("btn.small", "‹", () => move(-1), { id: "xray-previous", disabled: found.number <= 0, "aria-label": t("xray.templates.previous") }),
      h("span.num.quiet", {}, t("xray.row", { row: number(found.row) })),
      button("btn.small", "›", () => move(1), { id: "xray-next", disabled: found.number + 1 >= found.total, "aria-label": t("xray.templates.next") })),
    h("p.quiet.small", {}, t("xray.templates.lead")),
    h("div.template-pair", {},
      side(h("div.template-head", {}, h("b", {}, usedName(found.used)), h("span.chip.plain", {}, t("xray.templates.used"))), found.left),
      side(h("div.template-head", {}, pick), found.right)));
};

// ---- the panel -------------------------------------------------------------------------------------------------------
const inView = (node) => { const box = node.getBoundingClientRect(); return box.top < innerHeight + 150 && box.bottom > -150; };

function xray({ element, props, trigger, draw }) {
  const want = {};
  const open = new Set(); // batches of which all rows are shown
  let asked = 0; // when the server was asked for what it has not answered yet
  const ask = (more) => {
    Object.assign(want, more);
    asked = Date.now();
    if (!props.value || props.value.state !== "waiting") element.classList.add("busy");
    trigger("select", { ...want });
  };
  poll(element, () => {
    const v = props.value;
    if ((asked && Date.now() - asked < 20000) || !inView(element)) return;
    if (v && v.state === "waiting" && !v.stale && Date.now() - v.now * 1000 < 900) return;
    if (!v || v.stale || v.state === "waiting") ask(v && v.stale && !v.dataset ? { dataset: "", example: 0, batches: 1 } : {});
  }, 250);

  const toTrain = (key, spec = "btn") => button(spec, t(key), () => goTab("train"), { id: "xray-to-train" });
  const head = (v) => {
    const pick = h("select", { id: "xray-dataset", "aria-label": t("xray.dataset") }, (v.datasets || []).map(([text, value]) => h("option", { value }, text)));
    if (v.dataset && !(v.datasets || []).some(([, value]) => value === v.dataset)) pick.append(h("option", { value: v.dataset }, v.dataset));
    pick.value = v.dataset;
    pick.addEventListener("change", () => { open.clear(); ask({ dataset: pick.value, example: 0, batches: 1 }); });
    const settings = v.state === "seen" && [h("span.quiet", {}, t("xray.with", { model: v.model.split(/[\\/]/).pop(), max_length: number(v.max_length), batch: number(v.batch_size) })), h("span.chip.plain", {}, t(v.packed ? "xray.packed" : "xray.unpacked")), toTrain("xray.change", "btn.link")];
    return h("div.xray-head", {}, h("h3", {}, t("xray.title")), h("p.quiet", {}, t("xray.lead")), v.dataset && h("div.row", {}, pick, settings));
  };
  const percent = ([done, total]) => (total ? Math.min(Math.round((100 * done) / total), 99) : null);
  const counting = (v) => {
    const share = percent(v.waiting);
    return h("section.card.counting", { role: "status" }, h("p", {}, share === null ? t("train.counting") : t("train.counting.share", { share: share + " %" })),
      h("div.progress" + (share === null ? ".unknown" : ""), { role: "progressbar", "aria-label": t("train.counting"), "aria-valuenow": share }, h("i", { style: `width:${share ?? 100}%` })));
  };
  const body = {
    none: () => [empty(t("xray.none"), t("xray.none.body"))],
    waiting: (v) => [counting(v)],
    form: (v) => [empty(t("xray.form"), `${v.label}: ${v.message}`, toTrain("xray.go_train", "btn.go"))],
    no_tokenizer: (v) => [empty(t("xray.no_tokenizer"), t("xray.no_tokenizer.body", { model: v.model }), toTrain("xray.go_train"))],
    error: (v) => [h("section.card.failed", {}, h("h3", {}, t("xray.error")), h("p", {}, v.message))],
    seen: (v) => [totals(v), h("div.xray-pair", {}, lengths(v.lengths), findings(v)), legend(),
      v.batches.map((one, place) => batch(one, place, v, open)),
      v.more && h("div.row", {}, button("btn", t("xray.batch.more"), () => ask({ batches: v.batches.length + 1 }), { id: "xray-more" })),
      templates(v, ask)],
  };

  return () => {
    const focus = element.contains(document.activeElement) ? document.activeElement.id : "";
    const v = props.value;
    if (v && !v.stale) { asked = 0; element.classList.remove("busy"); }
    if (v && v.stale && v.state) return; // what was seen stays until there is something newer
    tip.hide();
    draw(() => {
      const begun = performance.now();
      const nodes = !v || !v.state ? [head({}), h("section.card.quiet", { role: "status" }, t("xray.loading"))] : [head(v), ...body[v.state](v)];
      element.dataset.drawn = String(Math.round(performance.now() - begun));
      return nodes;
    });
    const panel = element.closest("#data-xray");
    if (panel && panel.dataset.wanted && v && v.state && !v.stale) { delete panel.dataset.wanted; requestAnimationFrame(() => panel.scrollIntoView({ block: "start" })); }
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  };
}

export const mount = mounting({ xray });
