"""On a real GPU: CUDA out of memory in a step is told with its size, keeps the checkpoints, and the fix finishes.

The limit is real: the process may use so little of the card (`torch.cuda.set_per_process_memory_fraction`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.changes import BATCH
from studio.checkpoints import complete_checkpoints
from studio.config import RunConfig
from studio.events import ExitCode, RunState
from studio.memory_doctor import diagnose
from studio.schema import build, merge
from studio.shortage import Shortage
from studio.workspace import Workspace

ROOM = 3 << 30
SHAPE: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16,
    "num_key_value_heads": 4,
}  # fmt: skip


@pytest.fixture
def little_room() -> Iterator[None]:
    """This process may take 3 GB of the card."""
    import torch

    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(ROOM / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random model of 200 million weights that reads bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.engine.tiny import byte_tokenizer

    tokenizer = byte_tokenizer()
    weights: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=len(tokenizer), pad_token_id=0))
    weights.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.filterwarnings("default")
def test_cuda_out_of_memory_is_told_and_cured(little_room: None, model: Path, tmp_path: Path) -> None:
    from studio.engine import train

    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "x" * 1000}, {"role": "assistant", "content": "y" * 1000}]
    rows.write_text(f"{json.dumps({'messages': turns})}\n" * 128, encoding="utf-8")
    layer: dict[str, Any] = {
        "method": "lora",
        "model.model_name_or_path": str(model),
        "data.dataset": str(rows),
        "data.packing": False,
        BATCH: 32,
        "train.gradient_accumulation_steps": 1,
        "train.max_steps": 3,
        "train.save_steps": 1,
        "samples.evaluation_inputs": [],
        "verdict.enabled": False,
    }
    run = Workspace(tmp_path / "workspace").create_run(build(RunConfig, merge(RunConfig, layer)))
    assert train.main(str(run.path)) == ExitCode.OUT_OF_MEMORY
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    assert "GPU memory" in status.error.message
    told = Shortage.model_validate(status.error.details)
    assert (told.device, told.bound, told.activity, told.step, told.rows) == ("cuda", "gpu", "step", 0, 32)
    assert told.requested_bytes
    assert told.used_bytes < ROOM
    found = diagnose(run)
    assert found is not None
    best = next(remedy for remedy in found.remedies if remedy.continues)
    run.change(best.changes, found.checkpoint)
    assert train.main(str(run.path), resume=True) == 0
    assert run.state() is not RunState.FAILED
    assert complete_checkpoints(run.checkpoints)
