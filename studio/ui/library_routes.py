"""Read-only JSON and downloads for the library of runs: what changed in the list, runs side by side, the run card."""

import contextlib
import time
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from studio.compare import check_count, compare
from studio.library import Library
from studio.run_card import Format, Words, render
from studio.rundir import RunDir, write_atomic
from studio.schema import ConfigError
from studio.ui.answers import Answers
from studio.ui.fieldtexts import label_key
from studio.ui.i18n import table
from studio.ui.routes import chosen, language_of
from studio.ui.sentences import translated
from studio.workspace import RunNotFound, Workspace

MEDIA: dict[Format, str] = {"html": "text/html; charset=utf-8", "md": "text/markdown; charset=utf-8"}
# Never shown as a page of this origin, whatever a browser makes of the file.
HEADERS = {
    "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def compared(workspace: Workspace, asked: list[str], language: str) -> dict[str, Any]:
    """Runs side by side with the labels of their fields; HTTP 404 for an unknown run, 422 for too few or too many."""
    try:
        runs = [workspace.run(run_id) for run_id in check_count(asked)]
    except ConfigError as error:
        raise HTTPException(422, translated(str(error), language)) from error
    except (RunNotFound, OSError) as error:
        raise HTTPException(404, "no such run") from error
    found, texts = compare(runs), table(language)
    for row in found["fields"]:
        row["label"] = texts.get(label_key(row["path"]), row["path"])
    for verdict in found["verdicts"]:
        if verdict["diagnosis"]:
            said = {key: translated(str(verdict["diagnosis"].get(key) or ""), language) for key in ("message", "hint")}
            verdict["diagnosis"] = said
    return found


def card(run: RunDir, kind: Format, language: str) -> Response:
    """The run card as a download; a copy stays in the run's directory."""
    words = Words("zh" if language.startswith("zh") else "en", partial(translated, language=language))
    text = render(run, kind, words)
    with contextlib.suppress(OSError):  # a full disk or a workspace that cannot be written spoils no download
        write_atomic(run.path / f"card.{kind}", text)
    disposition = f"attachment; filename*=UTF-8''{quote(f'{run.id}.card.{kind}')}"
    return Response(text, media_type=MEDIA[kind], headers=HEADERS | {"content-disposition": disposition})


def build(workspace: Workspace) -> APIRouter:
    """The routes over one workspace; an unknown run answers 404 with ``{"detail": …}``."""
    router = APIRouter(prefix="/api")
    kept, answers = Library(workspace), Answers()

    async def library(request: Request) -> Response:
        epoch, after = request.query_params.get("epoch", "")[:20], request.query_params.get("after", "0")
        since = int(after) if after.isdecimal() and len(after) < 16 else 0
        # However many pages look, what is new is looked for once a second; ``at`` is given after a change.
        stamp = (int(time.monotonic()), kept.version, request.query_params.get("at", "")[:20])
        make = partial(kept.changes, epoch, since, at_once=bool(stamp[2]))
        return await answers.get(("library", epoch, since), stamp, make)

    async def read_compare(request: Request) -> Response:
        runs, language = request.query_params.getlist("run"), language_of(request)
        stamp = int(time.monotonic() / 2)
        make = partial(compared, workspace, runs, language)
        return await answers.get(("compare", tuple(runs), language), stamp, make)

    async def read_card(request: Request) -> Response:
        kind: Format = "md" if request.query_params.get("format") == "md" else "html"
        return await run_in_threadpool(card, chosen(workspace, request), kind, language_of(request))

    router.add_route("/api/library", library)
    router.add_route("/api/compare", read_compare)
    router.add_route("/api/card", read_card)
    return router
