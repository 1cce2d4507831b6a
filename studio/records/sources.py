"""The sources of a run as token tables: read, mapped, rendered and tokenised once, then taken from a cache.

A table is known by what it was made from: the content of the file, how it is read, and the tokenizer with its chat
template. A second start, another `max_length` or other epochs find it ready.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from filelock import FileLock

from studio.config import DataSection, SourceSection
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.conversation import Conversation, PlainText, Record
from studio.records.counts import Mixed
from studio.records.errors import DataError, Skipped, shown
from studio.records.files import open_rows
from studio.records.formats import ReadOptions, RecordStream, open_records, parse_mapping
from studio.records.mappings import known_mappings
from studio.records.store import DatasetStore, read_info
from studio.records.token_table import FACTS, SKIPPED_KEPT, Ends, Facts, TableWriter, TokenTable, open_table

Progress = Callable[[int, int], None]
VERSION = 1
"""Part of every key: raise it when the same input would give another table."""
INLINE_BYTES = 4 * 2**20
CACHE_BYTES = 20 * 2**30
_CHUNK = 1000
_SILENCE_S = 20.0
_ABANDONED_S = 86_400.0
_PART, _LOCK, _PROGRESS = ".part", ".lock", ".progress"
_PICTURE = "it has an image, and only text can be trained on"


class NotCounted(Exception):
    """A file too large to be tokenised while somebody waits. `done` of `total` if a process is at it, else zeros."""

    def __init__(self, done: int = 0, total: int = 0) -> None:
        super().__init__("the data has not been counted yet")
        self.done, self.total = done, total


@dataclass(frozen=True)
class Recipe:
    """What a table is made from; `key` names its folder."""

    path: Path
    options: ReadOptions
    system: str | None
    chat: ChatTokenizer
    limit: int | None

    @property
    def key(self) -> str:
        """The same for the same content, reading and tokenizer."""
        options = [self.options.mapping, self.options.split, self.options.strict]
        parts = [VERSION, fingerprint(self.path), options, self.system, self.limit, self.chat.fingerprint]
        # The same bytes are other rows under another suffix, as a saved dataset, and by other mapping files.
        parts += [self.path.suffixes[-2:], read_info(self.path) is not None, known_mappings()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Tables:
    """The tables of one workspace: `folder` holds one sub-folder per key."""

    folder: Path

    def get(self, recipe: Recipe, progress: Progress | None = None, *, wait: bool = True) -> TokenTable:
        """The table of a recipe, made now if it must be.

        Raises:
            DataError: the file cannot be used.
            NotCounted: not `wait`, and the file is large.
        """
        found = self._ready(recipe.key)
        if found is not None:  # a table may be empty
            return found
        if not wait and size_of(recipe.path) > INLINE_BYTES and not recipe.limit:
            raise self._not_counted(recipe.key)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{recipe.key}{_LOCK}"):
            found = self._ready(recipe.key)
            return self._make(recipe, progress) if found is None else found

    def open(self, key: str) -> TokenTable:
        """The table of that key. Raises FileNotFoundError when it is not there (any more)."""
        return open_table(self.folder / key)

    def _ready(self, key: str) -> TokenTable | None:
        place = self.folder / key
        try:
            found = open_table(place)
            os.utime(place / FACTS)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError):
            shutil.rmtree(place, ignore_errors=True)  # torn: made anew
            return None
        return found

    def _make(self, recipe: Recipe, progress: Progress | None) -> TokenTable:
        part = self.folder / f"{recipe.key}{_PART}"
        shutil.rmtree(part, ignore_errors=True)
        try:
            write_table(recipe, part, self._reporter(recipe.key, progress))
            shutil.rmtree(self.folder / recipe.key, ignore_errors=True)  # what is there is torn
            part.rename(self.folder / recipe.key)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            (self.folder / f"{recipe.key}{_PROGRESS}").unlink(missing_ok=True)
        self.prune(keep=recipe.key)
        return open_table(self.folder / recipe.key)

    def _reporter(self, key: str, progress: Progress | None) -> Progress:
        """Tells the caller, and anybody who looks at the folder, how far it is; at most three times a second."""
        file, last = self.folder / f"{key}{_PROGRESS}", 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last < 0.3 and done < total:
                return
            last = time.monotonic()
            file.write_text(json.dumps([done, total]), encoding="utf-8")
            if progress:
                progress(done, total)

        return report

    def _not_counted(self, key: str) -> NotCounted:
        file = self.folder / f"{key}{_PROGRESS}"
        try:
            if time.time() - file.stat().st_mtime > _SILENCE_S:
                return NotCounted()  # whoever was at it is gone
            done, total = json.loads(file.read_text(encoding="utf-8"))
            return NotCounted(int(done), int(total))
        except (OSError, ValueError, TypeError):
            return NotCounted()

    def prune(self, keep: str, limit: int = CACHE_BYTES) -> None:
        """Removes the tables not used for longest until all together take at most `limit` bytes."""
        for part in self.folder.glob(f"*{_PART}"):
            if time.time() - part.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(part, ignore_errors=True)
        tables = [path.parent for path in self.folder.glob(f"*/{FACTS}") if path.parent.name != keep]
        tables.sort(key=lambda path: (path / FACTS).stat().st_mtime, reverse=True)
        total = size_of(self.folder / keep)
        for place in tables:
            total += size_of(place)
            if total > limit:
                shutil.rmtree(place, ignore_errors=True)


def recipes(data: DataSection, store: DatasetStore, chat: ChatTokenizer) -> tuple[list[Recipe], list[Recipe]]:
    """Recipes of the sources to train on and of the validation dataset, if there is one. Raises DataError."""
    training = [_recipe(section, data.strict, store, chat, n) for n, section in enumerate(data.all_sources)]
    if not data.validation_dataset:
        return training, []
    section = SourceSection(dataset=data.validation_dataset, system=data.system)
    try:
        return training, [_recipe(section, data.strict, store, chat, 0)]
    except DataError as error:
        raise DataError(
            error.message.replace("data.dataset:", "data.validation_dataset:"), "data.validation_dataset"
        ) from None


def mixed(
    data: DataSection, store: DatasetStore, chat: ChatTokenizer, tables: Tables, progress: Progress | None = None,
    *, wait: bool = True,
) -> tuple[list[Mixed], list[Mixed]]:  # fmt: skip
    """All sources of a run as tables: those to train on, those for validation. Raises DataError or NotCounted."""
    training, validation = recipes(data, store, chat)
    weights = [section.weight for section in data.all_sources]
    found = [
        Mixed(tables.get(recipe, progress, wait=wait), weight) for recipe, weight in zip(training, weights, strict=True)
    ]
    return found, [Mixed(tables.get(recipe, progress, wait=wait)) for recipe in validation]


def _recipe(section: SourceSection, strict: bool, store: DatasetStore, chat: ChatTokenizer, number: int) -> Recipe:
    try:
        path = store.resolve(section.dataset)
    except DataError as error:
        if not number:
            raise
        raise DataError(error.message.replace("data.dataset:", "data.sources:"), "data.sources") from None
    if section.mapping:
        parse_mapping(section.mapping)  # a wrong name is wrong, whether it is needed or not
    saved = read_info(path) is not None  # its columns were mapped and its split chosen when it was saved
    mapping, split = (None, None) if saved else (section.mapping, section.split)
    open_rows(path, split=split)  # refuses what is no data, like a device, before all of it is hashed
    options = ReadOptions(mapping=mapping, split=split, strict=strict)
    return Recipe(path, options, section.system, chat, section.max_samples)


# ---- one table -------------------------------------------------------------------------------------------------------


def write_table(recipe: Recipe, folder: Path, progress: Progress) -> None:
    """Reads, renders and tokenises a source into `folder`, in bounded memory. Raises DataError."""
    stream = open_records(recipe.path, recipe.options)
    writer = TableWriter(folder, ends_of(recipe.chat))
    try:
        writer.close(_fill(writer, stream, recipe, progress))
    finally:
        writer.abort()


def ends_of(chat: ChatTokenizer) -> Ends:
    """The special tokens of a tokenizer: what may follow an answer, and what begins a text."""
    special = {number for number, token in chat.backend.get_added_tokens_decoder().items() if token.special}
    return Ends(chat.bos_id, frozenset(special | ({chat.eos_id} if chat.eos_id is not None else set())))


def _fill(writer: TableWriter, stream: RecordStream, recipe: Recipe, progress: Progress) -> Facts:
    skipped: list[Skipped] = []
    skipped_total = kept = 0
    pairs = False

    def leave_out(row: int, reason: str) -> None:
        nonlocal skipped_total
        skipped_total += 1
        if len(skipped) < SKIPPED_KEPT:
            skipped.append(Skipped(row, reason))

    usable = _usable(stream, leave_out)
    # Never further than the limit: rows behind it are neither read nor left out.
    while chunk := list(islice(usable, min(_CHUNK, recipe.limit - kept) if recipe.limit else _CHUNK)):
        records = [_with_system(record, recipe.system) for _, record in chunk]
        pairs = pairs or any(isinstance(record, Conversation) and record.rejected for record in records)
        for (row, record), encoded in zip(chunk, recipe.chat.encode_many(records), strict=True):
            if isinstance(encoded, DataError):
                leave_out(row, encoded.message.rstrip("."))
            elif writer.add(row, encoded, text=isinstance(record, PlainText)):
                kept += 1
            else:
                leave_out(row, "none of its tokens would be trained")
        progress(stream.done, stream.total)
    return Facts(
        format=stream.mapping.name,
        encoding=stream.rows.encoding,
        rows_read=kept + skipped_total,
        skipped_total=skipped_total,
        skipped=tuple((item.row, item.reason) for item in skipped),
        notes=(*stream.notes, *_remarks(recipe, stream, pairs=pairs)),
    )


def _remarks(recipe: Recipe, stream: RecordStream, *, pairs: bool) -> list[str]:
    """What is done with the rows in another way than somebody might expect."""
    said = []
    if pairs:
        said.append("The rows are preference pairs: the better answer of each is trained, the other is not used.")
    if recipe.options.split and stream.rows.kind != "arrow":
        said.append(f"{stream.rows.name} has no splits, so all of it is read, not {shown(recipe.options.split)} alone.")
    return said


def _usable(stream: RecordStream, leave_out: Callable[[int, str], None]) -> Iterator[tuple[int, Record]]:
    """Usable records; what cannot be trained on is left out with a reason."""
    for item in stream:
        if isinstance(item, Skipped):
            leave_out(item.row, item.reason)
        elif isinstance(item[1], Conversation) and item[1].images:
            leave_out(item[0], _PICTURE)
        else:
            yield item


def _with_system(record: Record, system: str | None) -> Record:
    return record.with_system(system) if isinstance(record, Conversation) else record


# ---- files -----------------------------------------------------------------------------------------------------------


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of a folder's files. Raises DataError."""
    try:
        return _fingerprint(path)
    except OSError as error:
        raise DataError(f"{shown(path.name)} cannot be read: {error.strerror or error}. Try again.") from None


def _fingerprint(path: Path) -> str:
    if not path.is_dir():
        return _sha256(path, *_stamp(path))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    parts = [[str(file.relative_to(path)), _sha256(file, *_stamp(file))] for file in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int]:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


@lru_cache(maxsize=512)  # a form asks again at every keystroke
def _sha256(path: Path, _changed: int, _size: int, _inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
