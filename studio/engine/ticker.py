"""Signs of life while something works that has no steps: libraries being imported, weights being loaded.

A page that shows nothing for seconds looks dead. Here a thread counts twice a second, and tells it when the count moved
or when nothing was said for a while.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from studio.engine.journal import Journal
from studio.engine.quick_import import without_collecting

PERIOD_S = 0.5
SILENCE_S = 1.5
MODULES = 4000
"""Python modules a training has in the end, about."""

Look = Callable[[], tuple[int, int]]


@contextlib.contextmanager
def ticking(journal: Journal, label: str, look: Look) -> Iterator[None]:
    """Inside, `look` says how far it is, (done, total), again and again; `label` names what it counts."""
    ended = threading.Event()
    thread = threading.Thread(target=_tick, args=(journal, label, look, ended), name="ticker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tick(journal: Journal, label: str, look: Look, ended: threading.Event) -> None:
    told, at = (-1, -1), time.monotonic()
    while not ended.is_set():
        now, found = time.monotonic(), look()
        news = found != told and found[1] > 0
        if news or now - at >= SILENCE_S:
            told, at = found, now
            with contextlib.suppress(OSError):  # a full disk shows itself where something is saved
                journal.progress(*found, label)
        ended.wait(PERIOD_S)


@contextlib.contextmanager
def importing(journal: Journal) -> Iterator[None]:
    """While libraries are imported."""
    with ticking(journal, "modules loaded", lambda: (min(len(sys.modules), MODULES), MODULES)), without_collecting():
        yield


@contextlib.contextmanager
def counting(journal: Journal, label: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """While `total` slow things are done. The function it gives is told how far that is, (done, total)."""
    at = [(0, total)]

    def told(done: int, total: int) -> None:
        at[0] = (done, total)

    with ticking(journal, label, lambda: at[0]):
        yield told
    journal.progress(*at[0], label)


@contextlib.contextmanager
def loading(journal: Journal) -> Iterator[None]:
    """While transformers loads weights: it shows each of its loops over many things in a bar, and those are counted."""
    from transformers.utils.logging import set_tqdm_hook

    bar = _Bar()
    before = set_tqdm_hook(lambda factory, args, settings: bar.over(*args, **settings))
    try:
        with ticking(journal, "weights loaded", lambda: (bar.done, bar.total)):
            yield
    finally:
        set_tqdm_hook(before)
    if bar.total:
        journal.progress(bar.done, bar.total, "weights loaded")


class _Bar:
    """What stands for the bars of transformers: the things done and to do in the latest of them."""

    def __init__(self) -> None:
        self.done, self.total = 0, 0

    def over(self, things: Iterable[Any] = (), *_: Any, total: int | None = None, **__: Any) -> _Pass:
        """A new bar."""
        length = len(things) if isinstance(things, Sized) else 0
        self.done, self.total = 0, total or length
        return _Pass(self, things)


class _Pass:
    """One bar: goes through its things, or is told of them."""

    def __init__(self, bar: _Bar, things: Iterable[Any]) -> None:
        self.bar, self.things = bar, things

    def __iter__(self) -> Iterator[Any]:
        for thing in self.things:
            yield thing
            self.update()

    def __enter__(self) -> _Pass:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to close."""

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.bar.done += count

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *args, **settings: None
