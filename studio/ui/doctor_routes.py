"""Read-only JSON for the card of a run that ran out of memory: what it wanted, what there was, what would help."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from studio.memory_doctor import Diagnosis, Remedy, diagnose
from studio.rundir import RunDir
from studio.ui.answers import Answers
from studio.ui.fieldtexts import label_key
from studio.ui.i18n import table
from studio.ui.routes import chosen, language_of
from studio.ui.run_lines import changed
from studio.ui.tabs.train_changes import as_text
from studio.workspace import Workspace


def memory_json(run: RunDir, language: str) -> dict[str, Any] | None:
    """The diagnosis of a run for the page, None when it did not run out of memory."""
    found = diagnose(run)
    return None if found is None else _shown(found, table(language))


def _shown(found: Diagnosis, texts: Mapping[str, str]) -> dict[str, Any]:
    shortage = found.shortage
    return {
        **shortage.model_dump(),
        "others": shortage.others_bytes,
        "checkpoint": found.checkpoint,
        "remedies": [_remedy(one, texts) for one in found.remedies],
    }


def _remedy(one: Remedy, texts: Mapping[str, str]) -> dict[str, Any]:
    changes = [
        {"field": path, "label": texts.get(label_key(path), path), "value": _value(value)}
        for path, value in one.changes.items()
    ]
    return {
        "key": one.key,
        "set": one.changes,
        "changes": changes,
        "bytes": one.needed,
        "usable": one.usable,
        "verdict": one.verdict,
        "slowdown": one.slowdown,
        "continues": one.continues,
        "from_step": one.from_step,
        "cut": one.cut,
    }


def _value(value: Any) -> bool | str:
    """As the page shows it; of a list how many there are left."""
    if isinstance(value, bool):
        return value
    return str(len(value)) if isinstance(value, list) else as_text(value)


def build(workspace: Workspace) -> APIRouter:
    """The route over one workspace; an unknown run answers 404."""
    router = APIRouter(prefix="/api")
    answers = Answers()

    async def memory(request: Request) -> Response:
        run, language = chosen(workspace, request), language_of(request)
        files = (run.status_file, run.launch_file, run.config_file, run.changes_file, run.queue_file)
        stamp = (*map(changed, files), changed(run.checkpoints))
        return await answers.get((run.id, language), stamp, partial(memory_json, run, language))

    router.add_route("/api/memory", memory)
    return router
