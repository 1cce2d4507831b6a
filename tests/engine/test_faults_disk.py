"""A disk that is full or may not be written, at every place the engine writes: the run says so, and nothing that was
saved is damaged; with room again it goes on as if nothing had been."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import (
    ADAPTER,
    Forked,
    assert_offered_checkpoints_are_whole,
    engine,
    fill,
    leftovers,
    mount,
    new_run,
    replace,
    rows_file,
    small_disk,
    step_reached,
)
from tiny import losses

from studio import processes
from studio.checkpoints import complete_checkpoints
from studio.engine import saving
from studio.engine.journal import Journal
from studio.engine.trainer import Trainer
from studio.events import ExitCode, Launch, RunError, RunState
from studio.rundir import RunDir
from studio.workspace import Workspace, WorkspaceError

NOBODY = 65534


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("small disk") / "d", megabytes=24) as folder:
        yield folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows_file(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> RunDir:
    """A run with all the room there is."""
    run = new_run(Workspace(tmp_path_factory.mktemp("roomy")), rows)
    assert engine(run) == 0
    return run


@pytest.fixture
def space(disk: Path) -> Iterator[Workspace]:
    """A workspace on the small disk, which is empty again afterwards."""
    workspace = Workspace(disk / "ws 丹炉")
    yield workspace
    (disk / "ballast").unlink(missing_ok=True)
    for run in workspace.list_runs():
        shutil.rmtree(run.path)


def says_it_is_full(run: RunDir, code: int) -> RunError:
    """What must hold after the disk has become full."""
    assert code == ExitCode.INTERNAL
    assert run.state() is RunState.FAILED
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    assert status.error.kind == "disk"
    assert "full" in status.error.message
    assert "resume" in status.error.hint
    assert status.exit_code == ExitCode.INTERNAL
    assert_offered_checkpoints_are_whole(run)
    return status.error


def goes_on_like(run: RunDir, whole: RunDir) -> None:
    assert engine(run, resume=True) == 0, run.log_file.read_text(encoding="utf-8")
    assert run.state() is RunState.FINISHED
    assert losses(run) == losses(whole)
    assert (run.path / ADAPTER).read_bytes() == (whole.path / ADAPTER).read_bytes()
    assert leftovers(run) == []


def at_step(step: int, action: Callable[[RunDir], None]) -> Callable[[RunDir], None]:
    """Do something when optimizer update `step` is done."""

    def around(update: Callable[..., None], journal: Journal, **changes: Any) -> None:
        update(journal, **changes)
        if changes.get("step") == step and changes.get("max_steps"):
            action(journal.run)

    return lambda run: replace(Journal, "update", around)


def before(owner: Any, name: str, step: int = 0) -> Callable[[Path], Callable[[RunDir], None]]:
    """The disk fills up just before a function is called (at that step)."""

    def prepare(disk: Path) -> Callable[[RunDir], None]:
        def around(original: Callable[..., Any], first: Any, *args: Any, **kwargs: Any) -> Any:
            if not step or first.state.global_step == step:
                fill(disk)
            return original(first, *args, **kwargs)

        return lambda run: replace(owner, name, around)

    return prepare


def in_verdict(disk: Path) -> Callable[[RunDir], None]:
    def around(phase: Callable[..., None], journal: Journal, name: Any, detail: str = "") -> None:
        phase(journal, name, detail)
        if name == "verdict":
            fill(disk)

    return lambda run: replace(Journal, "phase", around)


FULL = {
    "training": (lambda disk: at_step(3, lambda run: fill(disk)), [2]),
    "checkpoint, from its start": (before(Trainer, "save_model", 4), [2]),
    "checkpoint, from its optimizer on": (before(Trainer, "_save_optimizer_and_scheduler", 4), [2]),
    "checkpoint, at its random numbers": (before(Trainer, "_save_rng_state", 4), [2]),
    "adapter": (before(saving, "_save_adapter"), [6, 4]),
    "verdict": (in_verdict, [6, 4]),
}


@pytest.mark.parametrize("when", FULL)
def test_a_disk_that_becomes_full(space: Workspace, disk: Path, rows: Path, whole: RunDir, when: str) -> None:
    happens, kept = FULL[when]
    run = new_run(space, rows)
    says_it_is_full(run, engine(run, prepare=happens(disk)))
    assert [int(path.name.partition("-")[2]) for path in complete_checkpoints(run.checkpoints)] == kept
    known = {step: loss for step, loss in losses(whole).items() if step <= step_reached(run)}
    assert losses(run) == known, "every point that was written is there"
    assert run.adapter.exists() == (when == "verdict")
    (disk / "ballast").unlink()
    goes_on_like(run, whole)


def test_a_disk_that_is_full_from_the_start(space: Workspace, disk: Path, rows: Path, whole: RunDir) -> None:
    run = new_run(space, rows)

    def prepare(run: RunDir) -> None:
        run.write_launch(Launch(argv=["engine"], **processes.record(os.getpid())))  # as whoever starts it does
        fill(disk)

    assert engine(run, prepare=prepare) == ExitCode.INTERNAL
    assert run.state() is RunState.FAILED, "nothing could be written, not even why"
    assert run.read_status() is None
    (disk / "ballast").unlink()
    goes_on_like(run, whole)


def limit_files(size: int) -> None:
    """From now on no file of this process grows beyond so many bytes: a disk that is full for one file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_an_event_that_does_not_fit_is_not_there_in_part(space: Workspace, rows: Path, whole: RunDir) -> None:
    run = new_run(space, rows)
    prepare = at_step(3, lambda run: limit_files(run.events_file.stat().st_size + 20))
    says_it_is_full(run, engine(run, prepare=prepare))
    assert run.events_file.read_bytes().endswith(b"}\n")
    assert step_reached(run) == 2
    goes_on_like(run, whole)
    assert b"}\n\n{" not in run.events_file.read_bytes()


def test_a_log_that_cannot_grow(space: Workspace, rows: Path, whole: RunDir) -> None:
    run = new_run(space, rows)
    run.log_file.write_bytes(b"earlier\n" * 1_000_000)
    prepare = at_step(3, lambda run: limit_files(run.log_file.stat().st_size + 5))
    says_it_is_full(run, engine(run, prepare=prepare))
    assert step_reached(run) == 3, "the point is written before the line of the log"
    goes_on_like(run, whole)


def test_an_older_adapter_survives_a_full_disk(space: Workspace, disk: Path, rows: Path, whole: RunDir) -> None:
    run = new_run(space, rows)
    assert engine(run, prepare=at_step(4, RunDir.request_stop)) == ExitCode.STOPPED
    older = (run.path / ADAPTER).read_bytes()
    run.stop_file.unlink()
    says_it_is_full(run, engine(run, resume=True, prepare=before(saving, "_save_adapter")(disk)))
    assert (run.path / ADAPTER).read_bytes() == older
    says_it_is_full(run, engine(run, resume=True))
    (disk / "ballast").unlink()
    goes_on_like(run, whole)


def become_nobody(run: RunDir) -> None:
    """Go on as a user who may write nothing of the run."""
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_rights_taken_away_during_the_run(tmp_path: Path, rows: Path, whole: RunDir) -> None:
    run = new_run(Workspace(tmp_path / "ws"), rows)
    child = Forked(run, prepare=at_step(3, become_nobody))
    assert child.wait() == ExitCode.INTERNAL, run.log_file.read_text(encoding="utf-8")
    assert run.state() is RunState.LOST, run.log_file.read_text(encoding="utf-8")
    assert [path.name for path in complete_checkpoints(run.checkpoints)] == ["checkpoint-2"]
    assert step_reached(run) == 2
    assert "Permission denied" in run.log_file.read_text(encoding="utf-8")
    goes_on_like(run, whole)


@pytest.fixture
def read_only(space: Workspace, disk: Path, rows: Path) -> Iterator[RunDir]:
    """A run on a disk that has become read-only."""
    run = new_run(space, rows)
    mount("-o", "remount,ro", str(disk))
    yield run
    mount("-o", "remount,rw", str(disk))


def test_an_engine_on_a_read_only_disk(read_only: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    from studio.engine import train

    assert train.main(str(read_only.path)) == ExitCode.INTERNAL
    said = capfd.readouterr().err
    assert "cannot be written" in said
    assert "Traceback" not in said
    assert read_only.state() is RunState.QUEUED
    with pytest.raises(WorkspaceError, match="--workspace"):
        Workspace(read_only.path.parent.parent)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_log_that_takes_nothing_does_not_change_the_exit_code(tmp_path: Path, unbuffered: str) -> None:
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with Path("/dev/full").open("wb") as log:
        argv = [sys.executable, "-m", "studio.engine", "train", str(tmp_path)]
        done = subprocess.run(argv, stdout=log, stderr=log, env=env, check=False)
    assert done.returncode == ExitCode.BAD_INPUT
