"""Stopping, crashing and going on: by file, by signal, by kill -9; a resumed run equals one that never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Engine, MakeRun, events_of, losses

from studio.checkpoints import last_checkpoint
from studio.engine.journal import Journal
from studio.events import ExitCode, RunState
from studio.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = "adapter/adapter_model.safetensors"
PATIENCE = 5800  # polls of 0.05 s: a guard against waiting for ever, not a limit on speed


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[Journal], None]) -> None:
    """Do `action` once, when the engine reports that optimizer update `step` is done."""
    original = Journal.update

    def update(self: Journal, **changes: Any) -> None:
        original(self, **changes)
        if changes.get("step") == step and changes.get("max_steps"):
            action(self)

    monkeypatch.setattr(Journal, "update", update)


def child(run: RunDir, cwd: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "studio.engine", "train", str(run.path)]
    with run.log_file.open("ab") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=cwd)


def wait_for(run: RunDir, process: subprocess.Popen[bytes], seen: Callable[[RunDir], bool]) -> None:
    for _ in range(PATIENCE):
        if seen(run):
            return
        assert process.poll() is None, run.log_file.read_text(encoding="utf-8")
        time.sleep(0.05)
    raise AssertionError("nothing happened")


def state_of(run: RunDir) -> RunState:
    status = run.read_status()
    assert status is not None
    return status.state


@pytest.fixture
def unbroken(make_run: MakeRun, engine: Engine) -> Callable[[dict[str, Any]], RunDir]:
    """The same run without an interruption."""

    def train(changes: dict[str, Any]) -> RunDir:
        run = make_run("qlora", **changes)
        assert engine(run) == 0
        return run

    return train


LONG: dict[str, Any] = {"train.max_steps": 12, "train.save_steps": 4, "lora.lora_dropout": 0.2}


@pytest.mark.parametrize("how", ["stop file", "SIGTERM", "SIGINT"])
def test_a_stop_saves_at_the_next_step_and_goes_on_as_if_nothing_had_been(
    make_run: MakeRun, engine: Engine, unbroken: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run = make_run("qlora", **LONG)
    with monkeypatch.context() as patch:
        if how == "stop file":
            at_step(patch, 5, lambda journal: journal.run.request_stop())
        else:
            at_step(patch, 5, lambda _: os.kill(os.getpid(), signal.Signals[how]))
        assert engine(run) == ExitCode.STOPPED
    assert state_of(run) is RunState.STOPPED
    assert max(losses(run)) == 5
    assert (run.path / ADAPTER).is_file()
    assert last_checkpoint(run.checkpoints) == run.checkpoints / "checkpoint-5"
    assert run.read_events()[0][-1].type == "finished"

    run.stop_file.unlink(missing_ok=True)
    assert engine(run, resume=True) == 0
    assert [event.resumed_from for event in events_of(run, "started")] == [None, 5]
    whole = unbroken(LONG)
    assert losses(run) == losses(whole)
    assert (run.path / ADAPTER).read_bytes() == (whole.path / ADAPTER).read_bytes()


def test_a_dataset_changed_before_a_resume_is_said(
    make_run: MakeRun, engine: Engine, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("qlora", **LONG, **{"data.dataset": str(rows)})
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda journal: journal.run.request_stop())
        assert engine(run) == ExitCode.STOPPED
    run.stop_file.unlink(missing_ok=True)
    rows.write_text(rows.read_text(encoding="utf-8").replace("Nova", "Vega"), encoding="utf-8")
    assert not [event for event in events_of(run, "warning") if "was changed" in event.message]
    assert engine(run, resume=True) == 0
    (said,) = [event for event in events_of(run, "warning") if "was changed" in event.message]
    assert "rows.jsonl" in said.message


def test_killed_without_warning_it_goes_on_from_the_last_checkpoint(
    make_run: MakeRun, engine: Engine, unbroken: Any, tmp_path: Path
) -> None:
    long = LONG | {"train.max_steps": 40, "train.save_steps": 6}
    run = make_run("qlora", **long)
    process = child(run, tmp_path)
    try:
        wait_for(run, process, lambda r: any(step >= 7 for step in losses(r)))
    finally:
        process.kill()
        process.wait()
    assert state_of(run) is RunState.RUNNING  # nobody was left to say otherwise
    last = last_checkpoint(run.checkpoints)
    assert last is not None
    (run.checkpoints / "checkpoint-300").mkdir()  # torn: the rotation would take it for the newest
    assert engine(run, resume=True) == 0
    assert not (run.checkpoints / "checkpoint-300").exists()
    assert events_of(run, "started")[-1].resumed_from == int(last.name.partition("-")[2])
    whole = unbroken(long)
    assert losses(run) == losses(whole)
    assert (run.path / ADAPTER).read_bytes() == (whole.path / ADAPTER).read_bytes()


def test_a_signal_while_loading_ends_cleanly(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("qlora")
    odd = run.path.with_name("a 'b' \"c\"\n丹炉 $(touch x)")
    run = RunDir(run.path.rename(odd))
    process = child(run, tmp_path)
    try:
        wait_for(run, process, lambda r: bool(events_of(r, "phase")))
        process.send_signal(signal.SIGTERM)
        assert process.wait() == ExitCode.STOPPED
    finally:
        process.kill()
        process.wait()
    assert state_of(run) is RunState.STOPPED
    assert not (tmp_path / "x").exists()


def test_a_stop_during_the_verdict_keeps_the_adapter(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Journal.phase

    def phase(self: Journal, name: Any, detail: str = "") -> None:
        original(self, name, detail)
        if name == "verdict":
            os.kill(os.getpid(), signal.SIGTERM)

    run = make_run("qlora", **{"samples.evaluation_inputs": ["Hi"]})
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "phase", phase)
        assert engine(run) == ExitCode.STOPPED
    assert (run.path / ADAPTER).is_file()
    assert not run.report_file.exists()
    assert engine(run, resume=True) == 0
    assert state_of(run) is RunState.FINISHED
    assert run.report_file.is_file()
    assert max(losses(run)) == 6


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    def checkpoint(step: int, state: str | None) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state, encoding="utf-8")
        return folder

    assert last_checkpoint(tmp_path / "none") is None
    assert last_checkpoint(tmp_path) is None
    good = checkpoint(9, json.dumps({"global_step": 9}))
    checkpoint(4, json.dumps({"global_step": 4}))
    checkpoint(12, None)
    checkpoint(13, '{"global_step": 1')
    checkpoint(14, json.dumps({"global_step": 13}))
    (tmp_path / "checkpoint-x").mkdir()
    assert last_checkpoint(tmp_path) == good


def test_no_more_checkpoints_than_asked_for(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**{"train.save_steps": 1, "train.save_total_limit": 2})
    assert engine(run) == 0
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["checkpoint-5", "checkpoint-6"]


def test_a_second_engine_refuses_and_touches_nothing(make_run: MakeRun, engine: Engine) -> None:
    run = make_run()
    with run.engine_lock():
        assert engine(run) == ExitCode.BAD_INPUT
    assert run.read_status() is None
    assert not run.events_file.exists()


def test_checkpoints_are_not_trained_over_by_accident(make_run: MakeRun, engine: Engine) -> None:
    run = make_run()
    assert engine(run) == 0
    before = run.status_file.read_bytes()
    assert engine(run) == ExitCode.BAD_INPUT
    assert run.status_file.read_bytes() == before
    shutil.rmtree(run.checkpoints)
    assert engine(run) == 0


def test_the_first_sign_of_life_needs_no_torch() -> None:
    program = "import studio.engine.train, sys; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
