"""On a real GPU: what the formula promises and what the allocator measures, printed side by side."""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

SHAPES: dict[str, dict[str, Any]] = {
    "0.1B": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
             "num_key_value_heads": 4, "vocab_size": 32000},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936},
    "1.8B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16,
             "num_key_value_heads": 8, "vocab_size": 92544},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
RUNS = [
    ("0.1B", {"method": "full"}),
    ("0.5B", {"method": "lora", "train.per_device_train_batch_size": 4}),
    ("1.8B", {"method": "qlora", "train.gradient_checkpointing": True}),
    ("3B", {"method": "lora", "train.gradient_checkpointing": True}),
]
REALITY = 0.15


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("size", "changes"), RUNS)
def test_the_promise_is_kept_on_the_gpu(size: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import LlamaConfig

    from studio.config import RunConfig
    from studio.devices import present
    from studio.memory import ModelShape, fit
    from studio.schema import build, merge

    base = LlamaConfig(**SHAPES[size])
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "model.model_name_or_path": folder,
            "data.dataset": "rows",
            "data.max_length": 1024,
            "train.per_device_train_batch_size": 2,
            "train.gradient_accumulation_steps": 1,
        }
        config = build(RunConfig, merge(RunConfig, settings | changes))
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        _train(config, base, Path(folder))
        measured = torch.cuda.max_memory_allocated() - held
        reserved = torch.cuda.max_memory_reserved()
    found = fit(config, ModelShape.from_config(base.to_dict()), present()[0])
    said = sum(size for part, size in found.components.items() if part != "framework")
    with capsys.disabled():
        sys.stdout.write(
            f"\n{size} {config.method}: predicted {said / 2**30:.2f} GB (low {found.low / 2**30:.2f}, "
            f"high {found.high / 2**30:.2f} with framework), measured {measured / 2**30:.2f} GB allocated, "
            f"{reserved / 2**30:.2f} GB reserved\n"
        )
    assert said == pytest.approx(measured, rel=REALITY)


def _train(config: Any, base: Any, folder: Path) -> None:
    """Two updates of a random model, on rows of two lengths."""
    import torch
    from transformers import LlamaForCausalLM

    from studio.engine.attention import Collator
    from studio.engine.meter import SameRows, any_tokenizer
    from studio.engine.model import load
    from studio.engine.trainer import TrainingData, build_trainer, training_arguments
    from studio.presets import ModelRef

    class UnevenRows(SameRows):
        def __getitem__(self, number: int) -> dict[str, list[int]]:
            cut = self.row["seq_lengths"][0] - 3 * (number % 2)
            return {"input_ids": self.row["input_ids"][:cut], "labels": self.row["labels"][:cut], "seq_lengths": [cut]}

    LlamaForCausalLM(base).to(torch.bfloat16).save_pretrained(folder)
    any_tokenizer().save_pretrained(folder)
    loaded = load(config, ModelRef("random", str(folder), local=True))
    arguments = training_arguments(config, folder / "out", loaded, validate=False)
    arguments.max_steps, arguments.save_strategy, arguments.logging_strategy = 2, "no", "no"
    rows: Any = UnevenRows(16, config.data.max_length)
    none: Any = SameRows(0, 1)
    build_trainer(arguments, loaded, TrainingData(rows, none, Collator(0)), []).train()
