"""Preset names, what they are composed of, and base-model references.

`xtuner_presets.tsv` holds what XTuner's own files (v0.1.23 and 0.2.0) set, one line per file: read from them by a
program, not written by the one that is tested here.
"""

import csv
import json
from pathlib import Path

import pytest
import yaml

from studio.config import RunConfig
from studio.preset_files import library
from studio.preset_names import all_names, nearest_names, read_name
from studio.presets import (
    BUILT_IN,
    PRESETS,
    ModelError,
    compose,
    datasets,
    list_presets,
    methods,
    model_defaults,
    model_named,
    models,
    notes,
    resolve_model,
)
from studio.records.mappings import named_mapping
from studio.records.template_names import template_names
from studio.schema import ConfigError, build, flatten, merge, walk

DATASET = {"data": {"dataset": "unset"}}
TABLE = Path(__file__).with_name("xtuner_presets.tsv")
XTUNER = {row["name"]: row for row in csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines(), delimiter="\t")}
PROMPTS = {text: name for name, text in library().prompts.items()}


def config_of(name):
    return build(RunConfig, merge(RunConfig, DATASET, compose(name)))


def row_of(name):
    """A composed preset written as a line of the table."""
    config = config_of(name)
    data, train, samples, lora = config.data, config.train, config.samples, config.lora
    sources = [("-" if s.dataset == "unset" else s.dataset, named_mapping(s.mapping).name) for s in data.all_sources]
    adapter = config.method != "full"
    return {
        "name": config.name,
        "model": config.model.model_name_or_path,
        "method": config.method,
        "template": config.model.chat_template,
        "data": sources,
        "system": PROMPTS[data.system] if data.system else "-",
        "max_length": data.max_length,
        "packing": "yes" if data.packing else "no",
        "epochs": train.num_train_epochs,
        "batch": train.per_device_train_batch_size,
        "accumulation": train.gradient_accumulation_steps,
        "lr": train.learning_rate,
        "beta2": train.adam_beta2,
        "weight_decay": train.weight_decay,
        "warmup": train.warmup_steps,
        "lora": f"{lora.r}/{lora.lora_alpha}/{lora.lora_dropout:g}" if adapter else "-",
        "targets": ",".join(lora.target_modules) if adapter and lora.target_modules != "all-linear" else "-",
        "save_steps": train.save_steps,
        "save_limit": train.save_total_limit,
        "evaluation_freq": samples.evaluation_freq,
        "workers": train.dataloader_num_workers,
        "optim": train.optim,
        "inputs": f"{len(samples.evaluation_inputs)}:{samples.evaluation_inputs[0][:8]}",
    }


def same(column, expected, got):
    """A cell of the table and our value mean the same; "-" where XTuner's file says nothing or quotes a paper."""
    if column == "data":
        pairs = [part.rsplit("=", 1) for part in expected.split(" + ")]
        return got == [(dataset, named_mapping(mapping).name) for dataset, mapping in pairs]
    if expected == "-" and column in ("template", "evaluation_freq", "inputs"):
        return True
    return float(expected) == got if isinstance(got, float | int) else expected == got


def test_every_name_of_xtuner_resolves_to_what_its_own_file_sets():
    wrong = []
    for name, row in XTUNER.items():
        got = row_of(name)
        wrong += [(name, c, row[c], got[c]) for c in got if not same(c, row[c], got[c])]
    assert not wrong
    assert len(XTUNER) > 480


def test_the_table_covers_every_family_and_dataset():
    prefixes = "baichuan baichuan2 chatglm2 chatglm3 cohere deepseek gemma internlm internlm2 internlm2_5 llama llama2"
    for prefix in [
        *prefixes.split(),
        "llama3",
        "minicpm",
        "mistral",
        "mixtral",
        "phi3",
        "qwen",
        "qwen1_5",
        "starcoder",
    ]:
        assert any(name.startswith(f"{prefix}_") for name in XTUNER), prefix
    covered = {read_name(name, library()).dataset.name for name in XTUNER}
    assert covered == {name for name, dataset in library().datasets.items() if dataset.preset.layer == "xtuner"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("internlm2_5_chat_20b_alpaca_e3", {"method": "full", "learning_rate": 2e-5}),
        (
            "internlm2_5_chat_20b_qlora_alpaca_e3_copy",
            {"method": "qlora", "name": "internlm2_5_chat_20b_qlora_alpaca_e3"},
        ),
        ("internlm2_chat_7b_qlora_oasst1_512_e3", {"max_length": 512, "packing": False}),
        ("internlm2_20b_full_custom_pretrain_e1_32k_sp2", {"max_length": 32768, "mapping": "pretrain"}),
        ("qwen1_5_110b_chat_qlora_alpaca_e3_16k_2gpus", {"max_length": 16384, "learning_rate": 1e-4}),
        ("deepseek_v2_lite_chat_full_alpaca_e3_32k_varlen", {"max_length": 32768, "learning_rate": 1e-5}),
        ("internlm_7b_qlora_moss_sft_all_e2_gpu8", {"per_device_train_batch_size": 8, "num_train_epochs": 2.0}),
        ("qwen_7b_qlora_open_orca_e1", {"dataset": "Open-Orca/OpenOrca"}),
        ("qwen2_5_7b_instruct_lora_colorist_4k_e5", {"method": "lora", "max_length": 4096, "r": 64}),
        ("code_llama_7b_instruct_qlora_code_alpaca_e3", {"model_name_or_path": "codellama/CodeLlama-7b-Instruct-hf"}),
        ("internlm2_chat_1_8b_qlora_alpaca_e3.py", {"dataset": "tatsu-lab/alpaca"}),
    ],
)
def test_irregular_names_are_read(name, expected):
    config = flatten(RunConfig, config_of(name).model_dump())
    found = {path.rsplit(".", 1)[-1]: value for path, value in config.items()}
    assert {key: found[key] for key in expected} == expected


def test_what_a_name_cannot_do_here_is_said():
    assert notes("ember_qlora_identity_e3") == ()
    assert "no method" in notes("internlm2_5_chat_20b_alpaca_e3")[0]
    assert "not split over GPUs" in notes("internlm2_20b_full_custom_pretrain_e1_32k_sp2")[0]
    assert "is mistral_7b_qlora" in " ".join(notes("mistral_7b_full_finetune_custom_sft_e1"))
    with pytest.raises(ConfigError, match="preferences"):
        compose("minicpm_2b_dpo_qlora")


def test_every_composable_name_is_a_valid_configuration_named_like_it():
    """Every model with one dataset, every dataset with two models, each under every method."""
    parts = library()
    names = {f"{model}_{method}_identity_e3" for model in parts.models for method in parts.methods}
    for name in all_names(parts):
        if name.startswith(("ember_", "internlm2_chat_7b_")):
            names.add(name)
    assert names <= set(list_presets())
    for name in names:
        config = config_of(name)
        assert config.name == name
        assert f"_{config.method}_" in name


@pytest.mark.parametrize("path", sorted(PRESETS.glob("m*/*.yaml")), ids=lambda p: p.stem)
def test_a_preset_file_repeats_no_default(path):
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults = {spec.path: spec.default for spec in walk(RunConfig)}
    for entry in data.get("models", {"": data}).values():
        for part in [entry.get("config", {}), *entry.get("methods", {}).values()]:
            for field, value in flatten(RunConfig, part).items():
                if not (field == "method" and path.parent.name == "methods"):
                    assert value != defaults[field], f"{field} in {path.name} repeats the default"


def parameters(shape):
    """Weights of a decoder of that shape, without norms and biases."""
    h, layers, heads, kv = (shape[key] for key in ("hidden_size", "layers", "heads", "kv_heads"))
    size, width = shape["head_dim"], shape["ffn"] * h * (3 if shape.get("gated", True) else 2)
    attention = 2 * h * size * (heads + kv)
    if "kv_lora_rank" in shape:
        low, rope, value, query = shape["kv_lora_rank"], shape["qk_rope_head_dim"], shape["v_head_dim"], 0
        query = shape.get("q_lora_rank", 0)
        asked = query * (h + heads * (size + rope)) if query else h * heads * (size + rope)
        attention = asked + h * (low + rope) + low * heads * (size + value) + heads * value * h
    dense, sparse = layers, 0
    if "experts" in shape:
        dense = shape.get("dense_layers", 0)
        one = 3 * h * (shape["experts"] * shape["expert_ffn"] + shape.get("shared_expert_ffn", 0))
        sparse = (layers - dense) * (one + h * shape["experts"])
    words = h * shape["vocab"] * (1 if shape.get("tied") else 2) + h * shape.get("positions", 0)
    return layers * attention + dense * width + sparse + words


@pytest.mark.parametrize("model", models().values(), ids=lambda m: m.name)
def test_a_model_has_all_that_is_needed_to_plan_offline(model):
    assert model.parameters == pytest.approx(parameters(model.shape) / 1e9, rel=0.03)
    assert model.template is None or model.template in template_names()
    assert model.shape["heads"] % model.shape["kv_heads"] == 0
    advertised = [word for word in model.title.replace("-", " ").split() if word[:1].isdigit() and word[-1] in "BM"]
    if len(advertised) == 1 and "x" not in advertised[0]:
        size = float(advertised[0][:-1]) / (1000 if advertised[0][-1] == "M" else 1)
        assert 0.7 < model.parameters / size < 1.7, advertised


def test_models_have_one_name_each_and_the_names_the_issue_asks_for():
    spellings = [spelling for model in models().values() for spelling in (model.name, *model.aliases)]
    assert len(spellings) == len(set(spellings))
    ids = [model.model_name_or_path for model in models().values()]
    assert len(ids) == len(set(ids))
    today = """qwen3_0_6b qwen3_32b qwen2_5_0_5b_instruct qwen2_5_72b_instruct llama3_1_8b_instruct llama3_2_3b
        llama3_3_70b_instruct gemma2_9b_it gemma3_4b_it phi4 mixtral_8x7b_instruct ministral_8b_instruct olmo2_7b
        deepseek_r1_distill_qwen_7b deepseek_v2_lite_chat internlm3_8b_instruct glm4_9b_0414 minicpm3_4b yi1_5_6b_chat
        smollm3_3b falcon3_7b granite3_3_2b_instruct code_llama_7b cohere_104b chatglm2_6b mistral_7b_instruct"""
    assert set(today.split()) <= set(spellings)
    assert models()["internlm2_chat_7b"].loading == "converted"
    remote = [name for name, model in models().items() if model.loading == "remote_code"]
    assert remote == [f"baichuan{version}_13b_{kind}" for version in ("2", "") for kind in ("chat", "base")]


def test_length_and_epochs_come_from_the_name():
    config = build(RunConfig, compose("ember_qlora_identity_512_e7"))
    assert (config.data.max_length, config.train.num_train_epochs) == (512, 7)
    assert compose("ember_qlora_identity_4k_e1")["data"]["max_length"] == 4096


def test_a_dataset_that_is_not_xtuners_keeps_our_settings_and_the_models_own_template():
    config = config_of("internlm2_chat_7b_qlora_identity_e3")
    assert (config.lora.r, config.data.packing, config.model.chat_template) == (16, None, None)


@pytest.mark.parametrize(
    "name",
    [
        "ember_qlra_identity_e3",
        "ember",
        "",
        "../../etc/passwd",
        "ember_qlora_identity_e0",
        "ember_qlora_identity",
        "ember_qlora_identity_e3_e4",
        "ember_qlora_identity_512_4k_e3",
        "ember_qlora_identity_99999k_e3",
        "e3",
        "ember_qlora__e3",
        "\0",
        "名字_qlora_identity_e3",
        "x_" * 50_000,
        "e3_" * 50_000,
    ],
)
def test_a_wrong_name_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, compose(name))
    assert caught.value.errors[0].message
    assert len(str(caught.value)) < 700


def test_a_near_miss_names_three_presets_built_from_the_nearest_parts():
    with pytest.raises(ConfigError, match="did you mean ember_qlora_identity_e3, .+ or .+") as caught:
        compose("ember_qlra_identity_e3")
    assert caught.value.errors[0].context["nearest"] == "ember_qlora_identity_e3"
    near = nearest_names("InternLM2-chat_7b_qlora_alpacca_512_e5", library())
    assert near[0] == "internlm2_chat_7b_qlora_alpaca_512_e5"
    assert len(near) == 3
    for name in near:
        compose(name)
    assert nearest_names("llama3_8b_qlora", library())[0].startswith("llama3_8b_qlora_")
    assert nearest_names("zzzzzz", library()) == []


def test_the_list_can_be_searched():
    assert list_presets("EMBER_q") == [n for n in list_presets() if n.startswith("ember_q")]
    assert list_presets("no such") == []
    assert len(set(list_presets())) == len(list_presets())
    assert len(list_presets()) >= len(models()) * (len(methods()) * (len(datasets()) - 1) + 1)
    assert {"qwen_7b_qlora_oasst1_512_e3", "qwen_7b_qlora_colorist_e5", "cohere_100b_128k_sp32"} <= set(list_presets())


def test_the_built_in_model_comes_first_and_has_its_own_settings():
    assert next(iter(models())) == "ember"
    assert model_defaults("crucible/ember", "qlora")["train"]["learning_rate"] > 1e-3
    assert "train" not in model_defaults("someone/else", "qlora")
    assert model_defaults("internlm/internlm2-7b", "lora")["model"]["chat_template"] == "default"
    assert model_named("crucible/ember").name == "ember"
    assert model_named("someone/else") is None


# ---- data files that are wrong ----

MODEL = "title: A\nmodel_name_or_path: a/b\ncontext_length: 10\nlicence: MIT\n"


@pytest.fixture
def parts(tmp_path):
    """Writes a small set of data files, some of them changed, and reads it."""

    def read(**changed):
        files = {
            "models/a.yaml": MODEL,
            "methods/full.yaml": "title: F\norder: 0\nconfig: {method: full}\n",
            "datasets/d.yaml": "label: D\nconfig: {data: {dataset: d}}\n",
            "layers/l.yaml": "config: {}\n",
        }
        for name, text in (files | {key.replace("__", "/") + ".yaml": text for key, text in changed.items()}).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return library.__wrapped__(tmp_path)

    return read


def test_files_of_ones_own_are_composed(parts):
    found = compose("a_full_d_e2", parts())
    assert (found["model"]["model_name_or_path"], found["data"]["dataset"]) == ("a/b", "d")
    family = "shared: {context_length: 9, licence: MIT, shape: {vocab: 5, tied: true}}\nmodels:\n  b:\n    title: B\n"
    family += "    model_name_or_path: c/d\n    shape: {vocab: 7}\n"
    assert parts(models__b=family).models["b"].shape == {"vocab": 7, "tied": True}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"models__a": "title: A\n"}, "models/a.yaml cannot be used: in a, model_name_or_path is missing"),
        ({"models__a": MODEL + "colour: red\n"}, "colour is wrong"),
        ({"models__a": MODEL + "methods: {magic: {}}\n"}, "methods"),
        ({"models__a": "- a\n"}, "must be a mapping"),
        ({"models__a": "a: [\n"}, r"models/a.yaml cannot be read \(line"),
        ({"models__a": "a: !!python/object:os.system {}\n"}, "cannot be read"),
        ({"models__a": MODEL + "models: {b: 3}\n"}, "belongs under `shared`"),
        ({"models__a": "models: {b: 3}\n"}, "b must be a mapping"),
        ({"models__a": "models: 3\n"}, "must have `order`"),
        ({"datasets__d": "config: {}\n"}, "datasets/d.yaml cannot be used: in d, label is missing"),
        ({"datasets__d": "label: D\nconfig: {}\npreset: {layer: m}\n"}, "names the layer 'm': there is none"),
        ({"layers__l": "same_as: {x: y, y: z, z: x}\n"}, "goes round in circles: x -> y -> z -> x"),
        ({"layers__l": "same_as: {x: y}\n"}, "there is no preset 'x'"),
        ({"layers__l": "same_as: {x: x}\n"}, "goes round in circles: x -> x"),
    ],
)
def test_a_data_file_that_is_wrong_is_named_in_one_sentence(parts, files, words):
    with pytest.raises(ConfigError, match=words) as caught:
        compose("x", parts(**files))
    assert "\n" not in str(caught.value)


def test_a_wrong_field_in_a_data_file_names_the_nearest(parts):
    with pytest.raises(ConfigError, match="learning_rate"):
        compose("a_full_d_e1", parts(models__a=MODEL + "config: {train: {lerning_rate: 1}}\n"))


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model 'x' 丹"
    place.mkdir()
    (place / "tokenizer.json").write_text("{}")
    (place / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")  # the length of its header, an empty one
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
