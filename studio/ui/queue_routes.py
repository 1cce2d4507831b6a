"""Read-only JSON for the queue, for the diagnosis of a run and for what a clone of it would change."""

import json
import time
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from studio import runner
from studio.best_step import read_best
from studio.rundir import RunDir
from studio.schema import ConfigError
from studio.ui.answers import Answers
from studio.ui.context import Refused
from studio.ui.i18n import table
from studio.ui.queue_view import queue_json
from studio.ui.routes import chosen, language_of
from studio.ui.sentences import translated
from studio.ui.tabs.monitor_actions import as_changes, changed_config, differences
from studio.workspace import Workspace


def meaning(run: RunDir, language: str) -> dict[str, Any]:
    """What the verdict of a run means and its best checkpoint, in the visitor's language; None where there is none."""
    found = (run.read_report() or {}).get("diagnosis")
    return {
        "diagnosis": _diagnosis(run, found, language) if isinstance(found, dict) and found.get("message") else None,
        "best": _best(run, language),
    }


def _diagnosis(run: RunDir, found: dict[str, Any], language: str) -> dict[str, Any]:
    asked = found.get("changes") or {}
    said = {key: translated(str(found.get(key) or ""), language) for key in ("message", "hint")}
    try:
        shown = differences(run, as_changes(asked), language) if asked else []
    except (ConfigError, Refused):  # a report of another version: its words stay, its remedy is not offered
        shown = []
    for change in shown:  # beside its label the dotted name would only be in the way
        said["hint"] = said["hint"].replace(change["field"], change["label"])
    return {"kind": str(found.get("kind") or ""), **said, "changes": asked if shown else {}, "differences": shown}


def _best(run: RunDir, language: str) -> dict[str, Any] | None:
    best = read_best(run)
    return {"step": best.step, "why": translated(best.why, language)} if best else None


def preview(workspace: Workspace, run: RunDir, changes: str, language: str) -> dict[str, Any]:
    """What a clone would be called and differ in, and whether it had to wait; or `problem`, one sentence."""
    try:
        asked = as_changes(json.loads(changes))
        shown = differences(run, asked, language)
        name = changed_config(run, asked).name
    except ValueError as error:
        told = str(error) if isinstance(error, ConfigError) else table(language)["clone.error.changes"]
        return {"problem": translated(told, language)}
    except Refused:
        return {"problem": table(language)["clone.error.kind"]}
    if not shown:
        return {"problem": table(language)["clone.error.same"]}
    return {"name": name, "differences": shown, "waits": runner.live_run(workspace) is not None}


def build(workspace: Workspace) -> APIRouter:
    """The routes over one workspace; an unknown run answers 404."""
    router = APIRouter(prefix="/api")
    answers = Answers()

    @router.get("/diagnosis")
    def diagnosis(request: Request) -> dict[str, Any]:
        return meaning(chosen(workspace, request), language_of(request))

    @router.get("/clone")
    def clone(request: Request) -> dict[str, Any]:
        run, changes = chosen(workspace, request), request.query_params.get("changes", "")
        return preview(workspace, run, changes, language_of(request))

    async def queue(request: Request) -> Response:
        # However many pages look, the queue is worked out once a second; `at` is given after a change.
        language, changed = language_of(request), request.query_params.get("at", "")
        stamp = int(time.monotonic()), changed
        return await answers.get(("queue", language), stamp, partial(queue_json, workspace, language))

    router.add_route("/api/queue", queue)
    return router
