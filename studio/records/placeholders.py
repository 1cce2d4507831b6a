"""Placeholders such as {{name}}: found, filled, or refused. Filling is literal: a name is never a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping

from studio.records.errors import shown

ANY = re.compile(r"\{\{.{0,200}?\}\}", re.DOTALL)
NAMED = re.compile(r"\{\{\s*(name|author)\s*\}\}", re.IGNORECASE)
_SINGLE = re.compile(r"(?<!\{)\{\s*[^\W\d]\w*(?:[ -]\w+)*\s*\}(?!\})")
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


def control_tokens(text: str) -> str | None:
    """The first `<|…|>` in a text: chat templates use that shape for their control tokens."""
    found = _CONTROL.search(text)
    return found.group() if found else None


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replaces `{{key}}` for each key of `values`, in one pass: what is inserted is never looked at again."""
    names = "|".join(re.escape(key) for key in values)
    pattern = re.compile(rf"\{{\{{\s*({names})\s*\}}\}}", re.IGNORECASE)
    return pattern.sub(lambda match: values[match.group(1).lower()], text)
