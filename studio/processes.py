"""Which process is meant by a record on disk: a pid alone may name another one tomorrow.

Linux tells a process by its pid and the clock tick after boot at which it began. Neither changes when the clock is
set, while a creation time in Unix seconds does: it is only used where there is nothing better.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

CREATION_TOLERANCE_S = 2.0  # creation times are stable to a clock tick; pids are not handed out again this fast
RUN_MARK = "CRUCIBLE_RUN"  # environment of an engine and of all its children: the run's directory
ATTEMPT_MARK = "CRUCIBLE_ATTEMPT"  # the same: which start of that run it is
_PROC = Path("/proc")
# fmt: off
_NEEDED = frozenset({
    "PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "USER", "LOGNAME", "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "PYTHONHOME", "PYTHONUSERBASE",
    "PYTHONNOUSERSITE", "VIRTUAL_ENV", "SYSTEMROOT", "SYSTEMDRIVE", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "PATHEXT",
    "COMSPEC", RUN_MARK, ATTEMPT_MARK,
})
# fmt: on
_START_TICKS = 19  # fields of /proc/PID/stat behind the command's name: state is the first
_ENDED = ("Z", "X", "x")


class Recorded(Protocol):
    """What was written down about a process when it was started."""

    pid: int
    create_time: float
    host: str
    start_ticks: int | None
    boot_id: str | None
    pid_namespace: str | None


def record(pid: int) -> dict[str, Any]:
    """The fields of `Recorded` for a process of this machine; of one that is gone already none will ever match."""
    created = 0.0
    with contextlib.suppress(psutil.Error):
        created = psutil.Process(pid).create_time()
    stat = _stat(pid)
    return {
        "pid": pid,
        "create_time": created,
        "host": socket.gethostname(),
        "start_ticks": int(stat[_START_TICKS]) if stat else None,
        "boot_id": boot_id(),
        "pid_namespace": _pid_namespace(),
    }


def boot_id() -> str | None:
    """What the kernel calls the time since it was started; None where it has no name."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def visible(process: Recorded) -> bool:
    """True if the process, should it still run, can be seen from here.

    A machine may be renamed while it runs, so the name of the host only counts where the kernel does not tell more.
    """
    if process.host == socket.gethostname():
        return True
    return process.boot_id is not None and (process.boot_id, process.pid_namespace) == (boot_id(), _pid_namespace())


def runs(process: Recorded) -> bool:
    """True while that very process runs on this machine: not after a reboot, not as a zombie, not as another one."""
    if process.boot_id is not None and process.boot_id != boot_id():
        return False
    if process.start_ticks is not None and process.boot_id is not None:
        stat = _stat(process.pid)
        return stat is not None and int(stat[_START_TICKS]) == process.start_ticks and stat[0] not in _ENDED
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.create_time) < CREATION_TOLERANCE_S
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def marks(run: Path, attempt: int) -> dict[str, str]:
    """Environment variables by which an engine and whatever it starts are known again."""
    return {RUN_MARK: str(run), ATTEMPT_MARK: str(attempt)}


def bare_environment() -> dict[str, str]:
    """What a Python child needs to start and to be known again, and nothing else: no token, no key."""
    return {name: value for name, value in os.environ.items() if name.upper() in _NEEDED or name.startswith("LC_")}


def marked_attempt(environment: Mapping[str, str]) -> int | None:
    """Which start of a run a process with this environment belongs to, or None if it was not told."""
    text = environment.get(ATTEMPT_MARK, "")
    return int(text) if text.isdecimal() else None


def end_remains(run: Path) -> list[int]:
    """Kill what an engine that was killed itself left behind, and wait until it is gone. Returns the pids.

    Only processes with the mark of this run are touched: call it when no engine of the run is alive.
    """
    left = list(_marked(run))
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)
    return [process.pid for process in left]


def _marked(run: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(RUN_MARK) == str(run):
                yield process


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; a command's name before it may hold anything, even brackets."""
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].decode("ascii").split()
    except (OSError, UnicodeDecodeError):
        return None
    return fields if len(fields) > _START_TICKS else None


def _pid_namespace() -> str | None:
    """Containers of one machine count their processes apart."""
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return None
