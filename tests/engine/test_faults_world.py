"""What the world does to a run: the clock is set back, folders are moved, renamed and deleted, two engines meet,
signals come twice or are not heard, files are damaged from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import (
    ADAPTER,
    STEPS,
    Forked,
    assert_offered_checkpoints_are_whole,
    engine,
    leftovers,
    new_run,
    replace,
    rows_file,
    step_reached,
)
from tiny import EMBER, events_of, losses

from studio import checkpoints, processes, runner
from studio.engine.journal import Journal
from studio.events import ExitCode, Launch, RunState
from studio.rundir import RunDir
from studio.workspace import Workspace

VALIDATED: dict[str, Any] = {
    "train.load_best_model_at_end": True,
    "train.eval_steps": 2,
    "train.save_total_limit": -1,
    "data.validation_share": 0.25,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows_file(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> RunDir:
    """A run that nothing happened to."""
    run = new_run(Workspace(tmp_path_factory.mktemp("whole")), rows)
    assert engine(run) == 0
    return run


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "space")


def at_step(step: int, action: Callable[[RunDir], Any]) -> Callable[[RunDir], None]:
    """Do something when optimizer update `step` is done."""

    def around(update: Callable[..., None], journal: Journal, **changes: Any) -> None:
        update(journal, **changes)
        if changes.get("step") == step and changes.get("max_steps"):
            action(journal.run)

    return lambda run: replace(Journal, "update", around)


def in_phase(name: str, action: Callable[[RunDir], Any]) -> Callable[[RunDir], None]:
    """Do something when a phase begins."""

    def around(phase: Callable[..., None], journal: Journal, begun: str, detail: str = "") -> None:
        phase(journal, begun, detail)
        if begun == name:
            action(journal.run)

    return lambda run: replace(Journal, "phase", around)


def goes_on_like(run: RunDir, whole: RunDir) -> None:
    assert engine(run, resume=True) == 0, run.log_file.read_text(encoding="utf-8")
    ended_like(run, whole)


def ended_like(run: RunDir, whole: RunDir) -> None:
    assert run.state() is RunState.FINISHED
    assert losses(run) == losses(whole)
    assert (run.path / ADAPTER).read_bytes() == (whole.path / ADAPTER).read_bytes()
    assert leftovers(run) == []


def stopped_at(run: RunDir, step: int) -> RunDir:
    """Stopped by its stop file after that step."""
    assert engine(run, prepare=at_step(step, RunDir.request_stop)) == ExitCode.STOPPED
    run.stop_file.unlink()
    return run


@pytest.fixture
def held(space: Workspace, rows: Path) -> Iterator[Forked]:
    """An engine at work that waits for ever after step 3, and is told of nothing."""

    def wait(run: RunDir) -> None:
        (run.path / "held").touch()
        while True:
            time.sleep(60)

    def prepare(run: RunDir) -> None:
        replace(Journal, "_signalled", lambda *_: None)
        at_step(3, wait)(run)

    child = Forked(new_run(space, rows), prepare=prepare)
    while not (child.run.path / "held").exists():
        assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        time.sleep(0.05)
    yield child
    child.kill()


# ---- the clock -------------------------------------------------------------------------------------------------------


def hour_back(run: RunDir) -> None:
    now = time.time
    time.time = lambda: now() - 3600


def test_the_clock_is_set_back_during_the_run(space: Workspace, rows: Path, whole: RunDir) -> None:
    run = new_run(space, rows)

    def prepare(run: RunDir) -> None:
        run.write_launch(Launch(argv=["engine"], attempt=1, **processes.record(os.getpid())))
        os.environ.update(processes.marks(run.path, 1))
        at_step(3, hour_back)(run)

    assert engine(run, prepare=prepare) == 0
    status, launch = run.read_status(), run.read_launch()
    assert status is not None
    assert launch is not None
    assert status.updated_at < launch.started_at, "the end lies before the beginning"
    ended_like(run, whole)


def test_files_from_the_future_do_not_push_the_newest_checkpoint_out(
    space: Workspace, rows: Path, whole: RunDir
) -> None:
    def age(seal: Callable[[Path], None], checkpoint: Path) -> None:
        seal(checkpoint)
        later = time.time() + 10_000 * (10 - checkpoints.step_of(checkpoint))
        os.utime(checkpoint, (later, later))

    run = new_run(space, rows)
    assert engine(run, prepare=lambda run: replace(checkpoints, "seal", age)) == 0
    assert [path.name for path in checkpoints.complete_checkpoints(run.checkpoints)] == ["checkpoint-6", "checkpoint-4"]
    ended_like(run, whole)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_workspace_moved_between_stop_and_resume(space: Workspace, rows: Path, whole: RunDir, tmp_path: Path) -> None:
    run = stopped_at(new_run(space, rows), 3)
    moved = Workspace(space.path.rename(tmp_path / "else where"))
    assert moved.run(run.id).state() is RunState.STOPPED
    goes_on_like(moved.run(run.id), whole)
    assert not space.path.exists()


def test_the_best_checkpoint_is_found_in_a_moved_workspace(space: Workspace, rows: Path, tmp_path: Path) -> None:
    run = stopped_at(new_run(space, rows, **VALIDATED), STEPS)  # nothing is left to do but to save the best
    moved = Workspace(space.path.rename(tmp_path / "moved"))
    now = moved.run(run.id)
    state = now.checkpoints / f"checkpoint-{STEPS}" / checkpoints.STATE
    known = json.loads(state.read_bytes())
    assert known["best_model_checkpoint"].startswith(str(run.checkpoints))
    best = {"best_metric": 0.001, "best_global_step": 4, "best_model_checkpoint": str(run.checkpoints / "checkpoint-4")}
    state.write_text(json.dumps(known | best))
    assert engine(now, resume=True) == 0
    report = now.read_report()
    assert report is not None
    assert max(losses(now)) == STEPS, "in the middle of an epoch, the library would make one update too many"
    assert report["ending"]["best_step"] == 4
    saved = (now.path / ADAPTER).read_bytes()
    assert saved == (now.checkpoints / "checkpoint-4" / "adapter_model.safetensors").read_bytes()
    assert saved != (now.checkpoints / f"checkpoint-{STEPS}" / "adapter_model.safetensors").read_bytes()


def test_a_run_that_continues_another_one_in_a_moved_workspace(space: Workspace, rows: Path, tmp_path: Path) -> None:
    first = stopped_at(new_run(space, rows), 2)
    apart = new_run(space, rows, **{"model.adapter": first.id})
    assert engine(apart) == 0
    second = stopped_at(new_run(space, rows, **{"model.adapter": first.id}), 3)
    moved = Workspace(space.path.rename(tmp_path / "moved"))
    goes_on_like(moved.run(second.id), moved.run(apart.id))


def test_a_workspace_moved_during_the_run(space: Workspace, rows: Path, whole: RunDir, tmp_path: Path) -> None:
    there = tmp_path / "moved"
    run = new_run(space, rows)
    child = Forked(run, prepare=at_step(3, lambda _: space.path.rename(there)))
    assert child.wait() == ExitCode.INTERNAL
    assert not space.path.exists(), "no second workspace grows where the first one was"
    moved = Workspace(there).run(run.id)
    assert moved.state() is RunState.LOST
    assert "was moved or deleted" in moved.log_file.read_text(encoding="utf-8")
    assert step_reached(moved) == 2
    goes_on_like(moved, whole)


def test_a_run_deleted_while_it_is_at_work(space: Workspace, rows: Path) -> None:
    run = new_run(space, rows, **{"train.logging_steps": 100})
    assert Forked(run, prepare=at_step(3, lambda run: shutil.rmtree(run.path))).wait() == ExitCode.INTERNAL
    assert not run.path.exists()
    assert space.list_runs() == []


HOSTILE = [
    "new\nline",
    "-rf --help",
    "[ab]*? {x,y}",
    "100% $(touch x) `id` ;& | # !",
    "'single' \"double\" \\back",
    " 空格 and trailing ",
    "~",
    "ünïcödé 丹炉 😀 \u202e",
    "x" * 200,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_path(tmp_path: Path, rows: Path, whole: RunDir, name: str) -> None:
    run = new_run(Workspace(tmp_path / name / "-ws"), rows, **{"train.max_steps": 3})
    assert engine(run) == 0, run.log_file.read_text(encoding="utf-8")
    first = {step: loss for step, loss in losses(run).items() if step == 1}
    assert first == {1: losses(whole)[1]}
    assert_offered_checkpoints_are_whole(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("moment", ["load", "tokenise", "train"])
def test_the_model_folder_is_deleted_during_the_run(
    space: Workspace, rows: Path, whole: RunDir, tmp_path: Path, moment: str
) -> None:
    folder = Path(shutil.copytree(EMBER, tmp_path / "model"))
    run = new_run(space, rows, **{"model.model_name_or_path": str(folder)})
    code = engine(run, prepare=in_phase(moment, lambda _: shutil.rmtree(folder, ignore_errors=True)))
    if moment == "load":
        assert code == ExitCode.BAD_INPUT
        status = run.read_status()
        assert status is not None
        assert status.error is not None
        assert (status.error.kind, status.error.field) == ("model", "model.model_name_or_path")
        shutil.copytree(EMBER, folder)
        assert engine(run, resume=True) == 0
    else:
        assert code == 0, run.log_file.read_text(encoding="utf-8")
    assert losses(run) == losses(whole)
    assert_offered_checkpoints_are_whole(run)


def test_a_model_folder_that_is_gone_at_the_resume_costs_nothing(
    space: Workspace, rows: Path, whole: RunDir, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(EMBER, tmp_path / "model"))
    run = stopped_at(new_run(space, rows, **{"model.model_name_or_path": str(folder)}), 4)
    older = (run.path / ADAPTER).read_bytes()
    folder.rename(tmp_path / "away")
    assert engine(run, resume=True) == ExitCode.BAD_INPUT
    assert run.state() is RunState.FAILED
    assert (run.path / ADAPTER).read_bytes() == older
    (tmp_path / "away").rename(folder)
    assert engine(run, resume=True) == 0
    assert losses(run) == losses(whole)


# ---- two engines, signals --------------------------------------------------------------------------------------------


def test_two_engines_at_the_same_moment(space: Workspace, rows: Path, whole: RunDir) -> None:
    run = new_run(space, rows)
    both = [Forked(run), Forked(run)]
    assert sorted(child.wait() for child in both) == [0, ExitCode.BAD_INPUT]
    assert len(events_of(run, "started")) == 1
    assert "another engine is at work" in run.log_file.read_text(encoding="utf-8")
    ended_like(run, whole)


def test_an_engine_nobody_recorded_is_not_started_a_second_time(held: Forked) -> None:
    run = held.run
    launch = run.read_launch()
    assert launch is not None
    assert launch.pid == held.pid
    assert run.state() is RunState.RUNNING
    with pytest.raises(runner.StartRefused, match=str(held.pid)):
        runner.start(run)
    held.kill()
    assert run.state() is RunState.LOST


def test_an_engine_that_hears_nothing_is_killed_and_nobody_else(held: Forked, whole: RunDir) -> None:
    run = held.run
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        assert runner.stop(run, stop_grace=0.2, term_grace=0.2) is RunState.LOST
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert held.wait() == -signal.SIGKILL
    run.stop_file.unlink()
    goes_on_like(run, whole)


def test_a_frozen_engine_is_running_until_it_is_killed(held: Forked) -> None:
    os.kill(held.pid, signal.SIGSTOP)
    assert held.run.state() is RunState.RUNNING
    assert runner.stop(held.run, stop_grace=0.2, term_grace=0.2) is RunState.LOST


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_does_not_keep_the_last_word_from_being_said(
    space: Workspace, rows: Path, number: signal.Signals
) -> None:
    def finish(original: Callable[..., None], journal: Journal, *args: Any) -> None:
        os.kill(os.getpid(), number)
        original(journal, *args)
        os.kill(os.getpid(), number)

    def prepare(run: RunDir) -> None:
        replace(Journal, "finish", finish)
        in_phase("tokenise", lambda _: os.kill(os.getpid(), number))(run)

    run = new_run(space, rows)
    assert engine(run, prepare=prepare) == ExitCode.STOPPED
    assert run.state() is RunState.STOPPED
    assert run.read_events()[0][-1].type == "finished"


# ---- damaged files ---------------------------------------------------------------------------------------------------


def lose(run: RunDir) -> RunDir:
    """Killed after step 5."""
    assert engine(run, prepare=at_step(5, lambda _: os.kill(os.getpid(), signal.SIGKILL))) == -signal.SIGKILL
    return run


def half(run: RunDir) -> None:
    run.status_file.write_bytes(run.status_file.read_bytes()[:30])


def empty(run: RunDir) -> None:
    run.status_file.write_bytes(b"")


def zeros(run: RunDir) -> None:
    run.status_file.write_bytes(bytes(run.status_file.stat().st_size))


def foreign(run: RunDir) -> None:
    run.status_file.write_text('{"state": "paused", "step": []}')


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> RunDir:
    return lose(new_run(Workspace(tmp_path_factory.mktemp("lost")), rows))


@pytest.mark.parametrize("damage", [half, empty, zeros, foreign], ids=lambda damage: damage.__name__)
def test_a_damaged_status_is_told_from_the_events(
    lost: RunDir, whole: RunDir, tmp_path: Path, damage: Callable[[RunDir], None]
) -> None:
    copy = RunDir(Path(shutil.copytree(lost.path, tmp_path / lost.id)))
    damage(copy)
    assert copy.state() is RunState.LOST
    status = copy.read_status()
    assert status is not None
    assert (status.step, status.phase) == (step_reached(lost), "train")
    done = RunDir(Path(shutil.copytree(whole.path, tmp_path / "done")))
    damage(done)
    assert done.state() is RunState.FINISHED
    told = done.read_status()
    assert told is not None
    assert (told.step, told.exit_code) == (STEPS, 0)


def test_a_live_engine_writes_a_damaged_status_anew(held: Forked) -> None:
    half(held.run)
    assert held.run.state() in (RunState.RUNNING, RunState.STARTING)
    while b'"step": 3' not in held.run.status_file.read_bytes():
        time.sleep(0.05)
    assert held.run.state() is RunState.RUNNING


def test_a_machine_that_was_switched_off(lost: RunDir, whole: RunDir, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(lost.path, tmp_path / lost.id)))
    # After the reboot another process has the pid, and as it happens it began at the same tick after the boot.
    me = processes.record(os.getpid())
    run.write_launch(Launch(argv=["engine"], **me))
    assert run.alive()
    run.write_launch(Launch(argv=["engine"], **(me | {"boot_id": "another boot", "create_time": 1.0})))
    with run.events_file.open("ab") as file:
        file.write(bytes(5000))  # blocks that were promised and never written
    assert run.state() is RunState.LOST
    assert step_reached(run) == 4
    goes_on_like(run, whole)


def test_events_that_were_damaged_from_outside(lost: RunDir, whole: RunDir, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(lost.path, tmp_path / lost.id)))
    lines = run.events_file.read_bytes().splitlines(keepends=True)
    between = [
        b'{"type":"from_the_future","step":3}\n',
        b"\xff\xfe\x00 not text\n",
        b"[]\n",
        b"\n",
        b"{" * 10_000 + b"\n",
    ]
    mixed = b"".join(line + between[number % len(between)] for number, line in enumerate(lines))
    run.events_file.write_bytes(mixed[: mixed.find(b'"step":4') + 8])  # and truncated inside a line
    assert run.state() is RunState.LOST
    assert {step: loss for step, loss in losses(run).items() if step > 3} == {}
    assert engine(run, resume=True) == 0
    found = losses(run)
    assert found == {step: loss for step, loss in losses(whole).items() if step in found}
    assert max(found) == STEPS


# ---- everything real: the runner, a process of its own, a locale without letters -------------------------------------


def test_killed_and_resumed_by_the_runner(tmp_path: Path, whole: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "工作 'x'\n"
    folder.mkdir()
    run = new_run(Workspace(folder / "ws"), rows_file(folder), **{"train.save_steps": 1})
    runner.start(run)
    while step_reached(run) < 3:
        assert run.state().live, run.log_file.read_text(encoding="utf-8")
        time.sleep(0.02)
    launch = run.read_launch()
    assert launch is not None
    os.kill(launch.pid, signal.SIGKILL)
    while run.state().live:
        time.sleep(0.02)
    # So fast a machine that it was finished before the signal came is no failure of the run.
    assert run.state() in (RunState.LOST, RunState.FINISHED)
    if run.state() is RunState.LOST:
        runner.resume(run)
        assert run.state().live, "what the first engine said last is not taken for the second's word"
        while run.state().live:
            time.sleep(0.05)
        launch, status = run.read_launch(), run.read_status()
        assert launch is not None
        assert status is not None
        assert (launch.attempt, status.attempt) == (2, 2)
    ended_like(run, whole)
