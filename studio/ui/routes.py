"""Read-only JSON for the page's scripts: runs, metrics, samples, log, report, the dataset of a run, choices."""

import codecs
import json
import os
import time
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException

from studio.config import MergeConfig
from studio.events import CountsEvent, EvalEvent, LogEvent, PhaseEvent, ProgressEvent, SampleEvent, WarningEvent
from studio.records import DatasetStore
from studio.rundir import RunDir
from studio.schema import ConfigError
from studio.ui.choices import all_choices
from studio.workspace import RunNotFound, Workspace

COLUMNS = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes")
EVENT_BYTES = 4 * 1024 * 1024
LOG_BYTES = 64 * 1024
RUNS_SHOWN = 200
EXAMPLES = 6


class Points:
    """Columns of the curves in one answer. A step that comes again (after a resume) replaces what came later."""

    def __init__(self) -> None:
        self.columns: dict[str, list[float | int | None]] = {name: [] for name in ("step", *COLUMNS)}
        # Points after this step that the reader already has are void.
        self.rewind: int | None = None

    def add(self, event: LogEvent) -> None:
        """Append one point; a second one of the same step fills the gaps of the first."""
        steps = self.columns["step"]
        if steps and steps[-1] == event.step:
            for name in COLUMNS:
                value = getattr(event, name)
                self.columns[name][-1] = self.columns[name][-1] if value is None else value
            return
        self.forget_from(event.step)
        steps.append(event.step)
        for name in COLUMNS:
            self.columns[name].append(getattr(event, name))

    def forget_from(self, step: int) -> None:
        """Drop the points at and after ``step``."""
        steps = self.columns["step"]
        while steps and (steps[-1] or 0) >= step:
            for column in self.columns.values():
                column.pop()
        if not steps:
            self.rewind = step - 1 if self.rewind is None else min(self.rewind, step - 1)


def metrics(run: RunDir, after: int) -> dict[str, Any]:
    """Everything that happened in the run after byte ``after`` of its events, and its status now.

    ``more`` tells that there is more to fetch at once. Reads at most 4 MB, parses nothing twice.
    """
    events, offset = run.read_events(after, EVENT_BYTES)
    points = Points()
    evals: dict[str, list[Any]] = {"step": [], "eval_loss": []}
    found: dict[str, Any] = {"counts": None, "progress": None, "phases": [], "warnings": [], "eta_seconds": None}
    for event in events:
        match event:
            case LogEvent():
                points.add(event)
                found["eta_seconds"] = event.eta_seconds
            case EvalEvent():
                evals["step"].append(event.step)
                evals["eval_loss"].append(event.eval_loss)
            case CountsEvent() | ProgressEvent():
                found["counts" if isinstance(event, CountsEvent) else "progress"] = event.model_dump()
            case PhaseEvent():
                found["phases"].append({"name": event.name, "t": event.t, "detail": event.detail, "step": event.step})
            case WarningEvent():
                found["warnings"].append({"message": event.message, "field": event.field})
    status = summary(run)
    status["eta_seconds"] = found.pop("eta_seconds")
    more = offset > after and _size(run) - after > EVENT_BYTES
    return {
        "points": points.columns,
        "rewind": points.rewind,
        "evals": evals,
        **found,
        "offset": offset,
        "more": more,
        "status": status,
    }


def _size(run: RunDir) -> int:
    return run.events_file.stat().st_size if run.events_file.exists() else 0


def status_of(run: RunDir) -> dict[str, Any]:
    """State, step, phase, times and error of a run, as the page shows them."""
    state, status, launch = run.state(), run.read_status(), run.read_launch()
    return {
        "state": state.value,
        "live": state.live,
        "resumable": state.resumable,
        "step": status.step if status else 0,
        "max_steps": status.max_steps if status else 0,
        "phase": status.phase if status else None,
        "error": status.error.model_dump() if status and status.error else None,
        "exit_code": status.exit_code if status else None,
        "updated_at": status.updated_at if status else run.created_at,
        "started_at": launch.started_at if launch else None,
        "now": time.time(),
    }


@lru_cache(maxsize=1024)
def _facts(path: Path, _changed: int) -> dict[str, Any]:
    try:
        config = RunDir(path).config()
    except ConfigError:
        return {"name": path.name, "kind": "unreadable", "method": "", "model": "", "dataset": ""}
    if isinstance(config, MergeConfig):
        return {"name": config.name, "kind": "merge", "method": "", "model": config.base, "dataset": ""}
    model, dataset = config.model.model_name_or_path, config.data.dataset
    return {"name": config.name, "kind": "train", "method": config.method, "model": model, "dataset": dataset}


@lru_cache(maxsize=1024)
def _passed(path: Path, _changed: int) -> bool | None:
    report: Any = RunDir(path).read_report() or {}
    verdict = report.get("verdict") or {}
    passed = verdict.get("passed")
    return passed if isinstance(passed, bool) else None


def changed(path: Path) -> int:
    """Time of the last change in nanoseconds, 0 when the file is missing."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def summary(run: RunDir) -> dict[str, Any]:
    """One line of the run list."""
    facts = _facts(run.path, changed(run.config_file))
    report_changed = changed(run.report_file)
    return {
        **facts,
        "id": run.id,
        "name": facts["name"] or run.id,
        "model": PurePath(facts["model"]).name,
        "created_at": run.created_at,
        "verdict_passed": _passed(run.path, report_changed) if report_changed else None,
        **status_of(run),
    }


class Summaries:
    """Lines of the run list; one of an ended run is kept until a file of the run changes."""

    def __init__(self) -> None:
        self._ended: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}

    def of(self, run: RunDir) -> dict[str, Any]:
        """The line of one run."""
        files = (run.config_file, run.launch_file, run.status_file, run.report_file)
        seen = tuple(changed(path) for path in files)
        kept = self._ended.get(run.id)
        if kept and kept[0] == seen:
            return kept[1]
        line = summary(run)
        if line["state"] in ("finished", "stopped", "failed"):
            self._ended[run.id] = (seen, line)
        return line


def samples(run: RunDir, after: int) -> dict[str, Any]:
    """Answers to the evaluation inputs after byte ``after`` of the events."""
    events, offset = run.read_events(after, EVENT_BYTES)
    fields = {"step", "index", "prompt", "answer", "reason"}
    found = [event.model_dump(include=fields) for event in events if isinstance(event, SampleEvent)]
    return {"samples": found, "offset": offset, "more": offset > after and _size(run) - after > EVENT_BYTES}


def log_text(run: RunDir, after: int) -> dict[str, Any]:
    """New text of the engine's log; of a long one only the last 64 KB, with ``skipped`` true."""
    try:
        with run.log_file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = after if 0 <= after <= size else 0
            first = max(start, size - LOG_BYTES)
            file.seek(first)
            block = file.read(LOG_BYTES)
    except OSError:
        return {"text": "", "offset": 0, "skipped": False, "restart": after > 0}
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(block)
    # A character cut at the end stays for the next read.
    waiting = len(decoder.getstate()[0])
    return {
        "text": text,
        "offset": first + len(block) - waiting,
        "skipped": first > start,
        "restart": start != after,
    }


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
    name = _facts(run.path, changed(run.config_file))["dataset"]
    if not name or name != PurePath(name).name:
        return None
    return _dataset(workspace.datasets, name, changed(workspace.datasets / name / "dataset.json"))


def build(workspace: Workspace) -> APIRouter:
    """The routes over one workspace; an unknown run answers 404 with ``{"detail": …}``."""
    router = APIRouter(prefix="/api")
    summaries = Summaries()

    def chosen(run: str) -> RunDir:
        try:
            return workspace.run(run)
        except (RunNotFound, OSError) as error:
            raise HTTPException(404, "no such run") from error

    chosen_run = Annotated[RunDir, Depends(chosen)]

    @router.get("/health")
    def health() -> dict[str, Any]:
        return {"ok": True, "workspace": str(workspace.path)}

    @router.get("/runs")
    def runs(live: bool = False) -> list[dict[str, Any]]:
        newest = workspace.list_runs()[:RUNS_SHOWN]
        return [line for line in map(summaries.of, newest) if line["live"] or not live]

    @router.get("/metrics")
    def read_metrics(run: chosen_run, after: int = 0) -> dict[str, Any]:
        return metrics(run, after)

    @router.get("/samples")
    def read_samples(run: chosen_run, after: int = 0) -> dict[str, Any]:
        return samples(run, after)

    @router.get("/log")
    def read_log(run: chosen_run, after: int = 0) -> dict[str, Any]:
        return log_text(run, after)

    @router.get("/report")
    def report(run: chosen_run) -> dict[str, Any] | None:
        return run.read_report()

    @router.get("/dataset")
    def dataset(run: chosen_run) -> dict[str, Any] | None:
        return dataset_of(workspace, run)

    router.add_api_route("/choices", partial(all_choices, workspace), response_model=None)
    return router
