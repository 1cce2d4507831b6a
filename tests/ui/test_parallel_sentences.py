"""What is said of processes, stages and a file of DeepSpeed's settings has Chinese."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from studio.config import RunConfig
from studio.deepspeed_settings import FIELD, faults, remarks
from studio.preflight_parallel import about_zero
from studio.schema import ConfigError, build, merge
from studio.ui.sentences import translated

NEEDED = {"model.model_name_or_path": "crucible/ember", "data.dataset": "identity"}
LATIN = re.compile(r"[A-Za-z]+ [a-z]+ [a-z]+")
FSDP: dict[str, Any] = {"method": "lora", "parallel.num_processes": 2, "parallel.fsdp": "fsdp2"}
BESIDE_FSDP: list[dict[str, Any]] = [
    {"method": "qlora"},
    {"train.optim": "adamw_8bit"},
    {"lora.init_lora_weights": "pissa"},
    {"parallel.sequence_parallel_size": 2},
]
CONFLICTS: list[dict[str, Any]] = [
    {"parallel.num_processes": 3, "parallel.num_machines": 2},
    {"parallel.num_processes": 2, "parallel.num_machines": 2, "parallel.machine_rank": 2},
    {"parallel.num_processes": 2, "parallel.num_machines": 2},
    {"parallel.main_process_ip": "a b"},
    {"parallel.num_processes": 3, "parallel.sequence_parallel_size": 2},
    {"parallel.deepspeed": "zero2_offload", "train.optim": "paged_adamw_8bit"},
    {"parallel.deepspeed": "zero2", "train.optim": "adafactor"},
    {"parallel.deepspeed": "zero2", "train.optim": "adagrad"},
    {"parallel.deepspeed": "zero2", FIELD: "own.json"},
    {"parallel.deepspeed": "zero2", "parallel.fsdp": "fsdp2"},
    {"parallel.fsdp": "fsdp2", "method": "lora"},
    *({**FSDP, **changes} for changes in BESIDE_FSDP),
    {"parallel.num_processes": 2, "parallel.sequence_parallel_size": 2},
    {"parallel.num_processes": 2, "parallel.sequence_parallel_size": 2, "parallel.deepspeed": "zero3"}
    | {"model.attn_implementation": "eager"},
]
FILES: list[object] = [
    "{",
    "[]",
    '"' + "x" * 1_000_001,
    {"zero_optimization": 3},
    {"zero_optimization": {"stage": 9}},
    {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
    {"zero_optimization": {"stage": 3, "offload_param": {"device": "moon"}}},
    {"train_batch_size": 99, "amp": {"enabled": True}, "tensor_parallel": {"autotp_size": 2}},
    {"optimizer": {"type": "Lamb"}, "scheduler": {"type": "WarmupLR"}, "zero_optimisation": {}, "qqqq": 1},
]


def chinese(sentence: str) -> bool:
    told = re.sub(r"（.*）", "", translated(sentence, "zh-CN"))  # in brackets: what Python said
    return told != sentence and not LATIN.search(told)


@pytest.mark.parametrize("changes", CONFLICTS, ids=str)
def test_conflicts(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, merge(RunConfig, NEEDED | changes))
    for error in caught.value.errors:
        assert chinese(error.message), error.message


def test_files(tmp_path: Path) -> None:
    for number, value in enumerate(FILES):
        path = tmp_path / f"{number}.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    for name in [*names, str(tmp_path), str(tmp_path / "gone.json"), "a\0b"]:
        config = build(RunConfig, merge(RunConfig, NEEDED | {FIELD: name}))
        said = [*faults(config), *remarks(config)]
        assert said, name
        for sentence in said:
            assert chinese(sentence), sentence


def test_advice() -> None:
    config = build(RunConfig, merge(RunConfig, NEEDED | {"parallel.deepspeed": "zero2"}))
    (advice,) = about_zero(config)
    assert chinese(advice.message)
    assert chinese(advice.fix)
