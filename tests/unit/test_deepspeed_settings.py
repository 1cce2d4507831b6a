"""A file of one's own with DeepSpeed's settings: refused with a sentence, or copied into the run and completed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from studio.config import RunConfig
from studio.deepspeed_settings import FIELD, completed, faults, read_own, remarks, zero_of
from studio.parallel_section import UNDIVIDED, Zero
from studio.preflight import preflight
from studio.schema import ConfigError, build, merge
from studio.sharding import sharding_of
from studio.workspace import Workspace

OFFLOAD = {"device": "cpu"}
STAGE3 = {"zero_optimization": {"stage": 3, "offload_param": OFFLOAD, "offload_optimizer": OFFLOAD}}


def configuration(own: object, **changes: Any) -> RunConfig:
    needed = {"model.model_name_or_path": "crucible/ember", "data.dataset": "identity", FIELD: str(own)}
    return build(RunConfig, merge(RunConfig, needed | changes))


def written(folder: Path, value: object) -> Path:
    path = folder / "own.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_the_home_of_nobody_and_a_size_without_end_stop_no_estimate(tmp_path: Path) -> None:
    assert "cannot be read" in faults(configuration("~nobody-of-that-name/own.json"))[0]
    own = written(tmp_path, {"zero_optimization": {"stage": 3, "reduce_bucket_size": 10**400}})
    assert 5e8 < (sharding_of(configuration(own)).bucket or 0) < 1e30


def test_what_a_file_divides_counts_as_a_chosen_stage_would(tmp_path: Path) -> None:
    assert zero_of(configuration(written(tmp_path, STAGE3))) == Zero(3, True, True)
    assert zero_of(configuration(written(tmp_path, {"bf16": {"enabled": "auto"}}))) == UNDIVIDED
    assert zero_of(configuration(tmp_path / "gone.json")) == UNDIVIDED


BROKEN: list[tuple[object, str]] = [
    ('{"zero_optimization": ', "is no JSON"),
    ("[1, 2]", "holds no object"),
    ('{"gradient_clipping": NaN}', "is no JSON"),
    ('{"a": "' + "x" * 1_000_000 + '"}', "more than 1 MB"),
    ("[" * 100_000, "is no JSON"),
    ({"zero_optimization": 3}, "zero_optimization in the file must be an object"),
    ({"zero_optimization": {"stage": 4}}, "stage in the file is 4; choose 1, 2 or 3"),
    ({"bf16": {"enabled": "auto"}}, "stage in the file is 0 or missing, so nothing would be divided"),
    ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 1e400}}', "is no JSON"),
    ({"sequence_parallel_size": 2, **STAGE3}, r"parallel\.sequence_parallel_size is 1"),
    ({"zero_optimization": {"stage": "two"}}, 'stage in the file is "two"'),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "needs an operator .* choose cpu"),
    ({"zero_optimization": {"stage": 3, "offload_param": "cpu"}}, "offload_param in the file must be an object"),
    ({"train_micro_batch_size_per_gpu": 7}, r"is 7, and train\.per_device_train_batch_size is 4; write \"auto\""),
    ({"gradient_accumulation_steps": 1}, r"train\.gradient_accumulation_steps is 4"),
    ({"train_batch_size": 99}, "effective batch size is 16"),
    ({"gradient_clipping": 0.3}, r"train\.max_grad_norm is 1\.0"),
    ({"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}, r"optimizer\.params\.lr .* train\.learning_rate"),
    ({"optimizer": {"type": "OneBitAdam"}}, r"optimizer OneBitAdam .* train\.optim"),
    ({"bf16": {"enabled": False}}, r"bf16\.enabled in the file is false, and model\.dtype is auto"),
    ({"bf16": {"enabled": True}}, r"bf16\.enabled in the file is true"),
    ({"amp": {"enabled": True}}, "amp in the file changes more"),
    ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel .* stage 3"),
]


@pytest.mark.parametrize(("text", "sentence"), BROKEN, ids=[sentence[:40] for _, sentence in BROKEN])
def test_a_file_that_cannot_be_used_is_refused_with_what_to_do(text: object, sentence: str, tmp_path: Path) -> None:
    import re

    found = faults(configuration(written(tmp_path, text)))
    assert len(found) == 1
    assert re.search(sentence, found[0]), found


def test_a_file_that_is_none_is_refused_before_the_start(tmp_path: Path, workspace: Workspace) -> None:
    os.mkfifo(tmp_path / "pipe")
    wrong = (
        (tmp_path, "is a folder"),
        (tmp_path / "gone.json", "there is no file"),
        ("a\0b", "cannot"),
        (tmp_path / "pipe", "it is no file"),
    )
    for own, sentence in wrong:
        config = configuration(own)
        errors = [advice for advice in preflight(config, workspace) if advice.field == FIELD]
        assert [error.level for error in errors] == ["error"]
        assert sentence in errors[0].message
        with pytest.raises(ConfigError, match=rf"{FIELD}: .*{sentence}"):
            workspace.create_run(config)


def test_equal_and_automatic_values_are_fine_and_what_is_not_used_is_told(tmp_path: Path) -> None:
    own = {
        "train_micro_batch_size_per_gpu": 4,
        "train_batch_size": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.999]}},
        "scheduler": {"type": "WarmupLR"},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 2},
        "zero_optimisation": {"stage": 3},
    }
    config = configuration(written(tmp_path, own))
    assert faults(config) == []
    told = " | ".join(remarks(config))
    assert "optimizer in the file is left out: train.optim decides" in told
    assert "scheduler in the file is left out" in told
    assert "zero_optimisation in the file is no setting of DeepSpeed; did you mean zero_optimization?" in told


def test_nothing_of_a_file_must_be_compiled_and_the_trainer_fills_in_what_it_knows(tmp_path: Path) -> None:
    found = completed(read_own(written(tmp_path, STAGE3 | {"optimizer": {"type": "AdamW"}, "gradient_clipping": 1.0})))
    assert "optimizer" not in found
    assert found["zero_force_ds_cpu_optimizer"] is False
    assert found["train_batch_size"] == "auto"
    assert found["gradient_clipping"] == 1.0
    assert found["zero_optimization"]["stage"] == 3
    narrow = completed({"fp16": {"enabled": False, "loss_scale": 2}, "bf16": {"enabled": True}})
    assert narrow["fp16"] == {"enabled": "auto", "loss_scale": 2}
    assert narrow["bf16"] == {"enabled": True}
    assert found["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    alone = completed({"zero_optimization": {"stage3_gather_16bit_weights_on_model_save": False}})
    assert alone["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True, "of no use to others"


def test_the_run_has_a_copy_and_a_later_change_of_the_file_changes_nothing(
    tmp_path: Path, workspace: Workspace
) -> None:
    own = written(tmp_path, STAGE3)
    run = workspace.create_run(configuration(own))
    own.write_text("{", encoding="utf-8")
    config = run.config()
    assert isinstance(config, RunConfig)
    assert config.parallel.deepspeed_config == str(run.deepspeed_file)
    assert zero_of(config).stage == 3

    again = workspace.create_run(config)
    assert json.loads(again.deepspeed_file.read_text(encoding="utf-8")) == STAGE3
    moved = run.path.rename(run.path.with_name("elsewhere"))
    found = workspace.run(moved.name).config()
    assert isinstance(found, RunConfig)
    assert zero_of(found).stage == 3


def test_a_file_and_a_stage_are_not_chosen_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deepspeed_config: .* choose one"):
        configuration(tmp_path / "own.json", **{"parallel.deepspeed": "zero2"})
