"""The engine under a real limit on its memory: a program that the tests of a lack of memory start.

limited.py RUN_DIR MOMENT MEGABYTES [--resume] [--group FOLDER]

At MOMENT (load | train | the number of a step) what the process may take from then on is limited to MEGABYTES more than
it has: of address space (RLIMIT_AS), or of a control group the process was put into (memory, version 1 or 2).
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path
from typing import Any

from studio.engine import train
from studio.engine.journal import Journal
from studio.memory_room import Room, rooms


def limit_addresses(megabytes: int) -> None:
    """No more than so much address space from now on."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def limit_group(folder: Path, megabytes: int) -> None:
    """No more memory for the group from now on than what cannot be given back, and so much."""
    name = "memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes"
    (folder / name).write_text(str(1 << 40), encoding="ascii")
    room: Room = next(one for one in rooms() if one.bound == "control_group" and one.limit == 1 << 40)
    (folder / name).write_text(str(room.used + (megabytes << 20)), encoding="ascii")


def at(moment: str, act: Any) -> None:
    """Do `act` once at that moment."""
    todo = [act]

    def now() -> None:
        while todo:
            todo.pop()()

    phase, update = Journal.phase, Journal.update

    def watched_phase(self: Journal, name: Any, detail: str = "") -> None:
        phase(self, name, detail)
        if name == moment == "train":
            now()

    def watched_update(self: Journal, **changes: Any) -> None:
        update(self, **changes)
        if moment.isdigit() and changes.get("step") == int(moment) and changes.get("max_steps"):
            now()

    Journal.phase, Journal.update = watched_phase, watched_update  # type: ignore[method-assign]
    if moment == "load":
        from studio.engine import model

        load = model.load

        def watched_load(*args: Any) -> Any:
            now()
            return load(*args)

        model.load = watched_load


def main() -> int:
    """Train under the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("moment")
    parser.add_argument("megabytes", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--group", type=Path)
    given = parser.parse_args()
    if given.group:
        at(given.moment, lambda: limit_group(given.group, given.megabytes))
    else:
        at(given.moment, lambda: limit_addresses(given.megabytes))
    return train.main(given.run, resume=given.resume)


if __name__ == "__main__":
    sys.exit(main())
