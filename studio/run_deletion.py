"""Deletes runs for good, with care: never a live one, one that waits in the queue, or one another run stands on."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from filelock import Timeout

from studio import run_queue, uploads
from studio.config import OutputConfig
from studio.events import RunState
from studio.library import folder_bytes, references
from studio.output_leftovers import left_of
from studio.rundir import RunDir
from studio.schema import ConfigError
from studio.workspace import RunNotFound, Workspace

TRASH = ".trash"
SENTENCES_SHOWN = 5


class DeletionRefused(RuntimeError):
    """A run that is not deleted; the message says why and what to do."""


@dataclass
class Deleted:
    """What became of an order to delete: ids that are gone, bytes they took, and a sentence for each refusal."""

    runs: list[str] = field(default_factory=list)
    bytes: int = 0
    refused: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise DeletionRefused when anything was refused."""
        if self.refused:
            more = len(self.refused) - SENTENCES_SHOWN
            shown = self.refused[:SENTENCES_SHOWN] + ([f"and {more} more"] if more > 0 else [])
            raise DeletionRefused("\n".join(shown))


def delete_runs(workspace: Workspace, run_ids: Sequence[str]) -> Deleted:
    """Delete runs, newest first, so that a chain of runs can go at once; what is refused stays.

    Raises StartRefused when another process holds the workspace.
    """
    found, gone = Deleted(), list[str]()
    with run_queue.locked(workspace):
        configs = _configs(workspace)
        for run_id in sorted(set(run_ids), reverse=True):
            try:
                run = _exact(workspace, run_id)
                check_deletable(run, configs)
                taken = folder_bytes(run.path)
                found.bytes += taken + _take_away(workspace, run)
            except (DeletionRefused, RunNotFound) as refusal:
                found.refused.append(str(refusal.args[0]))
                continue
            gone.append(configs.pop(run_id, ""))
            found.runs.append(run_id)
    found.bytes += uploads.sweep(workspace, gone)
    _empty_trash(workspace)  # gigabytes take a while; the runs are gone from the list already
    return found


def _empty_trash(workspace: Workspace) -> None:
    """Also what an earlier deletion was killed over."""
    with contextlib.suppress(OSError):
        for path in (workspace.runs / TRASH).iterdir():
            shutil.rmtree(path, ignore_errors=True)


def _exact(workspace: Workspace, run_id: str) -> RunDir:
    """The run of exactly this id: what is deleted is never found by a shorter name. Raises RunNotFound."""
    run = workspace.run(run_id)
    if run.id != run_id or not run.config_file.is_file():
        raise RunNotFound(f"there is no run {run_id!r} in {workspace.path}; `runs list` shows them all")
    return run


def _configs(workspace: Workspace) -> dict[str, str]:
    """The text of every run's configuration: what a run stands on is in it."""
    texts = {}
    for run in workspace.list_runs():
        with contextlib.suppress(OSError):
            texts[run.id] = run.config_file.read_text(encoding="utf-8", errors="replace")
    return texts


def check_deletable(run: RunDir, configs: dict[str, str]) -> None:
    """`configs`: the text of each other run's configuration. Raises DeletionRefused with a sentence."""
    state = run.state()
    if state.live:
        raise DeletionRefused(f"run {run.id} is {state} and cannot be deleted; stop it first")
    if run_queue.read(run):
        raise DeletionRefused(f"run {run.id} waits in the queue; take it out of the queue before you delete it")
    for other in (RunDir(run.path.parent / name) for name, text in configs.items() if run.id in text):
        if other.id != run.id and _stands_on(other, run):
            raise DeletionRefused(
                f"run {run.id} cannot be deleted: run {other.id} continues from it; delete that first"
            )


def _stands_on(other: RunDir, run: RunDir) -> bool:
    """Whether `other` needs what `run` left; an export only until it has ended."""
    try:
        config = other.config()
    except ConfigError:
        return False
    if not any(run.id in PurePath(reference).parts for reference in references(config)):
        return False
    state = other.state()
    return not isinstance(config, OutputConfig) or state.live or state is RunState.QUEUED


def _take_away(workspace: Workspace, run: RunDir) -> int:
    """Move a run out of sight in one step, after what it left half-made beside its goal. Raises DeletionRefused.

    Returns the bytes of the latter.
    """
    trash = workspace.runs / TRASH  # on the same disk, whatever `runs` is a link to
    try:
        with run.engine_lock():  # an engine whose record was lost with its starter still holds this
            left = left_of(run)  # only the run says where that is
            size = folder_bytes(left) if left else 0
            if left:
                shutil.rmtree(left, ignore_errors=True)
            trash.mkdir(exist_ok=True)
            shutil.rmtree(trash / run.id, ignore_errors=True)
            run.path.rename(trash / run.id)
            return size
    except Timeout:
        raise DeletionRefused(f"an engine is still at work on run {run.id}; stop it first") from None
    except OSError as error:
        raise DeletionRefused(f"run {run.id} cannot be deleted ({error.strerror}); check who may write there") from None
