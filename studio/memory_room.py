"""How much memory this process may still take, by every bound there is: its own limit, control groups, the machine.

Reads small system files, loads no torch; a bound that cannot be read is left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from studio.hardware import NO_LIMIT

Bound = Literal["address_space", "control_group", "machine", "gpu"]
CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc/self")


@dataclass(frozen=True)
class Room:
    """One bound on memory and what it leaves, in bytes. `bound` says who would refuse or kill."""

    bound: Bound
    limit: int
    free: int

    @property
    def used(self) -> int:
        """What counts against the limit; for a control group and the machine that of other processes too."""
        return max(0, self.limit - self.free)


@dataclass(frozen=True)
class Group:
    """A control group that may limit memory: its folder and the names of its files (version 1 or 2)."""

    folder: Path
    limit: str
    used: str
    cache: tuple[str, ...]


def rooms(groups: tuple[Group, ...] | None = None) -> list[Room]:
    """Every bound on this process, in no order. `groups`: found earlier by `control_groups`."""
    found = [_address_space(), *map(_group, control_groups() if groups is None else groups), _machine()]
    return [room for room in found if room is not None]


def tightest(groups: tuple[Group, ...] | None = None) -> Room:
    """The bound that leaves least."""
    return min(rooms(groups), key=lambda room: room.free)


def control_groups(proc: Path = PROC, mounts: Path = CGROUPS) -> tuple[Group, ...]:
    """The control groups this process is in, from the inner to the outer, that can limit memory."""
    try:
        lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    found: list[Group] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
            found += [Group(folder, *names) for folder in _with_parents(mounts / "memory", path)]
        elif not controllers:
            mount = mounts / "unified" if (mounts / "unified").is_dir() else mounts
            names = ("memory.max", "memory.current", ("inactive_file", "active_file"))
            found += [Group(folder, *names) for folder in _with_parents(mount, path)]
    return tuple(group for group in found if (group.folder / group.limit).is_file())


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    """The folders of a group and of those around it; inside a container the path may be that of the host."""
    inner = mount / path.lstrip("/")
    yield from (folder for folder in (inner, *inner.parents) if folder == mount or mount in folder.parents)


def _group(group: Group) -> Room | None:
    limit, used = _number(group.folder / group.limit), _number(group.folder / group.used)
    if limit is None or used is None or limit >= NO_LIMIT:
        return None
    return Room("control_group", limit, max(0, limit - used + _reclaimable(group)))


def _reclaimable(group: Group) -> int:
    """Files kept in memory count against a group and are dropped before anybody is killed."""
    try:
        lines = (group.folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    return sum(int(value) for name, _, value in (line.partition(" ") for line in lines) if name in group.cache)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None


def _machine() -> Room:
    """Swap counts: a machine that swaps is slow, and kills nobody yet."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return Room("machine", int(memory.total + swap.total), int(memory.available + swap.free))


def _address_space() -> Room | None:
    """What `ulimit -v` leaves; None without such a limit (and where there is none to set)."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= NO_LIMIT:
        return None
    return Room("address_space", limit, max(0, limit - mapped()))


def mapped() -> int:
    """Bytes of address space this process has taken."""
    found = _statm(0)
    return int(psutil.Process().memory_info().vms) if found is None else found


def resident() -> int:
    """Bytes of main memory this process holds; quick enough for every training step."""
    found = _statm(1)
    return int(psutil.Process().memory_info().rss) if found is None else found


def _statm(column: int) -> int | None:
    """Bytes by /proc/self/statm: 0 mapped, 1 resident; None where there is no such file."""
    try:
        return int((PROC / "statm").read_text(encoding="ascii").split()[column]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, UnicodeDecodeError):
        return None
