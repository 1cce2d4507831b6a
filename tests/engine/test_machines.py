"""One run on two machines: started by DeepSpeed's own launcher, one of them hit in the middle, and resumed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tiny import Engine, MakeRun, losses
from two_machines import Machine, two_machines, wait, why_not

from studio.cli import main
from studio.events import RunState, Status
from studio.rundir import ENDED, RunDir
from studio.workspace import Workspace

STEPS, HIT_AFTER = 10, 4
# Sums of the same numbers in another order, in float32.
SAME = 1e-6


def status(run: RunDir) -> Status:
    """Its status, which is there as soon as it has begun."""
    wait(run.status_file.exists)
    found = run.read_status()
    assert found
    return found


def ended(run: RunDir) -> Status:
    """Its status at the end."""
    wait(lambda: status(run).state in ENDED)
    return status(run)


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_two_machines_train_as_one_process_would_also_when_one_is_hit_in_the_middle(
    make_run: MakeRun, engine: Engine, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make_run(**{"train.max_steps": STEPS})
    assert engine(alone) == 0
    expected = losses(alone)

    folder = tmp_path / "machines"
    shared = folder / "workspace"
    shared.mkdir(parents=True)
    with two_machines(folder, shared) as (first, second):
        monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
        start_all(alone, first, second, shared)
        here, there = first.only_run(), second.only_run()

        wait(lambda: status(here).step >= HIT_AFTER or status(here).state in ENDED)
        second.rank().kill()
        for run in (here, there):
            end = ended(run)
            assert (end.state, end.step < STEPS) == (RunState.FAILED, True), end
            assert end.error
            assert end.error.message.startswith("Process 1 of 2 (machine-1) was killed by SIGKILL")
        for machine in (first, second):
            wait(lambda machine=machine: not machine.at_work())  # type: ignore[misc]

        fewer = workspace.runs / "fewer"
        shutil.copytree(here.path, fewer)
        resume_alone(RunDir(fewer), engine)

        started = [one.run("runs", "resume", "last", "--detach", "--workspace", str(shared)) for one in (first, second)]
        assert [process.wait() for process in started] == [0, 0]
        wait(lambda: status(here).attempt == 2 and status(there).attempt == 2)
        assert (ended(here).state, ended(there).state) == (RunState.FINISHED, RunState.FINISHED)

    for run in (RunDir(fewer), here):
        assert losses(run) == pytest.approx(expected, rel=SAME)
    assert (here.adapter / "adapter_model.safetensors").is_file()
    assert not there.adapter.exists()
    assert [one.rank for one in here.read_ranks()] == [0, 1]
    assert not list((shared / "runs").iterdir())  # nothing lies on the machine it was started from


def start_all(alone: RunDir, first: Machine, second: Machine, shared: Path) -> None:
    """The same training on both machines, each with half of every batch."""
    hosts = shared.parent / "hosts"
    hosts.write_text(f"{first.name} slots=1\n{second.name} slots=1\n", encoding="utf-8")
    changes = {"train.per_device_train_batch_size": 2, "train.save_steps": 2, "parallel.ddp_timeout": 300}
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    argv = ["train", str(alone.config_file), *sets, "--hostfile", str(hosts), "--workspace", str(shared)]
    assert main(argv) == 0


def resume_alone(run: RunDir, engine: Engine) -> None:
    """The run goes on with one process on one machine."""
    run.change({"parallel.num_processes": 1, "parallel.num_machines": 1}, HIT_AFTER)
    assert engine(run, resume=True) == 0
