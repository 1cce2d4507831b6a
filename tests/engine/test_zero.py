"""DeepSpeed ZeRO in one process and in two: the losses and weights of a run without it, also after kill -9.

Every engine is a process of its own: DeepSpeed joins a process group and cannot leave it to the next run. Most are
forked from the test, which has torch loaded already; those that are killed, resumed or stopped start by the command.

Losses are compared to 1e-5 and weights to 1e-6: numbers are added up in another order, in 32 bits.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Forked
from forked_ranks import said, together
from safetensors.torch import load_file
from tiny import MakeRun, events_of, losses

from studio.checkpoints import OPTIMIZER, complete_checkpoints, last_checkpoint
from studio.config import ParallelSection
from studio.deepspeed_settings import KNOWN, zero_in
from studio.engine import zero
from studio.engine.failure import EngineError
from studio.events import ExitCode
from studio.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = "adapter/adapter_model.safetensors"
LONG: dict[str, Any] = {"train.max_steps": 12, "train.save_steps": 4, "lora.lora_dropout": 0.2}
POLLS = 30_000  # of 0.02 s: a guard against waiting for ever


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
    assert (saved / OPTIMIZER).is_file(), "DeepSpeed did not take part"
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


@functools.cache
def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a result."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


ASKED = {
    "samples.evaluation_inputs": ["Who are you?"],
    "samples.evaluation_freq": 2,
    "verdict.enabled": True,
    "verdict.max_probes": 2,
}
TWO: list[tuple[str, str, dict[str, Any]]] = [
    ("full", "zero3", {"train.load_best_model_at_end": True, "train.eval_steps": 2, "data.validation_share": 1 / 3}),
    ("lora", "zero3_offload", ASKED | {"lora.init_lora_weights": "pissa", "train.gradient_checkpointing": True}),
    ("qlora", "zero3", {}),
    ("qlora", "zero2", {}),
]


@pytest.mark.parametrize(("method", "stage", "changes"), TWO, ids=[f"{method} {stage}" for method, stage, _ in TWO])
def test_two_processes_train_as_one_that_divides_nothing(
    method: str, stage: str, changes: dict[str, Any], make_run: MakeRun
) -> None:
    changes = {"train.max_steps": 4} | changes
    plain = finished(make_run(method, **changes))
    halves = {"train.per_device_train_batch_size": 2, "parallel.num_processes": 2, "parallel.deepspeed": stage}
    run = make_run(method, **changes, **halves)
    assert together(run) == [0, 0], said(run)

    assert losses(run) == pytest.approx(losses(plain), rel=1e-5)
    result = "model" if method == "full" else "adapter"
    expected, found = weights_of(plain.path / result), weights_of(run.path / result)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    for kind, field in (("sample", "answer"), ("verdict", "learned")):
        assert [getattr(event, field) for event in events_of(run, kind)] == [
            getattr(event, field) for event in events_of(plain, kind)
        ]
    assert [event.step for event in events_of(run, "log")] == [1, 2, 3, 4], "the second process wrote events too"
    assert run.rank_log(1).is_file()


def test_own_settings_of_deepspeed_are_read_from_the_copy_in_the_run(make_run: MakeRun, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    rates = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    own.write_text(json.dumps({
        "optimizer": {"type": "AdamW", "params": rates},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
    }))  # fmt: skip
    run = make_run("lora", **{"parallel.deepspeed_config": str(own), "train.max_steps": 3})
    own.unlink()
    finished(run)
    assert losses(run) == pytest.approx(losses(finished(make_run("lora", **{"train.max_steps": 3}))), rel=1e-5)
    assert "optimizer in the file is left out" in " ".join(event.message for event in events_of(run, "warning"))


def test_of_a_model_in_16_bits_the_numbers_the_optimizer_keeps_are_saved(make_run: MakeRun) -> None:
    run = finished(make_run("lora", **{"parallel.deepspeed": "zero3", "model.dtype": "bfloat16", "train.max_steps": 2}))
    found = weights_of(run.adapter)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert any((value.bfloat16().float() != value).any() for value in found.values()), "16 bits were written in 32"


class Engine:
    """What DeepSpeed's engine says of itself."""

    def zero_optimization_stage(self) -> int:
        return 2


def test_a_trainer_that_left_it_out_or_divides_otherwise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"^parallel\.deepspeed: the trainer did not take DeepSpeed up"):
        zero.confirm(object(), object(), 2)
    optimizer = type("DeepSpeedOptimizerWrapper", (), {})()
    engine = type("DeepSpeedEngine", (Engine,), {})()
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    zero.confirm(optimizer, engine, 2)
    with pytest.raises(EngineError, match=r"runs stage 2 in 1 processes; asked for was stage 3"):
        zero.confirm(optimizer, engine, 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EngineError, match="asked for was stage 2 in 2"):
        zero.confirm(optimizer, engine, 2)


def test_the_presets_leave_what_the_trainer_knows_to_the_trainer() -> None:
    files = sorted(zero.PRESETS.glob("*.json"))
    assert [file.stem for file in files] == ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert set(found) <= KNOWN
        assert found["train_micro_batch_size_per_gpu"] == found["gradient_clipping"] == "auto"
        assert found["zero_optimization"]["reduce_bucket_size"] == "auto"
        assert found["zero_force_ds_cpu_optimizer"] is False, "this optimizer would have to be compiled"
        assert zero_in(found) == ParallelSection(deepspeed=file.stem).zero
