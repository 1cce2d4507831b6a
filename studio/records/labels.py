"""Checks on what a user types for a name, an author or a fact. Anything printable on one line is fine."""

from __future__ import annotations

import unicodedata

from studio.records.conversation import broken_text
from studio.records.placeholders import any_placeholder, control_tokens, word_placeholder

LABEL_LIMIT = 80
FACT_LIMIT = 200
ANSWER_LIMIT = 400
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def clean_label(value: str, field: str, limit: int) -> str:
    """The value without surrounding space. Raises ValueError with a sentence that names the field."""
    text = value.strip()
    title = field.capitalize()
    problem = _problem(text, limit)
    if problem:
        raise ValueError(f"{title} {problem}")
    found = any_placeholder(text) or word_placeholder(text)
    if found:
        raise ValueError(f"{title} contains the unfilled placeholder {found}. Type the real text instead.")
    mark = control_tokens(text)
    if mark:
        raise ValueError(f"{title} contains {mark}, which models read as a control token. Remove it.")
    return text


def _problem(text: str, limit: int) -> str | None:
    if not any(_is_visible(char) for char in text):
        return "is empty. Type at least one visible character."
    if len(text) > limit:
        return f"has {len(text)} characters; at most {limit} are allowed. Shorten it."
    if any(char in _LINE_BREAKS for char in text):
        return "contains a line break. Write it on one line."
    broken = broken_text(text)
    if broken:
        return f"{broken}. Type it again."
    if any(unicodedata.category(char) == "Cc" for char in text):
        return "contains a control character. Remove it."
    return None


def _is_visible(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNPS"
