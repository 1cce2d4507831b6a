"""The one error of this package: something is wrong with the user's data, said in a sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class DataError(Exception):
    """The data cannot be used as it is.

    `message` is a sentence (what is wrong and what to do), `field` the dotted name of the field it belongs to.
    """

    def __init__(self, message: str, field: str = "data.dataset") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the most similar known word, or an empty string."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.55)
    return f" Did you mean '{by_lower[found[0]]}'?" if found else ""


def shown(text: str, limit: int = 60) -> str:
    """A short, printable, one-line form of any text for use inside a sentence."""
    flat = " ".join(text[: limit * 4].split())
    safe = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in flat)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


@dataclass(frozen=True)
class Skipped:
    """A row that was left out: its number in the file (list item, line or sheet row, from 1) and the reason."""

    row: int
    reason: str
