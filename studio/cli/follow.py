"""Watches a run from the terminal: reads its directory, draws a bar, says how it ended."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from studio import run_queue, runner
from studio.cli.memory import remedies_text
from studio.cli.queued import place_of
from studio.compare import spoken
from studio.events import (
    AnyEvent,
    CountsEvent,
    ExitCode,
    LogEvent,
    PhaseEvent,
    ProgressEvent,
    RanksEvent,
    RunState,
    SampleEvent,
    StartedEvent,
    WarningEvent,
)
from studio.rundir import RunDir
from studio.workspace import Workspace

POLL_S = 0.2
QUEUE_POLL_S = 2.0
LINE_S, STILL_S = 10.0, 30.0
"""Where no line can change: a new one at most this often, and at least this often."""
_EXIT = {RunState.FINISHED: ExitCode.FINISHED, RunState.STOPPED: ExitCode.STOPPED, RunState.LOST: ExitCode.INTERNAL}
_PHASES = {
    "load": "Loading the model",
    "tokenise": "Reading the data",
    "train": "Training",
    "save": "Saving",
    "verdict": "Checking what it learned",
    "merge": "Merging",
    "proof": "Proving the result",
    "convert": "Converting",
    "export": "Exporting",
    "upload": "Uploading",
    "answer": "Answering",
}


def events_until_end(run: RunDir, offset: int = 0) -> Iterator[AnyEvent | None]:
    """Events as they are written, None while there is nothing new; ends after the last event of an ended run.

    While the run waits in the queue this sees to it that somebody starts it when its turn comes.
    """
    looked_at = -QUEUE_POLL_S
    while True:
        ended = not _goes_on(run)  # looked up before reading, so that no late event is missed
        events, offset = run.read_events(offset)
        yield from events
        if ended and not events:
            return
        if not events:
            if time.monotonic() - looked_at > QUEUE_POLL_S and run_queue.read(run):
                looked_at = time.monotonic()
                runner.look_after(run_queue.workspace_of(run))
            yield None
            time.sleep(POLL_S)


def _goes_on(run: RunDir) -> bool:
    """True while the run has a place in the queue or is at work; asked in this order, for one becomes the other."""
    return run_queue.read(run) is not None or run.state().live


def exit_code(run: RunDir) -> int:
    """The exit code that tells how the run ended (DESIGN §5)."""
    state, status = run.state(), run.read_status()
    if state is RunState.QUEUED:  # taken out of the queue before it began
        return int(ExitCode.STOPPED)
    if state in _EXIT:
        return int(_EXIT[state])
    return int(status.exit_code) if status and status.exit_code else int(ExitCode.INTERNAL)


def follow(run: RunDir, *, as_json: bool = False) -> int:
    """Show a run until it ends; returns its exit code. With `as_json` every event is one line on stdout."""
    if as_json:
        for event in events_until_end(run):
            if event is not None:
                print(event.model_dump_json(), flush=True)
        return exit_code(run)
    console = Console(stderr=True, highlight=False)
    shown: _Bar | _Lines = _Bar(run, console) if console.is_terminal else _Lines(run, console)
    with shown:
        for event in events_until_end(run):
            if event is not None:
                shown.show(event)
            else:
                shown.wait()
    report_end(run, console)
    return exit_code(run)


def follow_or_leave(workspace: Workspace, run: RunDir, *, as_json: bool = False) -> int:
    """`follow`, saying on Ctrl-C that the run goes on or keeps its place; 130 then."""
    try:
        return follow(run, as_json=as_json)
    except KeyboardInterrupt:
        runner.look_after(workspace)
        if run_queue.read(run):
            print(f"\nthe run stays in the queue: queue list; take it out: queue remove {run.id}", file=sys.stderr)
        else:
            print(f"\nthe run goes on; watch it: runs follow {run.id}; end it: runs stop {run.id}", file=sys.stderr)
        return 130


class _Shown:
    """What both ways to show a run know of it."""

    def __init__(self, run: RunDir, console: Console) -> None:
        self.run, self.console = run, console
        self.max_steps, self.others = 0, ""
        self.asked_at = -QUEUE_POLL_S

    def waits_for(self) -> str:
        """The place in the queue and what the run waits for there, looked up now and then; "" if it has none."""
        if time.monotonic() - self.asked_at < QUEUE_POLL_S or run_queue.read(self.run) is None:
            return ""
        self.asked_at = time.monotonic()
        place = place_of(run_queue.workspace_of(self.run), self.run)
        return f"place {place[0]}: {place[1]}" if place else ""

    def note(self, event: LogEvent) -> str:
        """A point of the curves in words."""
        loss = "–" if event.loss is None else f"{event.loss:.3f}"
        if not self.max_steps and (status := self.run.read_status()):
            self.max_steps = status.max_steps  # counted when the data had been read, after the run's first event
        return f"step {event.step}/{self.max_steps or '?'}  loss {loss}{self.others}"

    def common(self, event: AnyEvent) -> None:
        """What is kept or told of an event either way."""
        if isinstance(event, StartedEvent):
            self.max_steps = event.max_steps or self.max_steps
        elif isinstance(event, RanksEvent):
            self.others = f"  processes wait {_longest_wait(event):.0%}"
        elif isinstance(event, WarningEvent):
            self.console.print(f"warning: {event.message}", markup=False, soft_wrap=True)
        elif isinstance(event, SampleEvent):
            answer = f"  step {event.step:>4}  {spoken(event.prompt)}  →  {event.answer}"
            self.console.print(answer, markup=False, soft_wrap=not self.console.is_terminal)


class _Lines(_Shown):
    """For a log file or a pipe, which see no line that changes: a line per phase, and now and then one in between."""

    def __init__(self, run: RunDir, console: Console) -> None:
        super().__init__(run, console)
        self.begun: float | None = None
        self.said_at, self.heard_at = 0.0, time.time()
        self.last = "Starting the engine; loading its libraries takes a while"
        self.told = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left open."""

    def wait(self) -> None:
        """Say at once that the run is started, what it waits for, and now and then that it is still at the same."""
        now, place = time.time(), self.waits_for()
        if place and place != self.told:
            self.told = place
            self._say(now, f"Waiting in the queue, {place}")
        elif self.said_at == 0.0 and run_queue.read(self.run) is None:
            self._say(now, self.last)
        elif now - max(self.heard_at, self.said_at) > STILL_S and run_queue.read(self.run) is None:
            self._say(now, f"{self.last} (still at it)")

    def show(self, event: AnyEvent) -> None:
        """The line of an event, unless the one before was told just now."""
        self.heard_at = time.time()
        self.common(event)
        if isinstance(event, PhaseEvent):
            self.last = _PHASES.get(event.name, event.name) + (f": {event.detail}" if event.detail else "")
            self._say(event.t, self.last)
        elif isinstance(event, CountsEvent):
            counts = (
                f"{event.rows_read:,} rows, {event.conversations:,} conversations, {event.tokens:,} tokens, "
                f"{event.packs:,} packs, {event.updates:,} updates"
            )
            self._say(event.t, counts)
        elif isinstance(event, ProgressEvent) and self._due(event.t):
            whole = f" of {event.total:,}" if event.total else ""
            self._say(event.t, f"{event.label or self.last}: {event.done:,}{whole}")
        elif isinstance(event, ProgressEvent):
            self.last = event.label or self.last
        elif isinstance(event, LogEvent):
            said = self.note(event)  # first: it may learn how many steps there are
            if self._due(event.t) or event.step == self.max_steps:
                left = "" if event.eta_seconds is None else f"  {_clock(event.eta_seconds)} left"
                self._say(event.t, said + left)

    def _due(self, moment: float) -> bool:
        return moment - self.said_at >= LINE_S

    def _say(self, moment: float, text: str) -> None:
        self.begun = moment if self.begun is None else self.begun
        self.said_at = moment
        self.console.print(f"{_clock(moment - self.begun):>7}  {text}", markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Bar(_Shown):
    """Turns events into one progress line per phase."""

    def __init__(self, run: RunDir, console: Console) -> None:
        super().__init__(run, console)
        self.progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(None),  # as wide as the words leave room
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self.task: TaskID = self.progress.add_task("Starting", total=None, note="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Fill the last line, unless the watching was given up."""
        if kind is None:
            self.close()
        self.progress.stop()

    def wait(self) -> None:
        """Say what the run waits for."""
        if place := self.waits_for():
            self.progress.update(self.task, description="Waiting in the queue", note=place)

    def show(self, event: AnyEvent) -> None:
        """Advance the line the event belongs to."""
        self.common(event)
        if isinstance(event, PhaseEvent):
            self._next(_PHASES.get(event.name, event.name))
        elif isinstance(event, ProgressEvent):
            self.progress.update(self.task, total=event.total or None, completed=event.done, note=event.label)
        elif isinstance(event, LogEvent):
            note = self.note(event)  # first: it may learn how many steps there are
            self.progress.update(self.task, total=self.max_steps or None, completed=event.step, note=note)

    def _next(self, title: str) -> None:
        self.close()
        self.task = self.progress.add_task(title, total=None, note="")

    def close(self) -> None:
        """Fill the current line."""
        task = self.progress.tasks[-1]
        self.progress.update(self.task, total=task.total or 1, completed=task.total or 1)
        self.progress.stop_task(self.task)


def _longest_wait(event: RanksEvent) -> float:
    """The share of a step that the quickest process waits for the others."""
    waits = [one.waited_seconds / one.step_seconds for one in event.ranks if one.waited_seconds and one.step_seconds]
    return max(waits, default=0.0)


def report_end(run: RunDir, console: Console) -> None:
    """Say how a run ended and, if it failed, why and what to do."""
    state, status = run.state(), run.read_status()
    if state is RunState.QUEUED or not run.path.is_dir():
        console.print(f"{run.id} was taken out of the queue", markup=False)
        return
    console.print(f"{run.id}: {state}", markup=False)
    if status and status.error and state is RunState.FAILED:
        console.print(f"error: {status.error.message}", markup=False)
        if status.error.hint:
            console.print(f"what to do: {status.error.hint}", markup=False)
        for line in remedies_text(run):
            console.print(line, markup=False, soft_wrap=True)
    elif state is RunState.FINISHED:
        _report_verdict(run, console)
    elif state in (RunState.LOST, RunState.FAILED):
        console.print(f"what to do: read {run.log_file}, then: runs resume {run.id}", markup=False)


def _report_verdict(run: RunDir, console: Console) -> None:
    """What the verdict of a training says, what that means and what to change next."""
    report = run.read_report() or {}
    verdict, diagnosis = report.get("verdict"), report.get("diagnosis")
    if isinstance(verdict, dict) and verdict.get("summary"):
        console.print(f"verdict: {verdict['summary']}", markup=False, soft_wrap=True)
    if isinstance(diagnosis, dict) and verdict:
        said = f"{diagnosis.get('message', '')} {diagnosis.get('hint', '')}".strip()
        console.print(f"what it means: {said}", markup=False, soft_wrap=True)
        changes = "".join(f" --set {path}={json.dumps(to)}" for path, to in (diagnosis.get("changes") or {}).items())
        if changes:
            command = f"runs clone {run.id} next.yaml{changes}, then: train next.yaml"
            console.print(f"try next: {command}", markup=False, soft_wrap=True)


def print_json(data: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(data, ensure_ascii=False, indent=1))
