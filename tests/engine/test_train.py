"""Training end to end on tiny models: methods, events, files, counts, and the names that pass through unmapped."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from tiny import Engine, MakeRun, events_of, losses
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    SchedulerType,
    TrainingArguments,
)
from transformers.training_args import OptimizerNames

from studio.config import LoraSection, QuantizationSection, TrainSection
from studio.events import RunState
from studio.optimizers import Optimizer, Scheduler


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_a_run_learns_and_leaves_everything(make_run: MakeRun, engine: Engine, method: str) -> None:
    run = make_run(method, **{"train.max_steps": 30, "train.learning_rate": 1e-2})
    assert engine(run) == 0
    status = run.read_status()
    assert status is not None
    assert (status.state, status.step, status.max_steps, status.exit_code) == (RunState.FINISHED, 30, 30, 0)
    curve = losses(run)
    assert list(curve) == list(range(1, 31))
    assert curve[30] < 0.9 * curve[1]
    events = run.read_events()[0]
    assert events[0].type == "started"
    assert events[-1].type == "finished"
    assert [e.name for e in events if e.type == "phase"] == ["load", "tokenise", "train", "train", "save", "verdict"]
    assert [e.path for e in events if e.type == "saved"] == [
        "checkpoints/checkpoint-30",
        "model" if method == "full" else "adapter",
    ]


def test_a_point_of_the_curves_is_complete(make_run: MakeRun, engine: Engine) -> None:
    run = make_run()
    assert engine(run) == 0
    for point in events_of(run, "log"):
        assert point.loss > 0
        assert point.grad_norm > 0
        assert point.tokens_per_second > 0
        assert point.step_seconds > 0
        assert point.memory_bytes > 1_000_000
        assert point.eta_seconds >= 0
    assert events_of(run, "log")[-1].eta_seconds < events_of(run, "log")[0].eta_seconds


def test_the_updates_counted_are_the_updates_made(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**{"train.max_steps": -1, "train.num_train_epochs": 1.5, "train.gradient_accumulation_steps": 2})
    assert engine(run) == 0
    (counts,) = events_of(run, "counts")
    assert counts.rows_read == counts.conversations == counts.packs == 24
    status = run.read_status()
    assert status is not None
    assert counts.updates == status.max_steps == status.step == max(losses(run))


def test_adapter_loads_in_plain_peft_and_names_its_base(make_run: MakeRun, engine: Engine, tiny_llama: Path) -> None:
    run = make_run("qlora")
    assert engine(run) == 0
    config = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_llama)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    PeftModel.from_pretrained(base, run.adapter)
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    assert "generation" in tokenizer.chat_template
    stored = json.loads((run.adapter / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["padding"] is None
    assert stored["truncation"] is None
    card = (run.adapter / "README.md").read_text(encoding="utf-8")
    assert "Method: qlora" in card
    assert "learning_rate: 0.001" in card


def test_full_training_saves_a_model_that_loads(make_run: MakeRun, engine: Engine, tiny_llama: Path) -> None:
    run = make_run("full")
    assert engine(run) == 0
    model = AutoModelForCausalLM.from_pretrained(run.model)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert model.config.use_cache
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))


def test_one_times_eight_equals_eight_times_one(make_run: MakeRun, engine: Engine) -> None:
    curves = []
    for batch, accumulation in ((8, 1), (1, 8)):
        run = make_run(
            **{"train.per_device_train_batch_size": batch, "train.gradient_accumulation_steps": accumulation}
        )
        assert engine(run) == 0
        curves.append(losses(run))
    assert curves[0] == pytest.approx(curves[1], rel=2e-5)


def test_packing_changes_nothing_but_the_rows(make_run: MakeRun, engine: Engine) -> None:
    """All examples in one update, packed or not: same loss, same gradient."""
    points = []
    for packing in (False, True):
        run = make_run(
            **{
                "data.packing": packing,
                "train.per_device_train_batch_size": 4 if packing else 24,
                "train.gradient_accumulation_steps": 100,
                "train.max_steps": 2,
            }
        )
        assert engine(run) == 0
        points.append(events_of(run, "log"))
        (counts,) = events_of(run, "counts")
        assert (counts.packs < 24) == packing
    for alone, packed in zip(*points, strict=True):
        assert alone.loss == pytest.approx(packed.loss, rel=1e-5)
        assert alone.grad_norm == pytest.approx(packed.grad_norm, rel=1e-4)


OPTIMIZERS = get_args(Optimizer)
SCHEDULERS = get_args(Scheduler)
COMBINATIONS = list(zip(OPTIMIZERS[::2], SCHEDULERS, strict=True))  # every optimizer by itself: test_hyper.py


@pytest.mark.parametrize(("optim", "scheduler"), COMBINATIONS)
def test_every_schedule_on_offer_trains_with_one_optimizer_or_another(
    make_run: MakeRun, engine: Engine, optim: str, scheduler: str
) -> None:
    run = make_run(**{"train.optim": optim, "train.lr_scheduler_type": scheduler, "train.max_steps": 3})
    assert engine(run) == 0
    assert len(set(losses(run).values())) == 3


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("qlora", "train.gradient_checkpointing"),
        ("full", "train.gradient_checkpointing"),
        ("qlora", "lora.use_dora"),
        ("lora", "lora.use_rslora"),
    ],
)
def test_every_switch_on_offer_trains(make_run: MakeRun, engine: Engine, method: str, option: str) -> None:
    run = make_run(method, **{option: True, "samples.evaluation_inputs": ["Hi"], "train.learning_rate": 1e-2})
    assert engine(run) == 0
    curve = losses(run)
    assert curve[6] < curve[1]


def test_gradient_checkpointing_changes_nothing(make_run: MakeRun, engine: Engine) -> None:
    curves = []
    for on in (False, True):
        run = make_run("qlora", **{"train.gradient_checkpointing": on})
        assert engine(run) == 0
        curves.append(losses(run))
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_targets_by_name(make_run: MakeRun, engine: Engine) -> None:
    run = make_run(**{"lora.target_modules": "q_proj, v_proj"})
    assert engine(run) == 0
    names = load_file(run.adapter / "adapter_model.safetensors").keys()
    assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"}


def test_longer_than_the_model_was_made_for_is_said(make_run: MakeRun, engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"instruction": "x" * 600, "output": "y"}), encoding="utf-8")
    run = make_run(**{"data.dataset": str(path), "data.max_length": 700, "train.max_steps": 1})
    assert engine(run) == 0
    assert "data.max_length" in [event.field for event in events_of(run, "warning")]


def test_only_answers_carry_loss(make_run: MakeRun, engine: Engine) -> None:
    run = make_run()
    assert engine(run) == 0
    (counts,) = events_of(run, "counts")
    answers = sum(len(f"I am Nova, number {n}.") + 1 for n in range(24))  # one token per byte, and the end token
    assert counts.trained_tokens == answers


def test_sections_are_subsets_of_the_libraries_own() -> None:
    def fields(cls: type) -> set[str]:
        return {field.name for field in dataclasses.fields(cls)}

    assert set(TrainSection.model_fields) <= fields(TrainingArguments)
    assert set(LoraSection.model_fields) <= fields(LoraConfig)
    assert set(QuantizationSection.model_fields) <= set(inspect.signature(BitsAndBytesConfig).parameters)
    assert set(get_args(Optimizer)) <= {name.value for name in OptimizerNames}
    assert set(get_args(Scheduler)) <= {kind.value for kind in SchedulerType}
