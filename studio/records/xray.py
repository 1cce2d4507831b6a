"""The mask X-ray: the first batches of a training, token by token, and what is odd about all of them.

What is shown are the arrays the trainer will get, in the order it will get them (`batches.collate`, `order`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from studio.records.batches import IGNORED, Shape, collate, first_batches, training_rows
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.conversation import Conversation, PlainText, Record
from studio.records.counts import Mixed, Numbers, Prepared
from studio.records.errors import Skipped
from studio.records.formats import open_records
from studio.records.sources import Recipe
from studio.records.token_table import DOUBLE_BOS, OPEN_END

CONTEXT, TRAINED, TRUNCATED, PADDING = 0, 1, 2, 3
SHOWN_TOKENS = 1500
"""Tokens of one row that are listed; longer rows are cut in the view, never in the training."""
SHOWN_CUT = 120
"""Tokens behind the cut at max_length that are listed."""
SEARCHED_ROWS = 50_000
"""So many rows of a file are looked through for the messages behind the tokens."""
BINS = 24


@dataclass(frozen=True)
class Finding:
    """Something to know about all rows: a stable `code`, how serious, in how many rows, and some of their numbers."""

    code: str
    level: str
    count: int
    rows: tuple[int, ...] = ()


def batches_view(
    prepared: Prepared, recipes: Sequence[Recipe], chat: ChatTokenizer, numbers: Numbers, count: int = 2
) -> list[dict[str, Any]]:
    """The first `count` batches as JSON: rows of examples, each with its tokens, their state and its messages."""
    chosen = first_batches(prepared, numbers, count)
    records = _records(prepared, recipes, [pack for batch in chosen for pack in batch])
    rows = training_rows(prepared)
    shape = Shape(chat.pad_id or 0, packed=prepared.packing)
    view = []
    for batch in chosen:
        arrays = collate([rows[pack] for pack in batch], shape)
        view.append(
            {
                "shape": list(arrays["input_ids"].shape),
                "rows": [_row(prepared, pack, place, arrays, chat, records) for place, pack in enumerate(batch)],
            }
        )
    return view


def _row(
    prepared: Prepared,
    pack: int,
    place: int,
    arrays: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]],
    chat: ChatTokenizer,
    records: Mapping[tuple[int, int], Record],
) -> dict[str, Any]:
    ids, labels = arrays["input_ids"][place], arrays["labels"][place]
    examples, start = [], 0
    for member in prepared.packs[pack].tolist():
        length = int(prepared.examples.length[member])
        part = slice(start, start + length)
        states = np.where(labels[part] == IGNORED, CONTEXT, TRAINED).tolist()
        examples.append(_example(prepared, member, chat, ids[part].tolist(), states, records))
        start += length
    return {"examples": examples, "padding": len(ids) - start, "pad_id": chat.pad_id or 0}


def _example(
    prepared: Prepared,
    member: int,
    chat: ChatTokenizer,
    ids: list[int],
    states: list[int],
    records: Mapping[tuple[int, int], Record],
) -> dict[str, Any]:
    source, index, start = (int(getattr(prepared.examples, name)[member]) for name in ("source", "index", "start"))
    table = prepared.sources[source].table
    row = int(table.rows[index])
    behind = table.tokens(index)[start + len(ids) :].tolist()
    cut = behind if row and not start and table.flags[index] & 1 == 0 else []
    shown = ids[:SHOWN_TOKENS] + cut[:SHOWN_CUT]
    marks = states[:SHOWN_TOKENS] + [TRUNCATED] * len(cut[:SHOWN_CUT])
    record = records.get((source, row))
    return {
        "source": source,
        "row": row,
        "length": len(ids),
        "trained": sum(state == TRAINED for state in states),
        "cut": len(cut),
        "hidden": max(len(ids) - SHOWN_TOKENS, 0) + max(len(cut) - SHOWN_CUT, 0),
        "tokens": [[i, piece, mark] for i, piece, mark in zip(shown, chat.pieces(shown), marks, strict=True)],
        "messages": _messages(record) if record else None,
    }


def _messages(record: Record) -> list[dict[str, Any]]:
    if isinstance(record, PlainText):
        return [{"role": "text", "content": record.text, "trained": True}]
    flags = record.trained
    return [message | {"trained": flag} for message, flag in zip(record.as_dicts(), flags, strict=True)]


def _records(prepared: Prepared, recipes: Sequence[Recipe], packs: Iterable[int]) -> dict[tuple[int, int], Record]:
    """(source, row number) -> the record as it is rendered, for the examples of some packs."""
    wanted: dict[int, set[int]] = {}
    for pack in packs:
        for member in prepared.packs[pack].tolist():
            source = int(prepared.examples.source[member])
            row = int(prepared.sources[source].table.rows[int(prepared.examples.index[member])])
            wanted.setdefault(source, set()).add(row)
    found: dict[tuple[int, int], Record] = {}
    for source, rows in wanted.items():
        if source < len(recipes):
            found |= {(source, row): record for row, record in _lookup(recipes[source], rows)}
    return found


def _lookup(recipe: Recipe, rows: set[int]) -> Iterable[tuple[int, Record]]:
    last = max(rows)
    for number, item in enumerate(open_records(recipe.path, recipe.options)):
        if number >= SEARCHED_ROWS:
            return
        if isinstance(item, Skipped):
            continue
        row, record = item
        if row in rows:
            yield row, record.with_system(recipe.system) if isinstance(record, Conversation) else record
        if row >= last:
            return


# ---- all rows --------------------------------------------------------------------------------------------------------


def findings(prepared: Prepared, chat: ChatTokenizer) -> list[Finding]:
    """What is odd about the rows: begin token twice, answers without an end, cut rows, rows nothing is trained of."""
    found = []
    twice = _flagged(prepared.sources, DOUBLE_BOS)
    if twice[0]:
        found.append(Finding("double_bos", "warning", *twice))
    open_ended = _flagged(prepared.sources, OPEN_END)
    if open_ended[0] or not chat.ends_answers:
        found.append(Finding("no_end", "warning", *open_ended))
    if prepared.truncated:
        found.append(Finding("truncated", "warning", prepared.truncated))
    if prepared.dropped_total:
        rows = tuple(item.row for item in prepared.dropped[:20])
        found.append(Finding("nothing_trained", "error", prepared.dropped_total, rows))
    skipped = [item for source in prepared.sources for item in source.table.facts.reasons]
    total = sum(source.table.facts.skipped_total for source in prepared.sources)
    if total:
        found.append(Finding("skipped", "warning", total, tuple(item.row for item in skipped[:20])))
    return found


def _flagged(sources: Sequence[Mixed], flag: int) -> tuple[int, tuple[int, ...]]:
    count, rows = 0, []
    for source in sources:
        places = np.flatnonzero(source.table.flags & flag)
        count += len(places)
        rows += source.table.rows[places[:20]].tolist()
    return count, tuple(rows[:20])


def histogram(prepared: Prepared, max_length: int) -> dict[str, Any]:
    """Lengths of all rows before the cut, in tokens: bin edges, counts, and some figures."""
    lengths = np.concatenate([source.table.lengths for source in prepared.sources])
    longest = int(lengths.max(initial=1))
    edges = np.unique(np.linspace(0, longest, min(BINS, longest) + 1).round().astype(np.int64))
    counts, _ = np.histogram(lengths, bins=edges)
    middle, high = np.percentile(lengths, [50, 95]) if len(lengths) else (0, 0)
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "max_length": max_length,
        "median": int(middle),
        "p95": int(high),
        "longest": longest,
        "shortest": int(lengths.min(initial=longest)),
        "rows": len(lengths),
    }
