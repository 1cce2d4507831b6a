"""Old names to new ones in a text, literally and in one pass."""

from __future__ import annotations

import re
from collections.abc import Sequence

from studio.records.errors import DataError, shown
from studio.records.labels import LABEL_LIMIT, clean_label

MAX_PAIRS = 50


class Replacement:
    """Old names to new ones: call it with a text. `used` counts how often each pair was applied.

    The old texts are taken literally, longer ones go first, and everything happens in one pass, so that two names can
    be swapped. Raises DataError for pairs that cannot be used.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], *, case_sensitive: bool = True) -> None:
        self._pairs = _checked_pairs(pairs, case_sensitive)
        self._order = sorted(range(len(pairs)), key=lambda index: -len(pairs[index][0]))
        self.used = [0] * len(pairs)
        olds = [f"({re.escape(pairs[index][0])})" for index in self._order]
        self._pattern = re.compile("|".join(olds), re.NOFLAG if case_sensitive else re.IGNORECASE)

    def __call__(self, text: str) -> str:
        return self._pattern.sub(self._new, text)

    def _new(self, match: re.Match[str]) -> str:
        index = self._order[(match.lastindex or 1) - 1]
        self.used[index] += 1
        return self._pairs[index][1]


def _checked_pairs(pairs: Sequence[tuple[str, str]], case_sensitive: bool) -> list[tuple[str, str]]:
    if not pairs:
        raise DataError("There is nothing to replace. Type an old and a new name.", field="replace")
    if len(pairs) > MAX_PAIRS:
        raise DataError(f"At most {MAX_PAIRS} names can be replaced at once; {len(pairs)} are given.", field="replace")
    seen: dict[str, str] = {}
    for old, new in pairs:
        if not old.strip():
            raise DataError("The old name is empty. Type the name that stands in the file.", field="replace")
        checked_label("new name", new, "replace")
        key = old if case_sensitive else old.casefold()
        if seen.setdefault(key, new) != new:
            raise DataError(
                f"{shown(old)} is to be replaced by two different names. Keep one of them.", field="replace"
            )
    return [(old, new.strip()) for old, new in pairs]


def checked_label(key: str, value: str, field: str | None = None) -> str:
    """A name as it may be written. Raises DataError for the field `key` (or `field`)."""
    try:
        return clean_label(value, key, LABEL_LIMIT)
    except ValueError as error:
        raise DataError(str(error), field=field or key) from None
