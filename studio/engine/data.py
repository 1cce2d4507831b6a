"""From the dataset of a run to what the trainer eats; reading and counting are `studio.records`' own.

The form's preview runs the same code, so what is shown is what is trained.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import RunConfig
from studio.events import CountsEvent
from studio.presets import ModelRef
from studio.records import Conversation, DatasetInfo, DatasetStore, read_file
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.counts import Numbers, Prepared, counts_of, prepare
from studio.records.formats import ReadResult
from studio.records.store import read_heldout, read_info
from studio.records.template import ChatTemplate, choose_template, named_templates

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label PyTorch's cross entropy leaves out
MAX_REASONS = 20


@dataclass(frozen=True)
class Source:
    """A dataset as read from disk: conversations with the run's system prompt, and what the verdict needs."""

    read: ReadResult
    conversations: list[Conversation]
    info: DatasetInfo | None
    heldout: list[dict[str, Any]]
    sha256: str


def read_source(config: RunConfig, datasets: Path) -> Source:
    """The dataset of `config` (a name in the folder `datasets`, or a file). Needs no torch. Raises DataError."""
    rows_file = DatasetStore(datasets).resolve(config.data.dataset)
    read = read_file(rows_file)
    chosen = read.conversations[: config.data.max_samples]
    conversations = [conversation.with_system(config.data.system) for conversation in chosen]
    sha256 = hashlib.sha256(rows_file.read_bytes()).hexdigest()
    return Source(read, conversations, read_info(rows_file), read_heldout(rows_file), sha256)


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
    source = choose_template(named_templates(tokenizer.chat_template), template, ref.ref)
    specials = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
    return ChatTokenizer(tokenizer.backend_tokenizer, ChatTemplate(source, specials))


def prepared(source: Source, chat: ChatTokenizer, numbers: Numbers) -> tuple[Prepared, CountsEvent]:
    """The examples to train on, and what became of the rows on the way. Raises DataError when nothing is left."""
    examples = prepare(source.conversations, chat.encode, numbers, source.read.rows)
    counts = counts_of(examples, numbers)
    skipped = [*source.read.skipped, *examples.dropped]
    reasons = [f"row {item.row}: {item.reason}" for item in skipped[:MAX_REASONS]]
    unread = len(source.read.conversations) - len(source.conversations)
    event = CountsEvent(
        **asdict(counts)
        | {
            "rows_read": source.read.rows_read - unread,
            "rows_skipped": len(skipped),
            "skipped": reasons,
        }
    )
    return examples, event


def training_rows(examples: Prepared) -> Dataset:
    """One row per pack: `input_ids`, `labels` (-100 where no loss is taken) and `seq_lengths` of its examples."""
    from datasets import Dataset

    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for pack in examples.packs:
        members = [examples.examples[index] for index in pack]
        rows["input_ids"].append([token for member in members for token in member.ids])
        rows["labels"].append(
            [
                token if flag else IGNORED
                for member in members
                for token, flag in zip(member.ids, member.mask, strict=True)
            ]
        )
        rows["seq_lengths"].append([len(member.ids) for member in members])
    return Dataset.from_dict(rows)
