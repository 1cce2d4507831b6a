"""What dividing a run saves, sends and costs: published figures, the rows beside the ZeRO control, advice and fixes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studio.activations import Load
from studio.bounds import load_of
from studio.cli import main
from studio.config import RunConfig
from studio.devices import Device, find_card, from_gpus
from studio.footprint import footprint
from studio.hardware import Gpu, Hardware
from studio.memory import ModelShape, fit
from studio.parallel_plan import conflict
from studio.preflight_memory import about_division, weights_here
from studio.remedies import wider, with_overrides
from studio.resources import predicted_bytes
from studio.schema import build, merge
from studio.sharding import WHOLE, Sharding, sharding_of
from studio.speed import computed, recorded
from studio.spread import LEVELS, Row, advice, levels, lowest, overrides_of, rows
from studio.states import Gradients, buffers, held
from studio.traffic import gathers, sending_seconds, sent_bytes
from studio.workspace import Workspace

SHAPE = ModelShape.from_config(
    {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 92544,
    }
)  # fmt: skip
A100 = find_card("A100 80GB")
LIGHT = {"train.per_device_train_batch_size": 1, "train.gradient_checkpointing": True}


def config_of(**changes: Any) -> RunConfig:
    settings = {"model.model_name_or_path": "some/model", "data.dataset": "rows"} | LIGHT | changes
    return build(RunConfig, merge(RunConfig, settings))


def spread_of(count: int, **changes: Any) -> RunConfig:
    return config_of(**{"parallel.num_processes": count} | changes)


def load(count: int, stage: str, **changes: Any) -> Load:
    return load_of(spread_of(count, **{"parallel.deepspeed": stage} | changes), SHAPE, A100)


def row(name: str, found: tuple[Row, ...]) -> Row:
    return next(one for one in found if one.name == name)


# ---- what is held


@pytest.mark.parametrize(("stage", "gigabytes"), [("zero1", 38.5), ("zero2", 26.25), ("zero3", 14.0)])
def test_model_states_of_7_billion_weights_on_8_gpus_are_the_published_ones(stage: str, gigabytes: float) -> None:
    """16 bytes a weight: 2 the weight, 2 its gradient, 12 its 32-bit copy and the two states of Adam."""
    one = load(8, stage, method="full", **{"train.gradient_accumulation_steps": 1})
    kept = held(one)
    states = (kept.weights + kept.adapter + kept.optimizer + Gradients(one).all) / SHAPE.parameters * 7
    assert states == pytest.approx(gigabytes)


def test_without_deepspeed_every_process_holds_everything_and_copies_of_its_gradients() -> None:
    alone, one_of_8 = load(1, "none", method="full"), load(8, "none", method="full")
    assert held(one_of_8) == held(alone)
    assert held(alone).optimizer == 8 * SHAPE.parameters
    assert Gradients(one_of_8).always == 4 * SHAPE.parameters
    assert footprint(one_of_8).gradients - footprint(alone).gradients == 4 * SHAPE.parameters


def test_stages_divide_more_and_more() -> None:
    kept = [held(load(8, stage, method="full")) for stage in ("zero1", "zero2", "zero3")]
    assert {round(one.optimizer) for one in kept} == {round(12 * SHAPE.parameters / 8)}
    assert [round(one.weights / SHAPE.parameters, 3) for one in kept] == [2, 2, 0.25]
    gradients = [Gradients(load(8, stage, method="full")).all for stage in ("zero1", "zero2", "zero3")]
    assert [round(size / SHAPE.parameters, 3) for size in gradients] == [2, 0.25, 0.25]


def test_packed_weights_are_divided_by_stage_3_only_and_their_factors_never() -> None:
    whole, two, three = (held(load(8, stage, method="qlora")).weights for stage in ("none", "zero2", "zero3"))
    assert two == whole
    factors = SHAPE.linear_parameters / 64
    assert three == pytest.approx(factors + (whole - factors) / 8, rel=0.01)
    short = footprint(load(512, "zero3", method="qlora", **{"data.max_length": 16}))
    assert short.moment == "loading"
    assert short.total >= whole  # each process has them whole before they are divided


def test_an_adapter_gains_from_stage_3_what_its_base_weights_take() -> None:
    two, three = held(load(8, "zero2", method="lora")), held(load(8, "zero3", method="lora"))
    assert two.weights == 2 * SHAPE.parameters
    assert three.weights == two.weights / 8
    assert three.adapter == two.adapter / 8


def test_stage_3_holds_whole_what_is_needed_again_soon() -> None:
    """DeepSpeed keeps half of stage3_max_reuse_distance through the turn from forward to backward."""
    one = load(8, "zero3", method="full")
    assert buffers(one).gathered == pytest.approx(2 * (5e8 + 0.9 * 4096**2 + SHAPE.embedding_parameters))
    near = replace(one, sharding=replace(one.sharding, reuse=10**11))
    assert buffers(near).gathered == 2 * SHAPE.parameters
    assert buffers(replace(one, sharding=replace(one.sharding, processes=1))).gathered == 0


def test_offload_moves_states_to_main_memory_for_all_processes_of_a_machine() -> None:
    found = fit(spread_of(8, method="full", **{"parallel.deepspeed": "zero2_offload"}), SHAPE, A100)
    assert found.components["optimizer"] == 0
    assert found.host_bytes == pytest.approx(18 * SHAPE.parameters, rel=0.01)  # together once, however many they are
    alone = fit(config_of(method="full", **{"parallel.deepspeed": "zero2_offload"}), SHAPE, A100)
    assert alone.host_bytes == pytest.approx(found.host_bytes)


def test_fsdp_divides_32_bit_weights_and_not_packed_ones() -> None:
    sharding = Sharding(8, 3, engine="fsdp2")
    full = replace(load(8, "none", method="full"), sharding=sharding)
    assert held(full).weights == SHAPE.parameters / 2
    assert held(full).optimizer == SHAPE.parameters
    packed = replace(load(8, "none", method="qlora"), sharding=sharding)
    assert held(packed).weights > SHAPE.linear_parameters / 2


def test_processes_that_share_rows_share_activations() -> None:
    one = load(8, "zero3", **{"data.max_length": 32768})
    shared = replace(one, sharding=replace(one.sharding, sequence=4))
    assert footprint(shared).activations == pytest.approx(footprint(one).activations / 4, rel=0.05)
    assert sent_bytes(shared) > sent_bytes(one)


def test_processes_without_gpus_share_the_memory_of_the_machine() -> None:
    device = Device("main memory", "cpu", 32 << 30, 24 << 30, 0.2, 20.0, present=True)
    alone, four = fit(config_of(), SHAPE, device), fit(spread_of(4), SHAPE, device)
    assert four.device.free_bytes == alone.device.free_bytes // 4
    two_machines = spread_of(4, **{"parallel.num_machines": 2, "parallel.main_process_ip": "10.0.0.1"})
    assert fit(two_machines, SHAPE, device).device.free_bytes == alone.device.free_bytes // 2
    assert fit(spread_of(4), SHAPE, A100).device.free_bytes == A100.free_bytes


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 5e6, "overlap_comm": True}
    file.write_text(json.dumps({"zero_optimization": zero, "bf16": {"enabled": False}}), encoding="utf-8")
    found = sharding_of(spread_of(8, **{"parallel.deepspeed_config": str(file)}))
    assert found == Sharding(
        8, 2, offload_optimizer=True, local=8, rounds=False, bucket=5_000_000, prefetch=50_000_000, overlap=True
    )
    assert sharding_of(config_of()) == WHOLE
    assert sharding_of(spread_of(2, **{"parallel.deepspeed_config": str(tmp_path / "none.json")})).engine == "torch"


# ---- what is sent


@pytest.mark.parametrize(
    ("stage", "per_weight"),
    [("none", 8), ("zero1", 6), ("zero2", 6), ("zero3", 6)],  # bytes: 2 sums of 32 bits; 3 of 16 bits; 3 of 16 bits
)
def test_full_training_sends_so_much_for_each_weight(stage: str, per_weight: float) -> None:
    """A sum for all is two passes, gathering and scattering one each; stage 3: twice the weights, once gradients."""
    one = load(8, stage, method="full", **{"train.gradient_accumulation_steps": 1})
    one = replace(one, sharding=replace(one.sharding, reuse=1))
    layers = replace(one, config=with_overrides(one.config, {"train.gradient_checkpointing": False}))
    assert sent_bytes(layers) == pytest.approx(per_weight * SHAPE.parameters * 7 / 8, rel=0.001)
    assert sent_bytes(load(1, stage, method="full")) == 0


def test_accumulation_is_free_until_stage_1_and_costs_from_stage_2_on() -> None:
    def growth(stage: str) -> float:
        once, four = (load(8, stage, **{"train.gradient_accumulation_steps": n}) for n in (1, 4))
        return sent_bytes(four) / sent_bytes(once)

    assert growth("none") == growth("zero1") == 1
    assert growth("zero2") == pytest.approx(3)  # 4 sums and one gathering, against one of each
    assert growth("zero3") == pytest.approx(4)


def test_an_adapter_sends_itself_until_stage_2_and_all_base_weights_at_stage_3() -> None:
    adapter = load(8, "none", method="lora").trained
    assert sent_bytes(load(8, "none", method="lora")) == pytest.approx(8 * adapter * 7 / 8)
    three = load(8, "zero3", method="lora", **{"train.gradient_accumulation_steps": 1})
    assert 1.9 < gathers(three) < 2
    assert sent_bytes(three) == pytest.approx(2 * SHAPE.parameters * gathers(three) * 7 / 8, rel=0.02)
    near = replace(three, sharding=replace(three.sharding, reuse=10**6))
    assert gathers(near) == pytest.approx(3, rel=0.01)  # layers are computed again, and their weights were let go


def test_a_network_between_machines_is_the_narrowest_place() -> None:
    near = load(16, "zero2")
    far = load(16, "zero2", **{"parallel.num_machines": 2, "parallel.main_process_ip": "10.0.0.1"})
    assert sent_bytes(far) == sent_bytes(near)
    assert sending_seconds(far, A100) == pytest.approx(sending_seconds(near, A100) * 300 / 1.25)
    assert sending_seconds(far, A100, network=50) == pytest.approx(sending_seconds(near, A100) * 6)


# ---- time


def test_several_processes_are_as_many_times_as_fast_less_what_they_send() -> None:
    one, eight = computed(load(1, "none"), A100), computed(load(8, "none"), A100)
    assert 7 < eight.tokens_per_second / one.tokens_per_second < 8
    slow = replace(A100, link=0.01)
    assert computed(load(8, "zero3"), slow).tokens_per_second < 0.1 * eight.tokens_per_second


def test_an_update_of_all_processes_counts_all_their_rows() -> None:
    one, eight = fit(config_of(), SHAPE, A100), fit(spread_of(8), SHAPE, A100)
    assert eight.seconds_per_step == pytest.approx(one.seconds_per_step, rel=0.1)


def test_a_recorded_speed_is_of_the_same_spread(workspace: Workspace) -> None:
    run = workspace.create_run(spread_of(2, **{"parallel.deepspeed": "zero2"}))
    run.report_file.write_text(json.dumps({"tokens_per_second": 1234.0}), encoding="utf-8")
    found = recorded(spread_of(2, **{"parallel.deepspeed": "zero2"}), workspace)
    assert found is not None
    assert found.tokens_per_second == 1234
    assert recorded(spread_of(2), workspace) is None
    assert recorded(config_of(), workspace) is None


# ---- side by side


def test_rows_say_for_every_way_what_it_saves_and_sends() -> None:
    found = rows(spread_of(8, method="full", **{"parallel.deepspeed": "zero2"}), SHAPE, A100)
    assert [one.name for one in found] == list(LEVELS)
    assert [one.name for one in found if one.chosen] == ["zero2"]
    for one in found:
        assert sum(one.parts.values()) == one.expected <= one.high
        assert one.saves == row("none", found).expected - one.expected
        assert one.seconds == pytest.approx(one.sent_bytes / A100.link / 1e9, rel=1e-6)
    assert row("none", found).verdict == "no"
    assert row("zero2", found).verdict == "fits"
    assert row("zero2", found).message.startswith("zero2 saves 1")
    assert "per GPU and sends" in row("zero2", found).message
    assert "of main memory" in row("zero2_offload", found).message


def test_rows_agree_with_the_estimate_of_the_configuration_they_stand_for() -> None:
    config = spread_of(4, method="lora")
    for one in rows(config, SHAPE, A100):
        changed = with_overrides(config, one.overrides)
        assert fit(changed, SHAPE, A100).expected == one.expected
        assert bool(one.problem) == (conflict(changed) is not None)


def test_what_cannot_be_combined_says_why() -> None:
    found = rows(spread_of(2, **{"train.optim": "paged_adamw_8bit"}), SHAPE, A100)
    assert "paged_adamw_8bit" in row("zero2_offload", found).problem
    assert row("zero2", found).problem == ""


def test_the_lowest_stage_that_fits_is_advised() -> None:
    found = rows(spread_of(2, method="full"), SHAPE, A100)
    best = lowest(found)
    assert best is not None
    assert best.verdict == "fits"
    said = advice(spread_of(2, method="full"), SHAPE, A100)
    assert said is not None
    assert said.field == "parallel.deepspeed"
    assert said.message.startswith("none does not fit on 2 GPUs (")
    assert said.fix.startswith(f"{best.name} fits (")
    assert advice(spread_of(2, method="full", **best.overrides), SHAPE, A100) is None
    assert advice(config_of(method="full"), SHAPE, A100) is None  # nobody spoke of several


def test_each_method_has_a_lowest_stage_of_its_own() -> None:
    found = levels(spread_of(8), SHAPE, find_card("RTX 3090 24GB"))
    assert found == {"lora": "none", "qlora": "none", "full": "zero2_offload"}
    here = replace(find_card("RTX 3090 24GB"), main_memory=64 << 30)
    assert levels(spread_of(8), SHAPE, here)["full"] is None  # 130 GB of main memory are not there
    offload = row("zero2_offload", rows(spread_of(8, method="full"), SHAPE, here))
    assert offload.problem.endswith("and this machine has 68.7 GB")
    alone = fit(config_of(method="full"), SHAPE, here)
    assert not any("offload" in str(fix.overrides) for fix in alone.fixes)


def test_several_gpus_of_this_machine_are_offered_where_one_is_too_small() -> None:
    gpus = [Gpu(n, "NVIDIA A100-SXM4-80GB", 80 << 30, 79 << 30, "8.0") for n in range(4)]
    device = from_gpus(gpus)[0]
    assert device.count == 4
    config = config_of(method="full", **{"train.gradient_accumulation_steps": 4})
    found = fit(config, SHAPE, device)
    assert found.verdict == "no"
    spread = next(fix for fix in found.fixes if "parallel.num_processes" in fix.overrides)
    changed = build(RunConfig, merge(RunConfig, config.model_dump(), spread.overrides))
    assert changed.effective_batch_size == config.effective_batch_size
    assert fit(changed, SHAPE, device).verdict == "fits"
    assert spread.message.startswith("4 GPUs and zero")


@pytest.mark.parametrize("spread", [{"parallel.deepspeed": "zero2"}, {"parallel.fsdp": "fsdp2"}])
def test_nothing_is_offered_that_cannot_be_divided(spread: dict[str, Any]) -> None:
    config = spread_of(4, method="lora", **spread, **{"train.gradient_checkpointing": False})
    found = fit(config, SHAPE, find_card("RTX 4070 12GB"))
    assert found.verdict == "no"
    assert found.fixes
    for fix in found.fixes:
        assert conflict(with_overrides(config, fix.overrides)) is None


def test_a_wider_spread_is_offered_only_where_it_can_be() -> None:
    assert not list(wider(config_of(method="lora"), A100))  # one process of an adapter
    stages = [found["parallel.deepspeed"] for found in wider(spread_of(2), A100)]
    assert stages[:2] == ["zero1", "zero2"]
    assert list(wider(spread_of(2, **{"parallel.deepspeed": "zero2"}), A100))[0] != overrides_of("zero1")
    odd = config_of(**{"train.gradient_accumulation_steps": 3})
    assert not list(wider(odd, replace(A100, count=2)))  # 3 rows cannot be divided between two


# ---- the verb


def test_the_verb_shows_the_ways_to_divide(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["internlm2_chat_7b_full_alpaca_e3", "--card", "A100 80GB", "--set", "parallel.num_processes=8"]
    words += ["--set", "train.gradient_checkpointing=true", "--workspace", str(workspace.path)]
    assert main(["estimate", *words]) == 0
    text = capsys.readouterr().out
    assert "none (chosen)" in text
    assert "zero1 fits" in text
    assert "300 GB/s" in text
    assert "to fit: lora: nothing has to be divided, qlora: nothing has to be divided, full: zero1" in text
    assert main(["estimate", *words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in found["spread"]} == set(LEVELS)
    assert found["advice"].startswith("parallel.deepspeed: none does not fit on 8 GPUs")


# ---- before the start


@pytest.mark.parametrize(
    ("method", "stage", "share"),
    [("full", "zero2", 1), ("full", "zero3", 1 / 8), ("lora", "zero3_offload", 0), ("qlora", "zero3", 1)],
)
def test_bare_weights_are_held_in_part(method: str, stage: str, share: float) -> None:
    assert weights_here(spread_of(8, method=method, **{"parallel.deepspeed": stage})) == share


@pytest.mark.parametrize(
    ("total", "free", "level"),
    [(64 << 30, 64 << 30, "error"), (512 << 30, 64 << 30, "warning"), (512 << 30,) * 2 + ("",)],
)
def test_processes_without_gpus_share_one_memory(tmp_path: Path, total: int, free: int, level: str) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"intermediate_size": 128}), encoding="utf-8")
    machine = Hardware(2, 0.0, total, free, 1 << 40, (), None)
    layer = {"model.model_name_or_path": str(tmp_path)}
    found = about_division(spread_of(160, method="lora", **layer), machine, None, None)
    assert [one.level for one in found] == ([level] if level else [])
    assert all(one.field == "parallel.num_processes" and "160 processes" in one.message for one in found)
    assert about_division(spread_of(1, method="lora", **layer), machine, None, None) == []


@pytest.mark.parametrize(
    ("total", "free", "level"),
    [(64 << 30, 64 << 30, "error"), (512 << 30, 64 << 30, "warning"), (512 << 30,) * 2 + ("",)],
)
def test_main_memory_must_hold_what_is_offloaded(tmp_path: Path, total: int, free: int, level: str) -> None:
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 92544}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"intermediate_size": 14336}), encoding="utf-8")
    gpu = Gpu(0, "NVIDIA A100-SXM4-80GB", 80 << 30, 79 << 30, "8.0")
    machine = Hardware(8, 0.0, total, free, 1 << 40, (gpu,) * 8, None)
    layer = {"model.model_name_or_path": str(tmp_path), "parallel.deepspeed": "zero2_offload"}
    found = about_division(spread_of(8, method="full", **layer), machine, gpu, None)
    assert [one.level for one in found] == ([level] if level else [])
    none = spread_of(8, method="full", **layer | {"parallel.deepspeed": "none"})
    assert "zero1 fits" in str(about_division(none, machine, gpu, None)[0])


def test_the_queue_counts_all_processes_that_share_main_memory(workspace: Workspace) -> None:
    device = Device("main memory", "cpu", 32 << 30, 24 << 30, 0.2, 20.0, present=True)
    one, two = (
        predicted_bytes(workspace, spread_of(n, **{"model.model_name_or_path": "internlm/internlm2-1_8b"}), device)
        for n in (1, 2)
    )
    assert one is not None
    assert two is not None
    assert two > 2 * one
    card = predicted_bytes(workspace, spread_of(2, **{"model.model_name_or_path": "internlm/internlm2-1_8b"}), A100)
    assert card is not None
    assert card < two / 1.5
