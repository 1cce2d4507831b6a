"""What the row viewer of the Data tab shows: a page of an identity set, an uploaded file or a dataset, as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from studio.records import (
    DataError,
    DatasetStore,
    IdentitySet,
    IdentitySpec,
    ReadResult,
    build_identity,
    fill_placeholders,
    read_file,
)
from studio.records.placeholders import any_placeholder
from studio.records.store import to_rows
from studio.ui.sentences import translated

PAGE = 8
SKIPPED_SHOWN = 50
SAVED = "saved:"
Row = dict[str, Any]


class Ask(BaseModel):
    """The page the viewer wants: of `source` ("builder", "upload", "saved:NAME"), rows of an origin from `offset`."""

    model_config = ConfigDict(extra="ignore")

    source: str = Field(default="builder", max_length=300)
    origin: str = Field(default="", max_length=20)
    offset: int = Field(default=0, ge=0)


class RowEdit(Ask):
    """A changed row: its number `n` in the dataset (-1: a new one), its texts, and the `sha256` that was seen."""

    n: int = -1
    sha256: str = ""
    contents: list[str] = Field(default=[], max_length=10_000)


@dataclass(frozen=True)
class Source:
    """Rows to show. `notes` are sentences above them, `skipped` rows of a file that were left out, with reasons."""

    source: str
    rows: Sequence[Row]
    heldout: Sequence[Row] = ()
    title: str = ""
    sha256: str = ""
    notes: Sequence[str] = ()
    skipped: Sequence[tuple[int, str]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def view(source: Source, ask: Ask) -> dict[str, Any]:
    """The JSON of one page: counts per origin, the rows with their numbers, and everything said above them."""
    per_origin = Counter(str(row.get("origin", "upload")) for row in source.rows)
    if ask.origin == "heldout":
        chosen = [_question(number, row) for number, row in enumerate(source.heldout)]
    else:
        chosen = [
            {"n": number, "origin": str(row.get("origin", "upload")), "messages": row["messages"]}
            for number, row in enumerate(source.rows)
            if ask.origin in ("", str(row.get("origin", "upload")))
        ]
    last = max(0, (len(chosen) - 1) // PAGE * PAGE)
    offset = min(ask.offset // PAGE * PAGE, last)
    return {
        "source": source.source,
        "title": source.title,
        "origin": ask.origin,
        "offset": offset,
        "total": len(chosen),
        "page": PAGE,
        "rows": chosen[offset : offset + PAGE],
        "counts": {"": len(source.rows), **per_origin, **({"heldout": len(source.heldout)} if source.heldout else {})},
        "facts": dict(source.facts),
        "notes": [translated(note) for note in source.notes],
        "skipped": [[row, translated(reason)] for row, reason in source.skipped[:SKIPPED_SHOWN]],
        "skipped_total": len(source.skipped),
        "editable": source.source.startswith(SAVED),
        "sha256": source.sha256,
    }


def _question(number: int, row: Row) -> Row:
    message = {"role": "user", "content": row["prompt"]}
    return {"n": number, "origin": "heldout", "messages": [message], "expect": [str(e) for e in row["expect"]]}


@lru_cache(maxsize=16)
def identity_set(spec: IdentitySpec) -> IdentitySet:
    """The identity set of a spec, remembered while its rows are paged through."""
    return build_identity(spec)


@lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> ReadResult:
    return read_file(path, allow_placeholders=True)


def read_upload(path: str) -> ReadResult:
    """The conversations of an uploaded file, remembered while they are paged through. Raises DataError."""
    file = Path(path)
    return _read(file, file.stat().st_mtime_ns)


def from_spec(spec: IdentitySpec) -> Source:
    """The rows an identity spec gives."""
    found = identity_set(spec)
    per_language = {str(lang): spec.rows_per_language for lang in spec.languages}
    return Source("builder", found.rows, found.heldout, spec.name, facts={"phrasings": per_language})


def has_placeholders(path: str) -> bool:
    """True when a message of the uploaded file contains `{{…}}`."""
    found = read_upload(path)
    return any(any_placeholder(message.content) for row in found.conversations for message in row.messages)


def upload_rows(path: str, name: str, author: str) -> list[Row]:
    """The rows of an uploaded file with its placeholders filled. Raises DataError, also for a placeholder left over."""
    rows, _changed = fill_placeholders(to_rows(read_upload(path).conversations), name, author)
    return rows


def from_upload(path: str, name: str, author: str) -> Source:
    """An uploaded file as it would be saved; while a placeholder is unfilled, as it is, with a note."""
    found = read_upload(path)
    notes = [text for text in found.warnings if not (found.skipped and "skipped" in text)]  # listed one by one below
    try:
        rows = upload_rows(path, name, author)
    except DataError as error:
        rows, notes = to_rows(found.conversations), [error.message, *notes]
    skipped = [(item.row, item.reason) for item in found.skipped]
    facts = {"format": found.format, "rows_read": found.rows_read, "usable": len(rows)}
    return Source("upload", rows, (), Path(path).name, notes=notes, skipped=skipped, facts=facts)


def from_store(store: DatasetStore, name: str) -> Source:
    """A saved dataset. Raises DataError."""
    found = store.load(name)
    info = found.info
    facts: dict[str, Any] = {"name": info.name, "created_at": info.created_at}
    if info.identity:
        facts["phrasings"] = {str(lang): info.identity.rows_per_language for lang in info.identity.languages}
    return Source(f"{SAVED}{name}", found.rows, found.heldout, info.title or name, info.sha256, facts=facts)


def saved_list(store: DatasetStore) -> dict[str, Any]:
    """The saved datasets, newest first, as JSON."""
    keys = {"name", "title", "kind", "rows", "languages", "created_at"}
    return {
        "datasets": [info.model_dump(mode="json", include=keys) for info in store.list()],
        "notes": store.problems(),
    }
