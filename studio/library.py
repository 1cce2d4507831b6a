"""The library of runs: one line per run with all a list shows, kept until the run changes.

Several hundred runs stay quick: a run that has ended is read again only when its directory changes, which every file
replaced in it does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from studio.config import AnyConfig, OutputConfig, RunConfig
from studio.curves import last_values, worked_seconds
from studio.events import RunState
from studio.labels import read_labels
from studio.parallel_section import ParallelSection
from studio.rundir import RunDir
from studio.schema import ConfigError
from studio.workspace import Workspace

REFRESH_S = 0.8
BUDGET_S = 0.4  # what one answer may cost: the rest of a large library comes with the next
SETTLED_S = 2.0  # a directory changed more recently than this may change again within one tick of its clock
LIVE_SIZE_S = 10.0
PLACES_S = 60.0
Line = dict[str, Any]


# ---- one line --------------------------------------------------------------------------------------------------------


def read_line(run: RunDir, size_bytes: int | None = None) -> Line:
    """All a list shows of a run: sizes in bytes, times in seconds, shares from 0 to 1, None for what is not known."""
    labels, state, status, launch = read_labels(run), run.state(), run.read_status(), run.read_launch()
    facts = _facts(run)
    report = run.read_report() or {}
    last = last_values(run)
    return {
        **facts,
        "id": run.id,
        "title": labels.title,
        "name": labels.title or facts["config_name"] or run.id,
        "tags": labels.tags,
        "state": state.value,
        "live": state.live,
        "resumable": state.resumable,
        "step": status.step if status else 0,
        "max_steps": status.max_steps if status else 0,
        "phase": status.phase if status else None,
        "created_at": run.created_at,
        "started_at": launch.started_at if launch else None,
        "updated_at": status.updated_at if status else None,
        "duration_seconds": duration_of(run, state),
        "loss": _number(report.get("train_loss")) if report.get("train_loss") is not None else last.loss,
        "eval_loss": last.eval_loss,
        **_verdict(report),
        "error": status.error.message if status and status.error and state is RunState.FAILED else None,
        "size_bytes": folder_bytes(run.path) if size_bytes is None else size_bytes,
    }


def _facts(run: RunDir) -> dict[str, Any]:
    """What the configuration says; a run whose configuration is broken is shown too."""
    try:
        config = run.config()
    except ConfigError as error:
        nothing = {"kind": "unreadable", "method": "", "model": "", "dataset": "", "continues": ""}
        return nothing | spread_of(None) | {"config_name": "", "problem": str(error)}
    if isinstance(config, OutputConfig):
        found = {"kind": config.kind, "method": "", "model": _last_part(config.subject), "dataset": ""}
    else:
        model, dataset = config.model.model_name_or_path, config.data.dataset
        found = {"kind": "train", "method": config.method, "model": _last_part(model), "dataset": _last_part(dataset)}
    return found | spread_of(config) | {"config_name": config.name, "continues": continues(run, config)}


def spread_of(config: AnyConfig | None) -> dict[str, Any]:
    """Over how many processes and machines a run is spread, which machine this is, what the processes divide."""
    section = config.parallel if isinstance(config, RunConfig) else ParallelSection()
    stage = section.deepspeed if section.deepspeed != "none" else "deepspeed" if section.deepspeed_config else ""
    return {
        "processes": section.num_processes,
        "machines": section.num_machines,
        "machine": section.machine_rank,
        "address": section.main_process_ip or "",
        "sharding": stage or (section.fsdp if section.fsdp != "none" else ""),
    }


def _last_part(reference: str) -> str:
    return PurePath(reference).name or reference


def continues(run: RunDir, config: AnyConfig) -> str:
    """The id of the run in the same workspace whose adapter or model this one began with (a merge: merges); or ""."""
    for part in (part for reference in references(config) for part in PurePath(reference).parts):
        if part not in (run.id, "/", "..") and (run.path.parent / part / "config.yaml").is_file():
            return part
    return ""


def references(config: AnyConfig) -> list[str]:
    """The folders a run reads its weights from."""
    if isinstance(config, OutputConfig):
        return config.references
    return [config.model.model_name_or_path, *([config.model.adapter] if config.model.adapter else [])]


def duration_of(run: RunDir, state: RunState) -> float | None:
    """Seconds engines have worked on a run, up to now for a live one; None before its first start."""
    worked, launch, status = worked_seconds(run), run.read_launch(), run.read_status()
    if launch is None:
        return None
    if worked is None:
        end = time.time() if state.live or status is None else status.updated_at
        return max(0.0, end - launch.started_at) if state.live or status else None
    since = time.time() - status.updated_at if state.live and status else 0.0
    return worked + max(0.0, since)


def _verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    verdict = report.get("verdict")
    verdict = verdict if isinstance(verdict, dict) else {}
    shares = {"learned": ("learned", "share"), "leaked": ("leaked", "share"), "retained": ("forgot", "retained")}
    found: dict[str, Any] = {name: _number(_inside(verdict, *path)) for name, path in shares.items()}
    passed = verdict.get("passed")
    kind = _inside(report, "diagnosis", "kind")
    return found | {
        "verdict_passed": passed if isinstance(passed, bool) else None,
        "diagnosis": kind if isinstance(kind, str) else None,
    }


def _inside(data: Mapping[str, Any], name: str, key: str) -> Any:
    part = data.get(name)
    return part.get(key) if isinstance(part, dict) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def folder_bytes(path: Path) -> int:
    """Bytes of the files below a folder; links are not followed, what vanishes meanwhile is not counted."""
    total, waiting = 0, [str(path)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total


def matches(line: Line, query: str) -> bool:
    """Whether every word of `query` is in a run's title, name, id, model, dataset, method or one of its tags."""
    words = query.casefold().split()
    keys = ("title", "config_name", "id", "model", "dataset", "method")
    text = "\n".join([*(str(line.get(key) or "") for key in keys), *line["tags"]]).casefold()
    return all(word in text for word in words)


def lines(workspace: Workspace) -> list[Line]:
    """Every run of a workspace, newest first, read now."""
    return [read_line(run) for run in workspace.list_runs()]


# ---- kept lines ------------------------------------------------------------------------------------------------------


@dataclass
class _Kept:
    """A line with what it was made from, and the version of the library in which it last changed."""

    mark: tuple[int, ...]
    line: Line
    version: int
    settled: bool
    sized_at: float


@dataclass
class Library:
    """The lines of one workspace, shared by all pages of a studio; only what changed is read, and only that is sent."""

    workspace: Workspace
    epoch: str = field(default_factory=lambda: secrets.token_hex(4))
    version: int = 0
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _removed: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _refreshed_at: float = -REFRESH_S
    _more: bool = False
    _places: tuple[float, dict[str, int]] = (-PLACES_S, {})

    def changes(self, epoch: str, after: int, *, at_once: bool = False) -> dict[str, Any]:
        """What changed since version `after` of `epoch`; everything, with `reset`, for a reader of another epoch.

        `more` tells that lines are still missing: ask again at once. `at_once`: look now, not within a second.
        """
        with self._lock:
            if at_once or self._more or time.monotonic() - self._refreshed_at >= REFRESH_S:
                self._refresh()
            reset = epoch != self.epoch or after > self.version
            since = 0 if reset else after
            return {
                "epoch": self.epoch,
                "version": self.version,
                "reset": reset,
                "more": self._more,
                "runs": [kept.line for kept in self._kept.values() if kept.version > since],
                "removed": [] if reset else [run for run, version in self._removed.items() if version > since],
                "disk": self._disk(),
            }

    def _refresh(self) -> None:
        version, began = self.version + 1, time.monotonic()
        marks = dict(_marks(self.workspace.runs))
        changed = self._drop(marks.keys(), version)
        self._more = False
        for run_id in sorted(marks, reverse=True):
            kept, mark = self._kept.get(run_id), marks[run_id]
            if kept and kept.settled and kept.mark == mark:
                continue
            if kept is None and time.monotonic() - began > BUDGET_S:
                self._more = True
                continue
            changed |= self._read(RunDir(self.workspace.runs / run_id), mark, version)
        self.version = version if changed else self.version
        self._refreshed_at = time.monotonic()

    def _drop(self, present: Set[str], version: int) -> bool:
        gone = self._kept.keys() - present
        for run_id in gone:
            del self._kept[run_id]
            self._removed[run_id] = version
        return bool(gone)

    def _read(self, run: RunDir, mark: tuple[int, ...], version: int) -> bool:
        kept, now = self._kept.get(run.id), time.monotonic()
        sized_at, size = (kept.sized_at, kept.line["size_bytes"]) if kept else (now, None)
        if kept and now - sized_at > LIVE_SIZE_S:
            sized_at, size = now, None
        try:
            line = read_line(run, size)
        except (OSError, ValueError):  # deleted while it was read, or a file in it is beyond reading
            return False
        settled = not line["live"] and abs(time.time() - max(mark) / 1e9) > SETTLED_S and sized_at == now
        same = kept is not None and kept.line == line
        shown = kept.version if kept and same else version
        self._kept[run.id] = _Kept(mark, line, shown, settled, sized_at)
        self._removed.pop(run.id, None)
        return not same

    def _disk(self) -> dict[str, int]:
        checked_at, places = self._places
        if time.monotonic() - checked_at > PLACES_S:
            places = other_places(self.workspace)
            self._places = (time.monotonic(), places)
        runs = sum(kept.line["size_bytes"] for kept in self._kept.values())
        return {"runs": runs, **places, "free": free_bytes(self.workspace)}


def _marks(runs: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(id, times of what changes with a run: its directory, checkpoints, a status written over on a full disk).

    Plain texts instead of paths: for 500 runs that is 5 ms instead of 25, once a second.
    """
    with os.scandir(runs) as entries:
        for entry in entries:
            if _changed(f"{entry.path}/config.yaml"):
                found = (entry.path, f"{entry.path}/checkpoints", f"{entry.path}/status.json")
                yield entry.name, tuple(map(_changed, found))


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def other_places(workspace: Workspace) -> dict[str, int]:
    """Bytes in the other folders of a workspace, by what they hold."""
    names = {"datasets": workspace.datasets, "exports": workspace.exports}
    names |= {"models": workspace.path / "downloads", "cache": workspace.path / "cache"}
    return {name: folder_bytes(path) for name, path in names.items()}


def free_bytes(workspace: Workspace) -> int:
    """Bytes free on the disk of a workspace; 0 where the system does not say."""
    try:
        return shutil.disk_usage(workspace.path).free
    except OSError:
        return 0
