"""The queue of a workspace: runs that wait for their start or their resume, in order.

A waiting run has a `queue.json` of its own in its directory; what holds for the whole queue is `queue.json` of the
workspace. Both are changed under the workspace's lock only. Who starts the next run is `studio.runner.start_waiting`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.remote_code import allowed
from studio.rundir import RunDir, write_atomic
from studio.workspace import Workspace

LAST = 1 << 31


class StartRefused(RuntimeError):
    """A run is neither started nor queued; the message says why. `blocking` is the run in the way, if there is one."""

    def __init__(self, message: str, blocking: str = "") -> None:
        super().__init__(message)
        self.blocking = blocking


class NotQueued(StartRefused):
    """The run does not wait in the queue."""


class Entry(BaseModel):
    """`queue.json` of a run: its place, smallest first, and what it waits with.

    `resume`: it goes on from its last checkpoint. `gpus`: the cards it wants, None for any `gpu_count` of them.
    `queued_at` unix seconds. `attempt`: the attempt its start will be; once that was launched the entry is over.
    `problem`: why its start was refused; it is paused then, so that the others go on. `trust_remote_code`: whether
    whoever queued it trusts the code of models; whoever starts it has to do so as well.
    """

    model_config = ConfigDict(extra="ignore")

    position: int
    paused: bool = False
    resume: bool = False
    gpus: list[int] | None = None
    gpu_count: int = Field(1, ge=0)
    queued_at: float = Field(default_factory=time.time)
    attempt: int = 1
    problem: str = ""
    trust_remote_code: bool = False


class Settings(BaseModel):
    """`queue.json` of a workspace. `max_running`: runs at once that share the main memory (no GPU of their own)."""

    model_config = ConfigDict(extra="ignore")

    paused: bool = False
    max_running: int = Field(1, ge=1, le=64)


@contextlib.contextmanager
def locked(workspace: Workspace) -> Iterator[None]:
    """Inside, this process is the only one that starts a run or changes the queue. Raises StartRefused."""
    try:
        lock = workspace.lock().acquire()
    except Timeout:
        raise StartRefused("another studio is starting a run in this workspace; try again in a moment") from None
    except OSError as error:
        raise StartRefused(f"the workspace cannot be written ({error.strerror}); free some disk space") from None
    with lock:
        yield


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(run: RunDir) -> Entry | None:
    """What the run waits with; None when it does not wait (any more)."""
    launch = run.read_launch()
    try:
        entry = Entry.model_validate_json(run.queue_file.read_bytes())
    except OSError:
        return None
    except ValueError:  # not written by a studio: a run that was never started must still be found to be removed
        return None if launch else Entry(position=LAST, paused=True, problem="its queue.json cannot be read")
    return entry if launch is None or launch.attempt < entry.attempt else None


def entries(workspace: Workspace) -> list[tuple[RunDir, Entry]]:
    """Every waiting run, the next one first."""
    # A run is made with its place first; before it has its configuration nobody else sees it.
    found = [(run, entry) for run in _with_file(workspace) if run.config_file.exists() and (entry := read(run))]
    return sorted(found, key=lambda pair: (pair[1].position, pair[1].queued_at, pair[0].id))


def _with_file(workspace: Workspace) -> list[RunDir]:
    # Asked twice a second, whatever number of runs there is: no Path for each, and nothing is read of the others.
    with os.scandir(workspace.runs) as listed:
        return [RunDir(Path(item.path)) for item in listed if os.path.exists(f"{item.path}/queue.json")]  # noqa: PTH110


def settings(workspace: Workspace) -> Settings:
    """What holds for the whole queue."""
    try:
        return Settings.model_validate_json(_settings_file(workspace).read_bytes())
    except (OSError, ValueError):
        return Settings()


def _settings_file(workspace: Workspace) -> Path:
    return workspace.path / "queue.json"


def has_work(workspace: Workspace) -> bool:
    """True while a run waits that nobody has paused."""
    return not settings(workspace).paused and any(not entry.paused for _, entry in entries(workspace))


# ---- changing --------------------------------------------------------------------------------------------------------


def next_entry(workspace: Workspace, run: RunDir | None = None) -> Entry:
    """An entry for the last place; of a `run` that was started before, for its next attempt."""
    waiting = entries(workspace)
    launch = run.read_launch() if run else None
    position = waiting[-1][1].position + 1 if waiting else 1
    attempt = launch.attempt + 1 if launch else 1
    return Entry(position=position, attempt=attempt, resume=launch is not None, trust_remote_code=allowed())


def enqueue(run: RunDir, *, gpus: list[int] | None = None, gpu_count: int = 1) -> Entry:
    """Put a run at the end of the queue: for its start, or for its resume if it was started before."""
    workspace = workspace_of(run)
    with locked(workspace):
        entry = next_entry(workspace, run).model_copy(update={"gpus": gpus, "gpu_count": gpu_count})
        write(run, entry)
    return entry


def move(run: RunDir, place: int) -> None:
    """Give a waiting run another place, counted from 1; beyond the end is the end. Raises NotQueued."""
    workspace = workspace_of(run)
    with locked(workspace):
        _waiting(run)
        others = [other for other, _ in entries(workspace) if other.id != run.id]
        others.insert(max(0, place - 1), run)
        for position, other in enumerate(others, 1):
            entry = _waiting(other)
            if entry.position != position:
                write(other, entry.model_copy(update={"position": position}))


def run_next(run: RunDir) -> None:
    """Put a waiting run first, and let it go on if it was paused. Raises NotQueued."""
    move(run, 1)
    unpause(run)


def pause(run: RunDir) -> None:
    """Let a waiting run keep its place without being started. Raises NotQueued."""
    with locked(workspace_of(run)):
        write(run, _waiting(run).model_copy(update={"paused": True}))


def unpause(run: RunDir) -> None:
    """Let a paused run be started again when its turn comes. Raises NotQueued."""
    with locked(workspace_of(run)):
        write(run, _waiting(run).model_copy(update={"paused": False, "problem": ""}))


def remove(run: RunDir) -> None:
    """Take a run out of the queue; one that was never started leaves nothing behind. Raises NotQueued."""
    with locked(workspace_of(run)):
        _waiting(run)
        drop(run)
        if run.read_launch() is None:
            shutil.rmtree(run.path, ignore_errors=True)


def pause_all(workspace: Workspace) -> None:
    """Start nothing from the queue until `unpause_all`; what runs goes on."""
    change_settings(workspace, paused=True)


def unpause_all(workspace: Workspace) -> None:
    """Start runs from the queue again."""
    change_settings(workspace, paused=False)


def change_settings(workspace: Workspace, *, paused: bool | None = None, max_running: int | None = None) -> Settings:
    """Change what holds for the whole queue. Raises StartRefused for a number that cannot be."""
    asked = {"paused": paused, "max_running": max_running}
    with locked(workspace):
        values = settings(workspace).model_dump() | {key: value for key, value in asked.items() if value is not None}
        try:
            changed = Settings.model_validate(values)
        except ValidationError:
            raise StartRefused(f"max_running: {max_running} is not a number from 1 to 64") from None
        _write(_settings_file(workspace), changed)
    return changed


def write(run: RunDir, entry: Entry) -> None:
    """Replace the run's entry; the caller holds the lock. Raises StartRefused when the disk is full."""
    _write(run.queue_file, entry)


def drop(run: RunDir) -> None:
    """Forget the run's entry; the caller holds the lock."""
    run.queue_file.unlink(missing_ok=True)


def started(workspace: Workspace) -> list[RunDir]:
    """Runs with an entry whose attempt has been launched: whoever started them was killed right after."""
    return [run for run in _with_file(workspace) if read(run) is None and run.queue_file.exists()]


def forget_started(workspace: Workspace) -> None:
    """Drop such entries, so that nothing is started twice; the caller holds the lock."""
    for run in started(workspace):
        drop(run)


def workspace_of(run: RunDir) -> Workspace:
    """The workspace a run lies in."""
    return Workspace(run.path.parent.parent)


def _waiting(run: RunDir) -> Entry:
    entry = read(run)
    if entry is None:
        raise NotQueued(f"run {run.id} does not wait in the queue (it is {run.state()})", run.id)
    return entry


def _write(path: Path, data: BaseModel) -> None:
    try:
        write_atomic(path, data.model_dump_json(indent=1))
    except OSError as error:
        raise StartRefused(f"the queue cannot be written ({error.strerror}); free some disk space") from None
