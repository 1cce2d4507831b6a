// The lights of a verdict: learned, leaked, remembered, and for rows that are no questions the perplexity.
const { h, t, format } = window.Studio;

const PARTS = {
  learned: (part) => ({ value: format.percent(part.share), counts: [part.right, part.total], limit: part.threshold !== undefined && t("verdict.from", { limit: format.percent(part.threshold) }) }),
  leaked: (part) => ({ value: format.percent(part.share), counts: [part.hits, part.total], limit: part.threshold !== undefined && t("verdict.upto", { limit: format.percent(part.threshold) }) }),
  forgot: (part) => ({ value: format.percent(part.retained), counts: [part.kept, part.total], limit: part.threshold !== undefined && t("verdict.from", { limit: format.percent(part.threshold) }) }),
  perplexity: (part) => ({ value: `${format.number(part.before, 2)} → ${format.number(part.after, 2)}`, counts: [format.number(part.rows)], limit: null }),
};

export const lights = (verdict, { limits = false } = {}) => h("div.lights", {}, Object.keys(PARTS).filter((name) => name !== "perplexity" || verdict[name]).map((name) => {
  const part = verdict[name];
  if (!part) return h("div.light.none", {}, h("span.lamp", { "aria-hidden": "true" }), h("span.light-name", {}, t(`verdict.${name}`)), h("b.num", {}, "–"), h("span.light-note", {}, t("verdict.none")));
  const { value, counts, limit } = PARTS[name](part);
  // Beside questions the perplexity is for information; questions that are not about an identity have answers of their own.
  const counted = name !== "perplexity" || !verdict.learned;
  const note = name === "learned" && !verdict.leaked ? "verdict.learned.note.own" : `verdict.${name}.note`;
  return h(`div.light.${!counted ? "none" : part.ok ? "good" : "poor"}`, {}, h("span.lamp", { "aria-hidden": "true" }),
    h("span.light-name", {}, t(`verdict.${name}`), counted && h("span.sr-only", {}, ` – ${t(part.ok ? "passed" : "missed")}`)), h("b.num", {}, value),
    h("span.light-note", {}, t(note, { a: counts[0], b: counts[1] }), limits && limit && h("span.light-limit.num", {}, limit)));
}));
