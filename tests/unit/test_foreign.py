"""Files of XTuner and LLaMA-Factory become settings; what cannot is listed with its line; nothing is executed."""

import json
import textwrap
from pathlib import Path

import pytest

from studio.config import RunConfig
from studio.foreign.files import read_foreign, read_foreign_text
from studio.foreign.llamafactory import read_llamafactory
from studio.foreign.syntax import Symbol, Unknown, parse_python
from studio.foreign.xtuner import read_xtuner
from studio.presets import compose
from studio.records.mappings import system_prompts
from studio.schema import ConfigError, build, dump_yaml, flatten, load_yaml, merge

XTUNER = """
    # a file in the manner of XTuner
    import torch
    from xtuner.dataset import process_hf_dataset
    from xtuner.utils import PROMPT_TEMPLATE, SYSTEM_TEMPLATE

    pretrained_model_name_or_path = 'internlm/internlm2-chat-7b'
    use_varlen_attn = False
    alpaca_en_path = 'tatsu-lab/alpaca'
    prompt_template = PROMPT_TEMPLATE.internlm2_chat
    max_length = 2048
    sequence_parallel_size = 1
    batch_size = 1
    accumulative_counts = 16
    accumulative_counts *= sequence_parallel_size
    max_epochs = 3
    optim_type = AdamW
    lr = 2e-4
    betas = (0.9, 0.999)
    warmup_ratio = 0.03
    save_steps = 500
    SYSTEM = SYSTEM_TEMPLATE.alpaca
    evaluation_inputs = ['请给我介绍五个上海的景点', 'Please tell me five scenic spots in Shanghai']

    model = dict(
        type=SupervisedFinetune,
        use_varlen_attn=use_varlen_attn,
        llm=dict(
            type=AutoModelForCausalLM.from_pretrained,
            pretrained_model_name_or_path=pretrained_model_name_or_path,
            trust_remote_code=True,
            torch_dtype=torch.float16,
            quantization_config=dict(
                type=BitsAndBytesConfig, load_in_4bit=True, load_in_8bit=False, llm_int8_threshold=6.0,
                bnb_4bit_compute_dtype=torch.float16, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type='nf4')),
        lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM'))

    alpaca_en = dict(
        type=process_hf_dataset,
        dataset=dict(type=load_dataset, path=alpaca_en_path),
        max_length=max_length,
        dataset_map_fn=alpaca_map_fn,
        template_map_fn=dict(type=template_map_fn_factory, template=prompt_template),
        remove_unused_columns=True, shuffle_before_pack=True, pack_to_max_length=True)
    sampler = SequenceParallelSampler if sequence_parallel_size > 1 else DefaultSampler
    train_dataloader = dict(
        batch_size=batch_size, num_workers=0, dataset=alpaca_en, sampler=dict(type=sampler, shuffle=True),
        collate_fn=dict(type=default_collate_fn))

    optim_wrapper = dict(
        type=AmpOptimWrapper,
        optimizer=dict(type=optim_type, lr=lr, betas=betas, weight_decay=0),
        clip_grad=dict(max_norm=1, error_if_nonfinite=False),
        accumulative_counts=accumulative_counts, loss_scale='dynamic', dtype='float16')
    param_scheduler = [
        dict(type=LinearLR, start_factor=1e-5, by_epoch=True, begin=0, end=warmup_ratio * max_epochs),
        dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=warmup_ratio * max_epochs, end=max_epochs)]
    train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)

    custom_hooks = [
        dict(type=DatasetInfoHook, tokenizer=None),
        dict(type=EvaluateChatHook, every_n_iters=500, evaluation_inputs=evaluation_inputs, system=SYSTEM,
             prompt_template=prompt_template)]
    if use_varlen_attn:
        custom_hooks += [dict(type=VarlenAttnArgsToMessageHubHook)]
    default_hooks = dict(checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=save_steps, max_keep_ckpts=2))
    visualizer = None
    load_from = None
    resume = False
    randomness = dict(seed=None, deterministic=False)
"""


def xtuner(old="", new=""):
    """The file above with one text replaced, which must be in it."""
    assert old in XTUNER
    return read_xtuner(textwrap.dedent(XTUNER.replace(old, new) if old else XTUNER))


def left(found):
    return [f"{one.name}: {one.reason}" for one in found.left_out]


def settings(found):
    return flatten(RunConfig, found.settings)


# ---- XTuner ----


def test_an_xtuner_file_and_the_preset_of_its_name_are_the_same_configuration():
    found = xtuner()
    preset = compose("internlm2_chat_7b_qlora_alpaca_e3") | {"name": ""}
    assert build(RunConfig, found.settings) == build(RunConfig, preset)
    assert (found.origin, found.left_out) == ("xtuner", ())


@pytest.mark.parametrize(
    ("old", "new", "field", "value"),
    [
        ("lr = 2e-4", "lr = 1e-4 * 2 / 4", "train.learning_rate", 5e-5),
        ("accumulative_counts = 16", "accumulative_counts = 4", "train.gradient_accumulation_steps", 4),
        ("sequence_parallel_size = 1\n", "sequence_parallel_size = 2\n", "train.gradient_accumulation_steps", 32),
        ("seed=None", "seed=7", "train.seed", 7),
        ("betas = (0.9, 0.999)", "betas = (0.8, 0.95)", "train.adam_beta2", 0.95),
        ("optim_type = AdamW", "optim_type = PagedAdamW32bit", "train.optim", "paged_adamw_32bit"),
        ("max_keep_ckpts=2", "max_keep_ckpts=-1", "train.save_total_limit", -1),
        ("eta_min=0.0", "eta_min=1e-6", "train.lr_scheduler_type", "cosine_with_min_lr"),
        ("eta_min=0.0", "eta_min=1e-6", "train.lr_scheduler_kwargs", "min_lr=1e-06"),
        ("r=64", "r=64, modules_to_save=['lm_head']", "lora.modules_to_save", ["lm_head"]),
        ("load_in_4bit=True", "load_in_4bit=False", "method", "lora"),
        ("torch_dtype=torch.float16,\n", "torch_dtype=torch.bfloat16,\n", "model.dtype", "bfloat16"),
        ("r=64", "r=8, target_modules=['q_proj']", "lora.target_modules", ["q_proj"]),
        ("SYSTEM = SYSTEM_TEMPLATE.alpaca", "SYSTEM = 'Be ' + 'kind.'", "data.system", "Be kind."),
        ("SYSTEM = SYSTEM_TEMPLATE.alpaca", "n = 'Ann'; SYSTEM = f'You are {n}.'", "data.system", "You are Ann."),
        ("SYSTEM = SYSTEM_TEMPLATE.alpaca", "SYSTEM = SYSTEM_TEMPLATE.coder", "data.system", system_prompts()["coder"]),
        ("path=alpaca_en_path", "path='json', data_files=dict(train='my.json')", "data.dataset", "my.json"),
        ("path=alpaca_en_path", "path='json', data_files=['a.json']", "data.dataset", "a.json"),
        ("path=alpaca_en_path", "path='x/y', name='zh', split='test'", "data.subset", "zh"),
        ("dataset_map_fn=alpaca_map_fn", "dataset_map_fn=None", "data.mapping", "conversation"),
        ("PROMPT_TEMPLATE.internlm2_chat", "'qwen_chat'", "model.chat_template", "qwen_chat"),
        ("type=TrainLoop, max_epochs=max_epochs", "type=IterBasedTrainLoop, max_iters=100", "train.max_steps", 7),
        ("end=max_epochs", "end=6", "train.warmup_steps", 0.015),
        ("max_length=max_length", "max_length=512, max_dataset_length=100", "data.max_samples", 100),
        ("use_varlen_attn = False", "use_varlen_attn = True", "data.packing", True),
        ("evaluation_inputs=evaluation_inputs", "evaluation_inputs=['hi']", "samples.evaluation_inputs", ["hi"]),
    ],
)
def test_what_is_changed_in_an_xtuner_file_changes_its_field(old, new, field, value):
    found = settings(xtuner(old, new))
    assert found[field] == (pytest.approx(value) if isinstance(value, float) else value)


def test_a_file_beside_a_checkpoint_names_everything_as_text_and_says_the_same():
    """XTuner writes `SYSTEM_TEMPLATE.alpaca` as 'xtuner.utils.SYSTEM_TEMPLATE.alpaca' and classes alike."""
    text = textwrap.dedent(XTUNER)
    for name, where in (
        ("PROMPT_TEMPLATE.internlm2_chat", "xtuner.utils."),
        ("SYSTEM_TEMPLATE.alpaca", "xtuner.utils."),
        ("type=process_hf_dataset", "xtuner.dataset."),
        ("alpaca_map_fn", "xtuner.dataset.map_fns."),
        ("type=EvaluateChatHook", "xtuner.engine.hooks."),
        ("type=CosineAnnealingLR", "mmengine.optim."),
        ("type=LinearLR", "mmengine.optim."),
        ("optim_type = AdamW", "torch.optim."),
    ):
        key, sign, value = name.rpartition("=")
        assert name in text
        before = key + sign + " " if name.startswith("optim_type") else key + sign
        text = text.replace(name, f"{before}'{where}{value.strip()}'")
    dumped, written = read_xtuner(text), xtuner()
    assert settings(dumped) == settings(written)
    assert settings(dumped)["model.chat_template"] == "internlm2_chat"
    assert settings(dumped)["data.mapping"] == "alpaca"


def test_no_adapter_is_full_training():
    found = xtuner(
        "lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM')", ""
    )
    assert settings(found)["method"] == "full"


def test_several_datasets_become_sources():
    more = "dataset=dict(type=ConcatDataset, datasets=[alpaca_en, dict(type=process_hf_dataset, "
    more += "dataset=dict(type=load_dataset, path='b/c'), dataset_map_fn=oasst1_map_fn)])"
    found = xtuner("dataset=alpaca_en", more)
    prompt = system_prompts()["alpaca"]
    assert found.settings["data"]["sources"] == [{"dataset": "b/c", "mapping": "oasst1", "system": prompt}]
    assert found.settings["data"]["dataset"] == "tatsu-lab/alpaca"


def line_of(text):
    return 1 + textwrap.dedent(XTUNER).splitlines().index(text)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lr = 2e-4", "lr = compute_lr()", "lr: is computed"),
        ("lr = 2e-4", "lr = 10 ** 400", "lr: is computed"),
        ("resume = False", "resume = True", "resume: has no counterpart"),
        ("load_from = None", "load_from = 'iter_500.pth'", "load_from: has no counterpart"),
        ("visualizer = None", "visualizer = dict(type=Visualizer, vis_backends=[1])", "visualizer.vis_backends"),
        ("load_in_8bit=False", "load_in_8bit=True", "load_in_8bit: there is no 8-bit base"),
        ("type=SupervisedFinetune", "type=DPO", "model DPO: only instruction tuning"),
        ("type=DatasetInfoHook, tokenizer=None", "type=MyHook", "MyHook: has no counterpart"),
        ("dataset_map_fn=alpaca_map_fn", "dataset_map_fn=my_map_fn", "dataset_map_fn: is a function of its own"),
        ("dataset_map_fn=alpaca_map_fn", "dataset_map_fn=make(1)", "dataset_map_fn: is computed"),
        ("shuffle_before_pack=True", "shuffle_before_pack=False", "shuffle_before_pack: rows are always"),
        ("path=alpaca_en_path", "path='json', data_files=['/path/to/a.json']", "data_files: is a placeholder"),
        (
            "type=process_hf_dataset,\n        dataset=",
            "type=LLaVADataset,\n        dataset=",
            "LLaVADataset: its rows",
        ),
        ("SYSTEM_TEMPLATE.alpaca", "SYSTEM_TEMPLATE.pirate", "pirate: is a system prompt that is not known"),
        ("optim_type = AdamW", "optim_type = Magic", "optimizer Magic: has no counterpart"),
        ("visualizer = None", "my_own_thing = 5", "my_own_thing: has no counterpart"),
        ("visualizer = None", "for i in range(3): print(i)", "for i in range(3)"),
        ("visualizer = None", "__import__('os').system('touch hacked')", "__import__('os')"),
        ("dataset=alpaca_en,", "dataset=build(),", "train_dataloader.dataset: is computed"),
        ("seed=None", "seed=int(input())", "randomness.seed: is computed"),
    ],
)
def test_what_cannot_be_carried_over_is_named(old, new, words):
    found = xtuner(old, new)
    assert any(one.startswith(words) for one in left(found)), left(found)


def test_the_line_is_that_of_the_setting():
    found = xtuner("resume = False", "resume = True")
    assert [one.line for one in found.left_out] == [line_of("resume = False")]
    assert str(found.left_out[0]).startswith(f"line {line_of('resume = False')}: resume: ")


def test_nothing_of_a_python_file_is_executed(tmp_path):
    mark = tmp_path / "executed"
    text = f"open({str(mark)!r}, 'w').write('x')\n"
    text += f"pretrained_model_name_or_path = open({str(mark)!r}, 'w').name\nclass A:\n    open({str(mark)!r}, 'w')\n"
    text += "a = [print(1) for _ in range(3)]\nb = (lambda: 1)()\nc = a if print(2) else b\nd: int = eval('1')\n"
    found = read_xtuner(text)
    assert not mark.exists()
    assert len(found.left_out) >= 3


@pytest.mark.parametrize(
    "text",
    [
        "def",
        "a = (",
        "\0",
        "a" * 10,
        "(" * 5000,
        "-" * 200_000 + "1",
        "x = " + "[" * 300 + "]" * 300,
        "a = 1 +" + " 1 +" * 50_000 + " 1",
    ],
)
def test_a_python_file_that_cannot_be_read_is_one_sentence_or_nothing(text):
    try:
        sentence = ""
        assert "model" not in read_xtuner(text).settings
    except ConfigError as error:
        sentence = str(error)
    assert sentence == "" or "cannot be read" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3 - 4 / 2", 5.0),
        ("-(7 // 2)", -3),
        ("'a' + f'{1}b'", "a1b"),
        ("1 if 2 > 1 else 3", 1),
        ("{'a': 1}['a']", Unknown),
        ("'x' * 10**9", Unknown),
        ("'x' * 1000000000", Unknown),
        ("'%99999999d' % 1", Unknown),
        ("999999999 * 999999999 * 999999999", Unknown),
        ("1 / 0", Unknown),
        ("'a' + 1", Unknown),
        ("f'{1:>1000000000}'", Unknown),
        ("b'x'", Unknown),
        ("torch.float16", Symbol("torch.float16")),
    ],
)
def test_expressions_are_computed_only_where_they_are_harmless(text, value):
    found = parse_python(f"x = {text}").names["x"].value
    assert isinstance(found, Unknown) if value is Unknown else found == value


def test_lists_are_joined_and_names_may_be_given_again():
    names = parse_python("a = [1]\na += [2]\nb = a + [3]\na = 5\n").names
    assert [item.value for item in names["b"].value] == [1, 2, 3]
    assert names["a"].value == 5


# ---- LLaMA-Factory ----

FACTORY = {
    "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
    "quantization_bit": 4,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_target": "all",
    "dataset": "identity,alpaca_en_demo",
    "template": "llama3",
    "cutoff_len": 1024,
    "max_samples": 1000,
    "output_dir": "saves/x",
    "learning_rate": 1.0e-4,
    "warmup_ratio": 0.1,
    "lr_scheduler_type": "cosine",
    "val_size": 0.1,
}


def factory(**changed):
    keys = {key: value for key, value in (FACTORY | changed).items() if value is not ...}
    return read_llamafactory("\n".join(f"{key}: {json.dumps(value)}" for key, value in keys.items()))


def test_a_llamafactory_file_becomes_a_configuration():
    found = factory()
    config = build(RunConfig, found.settings)
    assert (config.method, config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == ("qlora", 8, 16, 0.0)
    assert config.lora.target_modules == "all-linear"
    assert (config.data.dataset, config.data.sources[0].dataset) == ("identity", "alpaca_en_demo")
    assert (config.data.max_samples, config.data.sources[0].max_samples) == (1000, 1000)
    assert (config.data.max_length, config.data.validation_share, config.data.packing) == (1024, 0.1, False)
    assert (config.train.learning_rate, config.train.warmup_steps) == (1e-4, 0.1)
    assert config.model.chat_template == "llama3_chat"
    assert left(found) == [
        "dataset: names of its dataset_info.json: save these files in the Data tab under the same names"
    ]


def test_what_a_llamafactory_file_leaves_out_has_its_default_not_ours():
    found = factory(learning_rate=..., warmup_ratio=..., lr_scheduler_type=..., cutoff_len=...)
    config = build(RunConfig, found.settings)
    assert (config.train.learning_rate, config.train.lr_scheduler_type) == (5e-5, "linear")
    assert (config.train.per_device_train_batch_size, config.train.gradient_accumulation_steps) == (8, 1)
    assert (config.train.warmup_steps, config.data.max_length) == (0.0, 2048)


@pytest.mark.parametrize(
    ("changed", "field", "value"),
    [
        ({"finetuning_type": "full"}, "method", "full"),
        ({"quantization_bit": ...}, "method", "lora"),
        ({"lora_target": "q_proj, v_proj"}, "lora.target_modules", ["q_proj", "v_proj"]),
        ({"lora_rank": 32}, "lora.lora_alpha", 64),
        ({"lora_alpha": 7}, "lora.lora_alpha", 7),
        ({"use_dora": True}, "lora.use_dora", True),
        ({"neat_packing": True}, "data.packing", True),
        ({"stage": "pt"}, "data.packing", True),
        ({"bf16": True}, "model.dtype", "bfloat16"),
        ({"fp16": True}, "model.dtype", "float16"),
        ({"flash_attn": "fa2"}, "model.attn_implementation", "flash_attention_2"),
        ({"disable_gradient_checkpointing": True}, "train.gradient_checkpointing", False),
        ({"warmup_steps": 20}, "train.warmup_steps", 20),
        ({"neftune_noise_alpha": 5}, "train.neftune_noise_alpha", 5),
        ({"optim": "adamw_bnb_8bit"}, "train.optim", "adamw_8bit"),
        ({"default_system": "Be kind."}, "data.system", "Be kind."),
        ({"eval_dataset": "held", "val_size": ...}, "data.validation_dataset", "held"),
        ({"seed": 7}, "train.seed", 7),
        ({"double_quantization": False}, "quantization.bnb_4bit_use_double_quant", False),
        ({"save_total_limit": 3}, "train.save_total_limit", 3),
        ({}, "train.save_total_limit", -1),
        ({"additional_target": "embed_tokens,lm_head"}, "lora.modules_to_save", ["embed_tokens", "lm_head"]),
        ({"pissa_init": True, "quantization_bit": ...}, "lora.init_lora_weights", "pissa"),
        ({"adapter_name_or_path": "saves/a"}, "model.adapter", "saves/a"),
        ({"dataset": ["a", "b"]}, "data.dataset", "a"),
    ],
)
def test_keys_of_llamafactory_set_their_field(changed, field, value):
    assert settings(factory(**changed))[field] == value


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"stage": "dpo"}, "stage: only sft and pt"),
        ({"finetuning_type": "freeze"}, "finetuning_type: 'freeze' is not built"),
        ({"quantization_bit": 8}, "quantization_bit: the base is packed to 4 bits"),
        ({"template": "qwen3_nothink"}, "template: the model's own chat template"),
        ({"use_galore": True}, "use_galore: has no counterpart"),
        ({"val_size": 200}, "val_size: only a share"),
        ({"optim": "adamw_hf_magic"}, "optim: 'adamw_hf_magic' is not one of"),
        ({"train_on_prompt": True}, "train_on_prompt: has no counterpart"),
        ({"eval_dataset": "a,b", "val_size": ...}, "eval_dataset: only the first"),
    ],
)
def test_what_llamafactory_has_and_we_do_not_is_named(changed, words):
    found = factory(**changed)
    assert any(one.startswith(words) for one in left(found)), left(found)
    line = next(one.line for one in found.left_out if one.name == words.split(":")[0])
    keys = [key for key, value in (FACTORY | changed).items() if value is not ...]
    assert keys[line - 1] == words.split(":")[0]


# ---- files ----


def test_a_file_is_told_by_what_is_in_it(tmp_path):
    (tmp_path / "a.py").write_text(textwrap.dedent(XTUNER), encoding="utf-8")
    (tmp_path / "b.yaml").write_text("stage: sft\nmodel_name_or_path: m\n", encoding="utf-8")
    assert read_foreign(tmp_path / "a.py").origin == "xtuner"
    assert read_foreign(tmp_path / "b.yaml").origin == "llamafactory"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "model: {model_name_or_path: m}\n", "already"),
        ("a.yaml", "colour: red\n", "neither"),
        ("a.yaml", "", "neither"),
        ("a.yaml", "stage: !!python/object/apply:os.system ['id']\n", "the tag !!python/object/apply:os.system"),
        ("a.yaml", "- 1\n", "mapping"),
        ("a.py", "x = (", "line 1"),
    ],
)
def test_a_file_that_is_neither_is_one_sentence(name, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_foreign_text(text, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["missing.py", ".", "x\0y", "a" * 5000])
def test_a_path_that_is_no_file_is_one_sentence(path):
    with pytest.raises(ConfigError) as caught:
        read_foreign(Path(path))
    assert "cannot be read" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_imports_survive_the_way_through_a_file():
    for found in (xtuner(), factory()):
        config = build(RunConfig, merge(RunConfig, found.settings))
        assert load_yaml(dump_yaml(config), RunConfig) == config
