"""A process's log as the page reads it: the newest end, what came before it, what came since, its last words."""

import codecs
import os
import re
from pathlib import Path
from typing import Any

LOG_BYTES = 64 * 1024
LAST_BYTES, LAST_LINES = 4096, 8
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def log_text(log: Path, after: int) -> dict[str, Any]:
    """New text after byte ``after``; of a long one only the last 64 KB, with ``skipped`` true.

    ``first`` is the byte the text begins at, ``restart`` tells that what the reader has is void.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = after if 0 <= after <= size else 0
            first = max(start, size - LOG_BYTES)
            file.seek(first)
            block = file.read(LOG_BYTES)
    except OSError:
        return {"text": "", "offset": 0, "first": 0, "skipped": False, "restart": after > 0}
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(block)
    # A character cut at the end stays for the next read.
    waiting = len(decoder.getstate()[0])
    return {
        "text": text,
        "offset": first + len(block) - waiting,
        "first": first,
        "skipped": first > start,
        "restart": start != after,
    }


def log_before(log: Path, before: int) -> dict[str, Any]:
    """The 64 KB before byte ``before``, from the beginning of a line; ``first`` is 0 when nothing is left.

    Of a line that is longer than that its end: whoever reads back must get on.
    """
    try:
        with log.open("rb") as file:
            end = min(max(0, before), file.seek(0, os.SEEK_END))
            first = max(0, end - LOG_BYTES)
            file.seek(first)
            block = file.read(end - first)
    except OSError:
        return {"text": "", "first": 0}
    if first:
        whole = block.find(b"\n", 0, -1) + 1
        first, block = first + whole, block[whole:]
    return {"text": block.decode("utf-8", errors="replace"), "first": first}


def log_size(log: Path) -> int:
    """Bytes written so far, 0 when there is no log."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def last_words(log: Path) -> str:
    """The last lines a process wrote, a few hundred characters of them; "" when there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [COLOURS.sub("", line.rsplit("\r", 1)[-1]).rstrip() for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-LAST_LINES:])
