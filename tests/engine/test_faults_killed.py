"""kill -9 at any moment: nothing half-written is ever offered, no point of the curve is lost, and a resumed run ends
exactly as one that was never killed."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import (
    ADAPTER,
    STEPS,
    Forked,
    assert_offered_checkpoints_are_whole,
    die,
    engine,
    leftovers,
    new_run,
    replace,
    rows_file,
    step_reached,
    watch_files,
)
from tiny import events_of, losses

from studio import checkpoints
from studio.engine import saving
from studio.engine.journal import Journal
from studio.events import RunState
from studio.rundir import RunDir
from studio.workspace import Workspace

METHODS = ("lora", "qlora")
RANDOM_MOMENTS = 10


class Whole:
    """A run that nothing happened to."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.losses = losses(run)
        self.adapter = (run.path / ADAPTER).read_bytes()
        self.touched = len((run.path / "touched").read_bytes())


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("killed 'n' 丹炉"))


@pytest.fixture(scope="module")
def rows(space: Workspace) -> Path:
    return rows_file(space.path)


@pytest.fixture(scope="module")
def whole(space: Workspace, rows: Path) -> dict[str, Whole]:
    """Per method, the uninterrupted run, and how often it touched a file of its directory."""

    def count(run: RunDir) -> None:
        counter = os.open(run.path / "touched", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        watch_files(run, lambda *_: os.write(counter, b"."))

    found = {}
    for method in METHODS:
        run = new_run(space, rows, method)
        assert engine(run, prepare=count) == 0, run.log_file.read_text(encoding="utf-8")
        found[method] = Whole(run)
    return found


def killed(run: RunDir, prepare: Callable[[RunDir], None], *, resume: bool = False) -> None:
    """Run until it is killed, and check what must hold at once."""
    before = len(run.read_events()[0])
    child = Forked(run, resume=resume, prepare=prepare)
    child.wait_unreaped()
    assert run.state() is RunState.LOST, "a zombie is no engine"
    assert child.wait() == -signal.SIGKILL, run.log_file.read_text(encoding="utf-8")
    assert run.state() is RunState.LOST
    found = len(run.read_events()[0]) - before
    written = child.written()
    assert written <= found <= written + 1, "an event that was written is there; one may have been on its way"
    assert_offered_checkpoints_are_whole(run)


def goes_on_like(run: RunDir, whole: Whole) -> None:
    """Resume and compare with the run nothing happened to."""
    last = checkpoints.last_checkpoint(run.checkpoints)
    reached = step_reached(run)
    assert engine(run, resume=True) == 0, run.log_file.read_text(encoding="utf-8")
    assert run.state() is RunState.FINISHED
    started = events_of(run, "started")[-1]
    assert started.resumed_from == (checkpoints.step_of(last) if last else None)
    assert reached - (started.resumed_from or 0) <= 2, "not more is done again than lies between two checkpoints"
    assert losses(run) == whole.losses
    assert (run.path / ADAPTER).read_bytes() == whole.adapter
    assert leftovers(run) == []


def at_touch(number: int) -> Callable[[RunDir], None]:
    """Killed when a file of the run is touched for the `number`th time."""
    count = 0

    def seen(*_: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            die()

    return lambda run: watch_files(run, seen)


@pytest.mark.parametrize("moment", range(RANDOM_MOMENTS))
def test_killed_at_a_random_moment(space: Workspace, rows: Path, whole: dict[str, Whole], moment: int) -> None:
    method = METHODS[moment % 2]
    # The last touches are those of the end: a run that has said its last word is finished.
    last = whole[method].touched - 8
    dice = random.Random(f"moment {moment}")
    stratum = (last - 10) // RANDOM_MOMENTS
    at = 10 + moment * stratum + dice.randrange(stratum)
    run = new_run(space, rows, method)
    killed(run, at_touch(at))
    goes_on_like(run, whole[method])


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def during_the_second_checkpoint(owner: Any, name: str, where: Callable[..., Path | None]) -> Callable[[RunDir], None]:
    """Killed when a function has written half of a file of the checkpoint of step 4; `where`: the file, from its
    arguments."""

    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        path = where(*args, **kwargs)
        if path is not None and path.parent.name == "checkpoint-4":
            cut(path)
            die()
        return result

    return lambda run: replace(owner, name, around)


def peft_weights() -> Callable[[RunDir], None]:
    import peft.peft_model

    return during_the_second_checkpoint(peft.peft_model, "safe_save_file", lambda _, path, **kwargs: Path(path))


def optimizer() -> Callable[[RunDir], None]:
    return during_the_second_checkpoint(
        torch, "save", lambda _, path, *rest: Path(path) if Path(path).name == "optimizer.pt" else None
    )


def trainer_state() -> Callable[[RunDir], None]:
    from transformers import TrainerState

    return during_the_second_checkpoint(TrainerState, "save_to_json", lambda _, path: Path(path))


@pytest.mark.parametrize("file", [peft_weights, optimizer, trainer_state], ids=lambda file: file.__name__)
def test_killed_inside_a_checkpoint(
    space: Workspace, rows: Path, whole: dict[str, Whole], file: Callable[[], Callable[[RunDir], None]]
) -> None:
    run = new_run(space, rows)
    killed(run, file())
    assert (run.checkpoints / "checkpoint-4").is_dir(), "the torn one is there"
    assert [path.name for path in checkpoints.complete_checkpoints(run.checkpoints)] == ["checkpoint-2"]
    goes_on_like(run, whole["lora"])


def test_killed_before_the_files_of_a_checkpoint_are_listed(
    space: Workspace, rows: Path, whole: dict[str, Whole]
) -> None:
    run = new_run(space, rows)

    def around(seal: Callable[[Path], None], checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-4":
            die()
        seal(checkpoint)

    killed(run, lambda run: replace(checkpoints, "seal", around))
    assert [path.name for path in checkpoints.complete_checkpoints(run.checkpoints)] == ["checkpoint-4", "checkpoint-2"]
    goes_on_like(run, whole["lora"])


def test_killed_while_an_old_checkpoint_is_deleted(space: Workspace, rows: Path, whole: dict[str, Whole]) -> None:
    run = new_run(space, rows, **{"train.save_total_limit": 1})

    def around(rmtree: Callable[..., None], path: Path, **kwargs: Any) -> None:
        if "checkpoint-2" in str(path) and Path(path).exists():
            (Path(path) / "optimizer.pt").unlink()
            die()
        rmtree(path, **kwargs)

    killed(run, lambda run: replace(checkpoints.shutil, "rmtree", around))
    assert [path.name for path in checkpoints.complete_checkpoints(run.checkpoints)] == ["checkpoint-4"]
    goes_on_like(run, whole["lora"])


def test_killed_in_the_middle_of_a_line_of_events(space: Workspace, rows: Path, whole: dict[str, Whole]) -> None:
    run = new_run(space, rows)

    def around(write: Callable[[int, bytes], int], handle: int, data: bytes) -> int:
        if data.startswith(b'{"type":"log"') and b'"step":5,' in data:
            write(handle, data[: len(data) // 2])
            die()
        return write(handle, data)

    killed(run, lambda run: replace(os, "write", around))
    assert not run.events_file.read_bytes().endswith(b"\n")
    assert step_reached(run) == 4
    goes_on_like(run, whole["lora"])
    torn = [line for line in run.events_file.read_bytes().splitlines() if line and not line.endswith(b"}")]
    assert len(torn) == 1, "the torn line stays apart from the next one"


def test_killed_while_the_status_is_replaced(space: Workspace, rows: Path, whole: dict[str, Whole]) -> None:
    run = new_run(space, rows)

    def around(replace_file: Callable[[Path, Path], Path], new: Path, target: Path) -> Path:
        if target.name == "status.json" and '"step": 3' in new.read_text(encoding="utf-8"):
            die()
        return replace_file(new, target)

    killed(run, lambda run: replace(Path, "replace", around))
    assert len(leftovers(run)) == 1
    status = run.read_status()
    assert status is not None
    assert status.step < 3
    goes_on_like(run, whole["lora"])


def test_killed_inside_the_adapter(space: Workspace, rows: Path, whole: dict[str, Whole]) -> None:
    run = new_run(space, rows)

    def around(save: Callable[..., None], loaded: Any, folder: Path, *how: Any) -> None:
        save(loaded, folder, *how)
        cut(folder / "adapter_model.safetensors")
        die()

    killed(run, lambda run: replace(saving, "_save_adapter", around))
    assert not run.adapter.exists()
    goes_on_like(run, whole["lora"])


def test_killed_while_a_new_adapter_takes_the_place_of_the_old_one(
    space: Workspace, rows: Path, whole: dict[str, Whole]
) -> None:
    run = new_run(space, rows)

    def stop_at_4(update: Callable[..., None], journal: Journal, **changes: Any) -> None:
        update(journal, **changes)
        if changes.get("step") == 4:
            run.request_stop()

    assert engine(run, prepare=lambda run: replace(Journal, "update", stop_at_4)) == 3
    older = (run.path / ADAPTER).read_bytes()
    run.stop_file.unlink()

    def between(rename: Callable[[Path, Path], Path], path: Path, target: Path) -> Path:
        if path.name == "adapter.part":
            die()
        return rename(path, target)

    killed(run, lambda run: replace(Path, "rename", between), resume=True)
    assert not run.adapter.exists()
    killed(run, lambda run: replace(Journal, "phase", lambda *_: die()), resume=True)
    assert (run.path / ADAPTER).read_bytes() == older, "the next engine gives the old one back before anything else"
    goes_on_like(run, whole["lora"])


def test_killed_in_the_verdict_the_training_is_not_done_again(
    space: Workspace, rows: Path, whole: dict[str, Whole]
) -> None:
    run = new_run(space, rows, "qlora")

    def in_verdict(phase: Callable[..., None], journal: Journal, name: str, detail: str = "") -> None:
        phase(journal, name, detail)
        if name == "verdict":
            die()

    killed(run, lambda run: replace(Journal, "phase", in_verdict))
    assert (run.path / ADAPTER).read_bytes() == whole["qlora"].adapter
    points = len(events_of(run, "log"))
    goes_on_like(run, whole["qlora"])
    assert len(events_of(run, "log")) == points == STEPS
    assert run.read_report() is not None


def test_killed_again_and_again(space: Workspace, rows: Path, whole: dict[str, Whole]) -> None:
    run = new_run(space, rows, "qlora")
    killed(run, at_touch(whole["qlora"].touched // 3))
    killed(run, at_touch(whole["qlora"].touched // 3), resume=True)
    killed(run, at_touch(whole["qlora"].touched // 5), resume=True)
    goes_on_like(run, whole["qlora"])
    assert len(events_of(run, "started")) == 4
