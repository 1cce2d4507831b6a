"""Fills `{{name}}` and `{{author}}` in a set that somebody else made for any name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.records.errors import DataError, shown
from studio.records.labels import LABEL_LIMIT, clean_label
from studio.records.placeholders import ANY, NAMED, fill


def fill_placeholders(rows: Sequence[Mapping[str, Any]], name: str, author: str) -> tuple[list[dict[str, Any]], int]:
    """Fills `{{name}}`/`{{author}}` (any case) in every message of an imported set.

    Returns the new rows and how many messages changed. Raises DataError, with the row number, for a placeholder that
    is neither, or for one whose value was left empty.
    """
    values = {key: _checked(key, value) for key, value in (("name", name), ("author", author)) if value.strip()}
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
    for match in ANY.finditer(content):
        named = NAMED.fullmatch(match.group())
        if not named:
            raise DataError(
                f"Row {row} contains {shown(match.group(), 40)}, which is neither {{{{name}}}} nor {{{{author}}}}. "
                "Correct the row and import the file again."
            )
        if named.group(1).lower() not in values:
            key = named.group(1).lower()
            raise DataError(f"Row {row} contains {match.group()}, but the {key} is empty. Type the {key}.", field=key)
    return fill(content, values) if values else content


def _checked(key: str, value: str) -> str:
    try:
        return clean_label(value, key, LABEL_LIMIT)
    except ValueError as error:
        raise DataError(str(error), field=key) from None
