// Markdown as nodes. The parser only reads; every text becomes a text node, so nothing a model writes is ever markup,
// and no picture it names is fetched: pictures and HTML are shown as the text they are.
import { h } from "./tabs.js";
import { lexer } from "./vendor/marked/marked.esm.js";
const { t } = window.Studio;

const LONGEST = 60_000;
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;
const spaced = (nodes) => nodes.flatMap((node) => [node, "\n"]);

const INLINE = {
  strong: (token) => h("strong", {}, inline(token.tokens)),
  em: (token) => h("em", {}, inline(token.tokens)),
  del: (token) => h("s", {}, inline(token.tokens)),
  codespan: (token) => h("code", {}, token.text),
  br: () => h("br"),
  link: (token) => (SAFE_LINK.test(token.href)
    ? h("a", { href: token.href, target: "_blank", rel: "noopener noreferrer", title: token.href }, inline(token.tokens)) : token.raw),
  image: (token) => h("span.no-picture", { title: token.href }, `${t("chatroom.picture")} ${token.text || ""} (${token.href})`),
  text: (token) => (token.tokens ? inline(token.tokens) : token.text),
  escape: (token) => token.text,
  checkbox: () => null,
};
const inline = (tokens) => (tokens || []).map((token) => (INLINE[token.type] ? INLINE[token.type](token) : token.raw));

const code = (token) => {
  const copy = h("button.copy-code", { type: "button", "data-copy": token.text }, t("chatroom.copy"));
  return h("div.code", {}, h("div.code-head", {}, h("span", {}, (token.lang || "").slice(0, 40)), copy), h("pre", { tabindex: 0 }, h("code", {}, token.text)));
};
const cell = (tag, item, align) => h(tag, { style: align ? `text-align:${align}` : null }, inline(item.tokens));
const BLOCK = {
  space: () => null,
  def: () => null,
  hr: () => h("hr"),
  heading: (token) => h("h" + Math.min(6, token.depth + 3), {}, inline(token.tokens)),
  paragraph: (token) => h("p", {}, inline(token.tokens)),
  text: (token) => h("p", {}, token.tokens ? inline(token.tokens) : token.text),
  checkbox: () => null,
  code,
  blockquote: (token) => h("blockquote", {}, spaced(blocks(token.tokens))),
  list: (token) => h(token.ordered ? "ol" : "ul", { start: token.ordered && token.start !== 1 ? token.start : null },
    spaced(token.items.map((item) => h("li", {}, item.task ? (item.checked ? "☑ " : "☐ ") : null, spaced(token.loose ? blocks(item.tokens) : tight(item.tokens)))))),
  table: (token) => h("div.table-scroll", { tabindex: 0 }, h("table", {},
    h("thead", {}, h("tr", {}, spaced(token.header.map((item, n) => cell("th", item, token.align[n]))))),
    h("tbody", {}, spaced(token.rows.map((row) => h("tr", {}, spaced(row.map((item, n) => cell("td", item, token.align[n]))))))))),
  html: (token) => h("p", {}, token.raw.trimEnd()),
};
const blocks = (tokens) => tokens.map((token) => (BLOCK[token.type] ? BLOCK[token.type](token) : h("p", {}, token.raw))).filter(Boolean);
const tight = (tokens) => tokens.map((token) => (token.type === "text" ? h("span", {}, token.tokens ? inline(token.tokens) : token.text) : BLOCK[token.type]?.(token) || null)).filter(Boolean);

// The nodes of a text, block by block.
export const markdown = (text) => {
  if (text.length > LONGEST) return [h("p.verbatim", {}, text)];
  try { return spaced(blocks(lexer(text, { gfm: true, breaks: true }))); } catch (error) { console.warn(error); return [h("p.verbatim", {}, text)]; }
};
