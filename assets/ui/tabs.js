// What the Data, Train, Export and Chat tabs draw from JSON. All text is set as text (`h` makes text nodes).
const { t, api, goTab, confirm, format, poll } = window.Studio;
const h = (spec, options, ...children) => window.Studio.h(spec, options, ...children.flat(9));

const button = (spec, text, onclick, options = {}) => h("button." + spec, { type: "button", onclick, ...options }, text);
const plural = (key, n, values = {}) => t(`tabs.${key}.${n === 1 ? "one" : "many"}`, { n: format.number(n), ...values });
const empty = (title, text, ...actions) => h("div.empty", {}, h("h3", {}, title), h("p", {}, text), h("div.row", {}, actions));
const notes = (texts) => (texts || []).map((text) => h("p.note.warn", { role: "status" }, text));
const copy = async (text, node) => {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = h("textarea", {}, text); document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
  }
  const before = node.textContent;
  node.textContent = t("tabs.copied");
  setTimeout(() => { node.textContent = before; }, 1200);
};
const save = (name, text) => {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/yaml" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

// What is wrong with a field, beneath it. Gradio's own messages vanish when any other event ends; these stay.
function markFields(scope, wrong) {
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

// ---- Data: rows as bubbles or table, one page at a time; rows of a saved dataset can be edited -----------------------
const ORIGINS = ["", "identity", "hard_negative", "replay", "upload", "heldout"];

function rows({ props, trigger, draw }) {
  let mode = window.Studio.store.get("rows") === "table" ? "table" : "bubbles";
  let editing = null;
  const ask = (extra) => trigger("select", { source: props.value.source, origin: props.value.origin, offset: props.value.offset, ...extra });
  const send = (event, n, contents) => {
    const v = props.value;
    trigger(event, { source: v.source, origin: v.origin, offset: v.offset, sha256: v.sha256, n, contents });
  };

  const editor = (row) => {
    const fields = row.messages.map((message) => h("textarea", { rows: 3, "aria-label": t("tabs.role." + message.role) }));
    fields.forEach((field, i) => { field.value = row.messages[i].content; });
    const finish = () => send("edit", row.n, fields.map((field) => field.value));
    const box = h("div.row-edit", {},
      fields.map((field, i) => h("label.turn", {}, h("span", {}, t("tabs.role." + row.messages[i].role)), field)),
      h("div.row", {}, button("btn.go", t("tabs.save"), finish), button("btn", t("tabs.cancel"), () => { editing = null; redraw(); }),
        h("span.spring"), row.n >= 0 && button("btn.link.bad", t("tabs.delete"), async () => {
          if (await confirm({ title: t("tabs.delete_row"), body: t("tabs.delete_row.body"), ok: t("tabs.delete") })) send("delete", row.n, []);
        })));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { editing = null; redraw(); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.stopPropagation(); finish(); }
    });
    queueMicrotask(() => fields[0]?.focus());
    return box;
  };
  const pencil = (row) => props.value.editable && row.origin !== "heldout" &&
    button("btn.small", t("tabs.edit"), () => { editing = row.n; redraw(); }, { "aria-label": t("tabs.edit_row", { n: row.n + 1 }) });

  const bubble = (row) => h("li.talk", {},
    h("div.talk-head", {}, h("span.num", {}, String(row.n + 1)), h("span.tag." + row.origin, {}, t("tabs.origin." + row.origin)), h("span.spring"), pencil(row)),
    editing === row.n && row.origin !== "heldout" ? editor(row) : row.messages.map((message) => h("div.bubble." + message.role, {}, message.content)),
    row.expect && h("p.expect", {}, t("tabs.expect"), " ", row.expect.map((word) => h("b", {}, word))));

  const line = (row) => {
    if (editing === row.n && row.origin !== "heldout") return [h("tr", {}, h("td", { colspan: 4 }, editor(row)))];
    const pairs = [];
    for (const message of row.messages) {
      if (message.role === "system") continue;
      if (message.role === "user") pairs.push([message.content, row.expect ? row.expect.join(" · ") : ""]);
      else if (pairs.length) pairs[pairs.length - 1][1] = message.content;
    }
    return pairs.map(([user, assistant], i) => h("tr", {},
      h("td.num", {}, i ? "" : String(row.n + 1)), h("td", {}, user), h("td", {}, assistant), h("td", {}, i ? null : pencil(row))));
  };
  const table = (shown) => h("div.scroll", { tabindex: 0, role: "region", "aria-label": t("tabs.rows") }, h("table.rows", {},
    h("thead", {}, h("tr", {}, h("th", {}, "#"), h("th", {}, t("tabs.role.user")), h("th", {}, t("tabs.role.assistant")), h("th", {}, h("span.sr-only", {}, t("tabs.edit"))))),
    h("tbody", {}, shown.flatMap(line))));

  const facts = (v) => {
    const said = [];
    if (v.facts.format) said.push(t("tabs.format", { format: t("tabs.format." + v.facts.format) }));
    if (v.facts.rows_read) said.push(plural("rows_read", v.facts.rows_read));
    for (const [lang, n] of Object.entries(v.facts.phrasings || {})) said.push(t("tabs.phrasings." + lang, { n }));
    return said.join(" · ");
  };

  const redraw = () => draw((v) => {
    if (!v) return [empty(t("tabs.data.empty"), t("tabs.data.empty.builder"))];
    if (v.empty) return [notes(v.notes), empty(t("tabs.data.empty"), t("tabs.data.empty." + v.source))];
    const flip = (name) => button("seg", t("tabs.as." + name), () => { mode = name; window.Studio.store.set("rows", name); redraw(); }, { "aria-pressed": String(mode === name) });
    const from = v.total ? v.offset + 1 : 0;
    const adding = editing === -1 && [h("div.talk", {}, editor({ n: -1, origin: "upload", messages: [{ role: "user", content: "" }, { role: "assistant", content: "" }] }))];
    return [
      h("div.rows-head", {},
        h("div.what", {}, h("h3", {}, v.title, " ", v.editable && h("span.chip.finished", {}, t("tabs.saved"))), h("p.quiet", {}, facts(v))),
        h("div.row", {}, v.editable && button("btn", t("tabs.add_row"), () => { editing = -1; redraw(); }),
          v.editable && button("btn.go", t("tabs.train_on"), () => trigger("apply", { name: v.facts.name }), { id: "data-train-on" }))),
      v.just_saved && h("p.note.good", { role: "status" }, t("tabs.just_saved", { n: format.number(v.counts[""]) })),
      notes(v.notes),
      v.skipped_total > 0 && h("details.skipped", {}, h("summary", {}, plural("skipped", v.skipped_total)),
        h("ul", {}, v.skipped.map(([row, reason]) => h("li", {}, t("tabs.skipped.row", { row }), " ", reason)), v.skipped_total > v.skipped.length && h("li", {}, "…"))),
      h("div.counts", {}, ORIGINS.filter((origin) => v.counts[origin]).map((origin) =>
        button("count", [h("b.num", {}, format.number(v.counts[origin])), h("span", {}, t("tabs.origin." + (origin || "all")))], () => ask({ origin, offset: 0 }), { "aria-pressed": String(v.origin === origin) })),
        h("span.spring"), h("div.segs", {}, flip("bubbles"), flip("table"))),
      adding,
      mode === "table" ? table(v.rows) : h("ol.talks", {}, v.rows.map(bubble)),
      h("nav.pager", { "aria-label": t("tabs.pages") },
        button("btn", "‹", () => ask({ offset: v.offset - v.page }), { disabled: v.offset <= 0, "aria-label": t("tabs.previous") }),
        h("span.num.quiet", {}, t("tabs.range", { from, to: Math.min(v.offset + v.page, v.total), total: format.number(v.total) })),
        button("btn", "›", () => ask({ offset: v.offset + v.page }), { disabled: v.offset + v.page >= v.total, "aria-label": t("tabs.next") })),
    ];
  });
  return () => {
    const wrong = (props.value && props.value.wrong) || {};
    markFields("#data-builder .field, #data-more .field", Object.fromEntries(Object.entries(wrong).map(([name, text]) => ["data-" + name, text])));
    editing = null;
    redraw();
  };
}

function saved({ trigger, draw }) {
  return () => draw((v) => {
    if (!v || !v.datasets.length) return [notes(v && v.notes), empty(t("tabs.saved.empty"), t("tabs.saved.empty.body"))];
    return [notes(v.notes), h("ul.saved", {}, v.datasets.map((item) => h("li", {},
      button("open", [h("b", {}, item.title || item.name),
        h("span.quiet", {}, [t("tabs.kind." + item.kind), plural("rows", item.rows), item.languages.map((lang) => t("tabs.lang." + lang)).join(" + "), new Date(item.created_at).toLocaleDateString(window.Studio.lang())].filter(Boolean).join(" · "))],
        () => trigger("select", { name: item.name })),
      button("btn.small", t("tabs.delete"), async () => {
        const title = t("tabs.delete_dataset", { name: item.title || item.name });
        if (await confirm({ title, body: t("tabs.delete_dataset.body"), ok: t("tabs.delete") })) trigger("delete", { name: item.name });
      }, { "aria-label": t("tabs.delete_dataset", { name: item.title || item.name }) }))))];
  });
}

// ---- Train: what will happen, before it does -------------------------------------------------------------------------
const fieldNode = (path) => document.getElementById("f-" + path.replaceAll(".", "-"));
const openAdvanced = async () => {
  const head = document.querySelector("#train-advanced > button");
  if (!head || document.querySelector("#train-advanced .field")?.offsetParent) return;
  head.click();
  for (let i = 0; i < 40 && !document.querySelector("#train-advanced .field")?.offsetParent; i += 1) await window.Studio.sleep(50);
};
const reveal = async (path) => {
  filterFields("");
  if (!fieldNode(path)?.offsetParent) await openAdvanced();
  const node = fieldNode(path);
  if (!node) return;
  node.scrollIntoView({ block: "center", behavior: "smooth" });
  node.querySelector("input, textarea")?.focus({ preventScroll: true });
};
async function filterFields(text) {
  const words = (text || "").trim().toLowerCase();
  if (words) await openAdvanced();
  for (const node of document.querySelectorAll("#train-columns .field")) node.classList.toggle("hide-f", !!words && !node.textContent.toLowerCase().includes(words));
}
window.Studio.filterFields = filterFields;

const flow = (counts) => {
  if (!counts) return null;
  const steps = [[counts.rows, "conversations"], [counts.packs, "packs"], [counts.updates, "updates"]];
  return h("div.flow" + (counts.few ? ".few" : ""), {}, steps.flatMap(([n, key], i) => [i ? h("span.arrow", { "aria-hidden": "true" }, "→") : null,
    h("span.leg", {}, h("b.num", {}, format.number(n)), " ", t("tabs.flow." + key + (n === 1 ? ".one" : "")))]));
};
const ended = (text) => (/[.。!！?？]$/.test(text) ? text : text + (/[\u4e00-\u9fff]/.test(text) ? "。" : "."));
const issueList = (issues) => h("ul.issues", {}, issues.map((issue) => h("li." + issue.level, {},
  h("span.mark", { role: "img", "aria-label": t("tabs.level." + issue.level) }),
  h("div", {}, issue.field ? button("btn.link", issue.label, () => reveal(issue.field)) : null, h("span", {}, ended(issue.message), " "), issue.fix && h("span.quiet", {}, ended(issue.fix[0].toUpperCase() + issue.fix.slice(1)))))));
const yamlLines = (text) => text.replace(/\n$/, "").split("\n").map((line) => {
  const found = /^(\s*(?:- )?)([\w.]+)(:)(.*)$/.exec(line);
  return h("span.line", {}, found ? [found[1], h("span.key", {}, found[2]), h("span.colon", {}, found[3]), found[4]] : line, "\n");
});

function review({ props, draw, element }) {
  let tried = false; // an empty field is no mistake before the first attempt to start
  const mark = () => {
    const wrong = {};
    for (const issue of (props.value && props.value.issues) || []) {
      if (issue.level === "error" && issue.field && (tried || issue.code !== "string_too_short")) wrong["f-" + issue.field.replaceAll(".", "-")] = issue.message;
    }
    markFields("#train-columns .field", wrong);
  };
  document.querySelector("#train-start")?.addEventListener("click", () => { tried = true; mark(); });
  poll(element, mark, 600); // fields of a section that has just been opened
  return () => draw((v) => {
    mark();
    if (!v) return [h("div.card.skeleton", {})];
    const card = (title, actions, ...inside) => h("section.card", {}, h("div.card-head", {}, h("h3", {}, title), h("span.spring"), actions), inside);
    const copyButton = (text) => { const node = button("btn.small", t("tabs.copy"), () => copy(text, node)); return node; };
    const checks = card(t("tabs.checks"), null,
      v.counts && [flow(v.counts), h("p.quiet", {}, t("tabs.flow.detail", { tokens: format.number(v.counts.tokens), batch: v.counts.batch }))],
      v.issues.length ? issueList(v.issues) : h("p.note.good", {}, t("tabs.checks.good")));
    if (!v.yaml) return [checks];
    return [checks,
      card("config.yaml", [copyButton(v.yaml), button("btn.small", t("tabs.download"), () => save(v.file, v.yaml), { id: "train-download" })],
        h("pre.code", { tabindex: 0, id: "train-yaml", "aria-label": "config.yaml" }, yamlLines(v.yaml))),
      card(t("tabs.command"), copyButton(v.command), h("pre.code.command", { tabindex: 0, id: "train-command", "aria-label": t("tabs.command") }, v.command), h("p.quiet", {}, t("tabs.command.help")))];
  });
}

function bar({ props, draw }) {
  document.querySelector("#train-start")?.addEventListener("click", () => {
    const wrong = props.value && props.value.issues.find((issue) => issue.level === "error" && issue.field);
    if (wrong) reveal(wrong.field);
  });
  return () => draw((v) => {
    if (!v) return [h("span.quiet", {}, t("tabs.checking"))];
    const wrong = v.issues.filter((issue) => issue.level === "error");
    if (wrong.length) return [h("span.bar-wrong", { role: "status" }, button("btn.link.bad", plural("wrong", wrong.length), () => reveal(wrong[0].field)), h("span", {}, wrong[0].label ? wrong[0].label + ": " : "", wrong[0].message))];
    return [h("div.bar-ok", {}, flow(v.counts) || h("span.quiet", {}, t("tabs.no_counts")), v.counts && v.counts.few && h("span.few", {}, t("tabs.few.short")))];
  });
}

// ---- Export: follow a merge, then its proof ----------------------------------------------------------------------------
function proofCard(report) {
  const proof = report.proof || {};
  const fact = (good, label, value) => h("li" + (good ? ".good" : ".bad"), {}, h("span.mark"), h("span", {}, label), h("b.num", {}, value));
  const yes = (value) => t(value ? "tabs.yes" : "tabs.no");
  const small = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(2));
  const path = h("button.path.btn.link", { type: "button" }, report.out || "");
  path.onclick = () => copy(report.out || "", path);
  return h("section.card.merge-proof", {},
    h("div.card-head", {}, h("h3", {}, t(proof.passed ? "tabs.proof.passed" : "tabs.proof.failed")), h("span.spring"), h("span.chip" + (proof.passed ? ".finished" : ".failed"), {}, t(proof.passed ? "tabs.proof.ok" : "tabs.proof.bad"))),
    h("ul.facts", {},
      fact(proof.max_logit_difference <= proof.tolerance, t("tabs.proof.difference"), `${small(proof.max_logit_difference)} ≤ ${small(proof.tolerance)}`.replace("≤", proof.max_logit_difference <= proof.tolerance ? "≤" : ">")),
      fact(proof.answers_equal === proof.prompts || proof.answers_equal === true, t("tabs.proof.answers"), proof.prompts ? `${proof.answers_equal === true ? proof.prompts : Number(proof.answers_equal)} / ${proof.prompts}` : yes(proof.answers_equal)),
      fact(proof.weights_differ_from_base, t("tabs.proof.weights"), yes(proof.weights_differ_from_base)),
      fact(proof.template_identical, t("tabs.proof.template"), yes(proof.template_identical))),
    (proof.rows || []).length > 0 && h("div.scroll", { tabindex: 0, role: "region", "aria-label": t("tabs.proof.answers") }, h("table.rows", {},
      h("thead", {}, h("tr", {}, ["prompt", "adapter", "merged"].map((key, i) => h("th", { style: i ? "width:36%" : null }, t("tabs.proof." + key))))),
      h("tbody", {}, proof.rows.map((row) => h("tr", {}, h("td", {}, row.prompt), h("td", {}, row.adapter), h("td", {}, row.merged)))))),
    h("p.where", {}, h("span.quiet", {}, t("tabs.proof.where", { size: format.bytes(report.size_bytes), shards: Array.isArray(report.shards) ? report.shards.length : report.shards || 1 })), path));
}

function merge({ props, draw, element }) {
  let run = null;
  let drawn = "";
  let seen = { offset: 0, progress: null, phase: "", status: null };
  const show = (report) => draw(() => {
    const { status, progress, phase } = seen;
    if (!status) return [h("div.card.skeleton", {})];
    if (status.state === "finished" && report) return [proofCard(report)];
    if (status.error) return [h("section.card.failed", {}, h("h3", {}, t("tabs.merge.failed")), h("p", {}, status.error.message), h("p.quiet", {}, status.error.hint))];
    if (!["queued", "starting", "running", "stopping"].includes(status.state)) return [h("section.card.failed", {}, h("h3", {}, t("tabs.merge.failed")), h("p", {}, t("tabs.merge.ended", { state: t("state." + status.state) })))];
    const share = progress && progress.total ? progress.done / progress.total : null;
    return [h("section.card", { "aria-live": "polite" }, h("div.card-head", {}, h("h3", {}, t("tabs.merge.running")), h("span.spring"), h("span.chip.running", {}, phase ? t("phase." + phase) : t("state." + status.state))),
      h("div.progress" + (share === null ? ".unknown" : ""), { role: "progressbar", "aria-label": t("tabs.merge.running"), "aria-valuenow": share === null ? null : Math.round(share * 100) }, h("i", { style: `width:${share === null ? 100 : Math.round(share * 100)}%` })),
      h("p.quiet.num", {}, progress ? `${progress.label || ""} ${progress.done} / ${progress.total}` : t("tabs.merge.loading"), status.started_at ? " · " + format.seconds(Date.now() / 1000 - status.started_at) : ""))];
  });
  const tick = async () => {
    if (!run || (drawn === run)) return;
    const mine = run;
    const part = await api(`/api/metrics?run=${encodeURIComponent(mine)}&after=${seen.offset}`);
    if (mine !== run) return;
    seen = { offset: part.offset, progress: part.progress || seen.progress, phase: part.phases.length ? part.phases[part.phases.length - 1].name : seen.phase, status: part.status };
    const over = !part.status.live && part.status.state !== "queued";
    const report = part.status.state === "finished" ? await api(`/api/report?run=${encodeURIComponent(mine)}`) : null;
    show(report);
    if (over && (report || part.status.state !== "finished")) drawn = mine;
  };
  poll(element, tick, 700);
  return () => {
    const v = props.value;
    if (v && v.run) {
      if (v.run !== run) { run = v.run; drawn = ""; seen = { offset: 0, progress: null, phase: "", status: null }; show(null); tick(); }
      return;
    }
    run = null;
    draw(() => (v && v.empty ? [] : [empty(t("tabs.merge.empty"), t("tabs.merge.empty.body"))]));
  };
}

const exportEmpty = ({ draw }) => () => draw((v) => (v && v.empty ? [empty(t("tabs.export.none"), t("tabs.export.none.body"), button("btn.go", t("tabs.go_train"), () => goTab("train")))] : []));
const chatEmpty = ({ draw }) => () => draw((v) => (v && v.empty ? [empty(t("tabs.chat.none"), t("tabs.chat.none.body"), button("btn.go", t("tabs.go_home"), () => goTab("home")), button("btn", t("tabs.go_train"), () => goTab("train")))] : []));

// ---- Chat ------------------------------------------------------------------------------------------------------------
function chatStatus({ props, trigger, draw, element }) {
  let since = 0;
  const text = (v) => {
    if (v.state === "loading") return [h("span.chip.running", {}, t("tabs.chat.loading")), h("span.num.quiet", {}, format.seconds((Date.now() - since) / 1000))];
    if (v.state === "ready") return [h("span.chip.finished", {}, t("tabs.chat.ready"))];
    const said = v.state === "failed" ? v.message || t("tabs.chat.failed") : t(v.state === "none" ? "tabs.chat.none_state" : "tabs.chat." + v.state);
    const again = button("btn.go", t(v.state === "none" ? "tabs.chat.start" : "tabs.chat.again"), () => { props.value = { state: "loading", seconds: 0 }; since = Date.now(); render(); trigger("apply", {}); });
    return [h("span", { class: "chip " + (v.state === "none" ? "stopped" : "failed") }, t("tabs.chat.off")), h("span.said", {}, said), again];
  };
  const render = () => draw((v) => (v ? [h("div.chat-status", { role: "status" }, text(v))] : []));
  poll(element, () => { if (props.value && props.value.state === "loading") render(); }, 500);
  return () => {
    const v = props.value;
    if (v && v.state === "loading") since = Date.now() - (v.seconds || 0) * 1000;
    const ready = !!v && v.state === "ready";
    document.querySelector("#chat-room")?.classList.toggle("chat-ready", ready);
    render();
  };
}

const chips = ({ trigger, draw }) => () => draw((v) => (v && v.chips && v.chips.length
  ? [h("div.chips", {}, h("span.quiet", {}, t("tabs.chat.try")), v.chips.map((text) => button("btn.small.chip-ask", text, () => trigger("select", { text }))))] : []));

const WIDGETS = { rows, saved, review, bar, merge, export_empty: exportEmpty, chat_empty: chatEmpty, chat_status: chatStatus, chips };

export function mount({ element, props, trigger, watch, widget }) {
  const target = () => element.querySelector(":scope > div") || element;
  const draw = (make) => target().replaceChildren(...make(props.value).flat(5).filter((node) => node !== null && node !== undefined && node !== false));
  const changed = WIDGETS[widget]({ element, props, trigger, draw });
  watch("value", changed);
  changed();
}
