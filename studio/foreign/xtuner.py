"""XTuner's configuration files (v0.1 and v0.2) as settings of a RunConfig.

The truth of such a file are the structures it ends in (`model`, `train_dataloader`, `optim_wrapper`, hooks); the names
at its top only feed them. So values are taken from the structures, and whatever lies there and is neither taken nor
XTuner's own habit is listed as left out.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import Any

from studio.config import RunConfig
from studio.foreign.imported import Imported, LeftOut
from studio.foreign.syntax import Module, Symbol, Unknown, Val, parse_python
from studio.foreign.xtuner_data import Sources, read_sources
from studio.preset_files import library
from studio.schema import merge, names, walk

_COMPUTED = "is computed when the file is run; set it by hand"
_NO_FIELD = "has no counterpart here"

# Where a field is in XTuner's structures, the first place that is there.
_FIELDS = {
    "train.per_device_train_batch_size": ("train_dataloader.batch_size", "batch_size"),
    "train.dataloader_num_workers": ("train_dataloader.num_workers", "dataloader_num_workers"),
    "train.learning_rate": ("optim_wrapper.optimizer.lr", "lr"),
    "train.weight_decay": ("optim_wrapper.optimizer.weight_decay", "weight_decay"),
    "train.max_grad_norm": ("optim_wrapper.clip_grad.max_norm", "max_norm"),
    "train.gradient_accumulation_steps": ("optim_wrapper.accumulative_counts", "accumulative_counts"),
    "train.num_train_epochs": ("train_cfg.max_epochs", "max_epochs"),
    "train.save_steps": ("default_hooks.checkpoint.interval", "save_steps"),
    "train.save_total_limit": ("default_hooks.checkpoint.max_keep_ckpts", "save_total_limit"),
    "train.seed": ("randomness.seed",),
}
_LORA = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora", "modules_to_save"}
_SCHEDULES = {"CosineAnnealingLR": "cosine", "LinearLR": "linear", "ConstantLR": "constant_with_warmup"}

# XTuner's habits: places whose values say nothing to carry over. `None` stands for any value.
_HABITS: dict[str, tuple[Any, ...] | None] = {
    "*type": None,
    "*trust_remote_code": None,
    "*padding_side": None,
    "*encode_special_tokens": None,
    "*use_varlen_attn": None,
    "*torch_dtype": ("torch.float16",),
    "*bnb_4bit_compute_dtype": ("torch.float16", "torch.bfloat16"),
    "*load_in_8bit": (False,),
    "*llm_int8_*": None,
    "*lora.bias": ("none",),
    "*lora.task_type": None,
    "*remove_unused_columns": None,
    "*shuffle_before_pack": (True,),
    "*map_num_proc": None,
    "*sampler*": None,
    "*collate_fn*": None,
    "*pin_memory": None,
    "*persistent_workers": None,
    "*prefetch_factor": None,
    "*bot_name": None,
    "train_dataloader.dataset*": None,
    "train_dataset*": None,
    "optim_wrapper.loss_scale": ("dynamic",),
    "optim_wrapper.dtype": ("float16",),
    "optim_wrapper.clip_grad.error_if_nonfinite": (False,),
    "default_hooks.checkpoint.by_epoch": (False,),
    "default_hooks.checkpoint.save_optimizer": (True,),
    "default_hooks.timer*": None,
    "default_hooks.logger*": None,
    "default_hooks.param_scheduler*": None,
    "default_hooks.sampler_seed*": None,
    "env_cfg*": None,
    "visualizer": (None,),
    "log_level": None,
    "log_processor*": None,
    "load_from": (None,),
    "resume": (False,),
    "randomness.seed": (None,),
    "randomness.deterministic": (False,),
    "sequence_parallel_size": (1,),
    "save_optimizer": (True,),
    "framework": None,
    "trainer": None,
    "training_args.do_train": None,
    "training_args.fp16": None,
    "training_args.save_strategy": ("steps",),
    "training_args.ddp_find_unused_parameters": None,
    "gradient_checkpointing": (True,),
    "model.use_activation_checkpointing": (True,),
    "*tokenizer.pretrained_model_name_or_path": None,
}
_ROOTS = (
    *("model", "lora", "tokenizer", "train_dataloader", "optim_wrapper", "train_cfg", "training_args"),
    *("default_hooks", "env_cfg", "visualizer", "load_from", "resume", "randomness", "log_processor"),
)
_ASKING = {
    "generation_kwargs": "samples are always the likeliest answer",
    "evaluation_images": "images are not carried over",
    "stop_words": "the chat template brings its stop words",
}
# XTuner writes a configuration beside its checkpoints and into them; there names from elsewhere are texts.
_DUMPED = re.compile(
    r"""(['"])((?:xtuner|mmengine|torch|transformers|peft|datasets|modelscope|bitsandbytes)(?:\.[A-Za-z_]\w*)+)\1"""
)
_QUIET_HOOKS = {"DatasetInfoHook", "VarlenAttnArgsToMessageHubHook", "ThroughputHook", "EvaluateChatHook"}


class _Reader:
    """Collects settings from the structures of one file and remembers what was left out."""

    def __init__(self, module: Module) -> None:
        self.root = Val(dict(module.names), 1)
        self.settings: dict[str, Any] = {}
        self.left: list[LeftOut] = [LeftOut(line, what, "is not an assignment") for line, what in module.statements]

    def take(self, place: str) -> Any:
        """The plain value at a place, marked as used; None when nothing is there. An Unknown is listed."""
        found = self.root.get(place)
        return None if found is None else self.plain(found, place)

    def plain(self, found: Val, place: str) -> Any:
        """A Val as a constant, a Symbol or a list of them; marks it as used."""
        found.used = True
        if isinstance(found.value, Unknown):
            self.leave(found, place, _COMPUTED)
            return None
        if isinstance(found.value, list):
            return [self.plain(item, place) for item in found.value]
        return found.value

    def leave(self, found: Val | None, name: str, reason: str) -> None:
        """Lists a setting as left out."""
        self.left.append(LeftOut(found.line if found else 1, name, reason))

    def put(self, field: str, value: Any) -> None:
        """Sets a field, unless there is nothing to set."""
        if value is not None and not isinstance(value, Symbol | dict):
            self.settings[field] = value


def read_xtuner(text: str) -> Imported:
    """The text of an XTuner configuration file -> settings and what was left out.

    Raises:
        ConfigError: it is not Python.
    """
    reader = _Reader(parse_python(_DUMPED.sub(r"\2", text)))
    _read_model(reader)
    _read_fields(reader)
    _read_schedule(reader)
    _read_hooks(reader)
    _read_training_args(reader)
    for field, value in read_sources(Sources(reader.root, reader.plain, reader.leave)).items():
        reader.put(field, value)
    for source in reader.settings.get("data.sources", ()):
        if "data.system" in reader.settings:  # one prompt for the whole file
            source["system"] = reader.settings["data.system"]
    reader.left += _rest(reader.root)
    known = {spec.path for spec in walk(RunConfig)}
    settings = {field: value for field, value in reader.settings.items() if field in known}
    order = {(one.line, one.name): one for one in reader.left}
    return Imported("xtuner", merge(RunConfig, settings), tuple(order[key] for key in sorted(order)))


def _read_model(reader: _Reader) -> None:
    """Base model, quantisation, adapter and method."""
    own = reader.root.get("model.llm")
    llm, lora = ("model.llm", "model.lora") if own else ("model", "lora")
    kind = reader.take("model.type")
    if own and isinstance(kind, Symbol) and kind.last != "SupervisedFinetune":
        reader.leave(own, f"model {kind.last}", "only instruction tuning and continued pre-training are carried over")
    name = reader.take(f"{llm}.pretrained_model_name_or_path") or reader.take("pretrained_model_name_or_path")
    reader.put("model.model_name_or_path", name)
    attention = reader.take(f"{llm}.attn_implementation")
    reader.put("model.attn_implementation", attention)
    dtype = reader.root.get(f"{llm}.torch_dtype")
    if dtype and isinstance(dtype.value, Symbol) and dtype.value.last == "bfloat16":
        reader.put("model.dtype", "bfloat16")
        dtype.used = True
    quantised = _read_quantization(reader, llm)
    adapter = reader.root.get(lora)
    has_adapter = adapter is not None and isinstance(adapter.value, dict)
    reader.put("method", ("qlora" if quantised else "lora") if has_adapter else "full")
    for key in sorted(_LORA) if has_adapter else ():
        reader.put(f"lora.{key}", reader.take(f"{lora}.{key}"))


def _read_quantization(reader: _Reader, llm: str) -> bool:
    """Whether the base is packed to 4 bits; an 8-bit base is listed."""
    place = f"{llm}.quantization_config"
    eight = reader.root.get(f"{llm}.load_in_8bit") or reader.root.get(f"{place}.load_in_8bit")
    if eight and eight.value is True:
        reader.leave(eight, "load_in_8bit", "there is no 8-bit base here; the base stays at 16 bits")
        eight.used = True
    for key in ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant"):
        reader.put(f"quantization.{key}", reader.take(f"{place}.{key}"))
    return reader.take(f"{place}.load_in_4bit") is True


def _read_fields(reader: _Reader) -> None:
    for field, places in _FIELDS.items():
        found = next((value for place in places if (value := reader.take(place)) is not None), None)
        reader.put(field, found)
    kind = reader.take("optim_wrapper.optimizer.type")
    if isinstance(kind, Symbol):
        optimizer = next(spec for spec in walk(RunConfig) if spec.path == "train.optim").ui.spellings
        known = {name.lower(): value for name, value in optimizer}.get(kind.last.lower())
        reader.put("train.optim", known)
        if known is None:
            reader.leave(reader.root.get("optim_wrapper.optimizer.type"), f"optimizer {kind.last}", _NO_FIELD)
    betas = reader.take("optim_wrapper.optimizer.betas")
    if isinstance(betas, list) and len(betas) == 2:
        reader.put("train.adam_beta1", betas[0])
        reader.put("train.adam_beta2", betas[1])
    steps, every = reader.take("train_cfg.max_iters"), reader.settings.get("train.gradient_accumulation_steps", 1)
    if isinstance(steps, int) and isinstance(every, int) and every > 0:
        reader.put("train.max_steps", -(-steps // every))
    checkpoints = reader.root.get("model.use_activation_checkpointing")
    reader.put("train.gradient_checkpointing", not (checkpoints and checkpoints.value is False))


def _read_schedule(reader: _Reader) -> None:
    """The warm-up as a share of the training, and how the rate falls."""
    schedule = reader.root.get("param_scheduler")
    parts = [] if schedule is None else schedule.value if isinstance(schedule.value, list) else [schedule]
    kinds = [part.get("type") for part in parts]
    called = [k.value.last if k and isinstance(k.value, Symbol) else str(k.value if k else "") for k in kinds]
    if not parts or called[-1] not in _SCHEDULES:
        for part in parts:
            reader.leave(part, f"param_scheduler {called[-1]}", _NO_FIELD)
        return
    reader.put("train.lr_scheduler_type", _SCHEDULES[called[-1]])
    floor, end = parts[-1].get("eta_min"), parts[-1].get("end")
    if floor and _is_number(floor.value) and floor.value > 0 and called[-1] == "CosineAnnealingLR":
        reader.put("train.lr_scheduler_type", "cosine_with_min_lr")
        reader.put("train.lr_scheduler_kwargs", f"min_lr={reader.plain(floor, 'eta_min'):g}")
    warm = parts[0].get("end") if len(parts) > 1 and called[0] == "LinearLR" else None
    if warm is None:
        reader.put("train.warmup_steps", 0.0)
    elif end and _is_number(warm.value) and _is_number(end.value) and end.value:
        reader.put("train.warmup_steps", round(warm.value / end.value, 6))
    else:
        reader.put("train.warmup_steps", reader.take("warmup_ratio"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_hooks(reader: _Reader) -> None:
    """What is asked while it trains, and with which system prompt."""
    hooks = reader.root.get("custom_hooks")
    asking = None
    for hook in hooks.value if hooks and isinstance(hooks.value, list) else ():
        kind = hook.get("type")
        name = kind.value.last if kind and isinstance(kind.value, Symbol) else "a hook"
        if name not in _QUIET_HOOKS:
            reader.leave(hook, name, _NO_FIELD)
        asking = hook if name == "EvaluateChatHook" else asking
    if asking:
        _read_questions(reader, asking, freq="every_n_iters", system="system")
    else:  # no such hook: what the names at the top would have set
        _read_questions(reader, reader.root, freq="evaluation_freq", system="SYSTEM")


def _read_questions(reader: _Reader, place: Val, *, freq: str, system: str) -> None:
    for field, key in (("evaluation_inputs", "evaluation_inputs"), ("evaluation_freq", freq), ("max_new_tokens",) * 2):
        found = place.get(key)
        value = reader.plain(found, key) if found else None
        reader.put(f"samples.{field}", value or None)
    for key, reason in _ASKING.items():
        found = place.get(key)
        if found and found.value:
            reader.leave(found, key, reason)
    prompt = place.get(system)
    value = reader.plain(prompt, "SYSTEM") if prompt else None
    if isinstance(value, Symbol) and prompt:
        name = value.last
        value = library().prompts.get(name)
        if value is None:
            reader.leave(prompt, name, "is a system prompt that is not known here")
    reader.put("data.system", value or None)


def _read_training_args(reader: _Reader) -> None:
    """`framework = 'huggingface'`: transformers' own names, most of which are ours."""
    arguments = reader.root.get("training_args")
    table = names(RunConfig)
    for key in arguments.value if arguments and isinstance(arguments.value, dict) else ():
        if key in table and table[key].startswith("train."):
            reader.put(table[key], reader.take(f"training_args.{key}"))


# ---- what is left ----


def _rest(root: Val) -> list[LeftOut]:
    """Everything in the structures that was neither taken nor a habit; then top names that feed nothing."""
    found: dict[int, LeftOut] = {}
    for name in _ROOTS:
        top = root.value.get(name)
        for place, leaf in _leaves(top, name) if top else ():
            if not leaf.used and not _is_habit(place, leaf.value):
                found[id(leaf)] = LeftOut(leaf.line, place, _reason(place, leaf.value))
    inside = {id(leaf) for name in root.value for place, leaf in _leaves(root.value[name], name) if place != name}
    for name, value in root.value.items():
        feeds = value.used or id(value) in inside or isinstance(value.value, dict | list)
        if name not in _ROOTS and not feeds and not _is_habit(name, value.value):
            found[id(value)] = LeftOut(value.line, name, _reason(name, value.value))
    return list(found.values())


def _reason(place: str, value: Any) -> str:
    if place == "tokenizer.eos_token":
        return "the chat template says where an answer ends"
    return _COMPUTED if isinstance(value, Unknown) else _NO_FIELD


def _leaves(node: Val, place: str) -> Iterator[tuple[str, Val]]:
    if isinstance(node.value, dict) and node.value:
        for key, child in node.value.items():
            yield from _leaves(child, f"{place}.{key}")
    elif isinstance(node.value, list) and any(isinstance(item.value, dict) for item in node.value):
        for number, item in enumerate(node.value):
            yield from _leaves(item, f"{place}.{number}")
    else:
        yield place, node


def _is_habit(place: str, value: Any) -> bool:
    plain = value.name if isinstance(value, Symbol) else value
    for pattern, allowed in _HABITS.items():
        if fnmatch.fnmatchcase(place, pattern) and (allowed is None or any(plain is a or plain == a for a in allowed)):
            return True
    return False
