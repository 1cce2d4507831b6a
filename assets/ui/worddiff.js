// Which words of an answer differ from another answer. Han and kana are compared by character, other scripts by word.
import { diffArrays } from "./vendor/diff/array.js";
const { h } = window.Studio;
const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}\p{M}]+)*|\p{Extended_Pictographic}(?:\p{EMod}|\ufe0f|\u200d\p{Extended_Pictographic})*|\s+|[^]/gu;
// Two long texts with little in common take time and say nothing: then all of the new one counts as new.
const LIMITS = { maxEditLength: 2000, timeout: 60 };

export const words = (text) => String(text ?? "").match(WORD) || [];

// [{text, kind: "same" | "new" | "gone"}] in reading order; `without` leaves out one kind.
export const compare = (before, after, { without = "" } = {}) => {
  const found = diffArrays(words(before), words(after), LIMITS);
  const all = found ? found.map((part) => ({ text: part.value.join(""), kind: part.added ? "new" : part.removed ? "gone" : "same" }))
    : [{ text: String(before), kind: "gone" }, { text: String(after), kind: "new" }];
  const parts = [];
  for (const part of all.filter((item) => item.kind !== without)) {
    const last = parts[parts.length - 1];
    if (last && last.kind === part.kind) last.text += part.text; else parts.push({ ...part });
  }
  return without ? joined(parts) : parts;
};
// Differing words with nothing but a space between them are one piece.
const joined = (parts) => {
  const out = [];
  for (const part of parts) {
    const [space, first] = [out[out.length - 1], out[out.length - 2]];
    if (part.kind !== "same" && space && first && space.kind === "same" && first.kind === part.kind && !space.text.trim()) { out.pop(); first.text += space.text + part.text; } else out.push({ ...part });
  }
  return out;
};

// `after` as nodes, what differs from `before` marked; null or undefined as `before`: nothing is marked.
export const marked = (before, after) => (before === null || before === undefined || before === after ? [String(after ?? "")]
  : compare(before, after, { without: "gone" }).map((part) => (part.kind === "same" ? part.text : h("ins.differs", {}, part.text))));

// `before` as nodes, what `after` has no more marked.
export const lost = (before, after) => (after === null || after === undefined || before === after ? [String(before ?? "")]
  : compare(before, after, { without: "new" }).map((part) => (part.kind === "same" ? part.text : h("del.differs", {}, part.text))));
