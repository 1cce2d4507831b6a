"""What the row viewer of the Data tab shows: one page of rows as JSON, from a form, a file or a saved dataset."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.records import DatasetInfo, DatasetStore
from studio.records.mappings import named_mapping
from studio.records.rowfile import texts_of
from studio.ui.context import refuse
from studio.ui.sentences import translated
from studio.ui.widgets.bubbles import event_data

PAGE = 8
SKIPPED_SHOWN = 50
LONGEST_SHOWN = 20_000
"""Characters of one text that are sent to the page; a longer one is cut there, and its row cannot be edited."""
SAVED = "saved:"
HELDOUT = "heldout"
OWN = "upload"
Row = dict[str, Any]
_CONTENT = ("messages", "rejected", "text", "tools", "images")


class Ask(BaseModel):
    """The rows the viewer wants to see of `source` ("builder", "own", "saved:NAME"), `size` of them from `offset`.

    `origin`, `intent` and `query` (a text the row contains) choose among them; empty ones choose all. `asked` comes
    back with the rows: the page counts its questions, and an answer that comes after a later one is not shown.
    """

    model_config = ConfigDict(extra="ignore")

    source: str = Field(default="builder", max_length=300)
    origin: str = Field(default="", max_length=80)
    intent: str = Field(default="", max_length=40)
    query: str = Field(default="", max_length=200)
    offset: int = Field(default=0, ge=0)
    size: int = Field(default=PAGE, ge=1, le=100)
    asked: int = 0


class Turn(BaseModel):
    """One message as the visitor left it; `at` is its place in the stored row, None for a new one."""

    model_config = ConfigDict(extra="ignore")

    role: str = Field(max_length=20)
    content: str
    loss: bool = True
    at: int | None = None


class RowEdit(Ask):
    """A changed row: its number `n` (-1: a new one), its contents, and the fingerprint of the dataset that was seen."""

    n: int = -1
    sha256: str = Field(default="", max_length=64)
    turns: list[Turn] = Field(default=[], max_length=10_000)
    rejected: list[str] = Field(default=[], max_length=100)
    text: str | None = None


class RowsGone(Ask):
    """Rows to delete, by number, and the fingerprint of the dataset that was seen."""

    sha256: str = Field(default="", max_length=64)
    numbers: list[int] = Field(max_length=10_000, min_length=1)


def asked(event: gr.EventData, kind: type[Any] = Ask) -> Any:
    """What the viewer's script sent, checked. Raises Refused."""
    try:
        return kind.model_validate(event_data(event))
    except ValidationError as error:
        raise refuse("data.error.request") from error


@dataclass(frozen=True)
class Source:
    """Rows to show that are in memory.

    `notes` are sentences above them, `skipped` rows of a file that were left out, with reasons; `facts` is what the
    page says about the whole (format, encoding, rows read, ...).
    """

    source: str
    rows: Sequence[Row]
    heldout: Sequence[Row] = ()
    title: str = ""
    notes: Sequence[str] = ()
    skipped: Sequence[tuple[int, str]] = ()
    skipped_total: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


def empty(source: str, notes: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """The viewer without rows, and why."""
    return {"source": source, "empty": True, "notes": [translated(note) for note in notes], **more}


def view(source: Source, ask: Ask) -> dict[str, Any]:
    """One page of rows that are in memory."""
    if ask.origin == HELDOUT:
        chosen = [_question(number, row) for number, row in enumerate(source.heldout) if _says(row, ask.query)]
    else:
        rows = enumerate(source.rows)
        chosen = [_shown(number, row) for number, row in _chosen(rows, ask)]
    offset = _first(ask, len(chosen))
    counts = Counter(str(row.get("origin") or OWN) for row in source.rows)
    return _page(source, ask, chosen[offset : offset + ask.size], total=len(chosen), offset=offset) | {
        "counts": {"": len(source.rows), **counts, **_some(HELDOUT, len(source.heldout))},
        "intents": Counter(str(row["intent"]) for row in source.rows if row.get("intent")),
        "skipped": [[row, translated(reason)] for row, reason in source.skipped[:SKIPPED_SHOWN]],
        "skipped_total": source.skipped_total or len(source.skipped),
    }


def view_saved(store: DatasetStore, name: str, ask: Ask) -> dict[str, Any]:
    """One page of a saved dataset of any size; its other rows are never read into memory. Raises DataError."""
    info = store.info(name)
    heldout = store.heldout(name)
    source = Source(f"{SAVED}{info.name}", (), title=info.title or name, facts=_facts(info))
    if ask.origin == HELDOUT:
        rows = [_question(number, row) for number, row in enumerate(heldout) if _says(row, ask.query)]
        offset = _first(ask, len(rows))
        found = _page(source, ask, rows[offset : offset + ask.size], total=len(rows), offset=offset)
        page = store.page(name, 0, 0)
    else:
        page = store.page(name, ask.offset, ask.size, ask.origin, ask.query)
        offset = _first(ask, page.total)
        if offset != ask.offset:
            page = store.page(name, offset, ask.size, ask.origin, ask.query)
        shown = [_shown(number, row) for number, row in page.rows]
        found = _page(source, ask, shown, total=page.total, offset=offset)
    counts = {"": sum(page.counts.values()), **page.counts, **_some(HELDOUT, len(heldout))}
    return found | {"counts": counts, "sha256": page.sha256, "editable": True}


def changed_row(edit: RowEdit, stored: Row | None) -> Row:
    """The row the visitor wants: the stored one (None: a new one) with his texts, turns and marks.

    What the page cannot edit (calls of tools, names, pictures) stays with the message it belongs to.
    """
    old = dict(stored or {"origin": OWN})
    if edit.text is not None:
        return {**{key: value for key, value in old.items() if key not in _CONTENT}, "text": edit.text}
    before = old.get("messages") or []
    messages = [_message(turn, before) for turn in edit.turns]
    new = {**old, "messages": messages}
    if edit.rejected and old.get("rejected"):
        texts = zip(old["rejected"], edit.rejected, strict=False)
        new["rejected"] = [message | {"content": text} for message, text in texts]
    return new


def _message(turn: Turn, before: Sequence[Row]) -> Row:
    kept = before[turn.at] if turn.at is not None and 0 <= turn.at < len(before) else {}
    base = {key: value for key, value in kept.items() if key != "loss"} if kept.get("role") == turn.role else {}
    message = base | {"role": turn.role, "content": turn.content.strip() if turn.role != "tool" else turn.content}
    return message if turn.loss or turn.role != "assistant" else message | {"loss": False}


# ---- inside ----------------------------------------------------------------------------------------------------------


def _page(source: Source, ask: Ask, rows: Sequence[Row], *, total: int, offset: int) -> dict[str, Any]:
    return {
        "source": source.source,
        "title": source.title,
        "origin": ask.origin,
        "intent": ask.intent,
        "query": ask.query,
        "asked": ask.asked,
        "offset": offset,
        "total": total,
        "page": ask.size,
        "rows": rows,
        "facts": dict(source.facts),
        "notes": [translated(note) for note in source.notes],
        "skipped": [],
        "skipped_total": 0,
        "intents": {},
        "editable": False,
        "sha256": "",
    }


def _facts(info: DatasetInfo) -> dict[str, Any]:
    mapping = named_mapping(info.format) if info.format else None
    return {
        "name": info.name,
        "kind": info.kind,
        "label": mapping.label if mapping else "",
        "from": translated(info.source),
        "format": info.format,
        "encoding": info.encoding,
        "created_at": info.created_at,
        "texts": info.texts,
        "self_replay": getattr(info, "self_replay", 0),
    }


def _first(ask: Ask, total: int) -> int:
    """Where the page begins: beyond the end there is the last page."""
    last = max(0, (total - 1) // ask.size * ask.size)
    return min(ask.offset, last)


def _some(key: str, count: int) -> dict[str, int]:
    return {key: count} if count else {}


def _chosen(rows: Iterable[tuple[int, Row]], ask: Ask) -> Iterable[tuple[int, Row]]:
    for number, row in rows:
        origin, intent = str(row.get("origin") or OWN), str(row.get("intent") or "")
        if ask.origin in ("", origin) and ask.intent in ("", intent) and _says(row, ask.query):
            yield number, row


def _says(row: Row, query: str) -> bool:
    wanted = query.strip().casefold()
    texts = [str(row["prompt"])] if "prompt" in row else texts_of(row)
    return not wanted or any(wanted in text.casefold() for text in texts)


def _shown(number: int, row: Row) -> Row:
    """What the page gets of a row; a huge text is cut and the row marked."""
    shown: Row = {"n": number, "origin": str(row.get("origin") or OWN)}
    shown |= {key: row[key] for key in (*_CONTENT, "intent") if row.get(key)}
    if sum(map(len, texts_of(row))) <= LONGEST_SHOWN:
        return shown
    shown["cut"] = True
    if "text" in shown:
        shown["text"] = _cut(shown["text"])
    for key in ("messages", "rejected"):
        if key in shown:
            shown[key] = [_cut_message(message) for message in shown[key][:100]]
    return shown


def _cut_message(message: Row) -> Row:
    return {"role": message["role"], "content": _cut(message["content"])}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " …"


def _question(number: int, row: Row) -> Row:
    messages = [*row.get("history", []), {"role": "user", "content": row["prompt"]}]
    expect = [str(word) for word in row.get("expect", [])]
    return {"n": number, "origin": HELDOUT, "intent": str(row.get("kind", "")), "messages": messages, "expect": expect}
