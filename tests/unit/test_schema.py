"""The generic configuration tools, and the promises every RunConfig field makes."""

import re
from typing import Literal, get_args, get_origin

import pytest

from studio.config import MergeConfig, RunConfig
from studio.schema import (
    ConfigError,
    build,
    docs_table,
    dump_yaml,
    flatten,
    load_yaml,
    merge,
    names,
    parse_overrides,
    parse_yaml,
    walk,
)

MINIMAL = {"model": {"model_name_or_path": "crucible/ember"}, "data": {"dataset": "identity"}}
SPECS = walk(RunConfig)


def errors_of(mapping: object) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, mapping)
    return {error.path: error.message for error in caught.value.errors}


@pytest.mark.parametrize("spec", SPECS + walk(MergeConfig), ids=lambda s: s.path)
def test_every_field_is_documented_and_labelled(spec):
    assert len(spec.help) > 15, "a docstring under the field is its help text"
    assert spec.help[0].isupper() or spec.help[0] in "qlo"
    assert spec.ui.label


def test_spellings_are_unique():
    assert names(RunConfig)["lr"] == "train.learning_rate"


@pytest.mark.parametrize(
    ("notes", "field"),
    [
        ("lr", "train.learning_rate"),
        ("batch_size", "train.per_device_train_batch_size"),
        ("accumulative_counts", "train.gradient_accumulation_steps"),
        ("max_epochs", "train.num_train_epochs"),
        ("optim_type", "train.optim"),
        ("max_norm", "train.max_grad_norm"),
        ("warmup_ratio", "train.warmup_steps"),
        ("data_path", "data.dataset"),
        ("pack_to_max_length", "data.packing"),
        ("SYSTEM", "data.system"),
        ("prompt_template", "model.chat_template"),
        ("pretrained_model_name_or_path", "model.model_name_or_path"),
        ("evaluation_inputs", "samples.evaluation_inputs"),
        ("evaluation_freq", "samples.evaluation_freq"),
        ("max_length", "data.max_length"),
        ("save_steps", "train.save_steps"),
        ("save_total_limit", "train.save_total_limit"),
        ("weight_decay", "train.weight_decay"),
        ("dataloader_num_workers", "train.dataloader_num_workers"),
    ],
)
def test_the_names_of_the_notes_are_accepted(notes, field):
    assert names(RunConfig)[notes] == field


def test_betas_of_the_notes_set_both_fields():
    config = build(RunConfig, MINIMAL | {"train": {"betas": [0.8, 0.95]}})
    assert (config.train.adam_beta1, config.train.adam_beta2) == (0.8, 0.95)


def test_an_unknown_key_names_the_nearest():
    assert "learning_rate" in errors_of(MINIMAL | {"train": {"lerning_rate": 1}})["train.lerning_rate"]
    assert "did you mean" in errors_of(MINIMAL | {"modle": {}})["modle"]


def test_one_field_under_two_names_is_refused():
    assert "given twice" in errors_of(MINIMAL | {"lr": 1e-4, "train": {"learning_rate": 2e-4}})["train.learning_rate"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("train.learning_rate", "fast", "must be a number"),
        ("train.learning_rate", 0, "greater than 0"),
        ("train.learning_rate", 2, "less than 1"),
        ("train.learning_rate", float("nan"), "finite"),
        ("train.learning_rate", True, "true or false"),
        ("train.learning_rate", None, "must be a number"),
        ("train.num_train_epochs", -1, "greater than 0"),
        ("train.per_device_train_batch_size", 1.5, "whole number"),
        ("train.per_device_train_batch_size", "8;rm -rf", "whole number"),
        ("train.seed", 2**40, "at most"),
        ("method", "magic", "one of"),
        ("lora.r", 0, "at least 1"),
        ("lora.target_modules", [], "at least one layer"),
        ("data.dataset", "", "empty"),
        ("data.max_length", [1], "whole number"),
        ("samples.evaluation_inputs", "one", "list"),
        ("verdict.enabled", "perhaps", "true or false"),
    ],
)
def test_wrong_values_name_field_fault_and_limit(path, value, words):
    mapping = merge(RunConfig, MINIMAL, {path: value})
    found = errors_of(mapping)
    assert any(words in message for message in found.values()), found
    assert path in found or "target_modules" in str(found)


@pytest.mark.parametrize("value", [[], "text", 3, None])
def test_a_configuration_that_is_no_mapping_is_refused(value):
    assert "mapping" in errors_of(value)[""]


def test_missing_leaves_are_named_not_their_sections():
    assert set(errors_of({})) == {"model.model_name_or_path", "data.dataset"}


def test_yaml_reads_scientific_notation_as_a_number():
    config = load_yaml("model_path: m\ndata_path: d\nlr: 1e-4\n", RunConfig)
    assert config.train.learning_rate == pytest.approx(1e-4)


@pytest.mark.parametrize("text", ["a: [1", "\t- x", "!!python/object:os.system {}", "a: &a [*a]\nb: *c", "- 1", "\x00"])
def test_bad_yaml_is_one_sentence(text):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text)
    assert "YAML" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("full", [True, False])
def test_yaml_round_trip_is_exact(full):
    config = build(
        RunConfig,
        merge(
            RunConfig,
            MINIMAL,
            {"lr": 3e-5, "name": 'it\'s: "quoted" #1 😀\n二', "neftune_noise_alpha": 5, "target_modules": ["q", "v"]},
        ),
    )
    assert load_yaml(dump_yaml(config, full=full), RunConfig) == config


OWN_FORM = {
    "train.lr_scheduler_kwargs": "num_cycles=2",
    "train.save_total_limit": -1,
    "parallel.ddp_timeout": 77,
    "parallel.main_process_ip": "node-1.example",
}
NEEDED = {
    "train.load_best_model_at_end": {"data.validation_share": 0.1},
    "early_stopping.early_stopping_patience": {"data.validation_share": 0.1},
    "lora.init_lora_weights": {"method": "lora"},
    "parallel.deepspeed": {"parallel.num_processes": 2},
    "parallel.fsdp": {"parallel.num_processes": 2, "method": "lora"},
    "parallel.sequence_parallel_size": {"parallel.num_processes": 14, "parallel.deepspeed": "zero3"},
    "parallel.num_machines": {"parallel.num_processes": 14, "parallel.main_process_ip": "10.0.0.1"},
    "parallel.machine_rank": {
        "parallel.num_processes": 8,
        "parallel.num_machines": 8,
        "parallel.main_process_ip": "10.0.0.1",
    },
}


def some_value(spec):
    """A value unlike the default, and hard to write in YAML where it is text."""
    if spec.path in OWN_FORM:
        return OWN_FORM[spec.path]
    if spec.choices:
        return spec.choices[-1] if spec.path != "schema_version" else 1
    if spec.item:
        return [{inner.path: some_value(inner) for inner in walk(spec.item)}]
    plain = {"bool": not spec.default, "int": 7 if spec.path != "data.max_length" else 99, "float": 0.25}
    names = [name for item in get_args(spec.annotation) if get_origin(item) is Literal for name in get_args(item)]
    if names:  # a list of some of them
        return names[-2:]
    return plain.get(spec.kind, ["a: b", "ü"] if spec.kind == "list" else "a: b # ü")


def test_every_field_survives_yaml_with_a_value_of_its_own():
    for spec in SPECS:
        value = some_value(spec)
        config = build(RunConfig, merge(RunConfig, MINIMAL, NEEDED.get(spec.path, {}), {spec.path: value}))
        again = load_yaml(dump_yaml(config), RunConfig)
        assert flatten(RunConfig, again.model_dump())[spec.path] == value, spec.path


def test_entries_of_a_list_of_sections_take_every_spelling_and_a_bare_name():
    given = ["zh", {"data_path": "b.jsonl", "dataset_map_fn": "alpaca", "SYSTEM": "Be brief."}]
    config = build(RunConfig, merge(RunConfig, MINIMAL, {"sources": given}))
    assert dump_yaml(load_yaml(dump_yaml(config), RunConfig)) == dump_yaml(config)
    first, second = config.data.sources
    assert (first.dataset, first.weight) == ("zh", 1.0)
    assert (second.dataset, second.mapping, second.system) == ("b.jsonl", "alpaca", "Be brief.")


@pytest.mark.parametrize(
    ("entries", "where"),
    [
        ([{"dataset": "a"}, {"dataset": "b", "weight": 0}], "data.sources 2, weight: must be greater than 0"),
        ([{"dataset": ""}], "data.sources 1, dataset: must not be empty"),
        ([{"dataset": "a", "wieght": 2}], "data.sources 1, wieght: unknown field; did you mean 'weight'?"),
        ([{"dataset": "a"}, 5], "data.sources 2: must be a mapping of fields"),
        ([{"weight": 2}], "data.sources 1, dataset: is required"),
        ("a", "data.sources: must be a list"),
    ],
)
def test_an_error_in_a_list_of_sections_names_the_entry(entries, where):
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, merge(RunConfig, MINIMAL, {"data": {"sources": entries}}))
    (error,) = caught.value.errors
    assert error.path == "data.sources"
    assert str(error).startswith(where)


def test_every_wrong_entry_is_named_at_once():
    entries = [{"dataset": "", "weight": "x"}, {"dataset": "b", "max_samples": 0}]
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, MINIMAL | {"sources": entries})
    named = [(error.entry, error.name) for error in caught.value.errors]
    assert sorted(named) == [(1, "dataset"), (1, "weight"), (2, "max_samples")]


def test_overrides_are_read_as_yaml_and_need_a_sign():
    assert parse_overrides(["lr=1e-3", "packing=true", "name=a=b", "seed=3", "system="])["name"] == "a=b"
    assert parse_overrides(["packing=null"]) == {"packing": None}
    with pytest.raises(ConfigError, match="field=value"):
        parse_overrides(["lr"])


def test_docs_table_has_one_row_per_field():
    rows = [line for line in docs_table(RunConfig).splitlines() if line.startswith("| `")]
    assert len(rows) == len(SPECS)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)
