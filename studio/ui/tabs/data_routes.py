"""Read-only JSON and downloads for the Data tab: imports at work, a dataset as a file of a common format."""

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.params import Path as PathParam
from starlette.responses import StreamingResponse

from studio.fetchdir import FetchDir, fetches
from studio.records import DataError, DatasetStore
from studio.records.convert import convert
from studio.records.errors import Skipped
from studio.records.formats import RowError
from studio.records.rowcheck import record_of
from studio.ui.i18n import COOKIE
from studio.ui.sentences import translated
from studio.workspace import Workspace

Target = Literal["messages", "conversation", "alpaca"]
IMPORTS_SHOWN = 4
SHOWN_FOR_S = 24 * 3600
LINES_AT_ONCE = 200


def import_status(fetch: FetchDir, language: str) -> dict[str, Any]:
    """One import as the page shows it, its sentences in the visitor's language."""
    job, status = fetch.job(), fetch.status()
    error = status.error
    return {
        "id": fetch.id,
        "name": job.title or job.name,
        "hub": job.hub,
        "state": status.state.value,
        "live": status.state.live or status.state.value == "queued",
        "phase": status.phase,
        "done": status.done,
        "total": status.total,
        "skipped": status.skipped,
        "first_skipped": [[row, translated(reason, language)] for row, reason in status.first_skipped[:5]],
        "notes": [translated(note, language) for note in status.notes],
        "dataset": status.dataset,
        "error": translated(error.message, language) if error else "",
        "hint": translated(error.hint, language) if error else "",
    }


def imports(workspace: Workspace, language: str) -> list[dict[str, Any]]:
    """The newest imports: those at work, and those that ended within a day."""
    found = []
    for fetch in fetches(workspace)[: 5 * IMPORTS_SHOWN]:
        try:
            if time.time() - fetch.path.stat().st_mtime > SHOWN_FOR_S and not fetch.status().state.live:
                continue
            found.append(import_status(fetch, language))
        except (DataError, OSError):  # damaged, or removed while it was read
            continue
    return found[:IMPORTS_SHOWN]


def converted(store: DatasetStore, name: str, to: Target) -> Iterator[dict[str, Any] | Skipped]:
    """The rows of a dataset in a format; a row that format cannot hold is a Skipped. Raises DataError."""
    for number, row in enumerate(store.rows(name), 1):
        try:
            yield next(convert([record_of(row)], to))
        except RowError as error:
            yield Skipped(number, str(error))


def convertible(store: DatasetStore, name: str, to: Target) -> dict[str, Any]:
    """How many rows of a dataset a format can hold, how many not, and why the first of those. Raises DataError."""
    rows, left, first = 0, 0, None
    for entry in converted(store, name, to):
        if isinstance(entry, Skipped):
            left, first = left + 1, first or entry
        else:
            rows += 1
    return {"rows": rows, "left": left, "row": first.row if first else 0, "reason": first.reason if first else ""}


def lines(store: DatasetStore, name: str, to: Target) -> Iterator[str]:
    """The rows as JSON lines, some at once."""
    waiting: list[str] = []
    for entry in converted(store, name, to):
        if not isinstance(entry, Skipped):
            waiting.append(json.dumps(entry, ensure_ascii=False) + "\n")
        if len(waiting) >= LINES_AT_ONCE:
            yield "".join(waiting)
            waiting = []
    yield "".join(waiting)


def build(workspace: Workspace) -> APIRouter:
    """The routes over one workspace; an unknown dataset answers 404 with ``{"detail": …}``."""
    router = APIRouter(prefix="/api")
    store = DatasetStore(workspace.datasets)
    dataset_name = Annotated[str, PathParam(max_length=100)]

    @router.get("/imports")
    def read_imports(request: Request) -> list[dict[str, Any]]:
        return imports(workspace, request.cookies.get(COOKIE, "en"))

    @router.get("/datasets/{name}/convertible")
    def read_convertible(name: dataset_name, to: Target, request: Request) -> dict[str, Any]:
        try:
            found = convertible(store, name, to)
        except DataError as error:
            raise HTTPException(404, error.message) from error
        return found | {"reason": translated(found["reason"], request.cookies.get(COOKIE, "en"))}

    @router.get("/datasets/{name}/download")
    def download(name: dataset_name, to: Target) -> StreamingResponse:
        try:
            store.info(name)
        except DataError as error:
            raise HTTPException(404, error.message) from error
        file = quote(f"{name}.{to}.jsonl")
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{file}"}
        return StreamingResponse(lines(store, name, to), media_type="application/jsonl", headers=headers)

    return router
