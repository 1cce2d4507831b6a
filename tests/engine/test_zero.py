"""DeepSpeed ZeRO in one process: the losses of a run without it, also after kill -9 and a resume.

Every engine is a process of its own: DeepSpeed joins a process group and cannot leave it to the next run. Most are
forked from the test, which has torch loaded already; those that are killed, resumed or stopped start by the command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faults import Forked
from tiny import MakeRun, events_of, losses

from studio.checkpoints import complete_checkpoints, last_checkpoint
from studio.config import RunConfig
from studio.engine import zero
from studio.engine.failure import EngineError
from studio.events import ExitCode
from studio.rundir import RunDir
from studio.schema import ConfigError, build, merge

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = "adapter/adapter_model.safetensors"
LONG: dict[str, Any] = {"train.max_steps": 12, "train.save_steps": 4, "lora.lora_dropout": 0.2}
POLLS = 6000  # of 0.02 s: a guard against waiting for ever


def child(run: RunDir, *options: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "studio.engine", "train", str(run.path), *options]
    with run.log_file.open("ab") as log:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )


def finished(run: RunDir) -> RunDir:
    assert Forked(run).wait() == ExitCode.FINISHED, run.log_file.read_text(encoding="utf-8")
    return run


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_losses_are_those_of_a_run_without_it_and_a_killed_run_goes_on_as_if_nothing_had_been(
    method: str, make_run: MakeRun
) -> None:
    unbroken = finished(make_run(method, **LONG, **{"parallel.deepspeed": "zero2"}))
    if method == "lora":
        plain = finished(make_run(method, **LONG))
        assert losses(unbroken) == pytest.approx(losses(plain), rel=1e-5)

    killed = make_run(method, **LONG, **{"parallel.deepspeed": "zero2"})
    engine = child(killed)
    for _ in range(POLLS):
        if last_checkpoint(killed.checkpoints):
            break
        assert engine.poll() is None, killed.log_file.read_text(encoding="utf-8")
        time.sleep(0.02)
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    saved = last_checkpoint(killed.checkpoints)
    assert saved is not None
    assert any(saved.glob("global_step*/*optim_states.pt")), "the checkpoint is not DeepSpeed's"
    assert child(killed, "--resume").wait() == ExitCode.FINISHED, killed.log_file.read_text(encoding="utf-8")
    starts = [event.resumed_from for event in events_of(killed, "started")]
    assert len(starts) == 2
    assert starts[1] is not None
    assert losses(killed) == losses(unbroken)
    assert (killed.path / ADAPTER).read_bytes() == (unbroken.path / ADAPTER).read_bytes()


def test_the_other_stages_train_alike(make_run: MakeRun) -> None:
    plain = finished(make_run("full"))
    for stage in ("zero1", "zero2_offload"):
        run = finished(make_run("full", **{"parallel.deepspeed": stage}))
        assert losses(run) == pytest.approx(losses(plain), rel=1e-4)
        assert [event.what for event in events_of(run, "saved")][-1] == "model"
        assert (run.model / "model.safetensors").is_file()


def test_the_best_step_is_kept_and_a_stop_saves(make_run: MakeRun) -> None:
    changes = {
        "parallel.deepspeed": "zero2",
        "data.validation_share": 0.3,
        "train.eval_steps": 2,
        "train.load_best_model_at_end": True,
        "samples.evaluation_inputs": ["Who are you?"],
        "samples.evaluation_freq": 2,
    }
    run = finished(make_run("lora", **changes))
    report = run.read_report()
    assert report is not None
    assert report["ending"]["best_step"] in (2, 4, 6)

    stopped = make_run("lora", **{"parallel.deepspeed": "zero2", "train.max_steps": 400})
    engine = child(stopped)
    for _ in range(POLLS):
        if len(losses(stopped)) >= 2:
            break
        assert engine.poll() is None, stopped.log_file.read_text(encoding="utf-8")
        time.sleep(0.02)
    stopped.request_stop()
    assert engine.wait() == ExitCode.STOPPED
    assert complete_checkpoints(stopped.checkpoints)
    assert (stopped.path / ADAPTER).is_file()


def test_a_trainer_that_left_it_out_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"parallel\.deepspeed"):
        zero.confirm(object())


def test_the_presets_leave_what_the_trainer_knows_to_the_trainer() -> None:
    files = sorted(zero.PRESETS.glob("*.json"))
    assert [file.stem for file in files] == ["zero1", "zero2", "zero2_offload"]
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert found["train_micro_batch_size_per_gpu"] == found["gradient_clipping"] == "auto"
        assert found["zero_optimization"]["stage"] == int(file.stem[4])
        assert ("offload_optimizer" in found["zero_optimization"]) == file.stem.endswith("_offload")


def test_an_optimizer_that_pages_by_itself_is_refused_with_offload() -> None:
    layer = {
        "model.model_name_or_path": "crucible/ember",
        "data.dataset": "identity",
        "parallel.deepspeed": "deepspeed_zero2_offload",
        "train.optim": "paged_adamw_8bit",
    }
    with pytest.raises(ConfigError, match="paged_adamw_8bit"):
        build(RunConfig, merge(RunConfig, layer))
