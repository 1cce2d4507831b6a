"""What a run will do, said before it starts: rows -> packs -> optimizer updates, and advice about this machine.

Everything here is quick (well under a second once the dataset has been read), loads no torch and raises nothing a
form could not show beside a field.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from studio import hardware
from studio.config import RunConfig
from studio.presets import ModelError, ModelRef, resolve_model
from studio.records.chat_tokenizer import ChatTokenizer, Encoded
from studio.records.counts import Counts, counts_of, numbers_of, prepare
from studio.records.errors import DataError
from studio.records.formats import ReadResult, read_file
from studio.records.store import DatasetStore
from studio.rundir import Workspace

FEW_UPDATES = 15
MIN_FREE_BYTES = 200 * 1024 * 1024
MODEL_FIELD = "model.model_name_or_path"


@dataclass(frozen=True)
class Advice:
    """One finding about a configuration on this machine; an `error` would make the run fail at once."""

    level: Literal["error", "warning", "info"]
    field: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        field = "" if not self.field or self.message.startswith(self.field) else f"{self.field}: "
        return f"{field}{self.message}{f'; {self.fix}' if self.fix else ''}"


def plan(config: RunConfig, workspace: Workspace) -> Counts | None:
    """What the run will train on; None when the tokenizer is not on this machine (a hub id not downloaded yet).

    Raises:
        DataError: the dataset cannot be used.
        ModelError: the model folder cannot be used.
    """
    model = resolve_model(config.model.model_name_or_path)
    path = DatasetStore(workspace.datasets).resolve(config.data.dataset)
    read, encoded = _encoded(_Source.of(config, path, model))
    if encoded is None:
        return None
    limit = config.data.max_samples
    conversations, encoded = read.conversations[:limit], encoded[:limit]
    by_identity = {id(c): e for c, e in zip(conversations, encoded, strict=True)}
    wanted = numbers_of(config)
    found = counts_of(prepare(conversations, lambda c: by_identity[id(c)], wanted, read.rows[:limit]), wanted)
    rows_read = read.rows_read - (len(read.conversations) - len(conversations))
    return replace(found, rows_read=rows_read, rows_skipped=found.rows_skipped + len(read.skipped))


@dataclass(frozen=True)
class _Source:
    """Everything the encoded conversations depend on: the key under which they are remembered."""

    path: Path
    stamp: tuple[int, int]
    model: ModelRef
    template: str | None
    system: str | None

    @classmethod
    def of(cls, config: RunConfig, path: Path, model: ModelRef) -> _Source:
        facts = path.stat()
        stamp = (facts.st_mtime_ns, facts.st_size)
        return cls(path, stamp, model, config.model.chat_template, config.data.system)


@lru_cache(maxsize=4)  # a form asks again at every keystroke
def _encoded(source: _Source) -> tuple[ReadResult, list[Encoded] | None]:
    read = read_file(source.path)
    if not source.model.local:
        return read, None
    tokenizer = ChatTokenizer.from_folder(source.model.path_or_id, source.template)
    return read, [tokenizer.encode(c.with_system(source.system)) for c in read.conversations]


def preflight(config: RunConfig, workspace: Workspace) -> list[Advice]:
    """Everything that would stop or spoil the run and can be known now; errors first."""
    found = [*_about_model(config), *_about_machine(config, workspace)]
    if not any(advice.field == MODEL_FIELD and advice.level == "error" for advice in found):
        found += _about_data(config, workspace)
    return sorted(found, key=lambda advice: ("error", "warning", "info").index(advice.level))


def _about_model(config: RunConfig) -> list[Advice]:
    try:
        model = resolve_model(config.model.model_name_or_path)
    except ModelError as error:
        return [Advice("error", MODEL_FIELD, error.message, error.hint)]
    if model.local:
        return []
    return [Advice("info", MODEL_FIELD, f"{model.ref} is loaded from the hub", "the first start downloads it")]


def _about_data(config: RunConfig, workspace: Workspace) -> list[Advice]:
    try:
        counts = plan(config, workspace)
    except DataError as error:
        return [Advice("error", error.field, str(error))]
    except ModelError as error:
        return [Advice("error", MODEL_FIELD, error.message, error.hint)]
    except OSError as error:
        return [Advice("error", "data.dataset", f"the file cannot be read ({error.strerror})", "check the path")]
    found = []
    if counts and counts.updates < FEW_UPDATES:
        message = f"only {counts.updates} optimizer updates: too few to learn anything"
        found.append(Advice("warning", "train.num_train_epochs", message, "raise the epochs or lower the batch size"))
    if counts and counts.rows_skipped:
        message = f"{counts.rows_skipped} of {counts.rows_read} rows cannot be used"
        found.append(Advice("warning", "data.dataset", message, "`data inspect` says which and why"))
    if counts and counts.truncated:
        message = f"{counts.truncated} conversations are longer than {config.data.max_length} tokens and are cut"
        found.append(Advice("warning", "data.max_length", message, "raise the maximum length to keep them whole"))
    return found


def _about_machine(config: RunConfig, workspace: Workspace) -> list[Advice]:
    found = []
    free = shutil.disk_usage(workspace.path).free
    if free < MIN_FREE_BYTES:
        message = f"only {free // 2**20} MB are free in {workspace.path}"
        found.append(Advice("error", "workspace", message, "free some space or choose another folder with --workspace"))
    if hardware.find_gpus():
        return found
    for path, value, wrong, fix in (
        ("model.attn_implementation", config.model.attn_implementation, "flash_attention_2", "choose auto"),
        ("model.dtype", config.model.dtype, "float16", "choose auto"),
    ):
        if value == wrong:
            found.append(Advice("error", path, f"{value} needs a GPU and this machine has none", fix))
    if config.train.optim.startswith("paged_"):
        found.append(Advice("info", "train.optim", "paged optimizers do not page on a CPU", "adamw_torch is faster"))
    return found
