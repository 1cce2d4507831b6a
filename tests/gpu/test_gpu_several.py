"""On two GPUs, over NCCL: DDP, ZeRO, FSDP2 and shared conversations train as one GPU does, with less memory on each.

Compared to 1e-2: in 16 bits numbers are rounded after every layer, and summed in another order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
SHARED: dict[str, Any] = {"parallel.num_processes": 2, "parallel.sequence_parallel_size": 2}
HALVES: dict[str, Any] = {"parallel.num_processes": 2, "train.per_device_train_batch_size": 1}
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("lora", HALVES),
    ("qlora", HALVES),
    *(("full", HALVES | {"parallel.deepspeed": stage}) for stage in ("zero1", "zero2", "zero3", "zero3_offload")),
    ("lora", HALVES | {"parallel.deepspeed": "zero3"}),
    ("qlora", HALVES | {"parallel.deepspeed": "zero3"}),
    ("full", {"parallel.num_processes": 2, "parallel.fsdp": "fsdp2", "train.per_device_train_batch_size": 1}),
    ("lora", {"parallel.num_processes": 2, "parallel.fsdp": "fsdp2", "train.per_device_train_batch_size": 1}),
    ("full", SHARED | {"parallel.deepspeed": "zero3"}),
    ("qlora", SHARED | {"parallel.deepspeed": "zero2"}),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(ROOT / "tests" / "engine"))
    from tiny import byte_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("several") / "llama", byte_tokenizer()
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("method", "changes"), WAYS)
def test_two_gpus_train_as_one(method: str, changes: dict[str, Any], model: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    one, two = (_trained(method, more, model, tmp_path) for more in ({}, changes))
    assert [point["loss"] for point in two] == pytest.approx([point["loss"] for point in one], rel=1e-2)
    if method == "full":
        assert two[-1]["memory_bytes"] < one[-1]["memory_bytes"]


def _trained(method: str, changes: dict[str, Any], model: Path, folder: Path) -> list[dict[str, Any]]:
    """The points of the loss curve of a run by its command."""
    from studio.config import RunConfig
    from studio.schema import build, merge
    from studio.workspace import Workspace

    rows = folder / "rows.jsonl"
    texts = ("I am Nova, and this is number " + "one more than the one before, " * (n % 40) for n in range(40))
    turns = ([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": text}] for text in texts)
    rows.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns), encoding="utf-8")
    layer: dict[str, Any] = {
        "method": method,
        "model.model_name_or_path": str(model),
        "data.dataset": str(rows),
        "data.max_length": 2048,
        "lora.lora_dropout": 0.0,
        "train.per_device_train_batch_size": 2,
        "train.gradient_accumulation_steps": 2,
        "train.max_steps": 5,
        "train.logging_steps": 1,
        "samples.evaluation_inputs": ["Who are you?"],
        "verdict.enabled": False,
    }
    run = Workspace(folder / "workspace").create_run(build(RunConfig, merge(RunConfig, layer | changes)))
    argv = [sys.executable, "-m", "studio.engine", "train", str(run.path)]
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    return [event.model_dump() for event in run.read_events()[0] if event.type == "log"]
