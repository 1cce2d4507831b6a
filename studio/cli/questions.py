"""Questions from standard input: typed with editing and the ones before, or lines of a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

KEPT = 500
"""Lines of earlier chats that can be had again with the arrow keys."""


def questions(past: Path) -> Iterator[str]:
    """Non-empty lines; a line that ends with a backslash goes on in the next. `past` keeps what is typed."""
    if not sys.stdin.isatty():
        yield from _joined("", "")
        return
    with _editing(past):
        yield from _joined("You: ", "…  ")


def _joined(prompt: str, further: str) -> Iterator[str]:
    parts: list[str] = []
    while True:
        try:
            line = input(further if parts else prompt)
        except EOFError:
            if parts:
                yield "\n".join(parts).strip()
            return
        except KeyboardInterrupt:
            parts = []
            print("\n(Ctrl-D ends)", file=sys.stderr)
            continue
        goes_on = line.endswith("\\") and bool(prompt)
        parts.append(line.removesuffix("\\") if goes_on else line)
        if not goes_on:
            question, parts = "\n".join(parts).strip(), []
            if question:
                yield question


@contextlib.contextmanager
def _editing(past: Path) -> Iterator[None]:
    """Arrow keys, and the lines of earlier chats; systems without readline do without."""
    try:
        import readline
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(past)
    try:
        yield
    finally:
        readline.set_history_length(KEPT)
        with contextlib.suppress(OSError):
            past.parent.mkdir(exist_ok=True)
            os.close(os.open(past, os.O_CREAT | os.O_WRONLY, 0o600))  # what was asked is nobody else's business
            readline.write_history_file(past)
