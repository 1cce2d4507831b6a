"""A file of one's own with DeepSpeed's settings: read, checked against the form, and completed for the engine.

Also what a configuration divides at all, be it by a stage's name or by such a file.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studio.config import RunConfig
from studio.parallel_plan import zero_conflict
from studio.parallel_section import UNDIVIDED, Zero

FIELD = "parallel.deepspeed_config"
MOST_BYTES = 1_000_000
AUTO = "auto"
_BATCHES = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
_FILLED = (*_BATCHES, "gradient_clipping")
_ADAM = ("adam", "adamw")
_FORMS = ("optimizer", "scheduler")
"""Sections of the file that say what the form says already."""
_SWITCHES = ("amp", "autotuning", "elasticity", "hybrid_engine", "compression_training", "sparse_attention", "pipeline")
"""Parts of DeepSpeed that change the model, the batch or the loop the trainer runs."""
KNOWN = frozenset(
    (
        *_FILLED, *_FORMS, *_SWITCHES, "activation_checkpointing", "aio", "bf16", "fp16", "checkpoint", "comet",
        "comms_logger", "communication_data_type", "compile", "csv_monitor", "curriculum_learning", "data_efficiency",
        "data_types", "dataloader_drop_last", "disable_allgather", "disable_python_gc", "dump_state", "eigenvalue",
        "flops_profiler", "gradient_allreduce_op", "gradient_predivide_factor", "log_level", "memory_breakdown",
        "nebula", "prescale_gradients", "progressive_layer_drop", "seq_parallel_communication_data_type",
        "sequence_parallel_size", "sparse_gradients", "steps_per_print", "tensor_parallel", "tensorboard", "timers",
        "torch_autocast", "wall_clock_breakdown", "wandb", "weight_quantization", "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer", "zero_optimization",
    )
)  # fmt: skip


_NOTHING = (
    "zero_optimization.stage in the file is 0 or missing, so nothing would be divided; choose 1, 2 or 3, or leave the "
    "file empty"
)


def zero_of(config: RunConfig) -> Zero:
    """What DeepSpeed divides in a run; nothing while its own file cannot be read."""
    own = config.parallel.deepspeed_config
    if own is None:
        return config.parallel.zero
    try:
        return zero_in(read_own(Path(own)))
    except ValueError:
        return UNDIVIDED


def read_own(path: Path) -> dict[str, Any]:
    """The settings in a file. Raises ValueError: a sentence without the field, of what is wrong and what to do."""
    try:
        path = path.expanduser()
        if path.exists() and not path.is_file() and not path.is_dir():  # whoever opens a pipe may wait for ever
            raise OSError("it is no file")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"there is no file {_shown(path)}; give the path of a JSON file, or leave it empty") from None
    except IsADirectoryError:
        raise ValueError(f"{_shown(path)} is a folder; give the path of a JSON file in it") from None
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name; the home of nobody
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{_shown(path)} cannot be read ({reason}); give the path of a JSON file") from None
    if len(text) > MOST_BYTES:
        raise ValueError(
            f"{_shown(path)} has more than {MOST_BYTES // 1_000_000} MB; DeepSpeed's settings take a few kB"
        )
    try:
        found = json.loads(text.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_shown(path)} is no JSON ({str(error)[:120]}); correct it, or leave it empty") from None
    if not isinstance(found, dict):
        raise ValueError(f"{_shown(path)} holds no object; DeepSpeed's settings begin with {{")
    problem = next(_shapes(found), None)
    if problem:
        raise ValueError(problem)
    return found


def _shown(path: Path) -> str:
    return repr(str(path))[1:-1][:200]


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _no_number(text[:40])


def _shapes(found: Mapping[str, Any]) -> Iterator[str]:
    """What of the file has the wrong form, so that nothing can be told from it."""
    for name in ("zero_optimization", "bf16", "fp16", *_FORMS):
        if name in found and not isinstance(found[name], dict):
            yield f"{name} in the file must be an object, like {{}}"
    zero = _section(found, "zero_optimization")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool | float):
        yield f"zero_optimization.stage in the file is {json.dumps(stage)[:40]}; choose 1, 2 or 3"
    for name in ("offload_optimizer", "offload_param"):
        device = _section(zero, name).get("device", "none")
        if zero.get(name) is not None and not isinstance(zero[name], dict):
            yield f"zero_optimization.{name} in the file must be an object, like {{}}"
        elif device not in ("none", "cpu"):
            why = "needs an operator that a compiler must build" if device == "nvme" else "is not known"
            yield f"zero_optimization.{name}.device in the file is {json.dumps(device)[:40]}, which {why}; choose cpu"


def _section(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def zero_in(found: Mapping[str, Any]) -> Zero:
    """What the settings of a file divide."""
    zero = _section(found, "zero_optimization")
    stage = int(zero.get("stage", 0))
    moved = {
        name: _section(zero, name).get("device", "none") != "none" for name in ("offload_optimizer", "offload_param")
    }
    return Zero(stage, moved["offload_optimizer"] and stage > 0, moved["offload_param"] and stage == 3)


def faults(config: RunConfig) -> list[str]:
    """Sentences, without the field, of what would stop a run with a file of its own."""
    own = config.parallel.deepspeed_config
    if own is None:
        return []
    try:
        found = read_own(Path(own))
    except ValueError as error:
        return [str(error)]
    conflict = zero_conflict(config, zero_in(found), FIELD)
    told = [conflict.removeprefix(f"{FIELD}: ")] if conflict else []
    said = [*_contradictions(config, found), *_beyond(found), *told]
    return said if said or zero_in(found).stage else [_NOTHING]


def remarks(config: RunConfig) -> list[str]:
    """Sentences, without the field, of what of the file is not used."""
    try:
        own = config.parallel.deepspeed_config
        return passed_over(read_own(Path(own))) if own else []
    except ValueError:
        return []


def _contradictions(config: RunConfig, found: Mapping[str, Any]) -> Iterator[str]:
    """Values of the file that differ from the form's."""
    train, dtype = config.train, config.model.dtype
    form: dict[str, tuple[str, Any]] = {
        "train_micro_batch_size_per_gpu": ("train.per_device_train_batch_size", train.per_device_train_batch_size),
        "gradient_accumulation_steps": ("train.gradient_accumulation_steps", train.gradient_accumulation_steps),
        "train_batch_size": ("the effective batch size", config.effective_batch_size),
        "gradient_clipping": ("train.max_grad_norm", train.max_grad_norm),
        "sequence_parallel_size": ("parallel.sequence_parallel_size", config.parallel.sequence_parallel_size),
        "optimizer.params.lr": ("train.learning_rate", train.learning_rate),
        "optimizer.params.betas": ("train.adam_beta1, adam_beta2", [train.adam_beta1, train.adam_beta2]),
        "optimizer.params.weight_decay": ("train.weight_decay", train.weight_decay),
    }
    for path, (field, value) in form.items():
        given = _at(found, path)
        if given not in (None, AUTO, value):
            yield _differs(path, given, field, json.dumps(value))
    for name, wide in (("bf16", "bfloat16"), ("fp16", "float16")):
        given = _at(found, f"{name}.enabled")
        # "auto" is bfloat16 where there is such a thing, and known only there
        differs = given != (dtype == wide) if dtype != "auto" else given is not False or name == "bf16"
        if given not in (None, AUTO) and differs:
            yield _differs(f"{name}.enabled", given, "model.dtype", dtype)


def _differs(path: str, given: object, field: str, value: str) -> str:
    told = f"{path} in the file is {json.dumps(given)[:60]}, and {field} is {value}"
    return f'{told}; write "auto" there, or the same value'


def _at(found: Mapping[str, Any], path: str) -> Any:
    *sections, leaf = path.split(".")
    for name in sections:
        found = _section(found, name)
    return found.get(leaf)


def _beyond(found: Mapping[str, Any]) -> Iterator[str]:
    """What of DeepSpeed the trainer beneath does not do."""
    for name in _SWITCHES:
        if found.get(name) and _section(found, name).get("enabled", True):
            yield f"{name} in the file changes more than how the training is divided; remove it"
    if _at(found, "tensor_parallel.autotp_size") not in (None, 0, 1):
        yield "tensor_parallel in the file is not supported; remove it, and divide the weights with stage 3"
    kind = str(_at(found, "optimizer.type") or "AdamW")
    if kind.lower() not in _ADAM:
        yield f"the optimizer {kind[:40]} of the file is not supported; remove it, and choose one with train.optim"


def passed_over(found: Mapping[str, Any]) -> list[str]:
    """Sentences of what of the file is not used."""
    said = [
        f"{name} in the file is left out: {field} decides"
        for name, field in (("optimizer", "train.optim"), ("scheduler", "train.lr_scheduler_type"))
        if found.get(name)
    ]
    for name in found:
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            said.append(f"{name[:60]} in the file is no setting of DeepSpeed{meant}")
    return said


def completed(found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the trainer takes them: what it knows is its own, and nothing has to be compiled."""
    kept = {name: value for name, value in found.items() if name not in _FORMS}
    kinds = {
        name: {**_section(found, name), "enabled": _at(found, f"{name}.enabled") or AUTO} for name in ("bf16", "fp16")
    }
    # Without whole weights in it a checkpoint would be of no use to anybody but DeepSpeed.
    zero = {"stage": 0, **_section(found, "zero_optimization"), "stage3_gather_16bit_weights_on_model_save": True}
    quiet = {"zero_force_ds_cpu_optimizer": False, "steps_per_print": 10**9}
    return dict.fromkeys(_FILLED, AUTO) | quiet | kept | kinds | {"zero_optimization": zero}


def loading_part(found: Mapping[str, Any], kind: str | None) -> dict[str, Any]:
    """The part of complete settings that counts while a model is loaded, in which no "auto" is left.

    `kind`: bf16 | fp16, the number format of the training; None for 32 bits.
    """
    zero = {name: value for name, value in _section(found, "zero_optimization").items() if value != AUTO}
    kinds = {name: {"enabled": name == kind} for name in ("bf16", "fp16")}
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero} | kinds
