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
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from studio.activations import Load, last_norm, lasting, layer_activations
from studio.config import RunConfig
from studio.model_shape import ModelShape
from studio.presets import ROOT
from studio.schema import build, merge
from studio.sharding import Sharding, sharding_of
from studio.states import Gradients, held
from studio.traffic import sent_bytes

TOLERANCE = 0.01
"""Partitions are padded to whole numbers, and small layers (norms) are never divided."""
BATCHES, LENGTH = 2, 16
HIDDEN = 256
MODEL: dict[str, Any] = {
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


@pytest.mark.parametrize("method", ["full", "lora"])
def test_layers_of_16_bit_weights_keep_what_is_promised(method: str) -> None:
    """DeepSpeed's trained weights are 16-bit: nothing is cast on its way, as it would be under autocast."""
    sizes = {"model.model_name_or_path": "some/model", "data.dataset": "rows", "method": method}
    step = {"train.per_device_train_batch_size": 2, "lora.r": 16, "lora.lora_dropout": 0.1}
    config = build(RunConfig, merge(RunConfig, sizes | step))
    shape = ModelShape.from_config(MODEL | {"model_type": "llama"})
    load = Load(config, shape, "cpu", 2, LENGTH * 8, masked=False, sharding=Sharding(2, 2))
    said = MODEL["num_hidden_layers"] * layer_activations(load) + lasting(load) + last_norm(load)
    assert _kept(method, load) == pytest.approx(said, rel=0.05)


def _kept(method: str, load: Load) -> int:
    """Bytes the layers of a real model keep for the backward pass, each storage once, weights left out."""
    model: Any = LlamaForCausalLM(LlamaConfig(**MODEL, use_cache=False))
    model.to(torch.bfloat16)
    base = model.model
    if method == "lora":
        lora = load.config.lora
        settings = LoraConfig(r=lora.r, lora_dropout=lora.lora_dropout, target_modules="all-linear")
        model = get_peft_model(model, settings, autocast_adapter_dtype=False)
        model.enable_input_require_grads()
    own = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            seen[value.untyped_storage().data_ptr()] = value
        return value

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        base(input_ids=torch.randint(0, load.shape.vocab_size, (load.rows, load.length)))
    return sum(value.untyped_storage().nbytes() for value in seen.values())
