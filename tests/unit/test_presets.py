"""Preset names, what they are composed of, and base-model references."""

import json

import pytest

from studio.config import RunConfig
from studio.presets import (
    BUILT_IN,
    PRESETS,
    ModelError,
    compose,
    datasets,
    list_presets,
    methods,
    model_defaults,
    models,
    resolve_model,
)
from studio.schema import ConfigError, build, flatten, merge, parse_yaml, walk

DATASET = {"data": {"dataset": "anything"}}


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_is_a_valid_configuration(name):
    config = build(RunConfig, merge(RunConfig, DATASET, compose(name)))
    assert config.name == name
    assert f"_{config.method}_" in name
    assert config.train.num_train_epochs == 3


@pytest.mark.parametrize("path", sorted(PRESETS.glob("m*/*.yaml")), ids=lambda p: p.stem)
def test_a_preset_file_repeats_no_default(path):
    data = parse_yaml(path.read_text(encoding="utf-8"))
    defaults = {spec.path: spec.default for spec in walk(RunConfig)}
    for part in [data.get("config", {}), *data.get("methods", {}).values()]:
        for field, value in flatten(RunConfig, part).items():
            if not (field == "method" and path.parent.name == "methods"):
                assert value != defaults[field], f"{field} in {path.name} repeats the default"


def test_length_and_epochs_come_from_the_name():
    config = build(RunConfig, compose("ember_qlora_identity_512_e7"))
    assert (config.data.max_length, config.train.num_train_epochs) == (512, 7)
    assert compose("ember_qlora_identity_4k_e1")["data"]["max_length"] == 4096


@pytest.mark.parametrize("name", ["ember_qlra_identity_e3", "ember", "", "../../etc/passwd", "ember_qlora_identity_e0"])
def test_a_wrong_name_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, compose(name))
    assert caught.value.errors[0].message


def test_a_near_miss_names_the_preset():
    with pytest.raises(ConfigError, match="ember_qlora_identity_e3"):
        compose("ember_qlra_identity_e3")


def test_the_list_can_be_searched():
    assert list_presets("EMBER_q") == [n for n in list_presets() if n.startswith("ember_q")]
    assert list_presets("no such") == []
    assert len(list_presets()) == len(models()) * len(methods()) * len(datasets())


def test_the_built_in_model_comes_first_and_has_its_own_settings():
    assert next(iter(models())) == "ember"
    assert model_defaults("crucible/ember", "qlora")["train"]["learning_rate"] > 1e-3
    assert "train" not in model_defaults("someone/else", "qlora")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model 'x' 丹"
    place.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (place / name).write_text("{}")
    (place / "config.json").write_text('{"model_type": "llama"}')
    return place


def test_a_complete_folder_a_built_in_model_and_a_hub_id_resolve(folder):
    assert resolve_model(str(folder)).local
    assert resolve_model("crucible/ember").path_or_id == str(BUILT_IN["crucible/ember"])
    assert not resolve_model("Qwen/Qwen3-0.6B").local


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "not an object"),
        (lambda f: (f / "config.json").write_text("{}"), "model_type"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-00001.safetensors"}})
            ),
            "lacks model-00001.safetensors",
        ),
    ],
)
def test_an_incomplete_folder_is_named_with_what_is_missing(folder, change, words):
    change(folder)
    with pytest.raises(ModelError, match=words) as caught:
        resolve_model(str(folder))
    assert caught.value.hint


@pytest.mark.parametrize(
    "ref", ["/no/such/folder", "crucible/embr", "x" * 5000, "a\0b", "~nobody/x", "$(id)", "<b>", "a/b/c", "..", "'; --"]
)
def test_a_reference_that_is_nothing_is_refused_in_one_sentence(ref):
    with pytest.raises(ModelError) as caught:
        resolve_model(ref)
    assert len(str(caught.value)) < 400
    assert "model.model_name_or_path" in str(caught.value)
