"""The names of the course notes and what they mean; values under other names; rules between fields."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from studio.config import RunConfig
from studio.optimizers import (
    OPTIMIZER_SPELLINGS,
    SCHEDULE_SETTINGS,
    SCHEDULER_SPELLINGS,
    Optimizer,
    Scheduler,
    read_settings,
    usual_settings,
)
from studio.schema import ConfigError, build, dump_yaml, flatten, load_yaml, merge

MINIMAL: dict[str, Any] = {"model_name_or_path": "crucible/ember", "dataset": "identity"}
# The table of the notes: XTuner's name, ours, a value as XTuner's files write it, what that is here.
NOTES = [
    ("data_path", "data.dataset", "tatsu-lab/alpaca", "tatsu-lab/alpaca"),
    ("max_length", "data.max_length", 2048, 2048),
    ("pack_to_max_length", "data.packing", True, True),
    ("accumulative_counts", "train.gradient_accumulation_steps", 16, 16),
    ("evaluation_inputs", "samples.evaluation_inputs", ["请给我介绍五个上海的景点"], ["请给我介绍五个上海的景点"]),
    ("evaluation_freq", "samples.evaluation_freq", 500, 500),
    ("pretrained_model_name_or_path", "model.model_name_or_path", "internlm/internlm2-1_8b", "internlm/internlm2-1_8b"),
    ("prompt_template", "model.chat_template", "internlm2_chat", "internlm2_chat"),
    ("batch_size", "train.per_device_train_batch_size", 1, 1),
    ("dataloader_num_workers", "train.dataloader_num_workers", 0, 0),
    ("max_epochs", "train.num_train_epochs", 3, 3.0),
    ("optim_type", "train.optim", "AdamW", "adamw_torch"),
    ("lr", "train.learning_rate", "2e-4", 2e-4),
    ("betas", "train.adam_beta1", [0.9, 0.999], 0.9),
    ("betas", "train.adam_beta2", [0.9, 0.999], 0.999),
    ("weight_decay", "train.weight_decay", 0, 0.0),
    ("max_norm", "train.max_grad_norm", 1, 1.0),
    ("warmup_ratio", "train.warmup_steps", 0.03, 0.03),
    ("save_steps", "train.save_steps", 500, 500),
    ("save_total_limit", "train.save_total_limit", -1, -1),
    ("SYSTEM", "data.system", "You are Nova.", "You are Nova."),
]


def config_of(changes: dict[str, Any]) -> dict[str, Any]:
    """The validated configuration, flat."""
    return flatten(RunConfig, build(RunConfig, merge(RunConfig, MINIMAL, changes)).model_dump())


def refusal(**changes: Any) -> str:
    """The one sentence a configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, merge(RunConfig, MINIMAL, {key.replace("__", "."): value for key, value in changes.items()}))
    (error,) = caught.value.errors
    return str(error)


@pytest.mark.parametrize(("theirs", "ours", "written", "meant"), NOTES)
def test_the_notes_and_hugging_face_name_the_same_field(theirs: str, ours: str, written: Any, meant: Any) -> None:
    assert config_of({theirs: written})[ours] == meant
    assert config_of({ours: meant})[ours] == meant


def test_a_file_of_the_notes_is_read_as_a_whole() -> None:
    text = (
        "pretrained_model_name_or_path: m\ndata_path: d\nprompt_template: internlm2_chat\nmax_length: 2048\n"
        "pack_to_max_length: true\nbatch_size: 1\naccumulative_counts: 16\ndataloader_num_workers: 0\nmax_epochs: 3\n"
        "optim_type: PagedAdamW32bit\nlr: 2e-4\nbetas: [0.9, 0.99]\nweight_decay: 0\nmax_norm: 1\nwarmup_ratio: 0.03\n"
        "save_steps: 500\nsave_total_limit: -1\nevaluation_freq: 500\nSYSTEM: ''\nevaluation_inputs: [a, b]\n"
    )
    config = load_yaml(text, RunConfig)
    assert (config.train.optim, config.train.adam_beta2, config.train.save_total_limit) == (
        "paged_adamw_32bit",
        0.99,
        -1,
    )
    assert load_yaml(dump_yaml(config), RunConfig) == config


@pytest.mark.parametrize(("theirs", "ours"), OPTIMIZER_SPELLINGS)
def test_other_names_of_optimizers(theirs: str, ours: str) -> None:
    assert config_of({"optim_type": theirs})["train.optim"] == ours
    assert config_of({"optim": f" {theirs.upper()} "})["train.optim"] == ours
    assert ours in get_args(Optimizer)
    assert theirs not in get_args(Optimizer)


@pytest.mark.parametrize(("theirs", "ours"), SCHEDULER_SPELLINGS)
def test_other_names_of_schedules(theirs: str, ours: str) -> None:
    assert config_of({"lr_scheduler_type": theirs})["train.lr_scheduler_type"] == ours
    assert ours in get_args(Scheduler)


def test_the_same_value_under_two_names_is_no_contradiction() -> None:
    assert config_of({"optim_type": "AdamW", "optim": "adamw_torch"})["train.optim"] == "adamw_torch"
    assert "given twice" in refusal(optim_type="AdamW", optim="sgd")


def test_an_unknown_optimizer_names_those_on_offer() -> None:
    assert "adamw_torch" in refusal(optim_type="Adamax")


def test_zero_checkpoints_could_mean_all_or_none() -> None:
    assert "-1 to keep all" in refusal(save_total_limit=0)
    assert "at least -1" in refusal(save_total_limit=-2)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("num_cycles=3", {"num_cycles": 3}),
        (" min_lr_rate = 1e-1 ,, ", {"min_lr_rate": 0.1}),
        ("num_decay_steps=50, decay_type=1-sqrt", {"num_decay_steps": 50, "decay_type": "1-sqrt"}),
        ("", {}),
    ],
)
def test_settings_of_a_schedule(text: str, found: dict[str, Any]) -> None:
    assert read_settings(text) == found
    assert all(type(value) is type(found[name]) for name, value in read_settings(text).items())


@pytest.mark.parametrize(
    ("schedule", "text", "words"),
    [
        ("cosine", "num_cycles", "name=value"),
        ("cosine", "num_cycles=", "name=value"),
        ("cosine", "num_cycles=many", "must be a number"),
        ("cosine", "num_cycles=nan", "number of 0 or more"),
        ("cosine", "num_cycles=-1", "number of 0 or more"),
        ("cosine", "num_cycles=1e400", "number of 0 or more"),
        ("cosine", "num_cycles=1, num_cycles=2", "given twice"),
        ("cosine", "power=2", "has no setting power; it knows num_cycles"),
        ("constant", "num_cycles=2", "it has none"),
        ("cosine_with_min_lr", "min_lr=1e-6, min_lr_rate=0.1", "not both"),
        ("warmup_stable_decay", "num_decay_steps=1.5", "whole number"),
        ("warmup_stable_decay", "decay_type=steep", "one of linear, cosine, 1-sqrt"),
    ],
)
def test_wrong_settings_are_one_sentence(schedule: str, text: str, words: str) -> None:
    said = refusal(lr_scheduler_type=schedule, lr_scheduler_kwargs=text)
    assert said.startswith("train.lr_scheduler_kwargs: ")
    assert words in said


def test_settings_may_be_a_mapping_as_in_training_arguments() -> None:
    text = (
        "model_path: m\ndata_path: d\nlr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    assert load_yaml(text, RunConfig).train.lr_scheduler_kwargs == "num_cycles=2"


def test_schedules_that_insist_on_a_number_get_the_usual_one() -> None:
    assert usual_settings("warmup_stable_decay", {}, 200) == {"num_decay_steps": 20}
    assert usual_settings("warmup_stable_decay", {"num_decay_steps": 7}, 3) == {"num_decay_steps": 7}
    assert usual_settings("cosine_with_min_lr", {}, 9) == {"min_lr_rate": 0.1}
    assert usual_settings("cosine_with_min_lr", {"min_lr": 1e-6}, 9) == {"min_lr": 1e-6}
    assert set(SCHEDULE_SETTINGS) <= set(get_args(Scheduler))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"load_best_model_at_end": True},
            "train.load_best_model_at_end needs validation rows; set data.validation_share",
        ),
        ({"early_stopping_patience": 3}, "early_stopping.early_stopping_patience needs validation rows"),
        ({"init_lora_weights": "pissa", "method": "qlora"}, "lora.init_lora_weights: pissa changes the base weights"),
        ({"init_lora_weights": "olora", "method": "qlora"}, "choose the method lora"),
        ({"init_lora_weights": "pissa", "method": "lora", "use_dora": True}, "cannot be combined with lora.use_dora"),
        (
            {"init_lora_weights": "pissa_niter_16", "method": "lora", "modules_to_save": ["lm_head"]},
            "cannot be combined with lora.modules_to_save",
        ),
        ({"adapter": "last", "method": "full"}, "model.adapter: an adapter is continued with the method lora or qlora"),
    ],
)
def test_rules_between_fields_name_field_and_remedy(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"load_best_model_at_end": True, "validation_share": 0.1},
        {"early_stopping_patience": 3, "validation_dataset": "other.jsonl"},
        {"init_lora_weights": "pissa", "method": "lora"},
        {"init_lora_weights": "pissa", "method": "full"},
        {"init_lora_weights": "gaussian", "method": "qlora", "use_dora": True},
    ],
)
def test_what_the_rules_allow(changes: dict[str, Any]) -> None:
    assert config_of(changes)
