"""Fields changed at a resume: what may change, what an update keeps, and what the run directory shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio import changes
from studio.config import MergeConfig, RunConfig
from studio.rundir import RunDir
from studio.schema import ConfigError, build, dump_yaml, merge

BASE = {"model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": "x.jsonl"}, "lora": {"r": 4}}


def config(**train: object) -> RunConfig:
    return build(
        RunConfig, BASE | {"train": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1} | train}
    )


def a_run(folder: Path) -> RunDir:
    run = RunDir(folder)
    run.config_file.write_text(dump_yaml(config(), full=True), encoding="utf-8")
    return run


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"per_device_train_batch_size": 2}, {changes.BATCH: 2, changes.ACCUMULATION: 8}),
        ({changes.ACCUMULATION: 8}, {changes.BATCH: 2, changes.ACCUMULATION: 8}),
        ({changes.BATCH: 1, changes.ACCUMULATION: 16}, {changes.BATCH: 1, changes.ACCUMULATION: 16}),
        ({changes.BATCH: 8}, {}),
        ({"gradient_checkpointing": True}, {"train.gradient_checkpointing": True}),
        ({"method": "lora", "samples.max_new_tokens": 16}, {"method": "lora", "samples.max_new_tokens": 16}),
        ({"train": {"save_steps": 7}}, {"train.save_steps": 7}),
    ],
)
def test_an_update_stays_as_large_as_it_was(asked: dict[str, object], expected: dict[str, object]) -> None:
    assert changes.checked_changes(config(gradient_accumulation_steps=2), asked, step=20) == expected


@pytest.mark.parametrize(
    ("asked", "field", "sentence"),
    [
        ({changes.BATCH: 3}, changes.BATCH, "must stay 16"),
        ({changes.BATCH: 4, changes.ACCUMULATION: 2}, changes.BATCH, "must stay 16"),
        ({"train.learning_rate": 1e-5}, "train.learning_rate", "clone the run"),
        ({"data.max_length": 128}, "data.max_length", "clone the run"),
        ({"train.optim": "adamw_8bit"}, "train.optim", "clone the run"),
        ({"method": "full"}, "method", "clone the run"),
        ({changes.BATCH: 0}, changes.BATCH, "at least 1"),
        ({"train.batch_sise": 2}, "train.batch_sise", "unknown field"),
    ],
)
def test_what_would_break_the_curve_is_refused(asked: dict[str, object], field: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        changes.checked_changes(config(gradient_accumulation_steps=2), asked, step=20)
    assert refused.value.errors[0].path == field
    assert sentence in refused.value.errors[0].message


@pytest.mark.parametrize(("processes", "batch", "accumulation"), [(2, 8, 1), (4, 4, 1), (16, 1, 1), (1, 8, 2)], ids=str)
def test_another_number_of_processes_shares_the_same_update(processes: int, batch: int, accumulation: int) -> None:
    before = config(gradient_accumulation_steps=2)
    changed = changes.checked_changes(before, {changes.PROCESSES: processes}, step=20)
    after = build(RunConfig, merge(RunConfig, before.model_dump(mode="json"), changed))
    assert (after.train.per_device_train_batch_size, after.train.gradient_accumulation_steps) == (batch, accumulation)
    assert after.effective_batch_size == before.effective_batch_size


def test_processes_that_cannot_share_an_update_are_told_which_can() -> None:
    with pytest.raises(ConfigError) as refused:
        changes.checked_changes(config(), {changes.PROCESSES: 3}, step=20)
    assert refused.value.errors[0].path == changes.PROCESSES
    assert "an update has 8 conversations" in refused.value.errors[0].message
    assert refused.value.errors[0].message.endswith("choose one of 1, 2, 4, 8")
    shared = {"parallel.num_processes": 2, changes.SHARED: 2, "parallel.deepspeed": "zero3"}
    pairs = build(RunConfig, merge(RunConfig, config().model_dump(mode="json"), shared))
    with pytest.raises(ConfigError, match=r"choose one of 2, 4, 8, 16$"):
        changes.checked_changes(pairs, {changes.PROCESSES: 6}, step=20)
    asked = {changes.PROCESSES: 2, changes.BATCH: 2}
    assert changes.checked_changes(config(), asked, step=20) == asked | {changes.ACCUMULATION: 2}


def test_what_an_optimizer_in_8_bits_keeps_stays_divided_as_it_is() -> None:
    plain, divided = (
        {"train": {"optim": "adamw_8bit"}} | BASE | {"parallel": {"deepspeed": at}} for at in ("none", "zero2")
    )
    assert changes.continues(build(RunConfig, plain), {changes.PROCESSES: 2})
    assert not changes.continues(build(RunConfig, plain), {"parallel.deepspeed": "zero2"})
    assert not changes.continues(build(RunConfig, divided), {changes.PROCESSES: 2})
    with pytest.raises(ConfigError, match="cannot be divided anew"):
        changes.checked_changes(build(RunConfig, divided), {changes.PROCESSES: 2}, step=4)


def test_a_run_that_begins_again_may_change_anything() -> None:
    asked = {"data.max_length": 128, changes.BATCH: 4, changes.ACCUMULATION: 1}
    assert changes.checked_changes(config(), asked, step=0) == {"data.max_length": 128, changes.BATCH: 4}
    # The batch size alone still keeps the update.
    assert changes.checked_changes(config(), {changes.BATCH: 4}, step=0) == {changes.BATCH: 4, changes.ACCUMULATION: 2}
    assert changes.checked_changes(config(), {changes.BATCH: 3}, step=0) == {changes.BATCH: 3}


def test_an_adapter_whose_start_moved_the_base_stays_in_16_bits() -> None:
    moved = build(RunConfig, BASE | {"method": "lora", "lora": {"init_lora_weights": "pissa"}})
    plain = build(RunConfig, BASE | {"method": "lora"})
    assert changes.continues(plain, {"method": "qlora"})
    assert not changes.continues(moved, {"method": "qlora"})


def test_the_run_shows_its_changes_and_keeps_its_file(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    written = run.config_file.read_bytes()
    run.change({changes.BATCH: 2}, step=20)
    run.change({"train.gradient_checkpointing": True, changes.BATCH: 2}, step=40)
    now = run.config()
    assert isinstance(now, RunConfig)
    assert (now.train.per_device_train_batch_size, now.train.gradient_checkpointing) == (2, True)
    assert now.effective_batch_size == config().effective_batch_size
    assert run.config_file.read_bytes() == written
    assert [(one.step, one.fields) for one in run.changes()] == [
        (20, {changes.BATCH: 2, changes.ACCUMULATION: 4}),
        (40, {"train.gradient_checkpointing": True}),
    ]


def test_a_change_to_the_same_is_no_change(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.change({changes.BATCH: 8, "lora_r": 4}, step=20)
    assert not run.changes_file.exists()


def test_a_refused_change_leaves_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with pytest.raises(ConfigError):
        run.change({"train.learning_rate": 1e-5}, step=20)
    assert not run.changes_file.exists()


@pytest.mark.parametrize("text", ["changes: 3", "- a", "changes: [{fields: 2}]", "changes: [{fields: {train.zz: 2}}]"])
def test_a_broken_file_is_said_not_skipped(tmp_path: Path, text: str) -> None:
    run = a_run(tmp_path)
    run.changes_file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        run.config()
    assert run.describe()["kind"] == "broken"


def test_a_merge_has_nothing_to_change(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.config_file.write_text(dump_yaml(MergeConfig(base="a", adapter="b", out="c"), full=True), encoding="utf-8")
    with pytest.raises(ConfigError, match="only a training"):
        run.change({changes.BATCH: 2}, step=0)
