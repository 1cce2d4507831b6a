"""The promise about memory and time: the formula, verdicts, what makes a run fit, which method, recorded speed."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from studio import metering
from studio.activations import Load, layer_activations, loss_bytes
from studio.bounds import Facts, load_of, number_bytes
from studio.cli import main
from studio.config import RunConfig
from studio.devices import Device, cards, find_card, from_gpus
from studio.footprint import PARTS, Measurement, footprint
from studio.hardware import Gpu
from studio.memory import Fit, ModelShape, advise_method, fit, shape_of
from studio.presets import models
from studio.remedies import with_overrides
from studio.schema import ConfigError, build, merge
from studio.sharding import Sharding
from studio.speed import recorded, step_flops
from studio.states import optimizer_bytes, weight_bytes
from studio.workspace import Workspace

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip
SMALL_CARD = find_card("RTX 4060 8GB")
LARGE_CARD = find_card("H200")
CPU = Device("main memory", "cpu", 32 << 30, 24 << 30, 0.2, 20.0, bf16=True, present=True)


def config_of(**changes: Any) -> RunConfig:
    settings = {"model.model_name_or_path": "some/model", "data.dataset": "rows"} | changes
    return build(RunConfig, merge(RunConfig, settings))


def load_8b(**changes: Any) -> Load:
    return load_of(config_of(**changes), ModelShape.from_config(LLAMA_8B), LARGE_CARD)


def fit_8b(device: Device, facts: Facts | None = None, **changes: Any) -> Fit:
    return fit(config_of(**changes), ModelShape.from_config(LLAMA_8B), device, facts or Facts())


# ---- shapes


def test_a_shape_is_read_from_a_config_file_and_counts_its_parameters() -> None:
    shape = ModelShape.from_config(LLAMA_8B)
    assert shape.head_dim == 128
    assert shape.parameters == 8_030_261_248  # what the published weights hold


@pytest.mark.parametrize("name", [m.name for m in models().values() if m.shape and m.parameters])
def test_every_preset_that_says_its_shape_has_the_parameters_it_says(name: str) -> None:
    model = models()[name]
    shape = shape_of(config_of(**{"model.model_name_or_path": model.model_name_or_path}))
    assert shape is not None
    assert shape.parameters / 1e9 == pytest.approx(model.parameters, rel=0.01)


def test_a_shape_knows_old_names_and_what_a_family_implies() -> None:
    gpt2 = ModelShape.from_config(
        {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
    )
    assert gpt2.intermediate_size == 3072
    assert gpt2.tie_word_embeddings
    assert not gpt2.gated_mlp
    qwen = ModelShape.from_config(LLAMA_8B | {"model_type": "qwen2"})
    assert qwen.attention_bias
    assert ModelShape.from_config(LLAMA_8B | {"model_type": "qwen3"}).qk_norm
    assert ModelShape.from_config({"model_type": "gemma3", "text_config": LLAMA_8B}).hidden_size == 4096


@pytest.mark.parametrize(
    "config", [{}, {"hidden_size": "many"}, LLAMA_8B | {"num_attention_heads": 0}, LLAMA_8B | {"vocab_size": -1}]
)
def test_a_config_without_sizes_is_refused_in_words(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not say how large"):
        ModelShape.from_config(config)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"hidden_size": 4}', '{"num_attention_heads": "x"}'])
def test_a_damaged_config_file_has_no_shape(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert shape_of(config_of(**{"model.model_name_or_path": str(tmp_path)})) is None


def test_a_shape_makes_the_config_it_was_made_from() -> None:
    shape = ModelShape.from_config(LLAMA_8B)
    assert ModelShape.from_config(shape.to_config() | {"model_type": "llama"}) == shape


# ---- the formula's parts


def test_four_bits_pack_the_linear_layers_and_nothing_else() -> None:
    shape = ModelShape.from_config(LLAMA_8B)
    rest = 2 * (shape.parameters - shape.linear_parameters)
    packed = weight_bytes(load_8b(method="qlora")) - rest
    assert packed / shape.linear_parameters == pytest.approx(0.5159, abs=1e-3)  # bytes, with double quantisation
    plain = weight_bytes(load_8b(method="qlora", **{"quantization.bnb_4bit_use_double_quant": False})) - rest
    assert plain / shape.linear_parameters == pytest.approx(0.5625)
    assert weight_bytes(load_8b(method="lora")) == 2 * shape.parameters
    assert weight_bytes(load_8b(method="full")) == 4 * shape.parameters


@pytest.mark.parametrize(
    ("optimizer", "per_weight"),
    [
        ("adamw_torch", 8), ("adamw_torch_fused", 8), ("adamw_8bit", 2.03), ("paged_adamw_32bit", 8),
        ("lion_8bit", 1.016), ("sgd", 0), ("ademamix", 12),
    ],
)  # fmt: skip
def test_an_optimizer_remembers_its_numbers(optimizer: str, per_weight: float) -> None:
    load = load_8b(method="lora", **{"train.optim": optimizer})
    assert optimizer_bytes(load) / load.trained == pytest.approx(per_weight, rel=0.01)


def test_every_optimizer_of_the_configuration_is_known() -> None:
    choices = RunConfig.model_fields["train"].annotation.model_fields["optim"].annotation  # type: ignore[union-attr]
    for name in choices.__args__:
        assert optimizer_bytes(load_8b(method="lora", **{"train.optim": name})) >= 0


def test_adafactor_remembers_rows_and_columns() -> None:
    adafactor = optimizer_bytes(load_8b(method="full", **{"train.optim": "adafactor"}))
    assert 0 < adafactor < 0.01 * optimizer_bytes(load_8b(method="full"))


def test_an_adapter_has_a_weight_for_each_rank_and_side() -> None:
    assert load_8b(method="lora").adapter_parameters == 41_943_040  # r 16 beside all linear layers
    few = load_8b(method="lora", **{"lora.target_modules": ["q_proj", "v_proj"]})
    assert few.adapter_parameters == 32 * 16 * (4096 + 4096 + 4096 + 1024)
    assert load_8b(method="lora", **{"lora.target_modules": "q_proj, v_proj"}).targets == few.targets


def test_layers_trained_whole_are_held_and_remembered() -> None:
    plain, whole = (
        load_8b(method="lora"),
        load_8b(method="lora", **{"lora.modules_to_save": ["lm_head", "embed_tokens"]}),
    )
    matrices = 2 * 128256 * 4096
    assert whole.trained - plain.trained == matrices
    more = footprint(whole).total - footprint(plain).total
    assert more > 12 * matrices


def test_activations_grow_with_rows_and_length_and_shrink_with_checkpointing() -> None:
    base = load_8b(**{"train.per_device_train_batch_size": 2})
    more = load_8b(**{"train.per_device_train_batch_size": 4})
    assert layer_activations(more) == pytest.approx(2 * layer_activations(base), rel=0.01)
    longer = replace(base, length=2 * base.length)
    assert layer_activations(longer) > 2 * layer_activations(base)  # the mask grows with the square
    light = load_8b(**{"train.per_device_train_batch_size": 2, "train.gradient_checkpointing": True})
    assert footprint(light).activations < 0.2 * footprint(base).activations


def test_a_mask_costs_the_square_of_the_length_and_eager_attention_more() -> None:
    masked = load_8b(**{"train.per_device_train_batch_size": 1, "data.packing": True})
    free = replace(masked, masked=False)
    assert layer_activations(masked) - layer_activations(free) > 2 * masked.length**2
    eager = load_8b(**{"model.attn_implementation": "eager", "train.per_device_train_batch_size": 1})
    assert layer_activations(eager) > layer_activations(free) + 32 * 4 * eager.length**2


def test_logits_are_computed_in_tiles_and_do_not_grow_with_the_vocabulary_forever() -> None:
    load = load_8b()
    whole = load.tokens * 128256 * 4
    assert loss_bytes(load) < 0.2 * whole
    double = replace(load, shape=load.shape.model_copy(update={"vocab_size": 2 * 128256}))
    assert loss_bytes(double) == loss_bytes(load)


def test_accumulated_gradients_lie_beside_the_activations() -> None:
    once = load_8b(method="full", **{"train.gradient_accumulation_steps": 1})
    more = load_8b(method="full", **{"train.gradient_accumulation_steps": 2})
    assert footprint(once).moment in ("update", "loss")
    assert footprint(more).total > footprint(once).total + 10e9


def test_what_is_offloaded_is_needed_in_main_memory() -> None:
    load = load_8b(method="full")
    away = footprint(replace(load, sharding=Sharding(1, 3, offload_optimizer=True, offload_parameters=True)))
    assert away.optimizer == away.weights == away.gradients == 0
    assert away.host == pytest.approx(20 * load.shape.parameters)  # weights, copies, states, gradients narrow and wide
    paged = fit_8b(LARGE_CARD, method="lora", **{"train.optim": "paged_adamw_32bit"})
    assert paged.components["optimizer"] == 0
    assert paged.host_bytes == pytest.approx(8 * 41_943_040)


def test_numbers_are_as_wide_as_the_engine_chooses() -> None:
    shape = ModelShape.from_config(LLAMA_8B)
    tiny = shape.model_copy(update={"num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 100})
    assert number_bytes(config_of(), shape, LARGE_CARD) == 2
    assert number_bytes(config_of(**{"model.dtype": "float32"}), shape, LARGE_CARD) == 4
    assert number_bytes(config_of(), shape, CPU) == 2
    assert number_bytes(config_of(), shape, replace(CPU, bf16=False)) == 4
    assert number_bytes(config_of(), tiny, CPU) == 4


# ---- the fit


def test_the_components_add_up_and_the_bounds_are_in_order() -> None:
    for device in (SMALL_CARD, LARGE_CARD, CPU):
        for method in ("qlora", "lora", "full"):
            found = fit_8b(device, method=method)
            assert sum(found.components.values()) == found.expected
            assert set(found.components) == {*PARTS, "framework"}
            assert 0 < found.low <= found.expected <= found.high


def test_a_verdict_compares_with_what_is_free() -> None:
    found = fit_8b(LARGE_CARD)
    for free, verdict in ((found.high, "fits"), (found.high - 1, "tight"), (found.expected, "tight")):
        assert fit_8b(replace(LARGE_CARD, free_bytes=free)).verdict == verdict
    assert fit_8b(replace(LARGE_CARD, free_bytes=found.expected - 1)).verdict == "no"
    assert found.fixes == ()


def test_short_rows_take_less_and_are_promised_less() -> None:
    full, short = fit_8b(LARGE_CARD), fit_8b(LARGE_CARD, Facts(longest=200, mean_length=100.0, updates=50))
    assert short.expected < 0.3 * full.expected
    assert short.high == full.high  # another dataset may have longer ones
    assert short.seconds == pytest.approx(50 * short.seconds_per_step)
    assert full.seconds is None
    longer = fit_8b(LARGE_CARD, Facts(longest=10**6, mean_length=10.0**6))
    assert (longer.expected, longer.seconds_per_step) == (full.expected, full.seconds_per_step)


@pytest.mark.parametrize("card", ["RTX 4060 8GB", "RTX 3060 12GB", "RTX 3090 24GB", "A100 40GB", "A100 80GB"])
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_every_offered_change_makes_the_run_fit(card: str, method: str, length: int) -> None:
    device, shape = find_card(card), ModelShape.from_config(LLAMA_8B)
    changes: dict[str, Any] = {"method": method, "data.max_length": length}
    config = config_of(**changes)
    found = fit(config, shape, device)
    if found.verdict == "fits":
        return
    assert found.fixes, "8B in 4 bits fits on every card of the list"
    assert len(found.fixes) <= 3
    for fix in found.fixes:
        changed = config_of(**changes | fix.overrides)  # through the validation every configuration goes through
        again = fit(changed, shape, device)
        assert again.verdict == fix.verdict == "fits"
        assert again.expected == fix.expected
        assert changed.effective_batch_size == config.effective_batch_size
    kinds = [set(fix.overrides) for fix in found.fixes]
    assert not any(earlier <= later for number, later in enumerate(kinds) for earlier in kinds[:number])


def test_the_cheapest_change_comes_first_and_says_its_price() -> None:
    found = fit_8b(find_card("RTX 3090 24GB"), method="qlora", **{"train.per_device_train_batch_size": 1})
    assert found.verdict == "tight"
    assert found.fixes[0].overrides == {"train.gradient_checkpointing": True}
    assert found.fixes[0].slowdown == pytest.approx(1.4, abs=0.1)
    assert found.fixes[0].message == "gradient checkpointing: 1.4 times the time"


def test_where_nothing_helps_nothing_is_offered() -> None:
    shape = ModelShape.from_config(LLAMA_8B | {"num_hidden_layers": 200})
    assert fit(config_of(), shape, SMALL_CARD).fixes == ()


def test_a_start_that_needs_16_bits_is_not_offered_4() -> None:
    found = fit_8b(find_card("RTX 3060 12GB"), method="lora", **{"lora.init_lora_weights": "pissa"})
    assert all("method" not in fix.overrides for fix in found.fixes)


def test_a_cpu_run_is_held_against_main_memory_and_never_paged() -> None:
    found = fit_8b(CPU, method="full")
    assert found.verdict == "no"
    assert found.components["optimizer"] == pytest.approx(8 * 8_030_261_248)
    assert all("paged" not in str(value) for fix in found.fixes for value in fix.overrides.values())


def test_with_overrides_changes_only_what_it_is_told() -> None:
    before = config_of()
    after = with_overrides(before, {"method": "full", "train.optim": "sgd", "data.max_length": 64})
    assert after == config_of(method="full", **{"train.optim": "sgd", "data.max_length": 64})
    assert before == config_of()


# ---- the method


def test_sixteen_bits_are_advised_where_they_fit_and_four_where_only_those_do() -> None:
    light = {"train.per_device_train_batch_size": 1, "train.gradient_checkpointing": True}
    shape, config = ModelShape.from_config(LLAMA_8B), config_of(**light)
    large = advise_method(config, shape, LARGE_CARD)
    assert [choice.method for choice in large][0] == "lora"
    assert large[0].recommended
    assert sum(choice.recommended for choice in large) == 1
    four_bits = next(choice for choice in large if choice.method == "qlora")
    assert four_bits.slowdown > 1.2
    assert four_bits.message.startswith("4-bit saves 9.")
    assert "costs 1.3 times the time" in four_bits.message
    small = advise_method(config, shape, find_card("RTX 4070 12GB"))
    assert small[0].method == "qlora"
    assert small[0].verdict == "fits"
    assert advise_method(config_of(), shape, SMALL_CARD)[0].method == "qlora"  # nearest to fitting where nothing does


# ---- time


def test_arithmetic_follows_the_parameters() -> None:
    load = load_8b(method="lora", **{"train.per_device_train_batch_size": 1, "data.max_length": 2048})
    shape = load.shape
    products = 2.0 * load.tokens * (2 * shape.linear_parameters + 3 * shape.embedding_parameters)
    assert step_flops(load) == pytest.approx(products, rel=0.1)  # attention and adapters are the rest
    again = load_8b(method="lora", **{"train.per_device_train_batch_size": 1, "train.gradient_checkpointing": True})
    assert step_flops(again) / step_flops(load) == pytest.approx(1.45, abs=0.1)


def finish_run(workspace: Workspace, tokens_per_second: Any, at: float, **changes: Any) -> None:
    run = workspace.create_run(config_of(**changes), now=at)
    run.report_file.write_text(json.dumps({"tokens_per_second": tokens_per_second}), encoding="utf-8")


def test_the_newest_run_of_the_same_kind_gives_the_speed(workspace: Workspace) -> None:
    assert recorded(config_of(), workspace) is None
    finish_run(workspace, 100.0, 1e9)
    finish_run(workspace, 200.0, 2e9, **{"train.learning_rate": 1e-5})
    finish_run(workspace, 300.0, 3e9, method="full")
    for odd in (None, "fast", -1.0, 0):
        finish_run(workspace, odd, 4e9)
    finish_run(workspace, 400.0, 5e9)
    workspace.list_runs()[0].config_file.write_text("method: [", encoding="utf-8")
    found = recorded(config_of(), workspace)
    assert found is not None
    assert (found.tokens_per_second, found.source) == (200.0, "recorded")
    promised = fit(config_of(), ModelShape.from_config(LLAMA_8B), CPU, speed=found)
    assert promised.seconds_per_step == pytest.approx(16 * 2048 / 200)
    assert recorded(config_of(**{"model.model_name_or_path": "other/model"}), workspace) is None


# ---- cards


def test_the_list_of_cards_goes_from_small_to_large() -> None:
    sizes = [card.memory for card in cards()]
    assert sizes == sorted(sizes)
    assert sizes[0] == 8
    assert sizes[-1] >= 140
    assert len({card.name for card in cards()}) == len(cards())


@pytest.mark.parametrize(
    ("asked", "name"), [("4060", "RTX 4060 8GB"), ("NVIDIA A100-80GB", "A100 80GB"), ("h200", "H200 141GB")]
)
def test_a_card_is_found_by_a_part_of_its_name(asked: str, name: str) -> None:
    assert find_card(asked).name == name


@pytest.mark.parametrize("asked", ["", "  ", "RTX 9999", "\x00", "a" * 10_000, "\\", "("])
def test_an_unknown_card_is_refused_in_one_sentence(asked: str) -> None:
    with pytest.raises(ConfigError, match="there is no card") as caught:
        find_card(asked)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("driver_name", "gib", "like"),
    [
        ("NVIDIA A100-SXM4-80GB", 80, "A100 80GB"),
        ("NVIDIA GeForce RTX 4090", 24, "RTX 4090 24GB"),
        ("NVIDIA H200", 140, "H200 141GB"),
        ("Tesla T4", 15, "T4 16GB"),
        ("Tesla V100-SXM2-32GB", 32, "V100 32GB"),
    ],
)
def test_a_gpu_of_this_machine_is_recognised(driver_name: str, gib: int, like: str) -> None:
    gpu = Gpu(0, driver_name, gib << 30, 5 << 30, "600.1")
    found = from_gpus([gpu])[0]
    assert (found.memory_bytes, found.free_bytes, found.present) == (gib << 30, 5 << 30, True)
    assert found.tflops == find_card(like).tflops


def test_a_gpu_nobody_knows_still_has_its_memory() -> None:
    found = from_gpus([Gpu(0, "Some GPU (", 11 << 30, 0, "1")])[0]
    assert found.free_bytes == 11 << 30
    assert found.tflops > 0


# ---- counted steps, remembered


def measurement() -> Measurement:
    return Measurement(100, 40, 10, 5, 3, 10**12, 999, 4, 2048, "cuda")


def test_a_measurement_is_remembered_by_what_changes_a_step() -> None:
    base = metering.key(load_8b())
    same = (
        {"name": "other"},
        {"train.learning_rate": 0.1},
        {"samples.evaluation_freq": 7},
        {"train.gradient_accumulation_steps": 9},
    )
    for changes in same:
        assert metering.key(load_8b(**changes)) == base
    other: tuple[dict[str, Any], ...] = (
        {"method": "full"},
        {"lora.r": 8},
        {"data.max_length": 100},
        {"train.per_device_train_batch_size": 3},
        {"train.optim": "sgd"},
        {"train.gradient_checkpointing": True},
        {"train.gradient_accumulation_steps": 1},
        {"model.dtype": "float32"},
    )
    assert len({base, *(metering.key(load_8b(**changes)) for changes in other)}) == 1 + len(other)


def answering(monkeypatch: pytest.MonkeyPatch, code: int, out: str, err: str = "") -> list[list[str]]:
    """The engine answers that; returns the command lines it was asked with."""
    asked: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, code, out, err)

    monkeypatch.setattr(metering.subprocess, "run", run)
    return asked


def test_a_step_is_counted_once(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    asked = answering(monkeypatch, 0, "a line of some library\n" + json.dumps(asdict(measurement())))
    assert metering.remembered(workspace, load_8b()) is None
    assert metering.measure(workspace, load_8b()) == measurement()
    assert metering.measure(workspace, load_8b()) == measurement()
    assert len(asked) == 1
    assert asked[0][-4:] == ["--target", "cuda", "--length", "2048"]
    assert measurement().activation_bytes == 50


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"peak_bytes": 1}', '{"a": 1}', "null"])
def test_a_torn_measurement_is_counted_again(monkeypatch: pytest.MonkeyPatch, workspace: Workspace, torn: str) -> None:
    answering(monkeypatch, 0, json.dumps(asdict(measurement())))
    metering.measure(workspace, load_8b())
    file = next((workspace.path / "cache" / "meter").iterdir())
    file.write_text(torn, encoding="utf-8")
    assert metering.remembered(workspace, load_8b()) is None
    assert metering.measure(workspace, load_8b()) == measurement()


@pytest.mark.parametrize(
    ("code", "out", "err", "words"),
    [
        (4, "", "noise\nthe model needs code of its own", "needs code of its own"),
        (0, "no json", "", "said nothing"),
        (0, "", "", "said nothing"),
        (-9, "", "", "said nothing"),
    ],
)
def test_a_step_that_cannot_be_counted_says_why(
    monkeypatch: pytest.MonkeyPatch, workspace: Workspace, code: int, out: str, err: str, words: str
) -> None:
    answering(monkeypatch, code, out, err)
    with pytest.raises(metering.NotMetered, match=words):
        metering.measure(workspace, load_8b())
    assert metering.remembered(workspace, load_8b()) is None


# ---- the verb


def estimate(workspace: Workspace, *words: str) -> int:
    return main(["estimate", "--workspace", str(workspace.path), *words])


def test_the_verb_prints_everything_as_json(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["qwen2_5_7b_instruct_lora_alpaca_e3", "--card", "4060", "--card", "h200", "--json"]
    assert estimate(workspace, *words) == 0
    small, large = json.loads(capsys.readouterr().out)
    assert (small["verdict"], large["verdict"]) == ("no", "fits")
    assert small["fixes"][0]["overrides"]
    assert sum(small["components"].values()) == small["expected"]
    assert "full rows are assumed" in small["note"]
    assert {choice["method"] for choice in large["methods"]} == {"lora", "qlora", "full"}


def test_the_verb_counts_the_data_it_can_read(workspace: Workspace, tmp_path: Path, capsys: Any) -> None:
    rows = [{"instruction": f"Question {n}?", "output": "An answer."} for n in range(40)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    words = ["ember_lora_identity_e3", "--set", f"data.dataset={file}"]
    assert estimate(workspace, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["note"] == ""
    assert found["seconds"] > 0
    assert estimate(workspace, *words) == 0
    text = capsys.readouterr().out
    assert "of training" in text
    assert "expected" in text


def test_the_verb_shows_every_card_and_the_changes(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert estimate(workspace, "llama3_8b_instruct_full_alpaca_e3", "--card", "all") == 0
    assert "H200" in capsys.readouterr().out
    assert estimate(workspace, "llama3_8b_instruct_lora_alpaca_e3", "--card", "4060") == 0
    text = capsys.readouterr().out
    assert "it does not fit" in text
    assert "would fit: " in text
    assert "--set " in text


@pytest.mark.parametrize(
    "words",
    [
        ["qwen2_5_7b_instruct_lora_alpaca_e3", "--card", "nonsense"],
        ["no_such_preset"],
        ["--set", "model.model_name_or_path=nobody/nothing", "qwen2_5_7b_instruct_lora_alpaca_e3"],
    ],
)
def test_the_verb_refuses_in_one_sentence(workspace: Workspace, words: list[str], capsys: Any) -> None:
    assert estimate(workspace, *words) == 4
    assert capsys.readouterr().err.startswith("error: ")
