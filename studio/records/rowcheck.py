"""Rows as a dataset stores them: `{"messages", "tools"?, "images"?, "rejected"?}` or `{"text"}`, each with an "origin".

Rows of an identity set keep their "intent" as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from studio.records.conversation import Conversation, PlainText, Record
from studio.records.errors import DataError
from studio.records.formats import RowError, parse_mapping, refuse_placeholders, to_record, to_row
from studio.records.mappings import Mapping as ColumnMapping
from studio.records.rowfile import DEFAULT_ORIGIN, Row


def stored_row(row: Record | Row) -> Row:
    """A record as its row; a row as it is."""
    return {**to_row(row), "origin": DEFAULT_ORIGIN} if isinstance(row, (Conversation, PlainText)) else row


def record_of(row: Mapping[str, Any]) -> Record:
    """The record a stored row holds. Raises RowError with the reason it holds none."""
    return to_record(dict(row), _canonical("messages" if "messages" in row or "text" not in row else "text"))


def checked_rows(rows: Iterable[Mapping[str, Any]], first: int = 1) -> Iterator[Row]:
    """Rows in the form they are stored in, one by one; `first` is the number of the first one in a sentence.

    Raises DataError at the first row that is no usable record or still has an unfilled name placeholder.
    """
    for number, row in enumerate(rows, first):
        try:
            record = record_of(row)
        except RowError as error:
            raise DataError(f"Row {number} cannot be saved: {error}. Correct or delete it.") from None
        refuse_placeholders([(number, record)])
        intent = {"intent": str(row["intent"])[:40]} if row.get("intent") else {}
        yield {**to_row(record), "origin": str(row.get("origin") or DEFAULT_ORIGIN)[:80], **intent}


@cache
def _canonical(name: str) -> ColumnMapping:
    return parse_mapping(name)
