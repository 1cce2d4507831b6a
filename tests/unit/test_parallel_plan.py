"""What of processes, stages and methods cannot be combined is said before the start, with what works instead."""

from __future__ import annotations

from typing import Any

import pytest

from studio.config import RunConfig
from studio.preflight_parallel import about_zero
from studio.schema import ConfigError, build, merge
from studio.sequence_heads import about_heads, heads_conflict

NEEDED = {"model.model_name_or_path": "crucible/ember", "data.dataset": "identity"}


def configuration(**changes: Any) -> RunConfig:
    return build(RunConfig, merge(RunConfig, NEEDED | changes))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("stage", ["none", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_method_goes_with_every_stage(method: str, stage: str, processes: int) -> None:
    found = configuration(**{"method": method, "parallel.deepspeed": stage, "parallel.num_processes": processes})
    assert found.parallel.zero.stage == (0 if stage == "none" else int(stage[4]))
    assert found.parallel.zero.offload_optimizer == stage.endswith("_offload")
    assert found.parallel.zero.offload_parameters == (stage == "zero3_offload")
    assert found.effective_batch_size == 16 * processes


FSDP: dict[str, Any] = {"method": "lora", "parallel.num_processes": 2, "parallel.fsdp": "fsdp2"}
SHARED: dict[str, Any] = {
    "parallel.num_processes": 2,
    "parallel.sequence_parallel_size": 2,
    "parallel.deepspeed": "zero3",
}
CONFLICTS: list[tuple[dict[str, Any], str]] = [
    ({"parallel.num_processes": 3, "parallel.num_machines": 2}, r"num_processes: 3 .* choose a multiple of 2"),
    (
        {"parallel.num_processes": 2, "parallel.num_machines": 2, "parallel.machine_rank": 2},
        r"machine_rank: there is no machine 2 of 2; .* at most 1",
    ),
    ({"parallel.num_processes": 2, "parallel.num_machines": 2}, "main_process_ip: name the address"),
    ({"parallel.main_process_ip": "n0; touch x"}, r"main_process_ip: 'n0; touch x' is no name and no address"),
    ({"parallel.main_process_ip": "-oProxyCommand=x"}, "main_process_ip: '-oProxyCommand=x' is no name"),
    (
        {"parallel.deepspeed": "zero2_offload", "train.optim": "paged_adamw_8bit"},
        r"deepspeed: .* paged_adamw_8bit; choose adamw_torch, or zero2 without",
    ),
    ({"parallel.deepspeed": "zero1", "train.optim": "adafactor"}, r"deepspeed: .* adafactor learns .* no ZeRO"),
    ({"parallel.deepspeed": "zero3", "train.optim": "adagrad"}, r"deepspeed: .* adagrad .*; choose adamw_torch"),
    ({"parallel.deepspeed": "zero2", "parallel.fsdp": "fsdp2"}, r"fsdp: .* choose one: set parallel\.fsdp to none"),
    (
        {"parallel.deepspeed_config": "own.json", "parallel.fsdp": "fsdp2"},
        r"fsdp: fsdp2 and parallel\.deepspeed_config",
    ),
    (FSDP | {"parallel.num_processes": 1}, r"fsdp: one process has nothing to divide; set it to none"),
    (FSDP | {"method": "qlora"}, r"fsdp: .* 4 bits whole in every process; choose the method lora, or .* zero3"),
    (FSDP | {"train.optim": "adamw_8bit"}, r"fsdp: .* adamw_8bit takes no divided weights; choose adamw_torch"),
    (FSDP | {"lora.init_lora_weights": "pissa"}, r"fsdp: .* pissa .* set lora\.init_lora_weights to default"),
    (FSDP | {"parallel.sequence_parallel_size": 2}, r"sequence_parallel_size: .* zero3 and parallel\.fsdp none, or"),
    (
        {"parallel.num_processes": 2, "parallel.sequence_parallel_size": 2},
        r"sequence_parallel_size: .* zero3, or set it to 1",
    ),
    (SHARED | {"parallel.num_processes": 3}, r"sequence_parallel_size: 2 does not divide 3 processes"),
    (SHARED | {"model.attn_implementation": "eager"}, r"sequence_parallel_size: .* eager .* to auto"),
]


@pytest.mark.parametrize(("changes", "sentence"), CONFLICTS, ids=lambda one: str(one)[:60])
def test_what_cannot_be_is_said_with_what_works(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"^parallel\.{sentence}"):
        configuration(**changes)


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_one_process_has_nothing_to_divide(stage: str) -> None:
    alone = configuration(**{"parallel.deepspeed": stage})
    assert [(advice.level, advice.field) for advice in about_zero(alone)] == [("warning", "parallel.deepspeed")]
    assert "nothing to divide" in about_zero(alone)[0].message
    assert not about_zero(configuration(**{"parallel.deepspeed": stage, "parallel.num_processes": 2}))
    assert stage == "zero1" or not about_zero(configuration(**{"parallel.deepspeed": f"{stage}_offload"}))


@pytest.mark.parametrize(
    ("size", "heads", "key_value_heads", "nearest"),
    [(2, 14, 2, None), (4, 14, 2, "choose 2"), (8, 32, 4, None), (3, 12, 4, "choose 2"), (5, 7, 7, "choose 1")],
)
def test_processes_that_share_conversations_must_divide_the_heads(
    size: int, heads: int, key_value_heads: int, nearest: str | None
) -> None:
    found = heads_conflict(size, heads, key_value_heads)
    assert (found and found[1]) == nearest


def test_it_is_said_before_the_start_that_the_heads_cannot_be_divided() -> None:
    six = SHARED | {"parallel.num_processes": 6, "parallel.sequence_parallel_size": 6}
    assert about_heads(configuration()) == []
    (told,) = about_heads(configuration(**six))
    assert told.level == "error"
    assert told.field == "parallel.sequence_parallel_size"
