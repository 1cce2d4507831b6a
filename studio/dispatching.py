"""Whether a workspace's dispatcher is at work, and how it is started (`studio.dispatcher` is the process itself)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from studio import processes
from studio.rundir import write_atomic
from studio.workspace import Workspace


class Dispatcher(BaseModel):
    """`dispatcher.json` of a workspace: the process that was started last."""

    model_config = ConfigDict(extra="ignore")

    pid: int
    create_time: float
    host: str
    start_ticks: int | None = None
    boot_id: str | None = None
    pid_namespace: str | None = None


def lock(workspace: Workspace) -> FileLock:
    """What a dispatcher holds for as long as it works: there is one per workspace."""
    return FileLock(workspace.path / "dispatcher.lock", timeout=2)


def at_work(workspace: Workspace) -> bool:
    """True while some process starts the runs of this queue, or is just beginning to."""
    try:
        with lock(workspace).acquire(timeout=0):
            pass
    except Timeout:
        return True
    except OSError:
        return False
    found = recorded(workspace)
    return found is not None and processes.visible(found) and processes.runs(found)


def recorded(workspace: Workspace) -> Dispatcher | None:
    """The process that was started last, if it has not ended by itself."""
    try:
        return Dispatcher.model_validate_json(_file(workspace).read_bytes())
    except (OSError, ValueError):
        return None


def forget(workspace: Workspace) -> None:
    """The dispatcher's last act: nobody may take it for one that will look at the queue again."""
    with contextlib.suppress(OSError):
        _file(workspace).unlink(missing_ok=True)


def start(workspace: Workspace, engine: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Start a dispatcher that starts runs with this engine command; False when one is there, or it cannot be."""
    if at_work(workspace):
        return False
    try:
        with (workspace.path / "dispatcher.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "studio.dispatcher", str(workspace.path), *engine],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(environment),
                cwd=workspace.path,
            )
        write_atomic(_file(workspace), Dispatcher(**processes.record(child.pid)).model_dump_json(indent=1))
    except OSError:  # the next look tries again
        return False
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()
    return True


def _file(workspace: Workspace) -> Path:
    return workspace.path / "dispatcher.json"
