"""Fields changed when a run is resumed: `changes.yaml` beside a `config.yaml` that is never edited.

Each entry says which fields hold from which checkpoint on; later entries win. What one optimizer update sees stays:
another batch size comes with the accumulation that keeps their product, so that step N of the curve is the same N
conversations, in the same order, before and after (`studio.records.order` looks only at how many an update has).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.config import RunConfig
from studio.schema import ConfigError, FieldError, build, flatten, merge, parse_yaml, walk

BATCH, ACCUMULATION = "train.per_device_train_batch_size", "train.gradient_accumulation_steps"
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
    return path in CONTINUES or path.startswith(_CONTINUING_SECTIONS)


def _refuse_others(config: RunConfig, wanted: Mapping[str, Any]) -> None:
    known = {spec.path: spec for spec in walk(RunConfig)}
    wrong = [
        FieldError(path, "cannot change in the middle of a run; clone the run with this change instead", "fixed")
        for path, value in wanted.items()
        if path in known and value != _at(config, path) and not _continues(config, path, value)
    ]
    if wrong:
        raise ConfigError(wrong)


def _batch(config: RunConfig, wanted: Mapping[str, Any], *, free: bool) -> dict[str, Any]:
    """The partner of a changed batch size or accumulation, so that an update stays as large as it was."""
    given = [path for path in (BATCH, ACCUMULATION) if path in wanted]
    if not given or not all(isinstance(wanted[path], int) and wanted[path] > 0 for path in given):
        return {}
    product = config.rows_per_process
    if len(given) == 2:
        if free or wanted[BATCH] * wanted[ACCUMULATION] == product:
            return {}
        raise ConfigError([FieldError(BATCH, _PRODUCT.format(product=product), "product")])
    if product % wanted[given[0]]:
        if free:
            return {}
        raise ConfigError([FieldError(given[0], _PRODUCT.format(product=product), "product")])
    partner = ACCUMULATION if given[0] == BATCH else BATCH
    return {partner: product // wanted[given[0]]}


_PRODUCT = "batch size times accumulation must stay {product}, so that the curve goes on; choose a divisor of it"


def _at(config: RunConfig, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return found
