"""Which chat servers of a workspace hold a model in memory, and how a run gets that memory.

A server's record is `chat/server-PORT.json` of the workspace; it counts only while the very process it names runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field

from studio import processes
from studio.rundir import write_atomic
from studio.workspace import Workspace

RELEASE_GRACE_S = 3.0
LOGS_KEPT = 8
"""Logs of servers that have ended: enough to find out why one of them did."""


class ChatHolder(BaseModel):
    """A chat server at work: its process, the base model it holds, and who started it.

    `started_at` unix seconds; `memory_bytes` main memory it takes now; `released_for`: the run it was ended for.
    """

    model_config = ConfigDict(extra="ignore")

    pid: int
    create_time: float
    host: str
    start_ticks: int | None = None
    boot_id: str | None = None
    pid_namespace: str | None = None
    port: int
    base: str
    started_at: float = Field(default_factory=time.time)
    memory_bytes: int = 0
    released_for: str = ""

    def at_work(self) -> bool:
        """True while that very process runs here: a later process with its pid is not it."""
        return processes.visible(self) and processes.runs(self)


def record_file(workspace: Workspace, port: int) -> Path:
    """Where the server at that port is recorded."""
    return workspace.path / "chat" / f"server-{port}.json"


def write_record(workspace: Workspace, record: ChatHolder) -> None:
    """Remember a server. Raises OSError."""
    write_atomic(record_file(workspace, record.port), record.model_dump_json(indent=1))


def read_record(file: Path) -> ChatHolder | None:
    """What a record says; None without one."""
    try:
        return ChatHolder.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def forget_ended(workspace: Workspace) -> None:
    """Remove what is left of servers that are gone: their records, but for those that tell a chat why, and all but the
    newest logs."""
    folder = workspace.path / "chat"
    for file in folder.glob("server-*.json"):
        record = read_record(file)
        if record is None or (not record.at_work() and not record.released_for):
            _forget(file)
    for log in sorted(folder.glob("server-*.log"), key=_written, reverse=True)[LOGS_KEPT:]:
        record = read_record(log.with_suffix(".json"))
        if record is None or not record.at_work():
            _forget(log)
            _forget(log.with_suffix(".json"))


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # another studio of this workspace was quicker
        return 0.0


def _forget(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)


def holders(workspace: Workspace) -> list[ChatHolder]:
    """Every chat server of this workspace that runs on this machine, with the memory it takes now."""
    found = []
    for file in sorted((workspace.path / "chat").glob("server-*.json")):
        record = read_record(file)
        if record and record.at_work():
            with contextlib.suppress(psutil.Error):
                memory = psutil.Process(record.pid).memory_info().rss
                found.append(record.model_copy(update={"memory_bytes": memory}))
    return found


def release(workspace: Workspace, run_id: str = "") -> list[ChatHolder]:
    """End every chat server of the workspace, so that run `run_id` gets their memory; returns those that were ended.

    Only the process a record names is signalled, and its process group if it leads one of its own.
    """
    ended = holders(workspace)
    for record in ended:
        with contextlib.suppress(OSError):  # a full disk costs the sentence in the chat tab, not the memory
            write_record(workspace, record.model_copy(update={"released_for": run_id or "-"}))
        _end(record)
    return ended


def _end(record: ChatHolder) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not record.at_work():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            own_group = os.getpgid(record.pid) == record.pid
            os.killpg(record.pid, number) if own_group else os.kill(record.pid, number)
        deadline = time.monotonic() + RELEASE_GRACE_S
        while record.at_work() and time.monotonic() < deadline:
            time.sleep(0.05)
