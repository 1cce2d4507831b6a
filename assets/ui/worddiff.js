// Which words of an answer differ from another answer. Han and kana are compared by character, other scripts by word.
import { diffArrays } from "./vendor/diff/array.js";
const { h } = window.Studio;
// A word with the space behind it; space is no difference.
const WORD = /^\s+|(?:[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}\p{M}]+)*|\p{Extended_Pictographic}(?:\p{EMod}|\ufe0f|\u200d\p{Extended_Pictographic})*|[^\s])\s*/gu;
// Of texts with less than that in common all words count as new: comparing them takes long and says nothing.
const MOST_DIFFERING = 0.75;
const FEW_WORDS = 24;
const LONGEST_MS = 60;
const KEPT = 4000;

export const words = (text) => String(text ?? "").match(WORD) || [];

// A grid is drawn anew with each new answer: what was compared before is kept.
const kept = new Map();
// [{text, kind: "same" | "new" | "gone"}] in reading order; `without` leaves out one kind.
export const compare = (before, after, { without = "" } = {}) => {
  const key = [before, after].join("\u0000");
  const known = kept.get(key) || parted(words(before), words(after));
  if (kept.size >= KEPT) kept.clear();
  kept.set(key, known);
  const parts = [];
  for (const { kind, text: now, was } of known.filter((item) => item.kind !== without)) {
    const text = without === "new" ? was : now;
    const last = parts[parts.length - 1];
    if (last && last.kind === kind) last.text += text; else parts.push({ text, kind });
  }
  return parts;
};
const parted = (before, after) => {
  const bare = (word) => word.trimEnd();
  const limit = Math.max(FEW_WORDS, Math.ceil(MOST_DIFFERING * (before.length + after.length)));
  const found = diffArrays(before.map(bare), after.map(bare), { maxEditLength: limit, timeout: LONGEST_MS })
    || [{ removed: true, count: before.length }, { added: true, count: after.length }];
  let old = 0; let now = 0;
  return found.map(({ added, removed, count }) => {
    const text = (removed ? before.slice(old, old + count) : after.slice(now, now + count)).join("");
    if (!added) old += count;
    if (!removed) now += count;
    // What both have keeps the spaces of each.
    const was = added ? "" : before.slice(old - count, old).join("");
    return { text, was, kind: added ? "new" : removed ? "gone" : "same" };
  });
};
const nodes = (parts, tag) => parts.flatMap((part) => {
  const text = part.text.trimEnd();
  return part.kind === "same" ? [part.text] : [h(tag, {}, text), part.text.slice(text.length)];
});

// `after` as nodes, what differs from `before` marked; null or undefined as `before`: nothing is marked.
export const marked = (before, after) => (before === null || before === undefined || before === after ? [String(after ?? "")]
  : nodes(compare(before, after, { without: "gone" }), "ins.differs"));

// `before` as nodes, what `after` has no more marked.
export const lost = (before, after) => (after === null || after === undefined || before === after ? [String(before ?? "")]
  : nodes(compare(before, after, { without: "new" }), "del.differs"));
