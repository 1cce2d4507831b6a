// The processes of a run beside each other: what each does, its memory, its speed, how long it waited for the others.
import { sparkline } from "./stepper.js";
import { copyable } from "./exportrun.js";
const { h, t, api, poll, render, feed, format, serverNow, lang } = window.Studio;
const SHOWN = 64; // of very many processes the first; those in trouble always
const WRONG = ["failed", "died", "silent", "stuck"];
const CHIP = { step: "running", samples: "running", evaluation: "running", save: "running", load: "running", verdict: "running", busy: "running", elsewhere: "running", starting: "starting", finished: "finished", stopped: "stopped", silent: "stopped", stuck: "stopped", failed: "failed", died: "failed" };
const TIMED = ["silent", "stuck"];

export const showLog = (rank) => dispatchEvent(new CustomEvent("studio:rank-log", { detail: rank }));
// What its processes divide, in a word or two; empty for plain copies.
const STAGES = { zero1: "ZeRO-1", zero2: "ZeRO-2", zero2_offload: "ZeRO-2 + offload", zero3: "ZeRO-3", zero3_offload: "ZeRO-3 + offload", deepspeed: "DeepSpeed", fsdp2: "FSDP2" };
export const stageName = (sharding) => STAGES[sharding] || sharding || "";
// "4 processes on 2 machines · ZeRO-2"; null for a run with one.
export const spreadText = ({ processes, machines, sharding }) => (!processes || processes < 2 ? null
  : [t(machines > 1 ? "ranks.spread.machines" : "ranks.spread", { n: processes, machines }), stageName(sharding)].filter(Boolean).join(" · "));
export const partText = ({ machine, machines, address }) => (machine > 0 ? t("ranks.part", { address: address || "?", n: machine, last: machines - 1 }) : null);

const whose = (row) => (row.host ? t("ranks.process.host", { n: row.rank, host: row.host }) : t("ranks.process", { n: row.rank }));
const ago = (row) => (TIMED.includes(row.state) && row.since ? format.seconds(serverNow() - row.since) : "");
const trouble = (row) => h(`div.rank-trouble.${CHIP[row.state]}`, { role: "alert" },
  h("p", { dir: "auto" }, h("b", {}, t(`ranks.trouble.${row.state}`, { who: whose(row), time: ago(row) })), row.error && [" ", row.error.message, row.error.hint && ` ${row.error.hint}`]),
  row.last_words && h("pre.rank-words", { tabindex: "0", dir: "auto", "aria-label": t("ranks.words", { n: row.rank }) }, row.last_words),
  row.log && h("button.btn.small", { type: "button", id: `rank-${row.rank}-trouble-log`, onclick: () => showLog(row.rank) }, t("ranks.log.show", { n: row.rank })));
const bar = (share, kind) => { const node = h(`span.rank-bar.${kind}`, { "aria-hidden": "true" }, h("i")); node.firstChild.style.width = `${Math.round(100 * Math.max(0, Math.min(1, share || 0)))}%`; return node; };

const line = (row, most) => h(WRONG.includes(row.state) ? `tr.wrong.${CHIP[row.state]}` : "tr", {},
  h("th", { scope: "row" }, h("span.num", {}, String(row.rank)), row.host && h("span.rank-host", { dir: "auto", title: row.host }, row.host)),
  h("td", {}, h(`span.chip.${CHIP[row.state] || "plain"}`, {}, t("ranks.state." + row.state)), ago(row) && h("span.quiet.num", {}, ` ${ago(row)}`)),
  h("td.num", {}, row.step === null ? "–" : format.number(row.step, 0)),
  h("td.num", {}, h("span.rank-figure", {}, format.bytes(row.memory_bytes)), bar(most ? row.memory_bytes / most : 0, "memory")),
  h("td.num", {}, h("span.rank-figure", {}, format.number(row.tokens_per_second, 0)), row.course && row.course.length > 1 ? sparkline(row.course, { width: 70, height: 16, className: "rank-course" }) : null),
  h("td.num", {}, row.waited === null ? "–" : [h("span.rank-figure", {}, `${Math.round(100 * row.waited)}%`), bar(row.waited, "waited")]),
  h("td.do", {}, row.log ? h("button.btn.link.small", { type: "button", id: `rank-${row.rank}-log`, "aria-label": t("ranks.log.show", { n: row.rank }), onclick: () => showLog(row.rank) }, t("ranks.log")) : row.here ? "" : h("span.quiet", { title: t("ranks.log.away") }, t("ranks.away"))));

// The line that starts the part of each machine that is waited for.
const lines = (found) => found.waiting.length > 0 && h("div.rank-lines", {}, h("p", {}, t("ranks.waiting.lines")),
  found.waiting.map((one) => h("div.rank-line", {}, h("b.num", {}, t("ranks.machine", { n: one.machine })), copyable(one.command))));

// "Resume with…": how many processes go on; the hidden panel carries the answer to the server, which checks it.
export const resumeWith = async (status) => {
  const { formDialog } = await import("./library.js");
  const input = h("input", { type: "number", min: "1", max: "8192", step: "1", id: "resume-processes", value: String(status.processes), required: true, "aria-describedby": "resume-note" });
  const body = h("div", {}, h("label", { for: "resume-processes" }, t("ranks.resume.label")), input, h("p.quiet.small", { id: "resume-note" }, t("ranks.resume.note")));
  const wanted = await formDialog({ title: t("ranks.resume.title"), body, ok: t("resume"), focus: input, answer: () => Number(input.value) });
  if (wanted) dispatchEvent(new CustomEvent("studio:resume-with", { detail: { run: status.id, processes: wanted } }));
};
const orders = ({ trigger }) => addEventListener("studio:resume-with", ({ detail }) => trigger("apply", detail));

export const mount = (parts) => (parts.widget === "resume" ? orders(parts) : panel(parts.element));

function panel(element) {
  const host = element.querySelector(".mount");
  let found = null; let id = null; let drawn = ""; let all = false; let asked = "";
  const draw = () => {
    host.hidden = !found || !found.ranks.length;
    if (host.hidden) { render(host); drawn = ""; return; }
    const rows = found.ranks.filter((row, index) => all || index < SHOWN || WRONG.includes(row.state));
    const wrong = found.ranks.filter((row) => WRONG.includes(row.state));
    // What the engine warned of since the last step; what it says of a process is not said twice.
    const told = feed.state.warnings.filter((one) => found.live && !wrong.length && one.field.startsWith("parallel.") && one.step >= (feed.state.status?.step ?? 0)).slice(-1);
    const key = JSON.stringify([id, found, all, lang(), rows.map(ago), told]);
    if (key === drawn) return;
    drawn = key;
    const most = Math.max(0, ...found.ranks.map((row) => row.memory_bytes || 0));
    const heads = ["process", "state", "step", "memory", "speed", "waited"].map((name) => h("th", { scope: "col", title: name === "waited" ? t("ranks.col.waited.help") : null }, t("ranks.col." + name)));
    render(host, h("section.card.ranks-card", { "aria-label": t("ranks.title") },
      h("div.grid-bar", {}, h("h3", {}, t("ranks.title")), h("span.quiet", {}, spreadText(found)), partText(found) && h("span.quiet", { dir: "auto" }, partText(found))),
      wrong.slice(0, 4).map(trouble), told.map((one) => h("p.warned", { role: "status", dir: "auto" }, one.said || one.message)), lines(found) || null,
      h("div.rank-scroll", { tabindex: "0", role: "region", "aria-label": t("ranks.title") }, h("table.ranks", {}, h("thead", {}, h("tr", {}, heads, h("th", {}, h("span.sr-only", {}, t("ranks.log"))))), h("tbody", {}, rows.map((row) => line(row, most))))),
      found.ranks.length > rows.length && h("button.btn.link.small", { type: "button", id: "ranks-all", onclick: () => { all = true; draw(); } }, t("ranks.all", { n: found.ranks.length }))));
  };
  const tick = async () => {
    const { state } = feed;
    const status = state && !state.missing ? state.status : null;
    if (!status || !(status.processes > 1)) { found = null; asked = ""; id = state ? state.id : null; draw(); return; }
    const mark = `${state.id}|${status.state}|${status.updated_at}`;
    if (mark === asked && !status.live) return;
    const mine = state.id;
    if (id !== mine) { id = mine; found = null; all = false; draw(); }
    const part = await api(`/api/runs/${encodeURIComponent(mine)}/ranks`);
    if (feed.state?.id !== mine) return;
    found = part;
    asked = mark;
    draw();
  };
  let busy = false;
  const soon = async () => { if (busy) return; busy = true; try { await tick(); } catch (error) { if (!error.status && !(error instanceof TypeError)) throw error; } finally { busy = false; } };
  // What is still empty is not shown, and what is not shown is not polled: the place around it is asked instead.
  poll(element.closest("#monitor-run") || element, soon, 1500);
  feed.listen(element, (state) => { if (!state || state.id !== id || (state.status && state.status.processes > 1) !== Boolean(found)) soon(); });
}
