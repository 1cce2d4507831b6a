"""Placeholders such as {{name}}: found, filled, or refused. Filling is literal: a name is never a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from studio.records.errors import DataError, shown

_ANY = re.compile(r"\{\{.{0,200}?\}\}", re.DOTALL)
_NAMED = re.compile(r"\{\{\s*(name|author)\s*\}\}", re.IGNORECASE)
_SINGLE = re.compile(r"(?<!\{)\{\s*[^\W\d]\w*(?:[ -]\w+)*\s*\}(?!\})")
_CONTROL = re.compile(r"<\|[^\s<>|]{1,40}\|>")


def any_placeholder(text: str) -> str | None:
    """The first `{{…}}`, or a lone `{{`, in a text."""
    found = _ANY.search(text)
    if found:
        return shown(found.group(), 40)
    return "{{" if "{{" in text else None


def word_placeholder(text: str) -> str | None:
    """The first `{word}` in single braces; `{0}` and `{}` are taken literally."""
    found = _SINGLE.search(text)
    return shown(found.group(), 40) if found else None


def named_placeholder(text: str) -> str | None:
    """The first `{{name}}` or `{{author}}`, in any case."""
    found = _NAMED.search(text)
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


def fill_placeholders(rows: Sequence[Mapping[str, Any]], name: str, author: str) -> tuple[list[dict[str, Any]], int]:
    """Fills `{{name}}`/`{{author}}` (any case) in every message of an imported set.

    Returns the new rows and how many messages changed. Raises DataError, with the row number, for a placeholder that
    is neither, or for one whose value was left empty.
    """
    values = {key: value for key, value in (("name", name.strip()), ("author", author.strip())) if value}
    filled: list[dict[str, Any]] = []
    changed = 0
    for number, row in enumerate(rows, 1):
        messages = []
        for message in row["messages"]:
            content = _fill_message(message["content"], values, number)
            changed += content != message["content"]
            messages.append({**message, "content": content})
        filled.append({**row, "messages": messages})
    return filled, changed


def _fill_message(content: str, values: Mapping[str, str], row: int) -> str:
    for match in _ANY.finditer(content):
        named = _NAMED.fullmatch(match.group())
        if not named:
            raise DataError(
                f"Row {row} contains {shown(match.group(), 40)}, which is neither {{{{name}}}} nor {{{{author}}}}. "
                "Correct the row and import the file again."
            )
        if named.group(1).lower() not in values:
            key = named.group(1).lower()
            raise DataError(f"Row {row} contains {match.group()}, but the {key} is empty. Type the {key}.", field=key)
    return fill(content, values) if values else content
