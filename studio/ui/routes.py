"""Read-only JSON for the page's scripts: runs, metrics, notes, ranks, samples, logs, report, dataset, choices."""

import json
import re
import time
from collections.abc import Hashable
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from studio.config import AnswersConfig
from studio.events import RunState, SampleEvent, parse_event
from studio.records import DatasetStore
from studio.rundir import RunDir
from studio.ui.answers import Answers
from studio.ui.choices import all_choices
from studio.ui.coaching import Coaching
from studio.ui.engine_log import log_before, log_size, log_text
from studio.ui.i18n import COOKIE, LANGUAGES
from studio.ui.live_curves import Watched
from studio.ui.ranks_view import Watching
from studio.ui.run_lines import Summaries, changed, facts, summary
from studio.ui.sentences import translated
from studio.workspace import RunNotFound, Workspace

SAMPLE_BYTES = 4 * 1024 * 1024
RUNS_SHOWN = 200
EXAMPLES = 6
RANKS_MOST = 8192


def metrics(run: RunDir, after: int, watched: Watched, language: str = "en") -> dict[str, Any]:
    """Everything that happened in the run after byte ``after`` of its events, and its status now.

    ``more`` tells that there is more to fetch at once.
    """
    found = watched.since(run, after)
    status = summary(run, language)
    status["eta_seconds"] = found.pop("eta_seconds")
    for warning in found["warnings"]:
        warning["said"] = translated(warning["message"], language)
    # A sentence says what is waited for; a name in its place stays.
    found["phases"] = [phase | {"detail": translated(phase["detail"], language)} for phase in found["phases"]]
    if found["progress"]:
        found["progress"]["waits"] = waited_for(found["progress"]["label"])
    if found["counts"]:
        found["counts"]["skipped"] = [translated(reason, language) for reason in found["counts"]["skipped"]]
    return {**found, "log_size": log_size(run.log_file), "status": status}


def waited_for(label: str) -> dict[str, str] | None:
    """The machine that a run on several waits for, and where, if that is what its progress says."""
    said = re.fullmatch(r"machines; waiting for machine (?P<machine>\d{1,4}) at (?P<address>.{1,300})", label)
    return said.groupdict() if said else None


def samples(run: RunDir, after: int) -> dict[str, Any]:
    """Answers to the evaluation inputs after byte ``after`` of the events."""
    lines, offset = run.read_lines(after, SAMPLE_BYTES)
    fields = {"step", "index", "prompt", "answer", "reason"}
    # Of many lines few are samples: the others are not worth a parser.
    events = (parse_event(line) for line in lines if b"sample" in line)
    found = [event.model_dump(include=fields) for event in events if isinstance(event, SampleEvent)]
    return {"samples": found, "offset": offset, "more": offset > after and _size(run) - after > SAMPLE_BYTES}


def _size(run: RunDir) -> int:
    return run.events_file.stat().st_size if run.events_file.exists() else 0


@lru_cache(maxsize=64)
def _dataset(folder: Path, name: str, _changed: int) -> dict[str, Any] | None:
    try:
        dataset = DatasetStore(folder).load(name)
    except Exception:  # an uploaded path or a dataset that is gone: the page then shows no preview
        return None
    rows = [dict(row) for row in dataset.rows]
    per_origin: dict[str, int] = {}
    for row in rows:
        per_origin[str(row.get("origin", ""))] = per_origin.get(str(row.get("origin", "")), 0) + 1
    own = [row["messages"] for row in rows if row.get("origin") == "identity"] or [row["messages"] for row in rows]
    info = json.loads(dataset.info.model_dump_json())
    stride = max(1, len(own) // EXAMPLES)
    return {"info": info, "origins": per_origin, "heldout": len(dataset.heldout), "examples": own[::stride][:EXAMPLES]}


def dataset_of(workspace: Workspace, run: RunDir) -> dict[str, Any] | None:
    """What the run learns from, with a few examples; None for a file that is not a dataset of the workspace."""
    name = facts(run)["dataset"]
    if not name or name != PurePath(name).name:
        return None
    return _dataset(workspace.datasets, name, changed(workspace.datasets / name / "dataset.json"))


def chosen(workspace: Workspace, request: Request) -> RunDir:
    """The run of ``?run=``; HTTP 404 when there is none."""
    return known(workspace, request.query_params.get("run", ""))


def known(workspace: Workspace, run_id: str) -> RunDir:
    """The run of an id that came from the page; HTTP 404 when there is none."""
    try:
        return workspace.run(run_id)
    except (RunNotFound, OSError) as error:
        raise HTTPException(404, "no such run") from error


def number(request: Request, name: str) -> int:
    """A whole number of the query, 0 when it is missing; HTTP 422 for anything else."""
    try:
        return int(request.query_params.get(name, "0"))
    except ValueError as error:
        raise HTTPException(422, f"{name} must be a whole number of bytes") from error


def log_of(run: RunDir, request: Request) -> Path:
    """The log of the process ``?rank=``, by default the first one's; its name is made here from a number."""
    rank = number(request, "rank")
    if not 0 <= rank < RANKS_MOST:
        raise HTTPException(422, f"rank must be from 0 to {RANKS_MOST - 1}")
    return run.rank_log(rank)


def language_of(request: Request) -> str:
    """The visitor's language."""
    asked = request.cookies.get(COOKIE, "en")
    return asked if asked in LANGUAGES else "en"


def run_stamp(run: RunDir) -> Hashable:
    """What changes whenever the page of a run would; a process that died without a word is seen within a second."""
    files = (run.config_file, run.changes_file, run.status_file, run.launch_file, run.report_file, run.path)
    return (_size(run), log_size(run.log_file), *map(changed, files), int(time.monotonic()))


class Reads:
    """What the routes of one workspace share."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.answers = Answers()
        self.watched = Watched()
        self.coaching = Coaching(self.watched)
        self.watching = Watching(self.watched)
        self.summaries = Summaries()

    def listed(self, live: bool, language: str) -> list[dict[str, Any]]:
        """The newest runs, or those of them that are live."""
        newest = self.workspace.list_runs()[:RUNS_SHOWN]
        return [line for run in newest if (line := self.summaries.of(run, language))["live"] or not live]

    async def runs(self, request: Request) -> Response:
        """The list of runs; ``live=1`` for those at work only."""
        live, language = request.query_params.get("live", "") in ("1", "true"), language_of(request)
        seen = (changed(self.workspace.runs), int(2 * time.monotonic()))
        return await self.answers.get(("runs", live, language), seen, partial(self.listed, live, language))

    async def metrics(self, request: Request) -> Response:
        """New points, phases, counts, warnings, and the status."""
        run, after, language = chosen(self.workspace, request), number(request, "after"), language_of(request)
        make = partial(metrics, run, after, self.watched, language)
        return await self.answers.get(("metrics", run.id, after, language), run_stamp(run), make)

    async def notes(self, request: Request) -> Response:
        """What the coach says of the curves."""
        run, language = chosen(self.workspace, request), language_of(request)

        def make() -> dict[str, Any]:
            ended = run.state() not in (RunState.QUEUED, RunState.STARTING, RunState.RUNNING, RunState.STOPPING)
            return self.coaching.notes(run, ended, language)

        return await self.answers.get(("notes", run.id, language), run_stamp(run), make)

    async def samples(self, request: Request) -> Response:
        """Answers of the model along the way."""
        run, after = chosen(self.workspace, request), number(request, "after")
        return await self.answers.get(("samples", run.id, after), _size(run), partial(samples, run, after))

    async def log(self, request: Request) -> Response:
        """New text of the log, or with ``before`` what comes before that byte."""
        run = chosen(self.workspace, request)
        log = log_of(run, request)
        seen = (log_size(log), changed(log))
        if "before" in request.query_params:
            before = number(request, "before")
            return await self.answers.get(("before", str(log), before), seen, partial(log_before, log, before))
        after = number(request, "after")
        return await self.answers.get(("log", str(log), after), seen, partial(log_text, log, after))

    async def ranks(self, request: Request) -> Response:
        """The processes of a run beside each other."""
        run, language = known(self.workspace, request.path_params["run"]), language_of(request)
        make = partial(self.watching.ranks, run, language)
        return await self.answers.get(("ranks", run.id, language), run_stamp(run), make)


def build(workspace: Workspace) -> APIRouter:
    """The routes over one workspace; an unknown run answers 404 with ``{"detail": …}``."""
    router = APIRouter(prefix="/api")
    reads = Reads(workspace)

    @router.get("/health")
    def health() -> dict[str, Any]:
        return {"ok": True, "workspace": str(workspace.path)}

    @router.get("/report")
    def report(request: Request) -> dict[str, Any] | None:
        return chosen(workspace, request).read_report()

    @router.get("/dataset")
    def dataset(request: Request) -> dict[str, Any] | None:
        return dataset_of(workspace, chosen(workspace, request))

    @router.get("/answers")
    def answers(request: Request) -> Response:
        config = chosen(workspace, request).config()
        if not isinstance(config, AnswersConfig) or not Path(config.out).is_file():
            raise HTTPException(404, "this run has left no table of answers")
        return FileResponse(config.out, filename=Path(config.out).name)

    @router.get("/log/file")
    def log_file(request: Request) -> Response:
        run = chosen(workspace, request)
        log = log_of(run, request)
        if not log.is_file():
            raise HTTPException(404, "this run has written no log")
        name = quote(f"{run.id}{log.name.removeprefix('engine')}")
        headers = {"content-disposition": f"attachment; filename*=utf-8''{name}"}
        return FileResponse(log, media_type="text/plain; charset=utf-8", headers=headers)

    for name in ("runs", "metrics", "notes", "samples", "log"):
        router.add_route(f"/api/{name}", getattr(reads, name))
    router.add_route("/api/runs/{run}/ranks", reads.ranks)
    router.add_api_route("/choices", partial(all_choices, workspace), response_model=None)
    return router
