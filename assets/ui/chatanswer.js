// One answer of the chat room: what was thought, which tools were used, what was said, what it cost, what went wrong.
import { markdown } from "./markdown.js";
import { h } from "./tabs.js";
import { compare } from "./worddiff.js";
const { t, format } = window.Studio;
const THINK = /^\s*<think>([\s\S]*?)(<\/think>|$)/;

// {thought, said, thinking}: a template may have written the opening mark itself, then only the closing one is there.
export const parted = (text) => {
  const opened = THINK.exec(text);
  if (opened) return { thought: opened[1].trim(), said: text.slice(opened[0].length), thinking: !opened[2] };
  const closed = text.indexOf("</think>");
  return closed < 0 ? { thought: "", said: text, thinking: false } : { thought: text.slice(0, closed).trim(), said: text.slice(closed + 8), thinking: false };
};

// Wraps the words of `node` that differ; `parts` are those of its whole text, in order.
const mark = (node, parts) => {
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) texts.push(walker.currentNode);
  let at = 0; let left = parts.length ? parts[0].text.length : 0;
  for (const text of texts) {
    const pieces = [];
    let rest = text.data;
    while (rest && at < parts.length) {
      const take = rest.slice(0, left);
      const word = take.trimEnd();
      if (parts[at].kind === "same" || !word) pieces.push(take); else pieces.push(h("mark.differs", {}, word), take.slice(word.length));
      rest = rest.slice(take.length);
      left -= take.length;
      if (!left) { at += 1; left = at < parts.length ? parts[at].text.length : 0; }
    }
    if (pieces.some((piece) => typeof piece !== "string")) text.replaceWith(...pieces, rest);
  }
};
export const markBoth = (left, right) => {
  const [before, after] = [left.textContent, right.textContent];
  if (before === after) return;
  mark(left, compare(before, after, { without: "new" }));
  mark(right, compare(before, after, { without: "gone" }));
};

const pretty = (text) => { try { const found = JSON.parse(text); return Object.entries(found).map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join("\n"); } catch { return text; } };
const step = (item) => h("details.tooluse" + (item.failed ? ".bad" : ""), { open: true },
  h("summary", {}, t(item.done ? "chatroom.used" : "chatroom.using", { tool: item.name })),
  item.said.trim() ? h("p.verbatim.quiet", {}, item.said.trim()) : null,
  h("div.tooluse-lines", {}, h("pre", {}, pretty(item.arguments)), item.done ? h("pre.result", {}, item.result) : null));

const words = (text) => text.split(/\s+/).filter(Boolean).length;
const thoughts = (found) => (found.thought || found.thinking ? h("details.thought", {},
  h("summary", {}, found.thinking ? t("chatroom.thinking") : t("chatroom.thought", { n: format.number(words(found.thought)) })),
  h("p.verbatim", {}, found.thought)) : null);

const numbers = (answer) => {
  if (answer.state === "waiting" || answer.state === "streaming") return [];
  const drawn = Math.max(0, answer.seconds - answer.wait);
  const speed = answer.speed || (answer.tokens > 1 && drawn > 0 ? (answer.tokens - 1) / drawn : 0);
  return [
    answer.tokens ? t(answer.tokens === 1 ? "chatroom.tokens.one" : "chatroom.tokens", { n: format.number(answer.tokens) }) : "",
    speed ? t("chatroom.speed", { n: format.number(speed, speed < 10 ? 1 : 0) }) : "",
    answer.state === "stopped" ? t("chatroom.stopped") : answer.finish === "length" ? t("chatroom.cut") : "",
    answer.corrected ? t("chatroom.corrected") : "",
  ].filter(Boolean);
};

// {node, said}: `said` holds only the answer proper, to be compared with another one.
export const drawAnswer = (answer, tools, { secret = false } = {}) => {
  const found = parted(answer.text);
  const waits = answer.state === "waiting" || (answer.state === "streaming" && !answer.text);
  const said = h("div.prose", {}, markdown(found.said.trim()));
  const silent = !waits && answer.state !== "streaming" && answer.state !== "failed" && !found.said.trim();
  const facts = secret ? [] : numbers(answer);
  return {
    said,
    node: [
      answer.dropped ? h("p.dropped", {}, t(answer.dropped === 1 ? "chatroom.dropped.one" : "chatroom.dropped", { n: format.number(answer.dropped) })) : null,
      answer.steps.map(step),
      thoughts(found),
      waits ? h("p.typing", { role: "status", "aria-label": t("chatroom.answering") }, h("i"), h("i"), h("i")) : said,
      silent ? h("p.quiet.silent", {}, t("chatroom.silent")) : null,
      answer.error ? h("p.note.warn", { role: "alert" }, answer.error) : null,
      h("div.foot", {}, h("span.num", {}, facts.join(" · ")), tools),
    ],
  };
};
