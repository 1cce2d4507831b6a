"""Trains a random model in a process of its own and writes how far its resident memory grew, in bytes.

python resident.py '{"method": …, "dtype": …, "rows": …, "length": …, "checkpointing": …, "shape": {…}}'

The test sets MALLOC_TRIM_THRESHOLD_, so that the C library gives back at once what it was given back.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from studio.config import RunConfig
from studio.engine.attention import Collator
from studio.engine.meter import SameRows, any_tokenizer
from studio.engine.model import load
from studio.engine.trainer import TrainingData, build_trainer, training_arguments
from studio.presets import ModelRef
from studio.schema import build, merge

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 300}


class UnevenRows(SameRows):
    """Every other row is a little shorter, so that batches are padded."""

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        cut = self.row["seq_lengths"][0] - 3 * (number % 2)
        return {"input_ids": self.row["input_ids"][:cut], "labels": self.row["labels"][:cut], "seq_lengths": [cut]}


def config_of(case: dict[str, Any], folder: Path) -> RunConfig:
    """The run."""
    settings = {
        "method": case["method"],
        "model.model_name_or_path": str(folder),
        "model.dtype": case["dtype"],
        "data.dataset": "rows",
        "data.max_length": case["length"],
        "train.per_device_train_batch_size": case["rows"],
        "train.gradient_accumulation_steps": 1,
        "train.gradient_checkpointing": case["checkpointing"],
    }
    return build(RunConfig, merge(RunConfig, settings))


def save_model(shape: dict[str, Any]) -> Path:
    """A folder with a random model."""
    folder = Path(tempfile.mkdtemp(prefix="resident-"))
    settings: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4} | shape
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    any_tokenizer().save_pretrained(folder)
    return folder


def train(case: dict[str, Any], folder: Path, steps: int) -> None:
    """A few updates, as the engine makes them."""
    config = config_of(case, folder)
    loaded = load(config, ModelRef("random", str(folder), local=True))
    arguments = training_arguments(config, folder / "out", loaded, validate=False)
    arguments.max_steps = steps
    arguments.save_strategy = arguments.logging_strategy = "no"
    rows: Any = UnevenRows(4 * case["rows"], case["length"])
    none: Any = SameRows(0, 1)
    build_trainer(arguments, loaded, TrainingData(rows, none, Collator(0)), []).train()


def peak_of(process: psutil.Process, stop: threading.Event, found: list[int]) -> None:
    """Watches resident memory."""
    while not stop.is_set():
        found[0] = max(found[0], process.memory_info().rss)
        time.sleep(0.003)


def main(case: dict[str, Any]) -> None:
    """Print the growth."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    train(case | {"rows": 2, "length": 32}, save_model(TINY), steps=1)  # whatever is loaded late is loaded now
    folder = save_model(case["shape"])
    gc.collect()
    process, stop = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    found = [before]
    watch = threading.Thread(target=peak_of, args=(process, stop, found))
    watch.start()
    train(case, folder, steps=2)
    stop.set()
    watch.join()
    sys.stdout.write(f"{found[0] - before}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
