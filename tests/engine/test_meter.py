"""The counter, the closed formula and the real thing: what each says a training step takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EMBER
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from studio import metering
from studio.activations import Load, Target
from studio.bounds import load_of
from studio.config import RunConfig
from studio.devices import find_card
from studio.engine.counter import counting
from studio.engine.meter import Job, measure
from studio.footprint import Footprint, Measurement, footprint
from studio.model_shape import ModelShape, shape_of
from studio.presets import ModelRef
from studio.schema import build, merge
from studio.speed import step_flops
from studio.workspace import Workspace

HERE = Path(__file__).resolve().parent
AGREEMENT, REALITY = 0.10, 0.15
SMALL: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 8000,
}  # fmt: skip
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512, "head_dim": 32}
FAMILIES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "qwen3_moe": Qwen3MoeConfig,
}


@pytest.fixture(scope="module", autouse=True)
def _tables_of_numbers() -> None:
    """bitsandbytes keeps the tables it packs with: made on empty tensors they would be empty for every later test."""
    from bitsandbytes.functional import quantize_4bit

    quantize_4bit(torch.ones(64, 64), compress_statistics=True, quant_type="nf4")


def config_of(**changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "model.model_name_or_path": "some/model",
        "model.dtype": "bfloat16",
        "data.dataset": "rows",
        "data.max_length": 256,
        "train.per_device_train_batch_size": 2,
        "train.gradient_accumulation_steps": 1,
    }
    return build(RunConfig, merge(RunConfig, settings | changes))


def both(base: PretrainedConfig, target: Target = "cuda", **changes: Any) -> tuple[Measurement, Footprint, Load]:
    """What is counted, and what the formula says."""
    config = config_of(**changes)
    number = 4 if config.model.dtype == "float32" else 2
    masked = config.train.per_device_train_batch_size > 1
    shape = ModelShape.from_config(base.to_dict())
    load = Load(config, shape, target, number, config.data.max_length, masked)
    ref = ModelRef("some/model", "some/model", local=False)
    return measure(Job(config, ref, target, load.length, masked), base), footprint(load), load


# Each case varies several things at once: every value of every one is met at least once.
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("llama", "cuda", {}, {"method": "lora"}),
    ("llama", "cuda", {"vocab_size": 60000}, {"method": "qlora", "train.gradient_checkpointing": True}),
    ("llama", "cuda", {"tie_word_embeddings": True}, {"method": "full", "train.optim": "adamw_torch_fused"}),
    ("llama", "cuda", {"intermediate_size": 2048},
     {"method": "lora", "data.max_length": 1024, "train.per_device_train_batch_size": 8,
      "train.gradient_checkpointing": True, "lora.lora_dropout": 0.0}),
    ("llama", "cuda", {}, {"method": "lora", "lora.target_modules": ["q_proj", "v_proj"], "lora.r": 64,
                           "train.per_device_train_batch_size": 1, "data.max_length": 512}),
    ("llama", "cuda", {"vocab_size": 1000}, {"method": "lora", "lora.modules_to_save": ["lm_head", "embed_tokens"]}),
    ("qwen2", "cuda", {}, {"method": "qlora", "data.max_length": 512, "lora.lora_dropout": 0.0}),
    ("qwen2", "cuda", {}, {"method": "full", "model.dtype": "float32", "train.gradient_checkpointing": True}),
    ("qwen3", "cuda", {"num_key_value_heads": 8}, {"method": "lora", "model.dtype": "float32"}),
    ("qwen3", "cuda", {}, {"method": "full", "train.gradient_accumulation_steps": 4, "train.optim": "adamw_8bit"}),
    ("gemma", "cuda", {"head_dim": 64}, {"method": "qlora", "train.per_device_train_batch_size": 8}),
    ("gemma3", "cuda", {"head_dim": 64}, {"method": "full", "train.optim": "sgd", "data.max_length": 512}),
    ("gemma2", "cuda", {"head_dim": 32}, {"method": "lora"}),
    ("llama", "cuda", {}, {"method": "lora", "lora.use_dora": True}),
    ("qwen3_moe", "cuda", MOE, {"method": "qlora", "lora.lora_dropout": 0.0}),
    ("llama", "cpu", {}, {"method": "lora", "model.dtype": "float32"}),
    ("llama", "cpu", {}, {"method": "qlora", "train.gradient_checkpointing": True}),
    ("qwen2", "cpu", {"tie_word_embeddings": True}, {"method": "full", "model.dtype": "float32"}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "target", "shape", "changes"), CASES)
def test_the_formula_agrees_with_the_counted_step(
    family: str, target: Target, shape: dict[str, Any], changes: dict[str, Any]
) -> None:
    counted, said, load = both(FAMILIES[family](**SMALL | shape), target, **changes)
    assert said.total == pytest.approx(counted.peak_bytes, rel=AGREEMENT)
    assert said.weights + said.adapter == pytest.approx(counted.static_bytes, rel=0.01)
    assert said.optimizer == pytest.approx(counted.optimizer_bytes, rel=0.25, abs=1e5)  # small tensors stay 32-bit
    assert load.trained == pytest.approx(counted.trainable, rel=0.01)
    assert step_flops(load) == pytest.approx(counted.flops, rel=0.15)


def test_seven_billion_parameters_are_counted_without_their_weights() -> None:
    base = Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064,
    )  # fmt: skip
    changes = {"method": "qlora", "data.max_length": 2048, "train.gradient_checkpointing": True}
    counted, said, _ = both(base, **changes, **{"train.per_device_train_batch_size": 1})
    assert 6e9 < counted.peak_bytes < 10e9
    assert said.total == pytest.approx(counted.peak_bytes, rel=AGREEMENT)


def test_counting_follows_what_lives_and_what_is_computed() -> None:
    with counting("cuda", 100) as tally:
        left = torch.empty(64, 32)
        assert tally.live == 64 * 32 * 4
        product = left @ torch.empty(32, 16)
        assert tally.flops == 2 * 64 * 32 * 16
        view = product[:2]
        assert tally.live == (64 * 32 + 64 * 16) * 4
        del product, view
        assert tally.live == 64 * 32 * 4
        assert tally.peak == (64 * 32 + 32 * 16 + 64 * 16) * 4
        tally.restart()
        assert (tally.peak, tally.flops) == (tally.live, 0)


def test_without_padding_no_mask_is_kept() -> None:
    base, config = LlamaConfig(**SMALL), config_of(method="lora", **{"data.max_length": 1024})
    ref = ModelRef("some/model", "some/model", local=False)
    masked, free = (measure(Job(config, ref, "cuda", 1024, with_mask), base) for with_mask in (True, False))
    assert masked.peak_bytes - free.peak_bytes > 3 * 2 * 2 * 1024**2  # three layers, two rows, two bytes


def test_the_engine_counts_in_a_process_of_its_own(workspace: Workspace) -> None:
    config = config_of(**{"model.model_name_or_path": "crucible/ember", "method": "qlora"})
    shape = ModelShape.from_config(json.loads((EMBER / "config.json").read_text(encoding="utf-8")))
    load = load_of(config, shape, find_card("RTX 4060 8GB"))
    counted = metering.measure(workspace, load)
    assert counted.peak_bytes == pytest.approx(footprint(load).total, rel=AGREEMENT)
    assert metering.remembered(workspace, load) == counted


def test_a_model_that_is_not_known_here_is_said(workspace: Workspace) -> None:
    config = config_of(**{"model.model_name_or_path": "nobody/nothing"})
    load = load_of(config, ModelShape.from_config(LlamaConfig(**SMALL).to_dict()), find_card("RTX 4060 8GB"))
    with pytest.raises(metering.NotMetered, match="shape of nobody/nothing is not known"):
        metering.measure(workspace, load)


def test_a_model_is_counted_from_what_its_preset_says(workspace: Workspace) -> None:
    name = "Qwen/Qwen2.5-0.5B-Instruct"
    config = config_of(**{"model.model_name_or_path": name, "method": "lora"})
    shape = shape_of(config)
    assert shape is not None
    load = load_of(config, shape, find_card("RTX 4060 8GB"))
    assert metering.measure(workspace, load).peak_bytes == pytest.approx(footprint(load).total, rel=AGREEMENT)


MIDDLE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 8000}
RUNS: list[dict[str, Any]] = [
    {"method": "lora", "dtype": "float32", "rows": 4, "length": 256, "checkpointing": False, "shape": MIDDLE},
    {"method": "full", "dtype": "float32", "rows": 2, "length": 128, "checkpointing": True,
     "shape": MIDDLE | {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 16000}},
    {"method": "full", "dtype": "float32", "rows": 4, "length": 256, "checkpointing": False, "shape": MIDDLE},
    {"method": "qlora", "dtype": "bfloat16", "rows": 2, "length": 512, "checkpointing": True,
     "shape": MIDDLE | {"num_hidden_layers": 4}},  # half numbers are slow to compute here
]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is compared under the C library of Linux")
@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['method']}-{run['dtype']}-{run['rows']}x{run['length']}")
def test_a_real_run_takes_what_the_formula_says(run: dict[str, Any], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "resident.py"), json.dumps(run)],
        env=os.environ
        | {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "TMPDIR": str(tmp_path), "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grown = int(done.stdout.split()[-1])
    base = LlamaConfig(**run["shape"] | {"num_attention_heads": 8, "num_key_value_heads": 4})
    config = config_of(
        method=run["method"],
        **{
            "model.dtype": run["dtype"],
            "data.max_length": run["length"],
            "train.per_device_train_batch_size": run["rows"],
            "train.gradient_checkpointing": run["checkpointing"],
        },
    )
    number = 4 if run["dtype"] == "float32" else 2
    said = footprint(Load(config, ModelShape.from_config(base.to_dict()), "cpu", number, run["length"], masked=True))
    assert said.total == pytest.approx(grown, rel=REALITY)
