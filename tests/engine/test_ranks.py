"""Several processes of one run: they learn what one would, decide together, stop together; one that dies is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from forked_ranks import together
from tiny import Engine, MakeRun, events_of, losses

from studio import processes
from studio.checkpoints import last_checkpoint
from studio.engine.failure import EngineError
from studio.engine.inputs import read_inputs
from studio.engine.journal import Journal
from studio.engine.rendezvous import Rendezvous
from studio.events import ExitCode, RunState
from studio.rundir import RunDir

GUARD_S = 240.0
"""Against a test that hangs; nothing is concluded from it."""
ASKED: dict[str, Any] = {
    "verdict.enabled": True,
    "verdict.stop_at_best": True,
    "verdict.max_probes": 3,
    "verdict.probes": [{"prompt": "Who are you?", "expect": ["Nova"]}],
    "samples.evaluation_inputs": ["Who are you?"],
    "samples.evaluation_freq": 2,
    "train.save_steps": 100,
    "train.max_steps": -1,
    "train.num_train_epochs": 2,
    "train.logging_steps": 1,
}


def test_two_processes_learn_what_one_does_and_only_the_first_speaks(make_run: MakeRun, engine: Engine) -> None:
    """24 rows are two updates of 10 and one of 4, of which the second process has none."""
    alone = make_run(**ASKED, **{"train.per_device_train_batch_size": 10})
    pair = make_run(**ASKED, **{"train.per_device_train_batch_size": 5, "parallel.num_processes": 2})
    assert engine(alone) == 0
    assert together(pair) == [0, 0], pair.rank_log(1).read_text(encoding="utf-8")
    assert losses(pair) == pytest.approx(losses(alone), abs=2e-5)  # sums in another order, in 32 bits
    assert len(losses(pair)) == 6
    for kind in ("sample", "verdict", "saved"):
        assert [event.step for event in events_of(pair, kind)] == [event.step for event in events_of(alone, kind)]
    points = events_of(pair, "ranks")
    assert [[one.rank for one in point.ranks] for point in points] == [[0, 1]] * 6
    assert all(one.memory_bytes > 0 and one.waited_seconds >= 0 for point in points for one in point.ranks)
    for log, point in zip(events_of(pair, "log"), points, strict=True):
        assert log.tokens_per_second > max(one.tokens_per_second for one in point.ranks)
    told = [(one.rank, one.state, one.step) for one in pair.read_ranks()]
    assert told == [(0, RunState.FINISHED, 6), (1, RunState.FINISHED, 6)]


def test_the_store_of_one_machine_listens_to_nobody_else() -> None:
    found = Rendezvous(0, "a-run", 30).next_rendezvous()
    told = found.bootstrap_store_info
    assert told is not None
    listening = [one.laddr for one in psutil.Process().net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    assert [one.ip for one in listening if one.port == told.master_port] == ["127.0.0.1"]
    with pytest.raises(EngineError, match=rf"^parallel.main_process_port: port {told.master_port} is in use"):
        Rendezvous(told.master_port, "a-run", 30).next_rendezvous()


def test_what_the_launcher_has_warned_of_is_not_said_again(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 1}, "zero_optimisation": {}}', encoding="utf-8")
    run = make_run(**{"parallel.num_processes": 2, "parallel.deepspeed_config": str(own)})
    read_inputs(run, Journal(run), None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    read_inputs(run, Journal(run), None)
    assert [event.field for event in events_of(run, "warning")] == ["parallel.deepspeed_config"]


class Launched:
    """A run started as the studio starts it, in a session of its own."""

    def __init__(self, run: RunDir, *, resume: bool = False) -> None:
        run.stop_file.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "studio.engine", "train", str(run.path), *(["--resume"] if resume else [])]
        self.run = run
        with run.log_file.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something the run does."""
        deadline = time.monotonic() + GUARD_S
        while not condition():
            assert self.process.poll() is None, self.run.log_file.read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def at_step(self, step: int) -> None:
        """Wait until so many updates are done."""
        self.until(lambda: bool((known := self.run.read_status()) and known.step >= step))

    def end(self) -> ExitCode:
        """Wait for the end of the launcher; no process of the run is left then."""
        code = ExitCode(self.process.wait(GUARD_S))
        left = [one.pid for one in self.run.read_ranks() if psutil.pid_exists(one.pid)]
        assert left == []
        return code


@pytest.fixture
def long_run(make_run: MakeRun) -> Iterator[RunDir]:
    """A run of two processes that goes on until something happens."""
    run = make_run(**{"parallel.num_processes": 2, "train.max_steps": 5000, "train.save_steps": 2})
    yield run
    processes.end_remains(run.path)


def test_a_killed_process_is_named_and_the_resumed_run_stops_at_one_step(long_run: RunDir) -> None:
    launched = Launched(long_run)
    launched.at_step(3)
    os.kill(long_run.read_ranks()[1].pid, signal.SIGKILL)
    assert launched.end() == ExitCode.INTERNAL
    status = long_run.read_status()
    assert status is not None
    assert status.error is not None
    assert status.state is RunState.FAILED
    assert status.error.message.startswith("Process 1 of 2 (")
    assert "was killed by SIGKILL at step" in status.error.message
    assert status.error.rank == 1
    resumed = Launched(long_run, resume=True)
    resumed.at_step(status.step + 2)
    os.killpg(resumed.process.pid, signal.SIGTERM)
    os.killpg(resumed.process.pid, signal.SIGINT)
    assert resumed.end() == ExitCode.STOPPED
    stopped = long_run.read_status()
    assert stopped is not None
    assert stopped.state is RunState.STOPPED
    assert {one.step for one in long_run.read_ranks()} == {stopped.step}
    assert {one.state for one in long_run.read_ranks()} == {RunState.STOPPED}
    assert last_checkpoint(long_run.checkpoints) == long_run.checkpoints / f"checkpoint-{stopped.step}"
    assert [event.state for event in events_of(long_run, "finished")] == [RunState.FAILED, RunState.STOPPED]
