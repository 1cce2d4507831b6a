// The Train tab: what will happen, before it does. All text is set as text (`h` makes text nodes).
import { button, copy, h, markFields, mounting, plural, save } from "./tabs.js";
import { changesCard, loaded, markChanges } from "./trainchanges.js";
import { card as cardChoice, fitCard } from "./trainfit.js";
import { machines, spread, tell } from "./trainparallel.js";
import { modelCard } from "./trainmodel.js";

const { t, api, poll, format, lang } = window.Studio;

const fieldNode = (path) => document.getElementById("f-" + path.replaceAll(".", "-"));
const FOLDS = ["#train-advanced", "#train-parallel"]; // what they hold is made when they are opened
const openFold = async (fold) => {
  const head = document.querySelector(`${fold} > button`);
  if (!head || head.classList.contains("open")) return; // its fields may all be hidden by the search
  head.click();
  for (let i = 0; i < 40 && !document.querySelector(`${fold} .field`); i += 1) await window.Studio.sleep(50);
};
const openAll = async () => { for (const fold of FOLDS) await openFold(fold); };
const reveal = async (path) => {
  filterFields("");
  if (!fieldNode(path)?.offsetParent) await openFold(FOLDS[+path.startsWith("parallel.")]);
  const node = fieldNode(path);
  if (!node) return;
  node.scrollIntoView({ block: "center", behavior: "smooth" });
  node.querySelector("input, textarea")?.focus({ preventScroll: true });
};
// A field is found by its label, its names and its help in both languages, whatever the page's language is.
let fieldWords = null;
const wordsOf = async () => (fieldWords ||= api("/api/fields").catch(() => { fieldWords = null; return {}; }));
let filtered = 0;
async function filterFields(text) {
  const turn = (filtered += 1);
  const words = (text || "").trim().toLowerCase().split(/\s+/).filter(Boolean);
  const known = words.length ? await wordsOf() : {};
  if (words.length) await openAll();
  if (turn !== filtered) return; // more has been typed meanwhile
  const byId = new Map(Object.entries(known).map(([path, said]) => ["f-" + path.replaceAll(".", "-"), said]));
  let found = 0;
  for (const node of document.querySelectorAll("#train-columns .field")) {
    const said = node.textContent.toLowerCase() + " " + (byId.get(node.id) || "");
    const fits = words.every((word) => said.includes(word));
    node.classList.toggle("hide-f", !fits);
    found += fits;
  }
  const tools = document.querySelector("#train-tools");
  let note = document.querySelector("#train-nothing");
  if (words.length && !found && tools && !note) tools.after(h("p.note", { id: "train-nothing", role: "status" }, t("train.nothing_found")));
  else if (note && (found || !words.length)) note.remove();
}
window.Studio.filterFields = filterFields;
window.Studio.showXray = async () => {
  window.Studio.goTab("data");
  for (let i = 0; i < 60 && !document.querySelector("#data-xray")?.offsetParent; i += 1) await window.Studio.sleep(50);
  const panel = document.querySelector("#data-xray");
  if (panel) panel.dataset.wanted = "1"; // it scrolls to itself again when it has something to show
  panel?.scrollIntoView({ block: "start" });
};

// Rows of the files -> left out -> examples -> packs -> optimizer updates.
const flow = (counts) => {
  if (!counts) return null;
  const leg = (n, key, more = "") => h("span.leg" + more, {}, h("b.num", {}, (more === ".lost" ? "−" : "") + format.number(n)), " ", t("train.flow." + key + (n === 1 && key !== "left_out" ? ".one" : "")));
  const legs = [leg(counts.rows_read, "read"), counts.rows_skipped > 0 && leg(counts.rows_skipped, "left_out", ".lost"),
    leg(counts.conversations, "examples"), leg(counts.packs, "packs"), leg(counts.updates, "updates", ".end")].filter(Boolean);
  return h("div.flow." + counts.zone, {}, legs.flatMap((one, i) => [i && !one.matches(".lost") ? h("span.arrow", { "aria-hidden": "true" }, "→") : null, one]));
};
const short = (n) => (n >= 100 ? format.number(Math.round(n)) : n >= 10 ? format.number(n, 1) : format.number(n, 2));
const EPOCHS = "train.num_train_epochs";
const DATASET = "data.dataset";
const zone = (counts) => {
  const key = counts.zone === "parrot" && counts.distinct === 1 ? "parrot.why.one" : counts.zone + ".why";
  const values = { few: counts.few, updates: format.number(counts.updates), distinct: format.number(counts.distinct) };
  return h("div.zone." + counts.zone, { role: "status" }, h("b", {}, t("train.zone." + counts.zone)),
    h("span", {}, t("train.zone." + key, values), " ", counts.zone !== "good" && button("btn.link", t("train.zone.epochs"), () => reveal(EPOCHS))));
};
// What the zone says already is not said again.
const others = (v) => v.issues.filter((issue) => !(v.counts && v.counts.zone !== "good" && issue.field === EPOCHS && issue.level === "warning"));
const facts = (counts) => {
  const said = [["per_row", short(counts.per_row), true], ["distinct", format.number(counts.distinct), true], ["batch", format.number(counts.batch), true],
    ["tokens", format.number(counts.tokens), true], ["trained", format.percent(counts.trained), true], ["padding", format.percent(counts.padding), true],
    ["truncated", format.number(counts.truncated), counts.truncated], ["validation", format.number(counts.validation), counts.validation],
    ["self_replay", format.number(counts.self_replay), counts.self_replay], ["sources", counts.sources, counts.sources > 1]];
  return h("dl.numbers", {}, said.filter(([, , shown]) => shown).map(([key, value]) => h("div", {}, h("dt", {}, t("train.fact." + key)), h("dd.num", {}, String(value)))));
};
const shareOf = ([done, total]) => (total ? Math.min(Math.round((100 * done) / total), 99) : null);
const waiting = (state) => {
  const share = shareOf(state);
  const text = share === null ? t("train.counting") : t("train.counting.share", { share: share + " %" });
  return h("div.counting", { role: "status" }, h("p", {}, text),
    h("div.progress" + (share === null ? ".unknown" : ""), { role: "progressbar", "aria-label": t("train.counting"), "aria-valuenow": share }, h("i", { style: `width:${share ?? 100}%` })),
    h("p.quiet.small", {}, t("train.counting.note")));
};
const ended = (text) => (/[.。!！?？]$/.test(text) ? text : text + (lang() === "en" ? "." : "。"));
const issueList = (issues) => h("ul.issues", {}, issues.map((issue) => h("li." + issue.level, {},
  h("span.mark", { role: "img", "aria-label": t("tabs.level." + issue.level) }),
  h("div", {}, issue.field ? button("btn.link", issue.label, () => reveal(issue.field)) : null, h("span", {}, ended(issue.message), " "), issue.field === DATASET && issue.code === "string_too_short" && button("btn.link", t("train.to_data"), () => window.Studio.goTab("data"), { id: "train-to-data" }), issue.fix && h("span.quiet", {}, ended(issue.fix[0].toUpperCase() + issue.fix.slice(1)))))));
const yamlLines = (text) => text.replace(/\n$/, "").split("\n").map((line) => {
  const found = /^(\s*(?:- )?)([\w.]+)(:)(.*)$/.exec(line);
  return h("span.line", {}, found ? [found[1], h("span.key", {}, found[2]), h("span.colon", {}, found[3]), found[4]] : line, "\n");
});

// Beneath a field there is room for a sentence or two; the panel beside the form has it all.
const brief = (text) => (text.length <= 170 ? text : (/^.{40,150}?[.;:。；](?= |$|[\u4e00-\u9fff])/s.exec(text) || [text.slice(0, 150)])[0].replace(/[;:；]$/, "") + " …");

// What is wrong in an entry of a list of sections is marked at its own input as well.
const markEntries = (issues) => {
  const bad = new Set(issues.filter((issue) => issue.entry).map((issue) => `${issue.entry}/${issue.name}`));
  for (const entry of document.querySelectorAll("#train-columns .entry")) {
    for (const input of entry.querySelectorAll("[data-name]")) {
      const wrong = bad.has(`${entry.dataset.entry}/${input.dataset.name}`);
      input.classList.toggle("bad", wrong);
      input.setAttribute("aria-invalid", String(wrong));
    }
  }
};

function review({ props, draw, element, trigger }) {
  const apply = (set, advise = false) => trigger("apply", { set, advise });
  const reset = (paths) => trigger("apply", { reset: paths, preset: props.value.changed.preset });
  const model = modelCard(element, trigger, apply);
  let tried = false; // an empty field is no mistake before the first attempt to start
  const mark = () => {
    const wrong = {};
    const issues = ((props.value && props.value.issues) || []).filter((issue) => issue.level === "error" && issue.field && (tried || issue.code !== "string_too_short"));
    for (const issue of issues) {
      const id = "f-" + issue.field.replaceAll(".", "-");
      wrong[id] = wrong[id] ? `${wrong[id]} ${issue.message}` : issue.message;
    }
    for (const id of Object.keys(wrong)) wrong[id] = brief(wrong[id]);
    markFields("#train-columns .field", wrong);
    markChanges(props.value && props.value.changed, reset);
    markEntries(issues);
  };
  document.querySelector("#train-start")?.addEventListener("click", () => { tried = true; mark(); });
  poll(element, mark, 600); // fields of a section that has just been opened
  poll(element, () => { if (props.value && props.value.waiting) trigger("select", {}); });
  // An answer that takes its time is announced; the old one stays to be seen, faded.
  let late = 0;
  document.querySelector("#train-columns")?.addEventListener("input", (event) => {
    if (event.target.closest("#train-tools, #train-side")) return; // no field of the configuration
    clearTimeout(late);
    late = setTimeout(() => document.body.toggleAttribute("data-counting", true), 700);
  });
  const answered = () => { clearTimeout(late); document.body.toggleAttribute("data-counting", false); };
  const content = (v) => {
    mark();
    if (!v) return [h("div.card.skeleton", {})];
    const card = (title, actions, ...inside) => h("section.card", {}, h("div.card-head", {}, h("h3", {}, title), h("span.spring"), actions), inside);
    const copyButton = (text) => { const node = button("btn.small", t("tabs.copy"), () => copy(text, node)); return node; };
    const look = button("btn.small", t("train.xray"), () => window.Studio.showXray(), { id: "train-xray" });
    const checks = card(t("tabs.checks"), v.counts && look,
      v.waiting && waiting(v.waiting),
      v.counts && [flow(v.counts), zone(v.counts), facts(v.counts)],
      others(v).length ? issueList(others(v)) : v.issues.length ? null : h("p.note.good", {}, t("tabs.checks.good")));
    model.show(v.model || null);
    if (v.parallel) tell(v.parallel, apply);
    const changes = v.changed && changesCard(v.changed, { reset, reveal, redraw: () => show() });
    if (!v.yaml) return [checks, changes];
    return [checks, model.host, changes, v.fit && fitCard(v.fit, apply),
      card("config.yaml", [copyButton(v.yaml), button("btn.small", t("tabs.download"), () => save(v.file, v.yaml), { id: "train-download" })],
        h("pre.code", { tabindex: 0, id: "train-yaml", "aria-label": "config.yaml" }, yamlLines(v.yaml))),
      card(t("tabs.command"), copyButton(v.command), h("pre.code.command", { tabindex: 0, id: "train-command", "aria-label": t("tabs.command") }, v.command), h("p.quiet", {}, t("tabs.command.help")))];
  };
  // What is drawn anew keeps the focus where it was.
  const show = () => {
    const focus = element.contains(document.activeElement) ? document.activeElement.id : "";
    draw(content);
    if (focus && document.activeElement?.id !== focus) document.getElementById(focus)?.focus({ preventScroll: true });
  };
  let last = "";
  return () => {
    answered();
    const now = JSON.stringify({ ...props.value, now: 0 });
    if (now === last && element.querySelector(".card")) return;
    last = now;
    show();
  };
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
    if (v.waiting) return [h("div.bar-ok", {}, h("span.quiet", {}, t("train.counting.short")))];
    return [h("div.bar-ok", {}, flow(v.counts) || h("span.quiet", {}, t("tabs.no_counts")), v.counts && h("span.zone-chip." + v.counts.zone, {}, t("train.zone." + v.counts.zone)))];
  });
}

export const mount = mounting({ review, bar, loaded, card: cardChoice, spread, machines });
