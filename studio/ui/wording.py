"""Chinese for the sentences of data, presets and estimate, by their shape; `sentences.translated` uses it."""

import json
import re
from functools import cache

from studio.ui.i18n import FOLDER


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
            parts = found.groupdict()
            if "why" in parts:  # the reason is a clause of its own
                parts["why"] = in_chinese(parts["why"]) or parts["why"]
            return text.format(**parts)
    return None
