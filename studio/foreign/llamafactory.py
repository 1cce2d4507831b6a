"""LLaMA-Factory's YAML as settings of a RunConfig.

What its file leaves out has LLaMA-Factory's default there, not ours, so those defaults are written out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from studio.config import RunConfig
from studio.foreign.imported import Imported, LeftOut
from studio.records.template_names import template_names
from studio.schema import merge, names, parse_yaml, walk

SIGNS = frozenset(
    {"stage", "finetuning_type", "cutoff_len", "lora_rank", "lora_target", "do_train", "quantization_bit"}
)
"""A file with one of these keys is LLaMA-Factory's."""

_DEFAULTS: dict[str, Any] = {
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_dropout": 0.0,
    "lora_target": "all",
    "cutoff_len": 2048,
    "packing": False,
    "learning_rate": 5e-5,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "save_steps": 500,
    "disable_gradient_checkpointing": False,
}
_TEMPLATES = {
    "baichuan": "baichuan_chat",
    "baichuan2": "baichuan2_chat",
    "chatml": "chatml",
    "chatglm2": "chatglm2",
    "chatglm3": "chatglm3",
    "cohere": "cohere_chat",
    "cpm": "minicpm",
    "cpm3": "minicpm3",
    "deepseekcoder": "deepseek_coder",
    "intern": "internlm_chat",
    "intern2": "internlm2_chat",
    "llama2": "llama2_chat",
    "llama3": "llama3_chat",
    "mistral": "mistral",
    "phi": "phi3_chat",
    "vicuna": "vicuna",
    "zephyr": "zephyr",
}
_RENAMED = {
    "lora_rank": "lora.r",
    "lora_alpha": "lora.lora_alpha",
    "lora_dropout": "lora.lora_dropout",
    "cutoff_len": "data.max_length",
    "default_system": "data.system",
    "split": "data.split",
    "quantization_type": "quantization.bnb_4bit_quant_type",
    "double_quantization": "quantization.bnb_4bit_use_double_quant",
    "evaluation_steps": "train.eval_steps",
    "adapter_name_or_path": "model.adapter",
}
_NO_FIELD = "has no counterpart here"
_PREFERENCES = "only sft and pt are carried over: training on preferences is not built yet"
# Keys that say nothing about what is learned, or say it with a value that is the rule here.
_QUIET: dict[str, tuple[Any, ...] | None] = {
    "do_train": (True,),
    "do_eval": None,
    "do_predict": (False,),
    "output_dir": None,
    "overwrite_output_dir": None,
    "overwrite_cache": None,
    "preprocessing_num_workers": None,
    "preprocessing_batch_size": None,
    "plot_loss": None,
    "ddp_timeout": None,
    "trust_remote_code": None,
    "cache_dir": None,
    "use_fast_tokenizer": None,
    "low_cpu_mem_usage": None,
    "upcast_layernorm": (False,),
    "per_device_eval_batch_size": None,
    "eval_strategy": None,
    "evaluation_strategy": None,
    "logging_strategy": ("steps",),
    "save_strategy": ("steps",),
    "save_only_model": (False,),
    "resume_from_checkpoint": (None, False),
    "quantization_method": ("bitsandbytes", "bnb", None),
    "media_dir": None,
    "dataset_dir": None,
    "neat_packing": None,
    "mix_strategy": ("concat",),
    "train_on_prompt": (False,),
    "mask_history": (False,),
    "streaming": (False,),
    "flash_attn": ("auto",),
    "val_size": (0, 0.0, None),
    "enable_thinking": (True, None),
    "pissa_init": (False,),
    "include_num_input_tokens_seen": None,
    "finetuning_type": ("lora", "full"),
    "stage": ("sft", "pt"),
    "bf16": None,
    "fp16": None,
    "pure_bf16": (False,),
    "quantization_bit": (4, None),
    "template": None,
    "lora_alpha": None,
    "warmup_ratio": None,
}


def read_llamafactory(text: str) -> Imported:
    """The text of a LLaMA-Factory YAML -> settings and what was left out.

    Raises:
        ConfigError: it is no YAML mapping.
    """
    given = parse_yaml(text)
    reader = _Reader(text, {**_DEFAULTS, **given}, frozenset(map(str, given)))
    for rule in _RULES:
        rule(reader)
    for key in given:
        if key not in reader.done:
            _one_field(reader, str(key))
    order = sorted(reader.left, key=lambda one: (one.line, one.name))
    return Imported("llamafactory", merge(RunConfig, reader.settings), tuple(order))


class _Reader:
    """The keys of one file, the settings made of them and what was left out."""

    def __init__(self, text: str, keys: Mapping[Any, Any], given: frozenset[str]) -> None:
        self.keys, self.given = keys, given
        self.lines = {found[1]: n for n, line in enumerate(text.splitlines(), 1) if (found := _KEY.match(line))}
        self.settings: dict[str, Any] = {}
        self.left: list[LeftOut] = []
        self.done: set[str] = set()
        self.specs = {spec.path: spec for spec in walk(RunConfig)}

    def put(self, field: str, value: Any, *keys: str) -> None:
        """Sets a field from `keys`, if there is such a field here and the value is one it can have."""
        self.done.update(keys)
        spec = self.specs.get(field)
        if spec and isinstance(value, str):
            value = {name.lower(): real for name, real in spec.ui.spellings}.get(value.lower(), value)
        if spec is None or (spec.choices and value is not None and str(value) not in spec.choices):
            reason = _NO_FIELD if spec is None else f"{str(value)[:60]!r} is not one of {', '.join(spec.choices or ())}"
            for key in keys:
                self.leave(key, reason)
        else:
            self.settings[field] = value

    def leave(self, key: str, reason: str) -> None:
        """Lists a key as left out, if the file has it."""
        self.done.add(key)
        if key in self.given:
            self.left.append(LeftOut(self.lines.get(key, 1), key, reason))


_KEY = re.compile(r"""["']?(\w+)["']?\s*:""")


def _one_field(reader: _Reader, key: str) -> None:
    """A key with a field of the same or another name; a quiet one; else it is left out."""
    value = reader.keys[key]
    if key in _QUIET:
        allowed = _QUIET[key]
        if allowed is not None and value not in allowed:
            reader.leave(key, _NO_FIELD)
        return
    path = _RENAMED.get(key) or names(RunConfig).get(key, "")
    if path.split(".")[0] in ("train", "lora", "model", "quantization", "data"):
        if value is not None:
            reader.put(path, value, key)
    elif value not in (None, False):
        reader.leave(key, _NO_FIELD)


def _method(reader: _Reader) -> None:
    bits, kind = reader.keys.get("quantization_bit"), reader.keys["finetuning_type"]
    stage = reader.keys.get("stage", "sft")
    if stage not in ("sft", "pt"):
        reader.leave("stage", _PREFERENCES)
    if kind not in ("lora", "full"):
        reader.leave("finetuning_type", f"{str(kind)[:40]!r} is not built; lora takes its place")
    if bits is not None and bits != 4:
        reader.leave("quantization_bit", "the base is packed to 4 bits or not at all; here it stays at 16 bits")
    method = "full" if kind == "full" else "qlora" if bits == 4 else "lora"
    reader.put("method", method)
    if method == "full":
        reader.done |= {"lora_rank", "lora_dropout", "lora_target", "lora_alpha"}
        return
    rank = reader.keys["lora_rank"]
    reader.put("lora.r", rank, "lora_rank")
    alpha = reader.keys.get("lora_alpha")
    reader.put("lora.lora_alpha", 2 * rank if alpha is None and isinstance(rank, int) else alpha, "lora_alpha")
    reader.put("lora.lora_dropout", reader.keys["lora_dropout"], "lora_dropout")
    targets = _listed(reader.keys["lora_target"])
    if reader.keys.get("additional_target"):
        reader.put("lora.modules_to_save", _listed(reader.keys["additional_target"]), "additional_target")
    if reader.keys.get("pissa_init") is True and method == "lora":
        reader.put("lora.init_lora_weights", "pissa", "pissa_init")
    reader.put("lora.target_modules", "all-linear" if targets == ["all"] else targets, "lora_target")


def _precision(reader: _Reader) -> None:
    if reader.keys.get("bf16") is True or reader.keys.get("pure_bf16") is True:
        reader.put("model.dtype", "bfloat16", "bf16")
    elif reader.keys.get("fp16") is True:
        reader.put("model.dtype", "float16", "fp16")
    attention = {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}.get(
        str(reader.keys.get("flash_attn"))
    )
    if attention:
        reader.put("model.attn_implementation", attention, "flash_attn")
    reader.put("train.gradient_checkpointing", reader.keys["disable_gradient_checkpointing"] is not True)
    reader.done.add("disable_gradient_checkpointing")


def _data(reader: _Reader) -> None:
    """`dataset: a,b` are names of its dataset_info.json; each may be a file, a saved dataset or a hub id here."""
    found, limit = _listed(reader.keys.get("dataset")), reader.keys.get("max_samples")
    folder = str(reader.keys.get("dataset_dir") or "")
    for number, dataset in enumerate(found):
        entry: dict[str, Any] = {"dataset": dataset} | ({"max_samples": limit} if limit else {})
        if number == 0:
            reader.settings |= {f"data.{key}": value for key, value in entry.items()}
        else:
            reader.settings.setdefault("data.sources", []).append(entry)
    if found and not folder.startswith(("REMOTE", "ONLINE")):
        reader.leave("dataset", "names of its dataset_info.json: save these files in the Data tab under the same names")
    reader.done |= {"dataset", "max_samples", "dataset_dir"}
    share = reader.keys.get("val_size")
    if isinstance(share, int | float) and 0 < share <= 0.5:
        reader.put("data.validation_share", share, "val_size")
    elif share:
        reader.leave("val_size", "only a share of the rows up to 0.5 can be kept apart")
    validation = _listed(reader.keys.get("eval_dataset"))
    if validation:
        reader.put("data.validation_dataset", validation[0], "eval_dataset")
    if len(validation) > 1:
        reader.leave("eval_dataset", "only the first of them is carried over")
    stage = reader.keys.get("stage", "sft")
    packed = reader.keys.get("neat_packing") is True or (reader.keys.get("packing") or stage == "pt")
    reader.put("data.packing", bool(packed), "packing", "neat_packing")


def _template(reader: _Reader) -> None:
    """Its template names stand for the models' own templates; where we know it by name, the name is kept."""
    name = reader.keys.get("template")
    if name is None:
        return
    known = _TEMPLATES.get(str(name))
    if known in template_names():
        reader.put("model.chat_template", known, "template")
    else:
        reader.leave("template", f"the model's own chat template takes the place of {str(name)[:40]!r}")


def _schedule(reader: _Reader) -> None:
    steps = reader.keys.get("warmup_steps")
    if not steps:
        reader.put("train.warmup_steps", reader.keys["warmup_ratio"])
        reader.done.add("warmup_steps")
    reader.done.add("warmup_ratio")
    for key in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"):
        reader.put(f"train.{key}", reader.keys[key], key)
    reader.put("train.save_steps", reader.keys["save_steps"], "save_steps")
    reader.put("train.lr_scheduler_type", reader.keys["lr_scheduler_type"], "lr_scheduler_type")
    optimizer = reader.keys.get("optim")
    if optimizer:
        reader.put("train.optim", optimizer, "optim")
    keep = reader.keys.get("save_total_limit")
    reader.put("train.save_total_limit", -1 if keep is None else keep, "save_total_limit")


_RULES: tuple[Callable[[_Reader], None], ...] = (_method, _precision, _data, _template, _schedule)


def _listed(value: Any) -> list[str]:
    """A comma-separated text or a list as texts."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [str(part).strip() for part in parts if str(part).strip()]
