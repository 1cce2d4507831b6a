"""What real processes under DeepSpeed hold and send is what the estimate says of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from studio.activations import Load
from studio.config import RunConfig
from studio.model_shape import ModelShape
from studio.presets import ROOT
from studio.schema import build, merge
from studio.sharding import sharding_of
from studio.states import Gradients, held
from studio.traffic import sent_bytes

TOLERANCE = 0.01
"""Partitions are padded to whole numbers, and small layers (norms) are never divided."""
BATCHES, LENGTH = 2, 16
HIDDEN = 256
MODEL = {
    "hidden_size": HIDDEN, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 3000,
}  # fmt: skip
STAGES = ("zero1", "zero2", "zero3")


def settings(stage: str) -> dict[str, Any]:
    """Our preset of a stage, with what the trainer fills in."""
    found: dict[str, Any] = json.loads((ROOT / "presets" / "deepspeed" / f"{stage}.json").read_text(encoding="utf-8"))
    auto = {
        "reduce_bucket_size": HIDDEN**2,
        "stage3_prefetch_bucket_size": round(0.9 * HIDDEN**2),
        "stage3_param_persistence_threshold": 10 * HIDDEN,
    }
    zero = {name: auto[name] if value == "auto" else value for name, value in found["zero_optimization"].items()}
    batch = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": BATCHES}
    rest = {"train_batch_size": 2 * BATCHES, "gradient_clipping": 1.0, "bf16": {"enabled": True}}
    return found | batch | rest | {"fp16": {"enabled": False}, "zero_optimization": zero}


def predicted(stage: str) -> dict[str, float]:
    """The same by the formula."""
    layer = {
        "model.model_name_or_path": "some/model",
        "data.dataset": "rows",
        "method": "full",
        "parallel.num_processes": 2,
        "parallel.deepspeed": stage,
        "train.gradient_accumulation_steps": BATCHES,
        "train.per_device_train_batch_size": 1,
    }
    config = build(RunConfig, merge(RunConfig, layer))
    shape = ModelShape.from_config(MODEL | {"model_type": "llama"})
    load = Load(config, shape, "cpu", 2, LENGTH, masked=False, sharding=sharding_of(config))
    kept = held(load)
    return {
        "weights": kept.weights + kept.adapter,
        "optimizer": kept.optimizer,
        "gradients": Gradients(load).all,
        "sent": sent_bytes(load),
    }


def measured(job: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What each of two processes counts."""
    file = folder / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    quiet = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    argv = [sys.executable, str(Path(__file__).with_name("spread_probe.py")), str(file)]
    logs = [(folder / f"rank{rank}.log").open("w", encoding="utf-8") for rank in range(2)]
    started = [
        subprocess.Popen(
            argv,
            env=os.environ | group | quiet | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=logs[rank],
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=900)[0] for process in started]
    finally:
        for process, log in zip(started, logs, strict=True):
            process.kill()
            log.close()
    lines = [line for text in said for line in text.splitlines() if line.startswith("FOUND ")]
    assert len(lines) == 2, (folder / "rank0.log").read_text(encoding="utf-8")[-3000:]
    return [json.loads(line.removeprefix("FOUND ")) for line in lines]


def test_every_stage_holds_and_sends_what_is_promised(tmp_path: Path) -> None:
    """Every weight trained, with accumulation, in both processes."""
    job = {"model": MODEL, "batches": BATCHES, "length": LENGTH, "cases": {stage: settings(stage) for stage in STAGES}}
    for found in measured(job, tmp_path):
        for stage in STAGES:
            assert found[stage] == pytest.approx(predicted(stage), rel=TOLERANCE), stage
