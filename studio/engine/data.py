"""From the datasets of a run to what the trainer eats; reading, cutting and counting are `studio.records`' own.

The form's counts and the preview run the same code, so what is shown is what is trained.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import RunConfig
from studio.events import CountsEvent
from studio.presets import ModelRef
from studio.records import DatasetInfo, DatasetStore
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.counts import Counts, Mixed, Numbers, Prepared, numbers_of, prepare
from studio.records.errors import shown
from studio.records.sources import Progress, Tables, fingerprint, mixed
from studio.records.store import read_heldout, read_info
from studio.records.template import ChatTemplate, choose_template, named_templates
from studio.rundir import RunDir, write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_REASONS = 20


@dataclass(frozen=True)
class Source:
    """The datasets of a run as far as they are known before tokens are made.

    `info` and `heldout` are those of the first dataset; `sha256` has (name, fingerprint) of each one.
    """

    store: DatasetStore
    tables: Tables
    info: DatasetInfo | None
    heldout: list[dict[str, Any]]
    sha256: list[tuple[str, str]]


def find_source(config: RunConfig, workspace: Path) -> Source:
    """The datasets of `config`, all of them found. Needs no torch. Raises DataError."""
    store = DatasetStore(workspace / "datasets")
    names = [section.dataset for section in config.data.all_sources]
    names += [config.data.validation_dataset] if config.data.validation_dataset else []
    paths = {name: store.resolve(name) for name in names}
    first = paths[config.data.dataset]
    return Source(
        store=store,
        tables=Tables(workspace / "cache" / "tokens"),
        info=read_info(first),
        heldout=read_heldout(first),
        sha256=[(name, fingerprint(path)) for name, path in paths.items()],
    )


def changed_since_start(run: RunDir, source: Source) -> list[str]:
    """Sentences about datasets that are not what they were when the run began, which is remembered in it."""
    try:
        known = dict(json.loads(run.data_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        write_atomic(run.data_file, json.dumps(source.sha256))
        return []
    changed = [shown(name, 100) for name, found in source.sha256 if known.get(name, found) != found]
    return [
        f"{name} was changed after this run began. From here on the run trains on its new rows." for name in changed
    ]


def chat_tokenizer(ref: ModelRef, tokenizer: PreTrainedTokenizerBase | None, template: str | None) -> ChatTokenizer:
    """Tokenizer and chat template of a model: from its folder, as the preview reads it, else from transformers'.

    Raises:
        DataError: no usable template (field model.chat_template) or tokenizer.
    """
    folder = Path(ref.path_or_id)
    if ref.local and (folder / "tokenizer.json").is_file():
        return ChatTokenizer.from_folder(folder, template)
    if tokenizer is None:
        raise ValueError("a model that is not a folder needs its tokenizer loaded first")
    chosen = choose_template(named_templates(tokenizer.chat_template), template, ref.ref)
    specials = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
    return ChatTokenizer(tokenizer.backend_tokenizer, ChatTemplate(chosen.source, specials, chosen.stop_words))


def read_tables(config: RunConfig, source: Source, chat: ChatTokenizer, progress: Progress) -> Prepared:
    """All sources as tokens, from the cache where they are there, mixed and packed. Raises DataError."""
    training, validation = mixed(config.data, source.store, chat, source.tables, progress)
    return prepare(training, numbers_of(config), validation)


def with_replay(prepared: Prepared, replay: Mixed, numbers: Numbers) -> Prepared:
    """The same with the base model's own answers mixed in; none of them is kept for validation."""
    return prepare((*prepared.sources, replace(replay, validated=False)), numbers, prepared.validation_sources)


def sentences(prepared: Prepared) -> list[str]:
    """What should be said about the data: notes of the files, rows left out."""
    return [note for source in prepared.sources for note in source.table.facts.notes]


def counts_event(counts: Counts, prepared: Prepared) -> CountsEvent:
    """What became of the rows on the way, with the first reasons."""
    skipped = [item for source in prepared.sources for item in source.table.facts.reasons] + prepared.dropped
    reasons = [f"row {item.row}: {item.reason}" for item in skipped[:MAX_REASONS]]
    return CountsEvent(**asdict(counts), skipped=reasons)


def highest_token(prepared: Prepared) -> int:
    """The largest token id there is."""
    return max(int(source.table.ids.max(initial=0)) for source in prepared.sources)
