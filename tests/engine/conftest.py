"""Tiny models and runs for the engine's tests: real architectures, real tokenizers, seconds at most."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import QUESTIONS, Engine, MakeRun, save_tiny

from studio.config import RunConfig
from studio.engine import train
from studio.rundir import RunDir
from studio.schema import build, merge
from studio.workspace import Workspace


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of the heavy libraries are not ours to fail on."""
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def _left_out() -> list[int]:
    """How many modules there were when their objects were left out of searches for garbage."""
    return [0]


@pytest.fixture(autouse=True)
def _quick_searches(_left_out: list[int]) -> None:
    """Models and trainings have garbage searched for; they need not look through what libraries brought each time."""
    if len(sys.modules) > _left_out[0] + 300:
        _left_out[0] = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama. Do not write to it."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Qwen2 (with biases). Do not write to it."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-qwen", "qwen2")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A .jsonl file with 24 short conversations."""
    path = tmp_path / "rows.jsonl"
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{QUESTIONS[n % len(QUESTIONS)]}{' ' * (n // 5)}{n}"},
                {"role": "assistant", "content": f"I am Nova, number {n}."},
            ]
        }
        for n in range(24)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def make_run(workspace: Workspace, rows: Path, tiny_llama: Path) -> MakeRun:
    """make_run(method="lora", model=…, **{"train.learning_rate": …}) -> a queued run of 6 steps."""

    def make(method: str = "lora", model: Path | str = tiny_llama, **changes: Any) -> RunDir:
        layer: dict[str, Any] = {
            "method": method,
            "model.model_name_or_path": str(model),
            "data.dataset": str(rows),
            "data.max_length": 256,
            "lora.lora_dropout": 0.0,
            "train.learning_rate": 1e-3,
            "train.per_device_train_batch_size": 4,
            "train.gradient_accumulation_steps": 1,
            "train.max_steps": 6,
            "samples.evaluation_inputs": [],
            "samples.max_new_tokens": 8,
            "verdict.enabled": False,
        }
        return workspace.create_run(build(RunConfig, merge(RunConfig, layer | changes)))

    return make


@pytest.fixture
def engine() -> Engine:
    """engine(run, resume=False) -> exit code; trains in this process."""

    def start(run: RunDir, *, resume: bool = False) -> int:
        return train.main(str(run.path), resume=resume)

    return start
