"""Folder names chosen by the program from what a user typed: never a path, never reserved, readable in any script."""

from __future__ import annotations

import unicodedata

MAX_CHARACTERS = 48
MAX_TITLE = 200
_TURNING_MARKS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)}


def clean_title(title: str) -> str:
    """A title on one line, without control characters, halves of surrogate pairs and marks that turn the writing."""
    flat = " ".join(title[: MAX_TITLE * 4].split())
    kept = "".join(
        char for char in flat if unicodedata.category(char) not in ("Cc", "Cs") and char not in _TURNING_MARKS
    )
    return kept[:MAX_TITLE].strip()


def slug(title: str) -> str:
    """A safe name of 1 to 48 letters, digits, `-` and `_`; letters of any script stay."""
    folded = unicodedata.normalize("NFKC", title[:400]).lower()
    kept = "".join(
        char if char.isalnum() or unicodedata.category(char) in ("Mn", "Mc", "Pc") else "-" for char in folded
    )
    name = "-".join(part for part in kept.split("-") if part)[:MAX_CHARACTERS].strip("-_")
    if not name or not any(char.isalnum() for char in name):
        return "dataset"
    return f"{name}-data" if name in _RESERVED else name


def is_name(text: str) -> bool:
    """Whether a text could be one of our names: letters, digits, marks, `-` and `_` only."""
    allowed = all(char.isalnum() or char in "-_" or unicodedata.category(char) in ("Mn", "Mc", "Pc") for char in text)
    return bool(text) and len(text) <= MAX_CHARACTERS + 8 and allowed and not text.startswith("-")
