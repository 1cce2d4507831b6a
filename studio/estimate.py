"""What a run will do, said before it starts: rows -> packs -> optimizer updates.

Nothing here loads torch or raises what a form could not show beside a field. Small files are tokenised at once; a
large one is not while somebody waits (`NotCounted`): a process of its own does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from studio.config import RunConfig
from studio.presets import resolve_model
from studio.records.chat_tokenizer import ChatTokenizer, has_tokenizer
from studio.records.counts import Counts, Mixed, Numbers, Prepared, counts_of, numbers_of, prepare
from studio.records.sources import Progress, Recipe, Tables, recipes
from studio.records.store import DatasetStore, read_info
from studio.workspace import Workspace

FEW_UPDATES = 15
"""Fewer optimizer updates teach nothing (seen in the courses at lr 2e-4)."""
PARROT_UPDATES, PARROT_PER_ROW = 35, 10
"""From so many updates in all, and per different row, a model repeats its rows whatever it is asked."""
MODEL_FIELD = "model.model_name_or_path"
Zone = Literal["few", "good", "parrot"]


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


@dataclass(frozen=True)
class Plan:
    """Everything known about the data of a run before it starts."""

    recipes: list[Recipe]
    prepared: Prepared
    numbers: Numbers
    counts: Counts
    chat: ChatTokenizer


def plan(
    config: RunConfig, workspace: Workspace, progress: Progress | None = None, *, wait: bool = False
) -> Plan | None:
    """What the run will train on; None when the tokenizer is not on this machine (a hub id not downloaded yet).

    Raises:
        DataError: the dataset cannot be used.
        ModelError: the model folder cannot be used.
        NotCounted: a large file that is not in the cache, and not `wait`.
    """
    config = workspace.freeze(config)
    chat = tokenizer_of(config)
    store = DatasetStore(workspace.datasets)
    if chat is None:
        for section in config.data.all_sources:
            store.resolve(section.dataset)
        return None
    training, validation = recipes(config.data, store, chat)
    tables = Tables(workspace.tokens)
    for recipe in (*training, *validation):
        tables.get(recipe, progress, wait=wait)
    numbers, replay = numbers_of(config), self_replay_rows(config, store)
    weights = tuple(section.weight for section in config.data.all_sources)
    keys = (tuple(recipe.key for recipe in training), tuple(recipe.key for recipe in validation))
    prepared, counts = _counted(tables, keys, weights, numbers, replay)
    return Plan(training, prepared, numbers, counts, chat)


def tokenizer_of(config: RunConfig) -> ChatTokenizer | None:
    """Tokenizer and chat template the run will use; None when they are not on this machine. Raises as `plan`."""
    model = resolve_model(config.model.model_name_or_path)
    folder = Path(model.path_or_id)
    if not model.local or not has_tokenizer(folder):
        return None
    files = [file for pattern in ("*", "additional_chat_templates/*") for file in folder.glob(pattern)]
    stamp = hash(tuple(sorted((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)))
    return _tokenizer(folder, config.model.chat_template, stamp)


@lru_cache(maxsize=8)
def _tokenizer(folder: Path, template: str | None, _stamp: int) -> ChatTokenizer:
    return ChatTokenizer.from_folder(folder, template)


@lru_cache(maxsize=8)  # a form asks again at every keystroke
def _counted(
    tables: Tables,
    keys: tuple[tuple[str, ...], tuple[str, ...]],
    weights: tuple[float, ...],
    numbers: Numbers,
    self_replay: int,
) -> tuple[Prepared, Counts]:
    training = [Mixed(tables.open(key), weight) for key, weight in zip(keys[0], weights, strict=True)]
    prepared = prepare(training, numbers, [Mixed(tables.open(key)) for key in keys[1]])
    return prepared, counts_of(prepared, numbers, self_replay)


def self_replay_rows(config: RunConfig, store: DatasetStore) -> int:
    """Rows the base model will write itself: as configured, else as the first dataset asks."""
    if config.data.self_replay is not None:
        return config.data.self_replay
    info = read_info(store.resolve(config.data.dataset))
    return getattr(info, "self_replay", 0) if info else 0


def zone(counts: Counts) -> Zone:
    """Too few updates to learn, so many per different row that it will only parrot them, or neither."""
    if counts.updates < FEW_UPDATES:
        return "few"
    if counts.updates >= PARROT_UPDATES and counts.updates_per_distinct >= PARROT_PER_ROW:
        return "parrot"
    return "good"
