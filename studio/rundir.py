"""One run is one directory; this file owns every file name in it.

The directory is the whole contract between browser, command line and engine: one writer per file, JSON replaced
atomically, events appended with one write per line, readers keep a byte offset. The state shown is computed here by
`observe`, a pure function.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from studio import processes
from studio.chains import where_it_is_now
from studio.changes import Change, checked_changes, dump_changes, parse_changes, with_changes
from studio.config import KINDS, AnyConfig, OutputConfig, RunConfig
from studio.durable import write_atomic as write_atomic
from studio.events import (
    AnyEvent,
    FinishedEvent,
    Launch,
    PhaseEvent,
    RankStatus,
    RunState,
    StartedEvent,
    Status,
    parse_event,
)
from studio.schema import ConfigError, FieldError, ModelT, build, parse_yaml

READ_CHUNK = 8 * 1024 * 1024
TAIL = 64 * 1024  # bytes of events a lost status is told from
REMOTE_SILENCE_S = 120.0
ENDED = (RunState.FINISHED, RunState.STOPPED, RunState.FAILED)


def observe(
    status: Status | None, launch: Launch | None, *, alive: bool, stop_exists: bool, waiting: bool = False
) -> RunState:
    """The state of a run from what its directory and the process table say (DESIGN §4).

    `waiting`: it has a place in the queue, be it for its start or for its resume.
    """
    if launch is None or (waiting and not alive):
        return RunState.QUEUED
    if status is None or not _is_of(status, launch):  # nothing heard from this attempt yet
        if alive:
            return RunState.STARTING
        return RunState.LOST if status else RunState.FAILED
    if status.state in ENDED:
        return status.state
    if not alive:
        return RunState.LOST
    return RunState.STOPPING if stop_exists else RunState.RUNNING


def _is_of(status: Status, launch: Launch) -> bool:
    """True if the status was written by this start of the run; the clock, which may be set back, is asked last."""
    if status.attempt is not None:
        return status.attempt >= launch.attempt
    return status.updated_at >= launch.started_at


def is_alive(launch: Launch | None, status: Status | None = None) -> bool:
    """True while the very process named in launch.json runs (`processes.runs`).

    A run started on another host cannot be looked up: it counts as alive while its status is fresh.
    """
    if launch is None:
        return False
    if not processes.visible(launch):
        return status is not None and time.time() - status.updated_at < REMOTE_SILENCE_S
    return processes.runs(launch)


class RunDir:
    """One run directory: its file names, and how each is read and written."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.id = self.path.name
        self.config_file = self.path / "config.yaml"
        self.launch_file = self.path / "launch.json"
        self.status_file = self.path / "status.json"
        self.events_file = self.path / "events.jsonl"
        self.log_file = self.path / "engine.log"
        self.stop_file = self.path / "stop"
        self.report_file = self.path / "report.json"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.self_replay_file = self.path / "self_replay.jsonl"
        self.data_file = self.path / "data.json"
        self.queue_file = self.path / "queue.json"  # writer: whoever queues; there while the run waits for its turn
        self.changes_file = self.path / "changes.yaml"  # writer: runner; fields changed at a resume
        self.labels_file = self.path / "labels.json"  # writer: browser or command line; title, tags
        self.best_file = self.path / "best.json"  # writer: engine; the checkpoint to choose
        self.ranks = self.path / "ranks"  # writer of rankN.json: process N of a run with several
        self.deepspeed_file = self.path / "deepspeed.json"  # writer: starter, once; the own settings of DeepSpeed
        self.answers_file = self.path / "answers.jsonl"  # writer: engine; answers to a file of prompts so far

    @property
    def created_at(self) -> float:
        """Unix seconds of creation, from the id where it has one (a copied workspace keeps its order)."""
        try:
            return time.mktime(time.strptime(self.id[:15], "%Y%m%d-%H%M%S"))
        except ValueError:
            return self.path.stat().st_mtime

    def rank_log(self, rank: int) -> Path:
        """What process `rank` writes to its terminal; that of the first one is the run's log."""
        return self.path / f"engine.rank{rank}.log" if rank else self.log_file

    def rank_file(self, rank: int) -> Path:
        """The `RankStatus` of process `rank`."""
        return self.ranks / f"rank{rank}.json"

    def read_ranks(self) -> list[RankStatus]:
        """What the processes of this machine are doing, in their order; empty for a run with one."""
        found = [self._read(path, RankStatus) for path in self.ranks.glob("rank*.json")]
        return sorted((one for one in found if one is not None), key=lambda one: one.rank)

    def engine_lock(self) -> FileLock:
        """The lock an engine holds for as long as it works here; a second engine must refuse."""
        return FileLock(self.path / "engine.lock", timeout=0)

    def config(self) -> AnyConfig:
        """The resolved configuration, with what resumes changed. Raises ConfigError: a file missing or wrong."""
        try:
            data = parse_yaml(self.config_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([FieldError("", f"config.yaml of run {self.id} cannot be read: {error}")]) from None
        kind = KINDS.get(str(data.get("kind")))
        if kind:
            moved: AnyConfig = build(kind, self._moved_along(data, *kind.PATHS))  # type: ignore[assignment]
            return moved
        if isinstance(data.get("model"), dict):
            data["model"] = self._moved_along(data["model"], "model_name_or_path", "adapter")
        if isinstance(data.get("parallel"), dict) and data["parallel"].get("deepspeed_config"):
            data["parallel"]["deepspeed_config"] = str(self.deepspeed_file)
        return build(RunConfig, with_changes(data, self.changes()))

    def _moved_along(self, data: dict[str, Any], *names: str) -> dict[str, Any]:
        """References to earlier runs of the workspace, which may have been moved since they were written down."""
        known = {name: data[name] for name in names if isinstance(data.get(name), str)}
        return data | {name: where_it_is_now(text, self.path.parent) for name, text in known.items()}

    def changes(self) -> list[Change]:
        """What resumes changed, oldest first. Raises ConfigError when the file is wrong."""
        try:
            return parse_changes(self.changes_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([FieldError("", f"changes.yaml of run {self.id} cannot be read: {error}")]) from None

    def change(self, asked: Mapping[str, Any], step: int) -> None:
        """Record fields that hold from checkpoint `step` (0: the beginning) on. Raises ConfigError for wrong ones."""
        config = self.config()
        if not isinstance(config, RunConfig):
            raise ConfigError([FieldError("kind", "only a training has something to change; start another run")])
        fields = checked_changes(config, asked, step)
        if fields:
            write_atomic(self.changes_file, dump_changes([*self.changes(), Change(step=step, fields=fields)]))

    def append_event(self, event: BaseModel, *, durable: bool = False) -> None:
        """Append one event as one line with one write; repairs a torn last line first.

        Raises OSError when it cannot be written to its end; then nothing of it stays. `durable`: see `write_atomic`.
        """
        line = event.model_dump_json().encode() + b"\n"
        handle = os.open(self.events_file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line
            try:
                while line:  # a disk that fills up takes a part, and says why only when asked again
                    line = line[os.write(handle, line) :]
            except OSError:
                os.ftruncate(handle, size)
                raise
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)

    def read_events(self, offset: int = 0, limit: int = READ_CHUNK) -> tuple[list[AnyEvent], int]:
        """Events after byte `offset` (at most `limit` bytes of them) and the offset to go on from.

        A torn last line is left for the next read; foreign and unknown lines are skipped. An offset beyond the end
        (the file was replaced) starts over.
        """
        lines, end = self.read_lines(offset, limit)
        return [event for line in lines if (event := parse_event(line)) is not None], end

    def read_lines(self, offset: int = 0, limit: int = READ_CHUNK) -> tuple[list[bytes], int]:
        """The whole lines of the events after byte `offset`, and the offset to go on from, as in `read_events`."""
        try:
            with self.events_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = offset if 0 <= offset <= size else 0
                file.seek(start)
                block = file.read(limit)
        except FileNotFoundError:
            return [], 0
        end = block.rfind(b"\n") + 1
        if not end and len(block) == limit:  # one line longer than the limit: foreign, skip it
            return [], start + limit
        return block[:end].splitlines(), start + end

    def write_status(self, status: Status) -> None:
        """Replace status.json atomically; an end is written so that a power cut does not take it back."""
        write_atomic(self.status_file, status.model_dump_json(indent=1), durable=status.state in ENDED)

    def overwrite_status(self, status: Status) -> None:
        """Write status.json over its own blocks: the last word of an engine on a disk too full for a second file."""
        with self.status_file.open("r+b") as file:
            file.write(status.model_dump_json().encode())
            file.truncate()

    def read_status(self) -> Status | None:
        """The last status, or None when there is none; one that cannot be read is told from the last events."""
        status = self._read(self.status_file, Status)
        return self._status_of_events() if status is None and self.status_file.exists() else status

    def _status_of_events(self) -> Status | None:
        try:
            size = self.events_file.stat().st_size
        except OSError:
            return None
        events, _ = self.read_events(max(0, size - TAIL), TAIL)
        if not events:
            return None
        status = Status(state=RunState.RUNNING, step=events[-1].step, updated_at=events[-1].t)
        for event in events:
            match event:
                case PhaseEvent():
                    status.phase = event.name
                case StartedEvent():
                    status.max_steps = event.max_steps or status.max_steps
                    status.state, status.exit_code = RunState.RUNNING, None
                case FinishedEvent():
                    status.state, status.exit_code = event.state, event.exit_code
        return status

    def write_launch(self, launch: Launch) -> None:
        """Record which process works on this run."""
        write_atomic(self.launch_file, launch.model_dump_json(indent=1))

    def read_launch(self) -> Launch | None:
        """The process record, or None before the start."""
        return self._read(self.launch_file, Launch)

    @staticmethod
    def _read(path: Path, model: type[ModelT]) -> ModelT | None:
        try:
            return model.model_validate_json(path.read_bytes())
        except (OSError, ValidationError, ValueError):
            return None

    def read_report(self) -> dict[str, Any] | None:
        """The report written at the end, or None."""
        try:
            report = json.loads(self.report_file.read_bytes())
        except (OSError, ValueError):
            return None
        return report if isinstance(report, dict) else None

    def alive(self) -> bool:
        """True while the engine process of this run exists."""
        return is_alive(self.read_launch(), self.read_status())

    def state(self) -> RunState:
        """What the run is doing now."""
        # Liveness is looked up before the status is read: an engine that ends in between is then seen by its
        # last status, never as lost.
        launch = self.read_launch()
        alive = is_alive(launch, self.read_status())
        waiting = self.queue_file.exists()
        return observe(self.read_status(), launch, alive=alive, stop_exists=self.stop_requested(), waiting=waiting)

    def describe(self) -> dict[str, Any]:
        """What a list of runs shows of this one; a run whose configuration is broken is shown too."""
        status, report = self.read_status(), self.read_report() or {}
        verdict = report.get("verdict")
        return self._describe_config() | {
            "id": self.id,
            "state": str(self.state()),
            "step": status.step if status else 0,
            "max_steps": status.max_steps if status else 0,
            "phase": status.phase if status else None,
            "created_at": self.created_at,
            "updated_at": status.updated_at if status else None,
            "verdict_passed": verdict.get("passed") if isinstance(verdict, dict) else None,
            "error": status.error.model_dump() if status and status.error else None,
        }

    def _describe_config(self) -> dict[str, Any]:
        try:
            config = self.config()
        except ConfigError as error:
            return {"kind": "broken", "name": self.id, "problem": str(error)}
        if isinstance(config, OutputConfig):
            return {"kind": config.kind, "name": config.name, "model": config.subject}
        return {
            "kind": config.kind,
            "name": config.name,
            "method": config.method,
            "model": config.model.model_name_or_path,
            "dataset": config.data.dataset,
        }

    def result(self, what: Literal["adapter", "model"]) -> Path:
        """The folder of the adapter or model this run made; the run itself while there is none."""
        made = self.adapter if what == "adapter" else self.model
        with contextlib.suppress(ConfigError):
            config = self.config()
            if what == "model" and isinstance(config, OutputConfig):
                made = Path(config.out)
        return made if made.is_dir() else self.path

    def clear_leftovers(self) -> None:
        """Put right what a killed engine left half done. Only for who holds the engine's lock."""
        for leftover in self.path.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        for result in (self.adapter, self.model):
            old = result.with_name(f"{result.name}.old")
            if old.is_dir() and not result.exists():  # killed while a new result took its place
                old.rename(result)

    def request_stop(self) -> None:
        """Ask the engine to save and stop."""
        self.stop_file.touch()

    def stop_requested(self) -> bool:
        """True once somebody asked for a stop."""
        return self.stop_file.exists()
