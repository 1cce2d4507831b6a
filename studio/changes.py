"""Fields changed when a run is resumed: `changes.yaml` beside a `config.yaml` that is never edited.

Each entry says which fields hold from which checkpoint on; later entries win. What one optimizer update sees stays:
another batch size or another number of processes comes with the accumulation that keeps their product, so that step N
of the curve is the same N conversations, in the same order, before and after (`studio.records.order` looks only at how
many an update has).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.config import RunConfig
from studio.optimizers import UNDIVIDED
from studio.schema import ConfigError, FieldError, build, flatten, merge, parse_yaml, walk

BATCH, ACCUMULATION = "train.per_device_train_batch_size", "train.gradient_accumulation_steps"
PROCESSES, SHARED = "parallel.num_processes", "parallel.sequence_parallel_size"
_DIVIDING = frozenset({PROCESSES, "parallel.deepspeed", "parallel.deepspeed_config", "parallel.fsdp"})
# What may differ from one half of a curve to the other: how the same updates are computed, watched and written.
CONTINUES = frozenset(
    {
        BATCH,
        ACCUMULATION,
        "name",
        "model.attn_implementation",
        "quantization.bnb_4bit_use_double_quant",
        "train.gradient_checkpointing",
        "train.logging_steps",
        "train.save_steps",
        "train.save_total_limit",
        "train.eval_steps",
        "train.dataloader_num_workers",
        "train.report_to",
        SHARED,
        "parallel.num_machines",
        "parallel.machine_rank",
        "parallel.main_process_ip",
        "parallel.main_process_port",
        "parallel.ddp_timeout",
    }
)
_CONTINUING_SECTIONS = ("samples.", "verdict.", "early_stopping.")


class Change(BaseModel):
    """One resume with other fields: `at` unix seconds, `step` of the checkpoint it went on from (0: the beginning)."""

    model_config = ConfigDict(extra="ignore")

    at: float = Field(default_factory=time.time)
    step: int = 0
    fields: dict[str, Any]


class _File(BaseModel):
    changes: list[Change] = []


def parse_changes(text: str) -> list[Change]:
    """The entries of `changes.yaml`, oldest first. Raises ConfigError."""
    try:
        return _File.model_validate(parse_yaml(text)).changes
    except ValidationError as error:
        raise ConfigError(
            [FieldError("", f"changes.yaml is not what a resume writes ({error.error_count()})")]
        ) from None


def dump_changes(changes: Sequence[Change]) -> str:
    """The text of `changes.yaml`."""
    data = {"changes": [change.model_dump(mode="json") for change in changes]}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def with_changes(data: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """What `config.yaml` holds, with every change laid over it; not validated yet. Raises ConfigError."""
    return merge(RunConfig, data, *(change.fields for change in changes)) if changes else dict(data)


def checked_changes(config: RunConfig, asked: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The fields that really change, by dotted path, when a run goes on from the checkpoint of `step`.

    Keys may be any accepted spelling. A batch size without its accumulation (or the other way round) brings the other.
    `step` 0 means that the run begins again: then everything may change.

    Raises:
        ConfigError: an unknown field, a wrong value, or a field that only a run from the beginning can change.
    """
    wanted = flatten(RunConfig, asked)
    if step:
        _refuse_others(config, wanted)
    wanted |= _batch(config, wanted, free=not step)
    changed = build(RunConfig, merge(RunConfig, config.model_dump(mode="json"), wanted))
    return {path: _at(changed, path) for path in wanted if _at(changed, path) != _at(config, path)}


def continues(config: RunConfig, fields: Mapping[str, Any]) -> bool:
    """True when a run can go on from a checkpoint with these fields changed (dotted paths)."""
    return not [path for path in fields if not _continues(config, path, fields[path])]


def _continues(config: RunConfig, path: str, value: Any) -> bool:
    if path == "method":  # the same adapter beside packed weights; other starts change the weights themselves
        plain = config.lora.init_lora_weights in ("default", "gaussian")
        return value == config.method or (plain and {value, config.method} == {"lora", "qlora"})
    if path in _DIVIDING:
        return config.train.optim not in UNDIVIDED or not _is_divided(config, path, value)
    return path in CONTINUES or path.startswith(_CONTINUING_SECTIONS)


def _is_divided(config: RunConfig, path: str, value: Any) -> bool:
    """Whether the optimizer's numbers lie divided in the checkpoint, or would afterwards."""
    section = config.parallel
    before = section.deepspeed != "none" or section.deepspeed_config is not None or section.fsdp != "none"
    return before or (path != PROCESSES and value not in ("none", None))


def _refuse_others(config: RunConfig, wanted: Mapping[str, Any]) -> None:
    known = {spec.path: spec for spec in walk(RunConfig)}
    wrong = [
        FieldError(path, _UNDIVIDED.format(optim=config.train.optim) if path in _DIVIDING else _FIXED, "fixed")
        for path, value in wanted.items()
        if path in known and value != _at(config, path) and not _continues(config, path, value)
    ]
    if wrong:
        raise ConfigError(wrong)


def _batch(config: RunConfig, wanted: Mapping[str, Any], *, free: bool) -> dict[str, Any]:
    """The partners of a changed batch size, accumulation or number of processes: an update stays as large as it was."""
    given = [path for path in (BATCH, ACCUMULATION) if path in wanted]
    sizes = {path: wanted.get(path, _at(config, path)) for path in (BATCH, ACCUMULATION, PROCESSES, SHARED)}
    if not all(isinstance(size, int) and size > 0 for size in sizes.values()):
        return {}
    shares, product = max(1, sizes[PROCESSES] // sizes[SHARED]), config.effective_batch_size
    if not given and shares == config.data_parallel_size:
        return {}
    if product % shares:
        return _refused(PROCESSES, _SHARES.format(product=product, shares=_divisors(product, sizes[SHARED])), free=free)
    own = product // shares
    if len(given) == 2:
        fits = free or sizes[BATCH] * sizes[ACCUMULATION] == own
        return {} if fits else _refused(BATCH, _PRODUCT.format(product=own), free=free)
    if not given:
        batch = max(size for size in range(1, sizes[BATCH] + 1) if own % size == 0)
        return {BATCH: batch, ACCUMULATION: own // batch}
    if own % sizes[given[0]]:
        return _refused(given[0], _PRODUCT.format(product=own), free=free)
    partner = ACCUMULATION if given[0] == BATCH else BATCH
    return {partner: own // sizes[given[0]]}


def _refused(path: str, sentence: str, *, free: bool) -> dict[str, Any]:
    """A run that begins again may see other updates; one that goes on may not. Raises ConfigError."""
    if free:
        return {}
    raise ConfigError([FieldError(path, sentence, "product")])


def _divisors(number: int, times: int) -> str:
    found = [str(one * times) for one in range(1, number + 1) if number % one == 0]
    return ", ".join(found if len(found) < 9 else [*found[:7], "…", found[-1]])


_FIXED = "cannot change in the middle of a run; clone the run with this change instead"
_UNDIVIDED = (
    "cannot change in the middle of a run with the optimizer {optim}: what it keeps cannot be divided anew; "
    "go on as before, or clone the run"
)
_PRODUCT = "batch size times accumulation must stay {product}, so that the curve goes on; choose a divisor of it"
_SHARES = "an update has {product} conversations, which these processes cannot share evenly; choose one of {shares}"


def _at(config: RunConfig, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return found
