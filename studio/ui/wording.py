"""Chinese for the sentences of data, presets and estimate, by their shape; `sentences.translated` uses it."""

import json
import re
from functools import cache

from studio.ui.i18n import FOLDER

# Groups of the patterns whose texts are translated too.
CLAUSES = ("why", "where", "kind")


@cache
def _chinese() -> list[tuple[re.Pattern[str], str]]:
    pairs: list[list[str]] = json.loads((FOLDER / "sentences.zh.json").read_text(encoding="utf-8"))
    return [(re.compile(pattern, re.DOTALL | re.IGNORECASE), text) for pattern, text in pairs]


def in_chinese(sentence: str) -> str | None:
    """``sentence`` in Chinese, or None when its shape is unknown."""
    sentence = re.sub(r"^[a-z_]+(?:\.[a-z_]+)*: ", "", sentence)  # the dotted name of the field, for a terminal
    for pattern, text in _chinese():
        found = pattern.search(sentence)
        if found:
            return text.format(**{name: _part(name, said or "") for name, said in found.groupdict().items()})
    return None


def _part(name: str, said: str) -> str:
    """What a sentence names; a reason, a place or a kind of thing has a shape of its own, anything else stays."""
    return (in_chinese(said) or said) if said and name.startswith(CLAUSES) else said
