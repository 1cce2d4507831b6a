"""What the page shows of a run in one line: its name, what it trains, its true state."""

import time
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from studio.config import OutputConfig
from studio.events import Status
from studio.labels import read_labels
from studio.library import spread_of
from studio.rundir import RunDir
from studio.schema import ConfigError
from studio.ui.sentences import translated


def changed(path: Path) -> int:
    """Time of the last change in nanoseconds, 0 when the file is missing."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def stamp(run: RunDir) -> Hashable:
    """What changes with the line of a run: its directory does with every file that is made or replaced in it."""
    return changed(run.path), changed(run.status_file), changed(run.report_file)


@lru_cache(maxsize=1024)
def _facts(path: Path, _changed: tuple[int, int]) -> dict[str, Any]:
    try:
        config = RunDir(path).config()
    except ConfigError:
        return {"name": path.name, "kind": "unreadable", "method": "", "model": "", "dataset": ""} | spread_of(None)
    if isinstance(config, OutputConfig):
        found = {"name": config.name, "kind": config.kind, "method": "", "model": config.subject, "dataset": ""}
    else:
        model, dataset = config.model.model_name_or_path, config.data.dataset
        found = {"name": config.name, "kind": "train", "method": config.method, "model": model, "dataset": dataset}
    return found | spread_of(config)


def facts(run: RunDir) -> dict[str, Any]:
    """Name, kind, method, model, dataset, and how it is spread out; a broken configuration is of kind "unreadable"."""
    known, title = _facts(run.path, (changed(run.config_file), changed(run.changes_file))), read_labels(run).title
    return known | {"name": title} if title else known


@lru_cache(maxsize=1024)
def _passed(path: Path, _changed: int) -> bool | None:
    report: Any = RunDir(path).read_report() or {}
    verdict = report.get("verdict") or {}
    passed = verdict.get("passed")
    return passed if isinstance(passed, bool) else None


def status_of(run: RunDir, language: str = "en") -> dict[str, Any]:
    """State, step, phase, times and error of a run, as the page shows them."""
    state, status, launch = run.state(), run.read_status(), run.read_launch()
    return {
        "state": state.value,
        "live": state.live,
        "resumable": state.resumable,
        "step": status.step if status else 0,
        "max_steps": status.max_steps if status else 0,
        "phase": status.phase if status else None,
        "error": _error(status, language),
        "exit_code": status.exit_code if status else None,
        "updated_at": status.updated_at if status else run.created_at,
        "started_at": launch.started_at if launch else None,
        "now": time.time(),
    }


def _error(status: Status | None, language: str) -> dict[str, Any] | None:
    if status is None or status.error is None:
        return None
    error = status.error
    said = {"message": translated(error.message, language), "hint": translated(error.hint, language)}
    return error.model_dump() | said


def summary(run: RunDir, language: str = "en") -> dict[str, Any]:
    """One line of the run list."""
    known, report_changed = facts(run), changed(run.report_file)
    return {
        **known,
        "id": run.id,
        "name": known["name"] or run.id,
        "model": PurePath(known["model"]).name,
        "created_at": run.created_at,
        "verdict_passed": _passed(run.path, report_changed) if report_changed else None,
        **status_of(run, language),
    }


class Summaries:
    """Lines of the run list; one of an ended run is kept until a file of the run changes."""

    def __init__(self) -> None:
        self._ended: dict[tuple[str, str], tuple[Hashable, dict[str, Any]]] = {}

    def of(self, run: RunDir, language: str = "en") -> dict[str, Any]:
        """The line of one run."""
        seen, key = stamp(run), (run.id, language)
        kept = self._ended.get(key)
        if kept and kept[0] == seen:
            return kept[1]
        line = summary(run, language)
        if line["state"] in ("finished", "stopped", "failed"):
            self._ended[key] = (seen, line)
        return line
