"""Placeholders such as {{name}}: found, filled, or refused. Filling is literal: a name is never a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping

from studio.records.errors import shown

ANY = re.compile(r"\{\{.{0,200}?\}\}", re.DOTALL)
NAMED = re.compile(r"\{\{\s*(name|author)\s*\}\}", re.IGNORECASE)
_SINGLE = re.compile(r"(?<!\{)\{\s*[^\W\d]\w*(?:[ -]\w+)*\s*\}(?!\})")
_DOUBLE = re.compile(r"\{\{\s*[^\W\d]\w+(?:[ ._-]\w+)*\s*\}\}")
_ENGLISH = r"(?:[a-z]+[ _-])?(?:name|nickname|author|developer|creator|company|team|organi[sz]ation)"
_CAPITALS = _ENGLISH.replace("a-z", "A-Z").upper()  # "[Name]" is left alone: letters to nobody are signed that way
_CHINESE = r"(?:你的|我的|模型|助手|公司|团队|机器人)?(?:名字|姓名|名称|昵称|作者|作者名|开发者|公司名?|团队名?)"
_SINGLE_MARK = re.compile(
    rf"\{{\s*(?:(?i:{_ENGLISH})|{_CHINESE})\s*\}}|<\s*(?:{_CAPITALS}|{_CHINESE})\s*>"
    rf"|\[\s*(?:{_CAPITALS}|{_CHINESE})\s*\](?!\()|【\s*(?:{_CHINESE}|(?i:{_ENGLISH}))\s*】"
)
_CODE_BEFORE = re.compile(r"[A-Za-z0-9_${]\Z")
_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_CODE = re.compile(r"\bf[\"']|\.format\(|\$\{|^\s*(?:def|import|from|class|function|const|let) \w|</\w+>", re.MULTILINE)
_CONTROL = re.compile(r"<\|[^\s<>|]{1,40}\|>")


def any_placeholder(text: str) -> str | None:
    """The first `{{…}}`, or a lone `{{`, in a text."""
    found = ANY.search(text)
    if found:
        return shown(found.group(), 40)
    return "{{" if "{{" in text else None


def word_placeholder(text: str) -> str | None:
    """The first `{word}` in single braces; `{0}` and `{}` are taken literally."""
    found = _SINGLE.search(text)
    return shown(found.group(), 40) if found else None


def named_placeholder(text: str) -> str | None:
    """The first `{{name}}` or `{{author}}`, in any case."""
    found = NAMED.search(text)
    return found.group() if found else None


def leftover(text: str) -> str | None:
    """The first thing in a text that someone forgot to fill in: `{{name}}`, `{name}`, `<NAME>`, `[NAME]`, `【名字】`.

    `{{name}}` and `{{author}}` count everywhere, other words in double braces outside quoted code, the rest only in
    texts without code.
    """
    said = _FENCED.sub(" ", text) if "`" in text else text
    found = (NAMED.search(text) or _DOUBLE.search(said)) if "{{" in text else None
    found = found or next((match for match in _SINGLE_MARK.finditer(said) if not _in_code(match)), None)
    return shown(found.group(), 40) if found else None


def _in_code(mark: re.Match[str]) -> bool:
    """Whether the text around a marker is program text, or the marker part of an expression such as `names[NAME]`."""
    before = mark.string[max(mark.start() - 1, 0) : mark.start()]
    return bool(_CODE_BEFORE.match(before) or _CODE.search(mark.string))


def control_tokens(text: str) -> str | None:
    """The first `<|…|>` in a text: chat templates use that shape for their control tokens."""
    found = _CONTROL.search(text)
    return found.group() if found else None


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replaces `{{key}}` for each key of `values`, in one pass: what is inserted is never looked at again."""
    names = "|".join(re.escape(key) for key in values)
    pattern = re.compile(rf"\{{\{{\s*({names})\s*\}}\}}", re.IGNORECASE)
    return pattern.sub(lambda match: values[match.group(1).lower()], text)
