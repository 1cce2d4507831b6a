"""What a killed run left beside its goal goes with the next run there, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from studio import processes
from studio.config import MergeConfig
from studio.events import Launch, RunState, Status
from studio.output_leftovers import clear_leftovers, left_of
from studio.rundir import RunDir
from studio.workspace import Workspace


def merging(workspace: Workspace, out: Path) -> RunDir:
    return workspace.create_run(MergeConfig(base="crucible/ember", adapter="a", out=str(out)))


def half_made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    return folder


@pytest.fixture
def goals(tmp_path: Path) -> Path:
    """The folder results go to."""
    return half_made(tmp_path / "goals 目标")


def test_what_a_killed_run_left_is_removed(workspace: Workspace, goals: Path) -> None:
    killed, mine = merging(workspace, goals / "one"), merging(workspace, goals / "two")
    killed.write_launch(Launch(argv=[], attempt=1, **processes.record(2**22 + 1)))
    killed.write_status(Status(state=RunState.RUNNING, attempt=1))
    left, own = half_made(goals / f".{killed.id}.part"), half_made(goals / f".{mine.id}.part")
    assert left_of(killed) == left
    assert clear_leftovers(mine, goals) == [left]
    assert not left.exists()
    assert own.exists()


def test_what_a_live_run_fills_stays(workspace: Workspace, goals: Path) -> None:
    live, lost, mine = (merging(workspace, goals / name) for name in ("one", "two", "three"))
    live.write_launch(Launch(argv=[], attempt=1, **processes.record(psutil.Process().pid)))
    kept = [half_made(goals / f".{run.id}.part") for run in (live, lost)]
    with lost.engine_lock():  # its record is gone, its engine is not
        assert clear_leftovers(mine, goals) == []
    assert all(folder.exists() for folder in kept)


def test_only_working_folders_of_this_workspace_are_touched(workspace: Workspace, goals: Path, tmp_path: Path) -> None:
    mine, elsewhere = merging(workspace, goals / "one"), merging(workspace, tmp_path / "other" / "two")
    linked, plain = merging(workspace, goals / "three"), merging(workspace, goals / "four")
    foreign = merging(Workspace(tmp_path / "another"), goals / "five")
    names = (f".{elsewhere.id}.part", f"{plain.id}.part", f".{plain.id}", f".{plain.id}.part.part", "..part", ".x.part")
    kept = [half_made(goals / name) for name in names]
    if foreign.id not in {run.id for run in workspace.list_runs()}:
        kept.append(half_made(goals / f".{foreign.id}.part"))
    target = half_made(tmp_path / "precious")
    (goals / f".{linked.id}.part").symlink_to(target)
    assert clear_leftovers(mine, goals) == []
    assert all((folder / "model.safetensors").exists() for folder in [*kept, target])
