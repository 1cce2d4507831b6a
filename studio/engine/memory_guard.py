"""Notices that memory is nearly used up before the kernel kills the run, which could then say nothing.

A thread looks at every bound (`studio.memory_room`). When little is left it raises MemoryShort in the main thread, as a
signal handler would; when the main thread is inside a library and memory goes on shrinking, it writes the last status
itself and ends the process with the same exit code. GPU memory needs none of it: its allocator fails with an error.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from studio.engine.activity import current
from studio.engine.shortage import MemoryShort, Place, out_of_memory
from studio.events import ExitCode, RunError
from studio.memory_room import Room, control_groups, rooms

SIGNAL = getattr(signal, "SIGUSR1", signal.SIGABRT)  # only ever simulated: its handler runs in the main thread
RESERVE = 0.01
LEAST, MOST = 64 << 20, 2 << 30
"""What must be left at the very last, of a limit: a share of it within these bytes; twice that asks for an end."""
ADDRESSES_LEFT = 24 << 20
"""Of address space: whoever asks for more gets an error, but libraries that ask for little may end the process."""
FILL_RATE = 4 << 30
"""Bytes a second that are filled at most between two looks."""
SLOWEST_S, FASTEST_S = 0.1, 0.01
BALLOON = 16 << 20
"""Given up at the end, so that the last words find room."""

LastWord = Callable[[RunError, ExitCode], None]


def least_left(room: Room) -> int:
    """Bytes below which the process is ended at once; 0 where an allocation fails by itself."""
    if room.bound == "address_space":
        return 0
    return min(max(LEAST, int(RESERVE * room.limit)), MOST, room.limit // 8)


def enough_left(room: Room) -> int:
    """Bytes below which the work is asked to end with an error."""
    return ADDRESSES_LEFT if room.bound == "address_space" else 2 * least_left(room)


class MemoryGuard:
    """Watches while `watching`; `where` says what the run is doing, `last_word` writes its end.

    Where that is None, other processes do the work, and each has a guard of its own.
    """

    def __init__(self, where: Callable[[], Place | None], last_word: LastWord) -> None:
        self._where, self._last_word = where, last_word
        self._groups = control_groups()
        self._over = threading.Event()
        self._seen: MemoryShort | None = None
        self._balloon: bytearray | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Raises MemoryShort inside when memory is nearly used up. For the main thread only."""
        before = signal.signal(SIGNAL, self._signalled)
        thread = threading.Thread(target=self._watch, name="memory-guard", daemon=True)
        self._balloon = bytearray(os.urandom(1)) * BALLOON  # written, so that it is really held
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._balloon = None
            thread.join()
            signal.signal(SIGNAL, before)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._seen is not None and not self._over.is_set():
            activity = current()
            if activity is not None:
                activity.short = MemoryShort(self._seen.room, self._seen.used)
            raise MemoryShort(self._seen.room, self._seen.used)  # a new one: an error that is kept keeps its frames

    def _watch(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            pause = self._look()

    def _look(self) -> float:
        """Act if little is left; seconds until it must be looked again."""
        place = self._where()
        if place is None:
            return SLOWEST_S
        nearest = min(rooms(self._groups), key=lambda room: room.free - enough_left(room))
        spare = nearest.free - enough_left(nearest)
        if nearest.free < least_left(nearest):
            self._end(nearest, place)
        if spare < 0:
            self._balloon = None
            if self._seen is None or nearest.free < self._seen.room.free:
                self._seen = MemoryShort(nearest)
            _thread.interrupt_main(SIGNAL)
        return min(SLOWEST_S, max(FASTEST_S, spare / FILL_RATE))

    def _end(self, room: Room, place: Place) -> None:
        """The main thread cannot be waited for: say why, and end before the kernel does it."""
        self._balloon = None
        error = out_of_memory([MemoryShort(room)], Place(place.phase, place.step, current()))
        with contextlib.suppress(OSError, MemoryError):
            print(error.message, file=sys.stderr, flush=True)  # noqa: T201 - this goes to engine.log
        self._last_word(error, ExitCode.OUT_OF_MEMORY)
        os._exit(int(ExitCode.OUT_OF_MEMORY))
