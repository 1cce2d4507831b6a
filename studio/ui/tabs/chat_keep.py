"""A conversation of the chat room as rows of a dataset, its answers corrected by hand or not."""

from __future__ import annotations

from typing import Any

from studio.records import DatasetInfo, DatasetStore
from studio.ui.context import refuse
from studio.ui.i18n import tr
from studio.ui.widgets.chatview import SIDES, read_thread

LONGEST_TITLE = 400


def keep(store: DatasetStore, value: Any, side: str, title: str, system: str) -> tuple[DatasetInfo, str]:
    """Write one side's conversations into a dataset: the saved one of that name or title, else a new one.

    Returns it and a sentence about what was done. Raises Refused, DataError.
    """
    thread = read_thread(value)
    if side not in SIDES or side not in thread.sides:
        raise refuse("chat.error.side")
    title = title.strip()[:LONGEST_TITLE]
    if not title:
        raise refuse("chat.error.dataset")
    rows = [{**row, "origin": "upload"} for row in thread.rows(side, system)]
    if not rows:
        raise refuse("chat.error.nothing_said")
    known = next((info for info in store.list() if title in (info.name, info.title)), None)
    if known is None:
        source = tr("chat.keep.source", None, model=thread.sides[side].name or side)
        info = store.save(title, rows, [], DatasetInfo(kind="upload", source=source))
    else:
        info = known
        for row in rows:
            info = store.add_row(info.name, row, info.sha256)
    return info, tr("chat.keep.done", None, rows=len(rows), title=info.title or info.name, all=f"{info.rows:,}")
