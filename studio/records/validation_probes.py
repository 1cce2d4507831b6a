"""Questions for the verdict from the validation rows: those with a short answer, which can be compared word by word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from studio.config import DataSection
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.conversation import Conversation, Record
from studio.records.counts import Mixed, Prepared
from studio.records.errors import DataError, Skipped
from studio.records.formats import open_records
from studio.records.order import Indices
from studio.records.probes import VALIDATION, heldout_row
from studio.records.sources import Recipe, recipes
from studio.records.store import DatasetStore
from studio.records.token_table import TEXT

SHORT_ANSWER = 32
"""Tokens of an answer up to which equal words can be expected; longer ones are judged by perplexity alone."""


def validation_questions(
    prepared: Prepared, data: DataSection, store: DatasetStore, chat: ChatTokenizer, limit: int
) -> list[dict[str, Any]]:
    """At most `limit` held-out rows from the validation rows of the first source; [] when none is short enough.

    Which rows are kept apart is drawn by the seed, so the first of them are as good as any, and the file is read no
    further than it must be.
    """
    if not len(prepared.validation):
        return []
    source = (prepared.validation_sources or prepared.sources)[0]
    places = _short(source, prepared.validation.index[prepared.validation.source == 0])[:limit]
    if not len(places):
        return []
    try:
        training, validation = recipes(data, store, chat)
        return _read((validation or training)[0], {int(row) for row in source.table.rows[places]})
    except DataError:  # the file has vanished since its tokens were made
        return []


def _short(source: Mixed, places: Indices) -> Indices:
    """Those places of a table, in its order, whose last answer is short."""
    table, places = source.table, np.unique(places)
    last = 2 * table.span_ends[places + 1] - 2
    lengths = table.spans[last + 1] - table.spans[last]
    found: Indices = places[(lengths <= SHORT_ANSWER) & ((table.flags[places] & TEXT) == 0)]
    return found


def _read(recipe: Recipe, wanted: set[int]) -> list[dict[str, Any]]:
    """The rows of these numbers as questions. Raises DataError."""
    found: list[dict[str, Any]] = []
    last = max(wanted)
    for item in open_records(recipe.path, recipe.options):
        number = item.row if isinstance(item, Skipped) else item[0]
        if not isinstance(item, Skipped) and number in wanted:
            found += _question(item[1], recipe.system)
        if number >= last:
            break
    return found


def _question(record: Record, system: str | None) -> list[dict[str, Any]]:
    """The last exchange of a conversation with what was said before it; none where tools speak."""
    if not isinstance(record, Conversation) or record.tools:
        return []
    *asked, answer = record.with_system(system).as_dicts()
    if any(_of_tools(message) for message in (*asked, answer)):
        return []
    return [heldout_row(asked, [answer["content"]], VALIDATION)]


def _of_tools(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or "tool_calls" in message
