// Which words of an answer differ from another answer. Han and kana are compared by character, other scripts by word.
import { diffArrays } from "./vendor/diff/array.js";
const { h } = window.Studio;
const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}\p{M}]+)*|\p{Extended_Pictographic}(?:\p{EMod}|\ufe0f|\u200d\p{Extended_Pictographic})*|\s+|[^]/gu;
// Two long texts with little in common take time and say nothing: then all of the new one counts as new.
const LIMITS = { maxEditLength: 2000, timeout: 60 };

export const words = (text) => String(text ?? "").match(WORD) || [];

// [{text, kind: "same" | "new" | "gone"}] in reading order; without `gone` only the parts of `after`.
export const compare = (before, after, { gone = true } = {}) => {
  const found = diffArrays(words(before), words(after), LIMITS);
  const all = found ? found.map((part) => ({ text: part.value.join(""), kind: part.added ? "new" : part.removed ? "gone" : "same" }))
    : [{ text: String(before), kind: "gone" }, { text: String(after), kind: "new" }];
  const parts = [];
  for (const part of gone ? all : all.filter((item) => item.kind !== "gone")) {
    const last = parts[parts.length - 1];
    if (last && last.kind === part.kind) last.text += part.text; else parts.push({ ...part });
  }
  return gone ? parts : joined(parts);
};
// New words with nothing but a space between them are one piece.
const joined = (parts) => {
  const out = [];
  for (const part of parts) {
    const [space, first] = [out[out.length - 1], out[out.length - 2]];
    if (part.kind === "new" && space && first && space.kind === "same" && first.kind === "new" && !space.text.trim()) { out.pop(); first.text += space.text + part.text; } else out.push({ ...part });
  }
  return out;
};

// `after` as nodes, what differs from `before` marked; null or undefined as `before`: nothing is marked.
export const marked = (before, after, options = { gone: false }) => (before === null || before === undefined || before === after ? [String(after ?? "")]
  : compare(before, after, options).map((part) => (part.kind === "same" ? part.text : h(part.kind === "new" ? "ins.differs" : "del.differs", {}, part.text))));

// `before` as nodes, what `after` has no more marked.
export const lost = (before, after) => (after === null || after === undefined || before === after ? [String(before ?? "")]
  : compare(before, after).filter((part) => part.kind !== "new").map((part) => (part.kind === "same" ? part.text : h("del.differs", {}, part.text))));
