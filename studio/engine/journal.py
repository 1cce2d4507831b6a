"""What an engine tells the world: events, a current status, a heartbeat; and whether somebody asked it to stop.

`supervise` runs a piece of work under all of it and turns every way it can end into a state and an exit code.
Imports nothing heavy: the first event is written before torch is loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

from filelock import Timeout

from studio import processes
from studio.engine.failure import EngineError, explain
from studio.engine.memory_guard import MemoryGuard
from studio.engine.shortage import Place
from studio.events import (
    Event,
    ExitCode,
    FinishedEvent,
    Launch,
    PhaseEvent,
    PhaseName,
    ProgressEvent,
    RunError,
    RunState,
    SavedEvent,
    StartedEvent,
    Status,
    WarningEvent,
)
from studio.rundir import RunDir

MIN_STATUS_S = 0.2
HEARTBEAT_S = 1.0
RECORD_PATIENCE_S = 2.0  # within milliseconds of the birth of an engine its process is recorded
# Told in sentences only, for people read the log too; of any other failure it keeps the whole story.
_FORESEEN = ("config", "data")
_CODES = {RunState.FINISHED: ExitCode.FINISHED, RunState.STOPPED: ExitCode.STOPPED}


class StopRequested(BaseException):  # noqa: N818 - like KeyboardInterrupt: no `except Exception` may swallow it
    """Somebody asked the run to stop while it was in a phase that can simply be left."""


class RunMoved(EngineError):
    """The run's directory is not where it was; to write on would found another one that nobody knows."""

    def __init__(self) -> None:
        message = "workspace: the run's directory was moved or deleted while the run was at work."
        hint = "Resume the run where it is now."
        super().__init__(RunError(kind="disk", message=message, hint=hint, field="workspace"), ExitCode.INTERNAL)


_UNWRITABLE = (OSError, RunMoved)


class Journal:
    """The only writer of a run's events and status; safe to use from the heartbeat thread."""

    def __init__(self, run: RunDir, attempt: int | None = None) -> None:
        self.run = run
        self.status = Status(state=RunState.RUNNING, attempt=attempt)
        self.interruptible = True
        self._requested = False
        self._lock = threading.RLock()
        self._written = 0.0
        self._mark = run.config_file if run.config_file.exists() else run.path
        self._ended = threading.Event()
        self._main = threading.get_ident()
        self.waits = self._handed_over = False

    @property
    def step(self) -> int:
        """Optimizer updates done so far; stamped on every event."""
        return self.status.step

    @property
    def place(self) -> Place:
        """Where the run is, for a failure to say."""
        return Place(self.status.phase, self.status.step)

    def begin(self, *, max_steps: int = 0, resumed_from: int | None = None) -> None:
        """The first sign of life."""
        self.update(force=True, step=resumed_from or 0, max_steps=max_steps)
        self.emit(StartedEvent(max_steps=max_steps, resumed_from=resumed_from))

    def emit(self, event: Event) -> None:
        """Append an event, stamped with the current step."""
        self._check_folder()
        event.step = self.status.step
        # The curve must not end before the checkpoint a run goes on from.
        self.run.append_event(event, durable=isinstance(event, SavedEvent | FinishedEvent))

    def update(self, *, force: bool = False, **changes: object) -> None:
        """Change fields of the status; written at most five times a second unless forced."""
        self._check_folder()
        with self._lock:
            self.status = self.status.model_copy(update=changes)
            if force or time.monotonic() - self._written >= MIN_STATUS_S:
                self._write()

    def _check_folder(self) -> None:
        if not self._mark.exists():
            raise RunMoved

    def _write(self) -> None:
        self._check_folder()
        self.status = self.status.model_copy(update={"updated_at": time.time()})
        self._written = time.monotonic()
        self._publish()

    def _publish(self) -> None:
        if not self._handed_over:
            self.run.write_status(self.status)

    @contextlib.contextmanager
    def handed_over(self, *, files: bool = True) -> Iterator[None]:
        """Inside other processes do the work. With `files` one of them writes the status and most events, too;
        afterwards this one goes on from what it wrote.

        From here on a stop is not raised any more; see `stop_requested`.
        """
        self.interruptible, self.waits, self._handed_over = False, True, files
        try:
            yield
        finally:
            with self._lock:
                known = self.run.read_status()
                if files and known and known.attempt == self.status.attempt:
                    self.status = known
                self.waits = self._handed_over = False

    def phase(self, name: PhaseName, detail: str = "") -> None:
        """A new phase begins."""
        self.update(force=True, phase=name)
        self.emit(PhaseEvent(name=name, detail=detail))

    def progress(self, done: int, total: int, label: str) -> None:
        """How far a phase without steps is."""
        self.update()
        self.emit(ProgressEvent(done=done, total=total, label=label))

    def measured(self, tokens_per_second: float | None) -> None:
        """How fast this process is by itself; told where there are several."""

    def warn(self, message: str, field: str = "") -> None:
        """Something a person should know that does not stop the run."""
        self.emit(WarningEvent(message=message, field=field))

    def stop_requested(self) -> bool:
        """True once a signal came or the stop file exists."""
        return self._requested or self.run.stop_requested()

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """A stop asked for inside is not raised here; whoever runs inside polls `stop_requested`."""
        self.interruptible = False
        try:
            yield
        finally:
            self.interruptible = True

    def finish(self, state: RunState, code: ExitCode, error: RunError | None = None) -> None:
        """The last status and the last event. A full disk hides neither the exit code nor the reason."""
        with self._lock:
            self.status = self.status.model_copy(update={"state": state, "exit_code": int(code), "error": error})
            try:
                self._write()
            except _UNWRITABLE:
                with contextlib.suppress(OSError):
                    self.run.overwrite_status(self.status)
        with contextlib.suppress(*_UNWRITABLE):
            self.emit(FinishedEvent(state=state, exit_code=int(code)))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Signals ask for a stop, and a thread keeps the status fresh and looks for the stop file."""
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGTERM, signal.SIGINT)}
        thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.interruptible = False
            self._ended.set()
            thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if self.interruptible:
            self.interruptible = False
            raise StopRequested

    def _beat(self) -> None:
        while not self._ended.wait(MIN_STATUS_S):
            self._look_around()
            if self.interruptible and not self._requested and self.run.stop_requested():
                self._interrupt()
            # A full disk shows itself where something is saved; a missed heartbeat must not end the run.
            with contextlib.suppress(*_UNWRITABLE), self._lock:
                if time.monotonic() - self._written >= HEARTBEAT_S:
                    self._write()

    def _interrupt(self) -> None:
        """Have the main thread leave what it is in; a real signal also wakes one that waits in the system."""
        signal.pthread_kill(self._main, signal.SIGTERM)

    def _look_around(self) -> None:
        """Called several times a second, whatever the work is doing."""


def supervise(run: RunDir, work: Callable[[Journal], RunState], *, journal: type[Journal] = Journal) -> int:
    """Do `work` under a journal and return the exit code.

    `work` returns FINISHED or STOPPED; whatever it raises is explained in status.json, and the traceback goes to
    stderr (engine.log) only. A second engine on the same directory refuses without touching its files.
    """
    if not run.config_file.is_file():
        return _refuse(f"{run.path} is no run directory: it has no config.yaml", ExitCode.BAD_INPUT)
    try:
        lock = run.engine_lock().acquire()
    except Timeout:
        return _refuse(f"another engine is at work in {run.path}", ExitCode.BAD_INPUT)
    except OSError as problem:
        return _refuse(f"the run directory {run.path} cannot be written: {problem}", ExitCode.INTERNAL)
    with lock:
        with contextlib.suppress(OSError):  # a disk that is full or broken is told of when the work begins
            run.clear_leftovers()
        return supervised(journal(run, _claim(run)), work)


def _refuse(sentence: str, code: ExitCode) -> int:
    _to_stderr(lambda: print(sentence, file=sys.stderr))  # noqa: T201 - this goes to engine.log
    return int(code)


def _to_stderr(say: Callable[[], None]) -> None:
    """Say something in engine.log, which may lie on a full disk."""
    with contextlib.suppress(OSError, ValueError, MemoryError):
        say()


def _tell(error: RunError) -> None:
    print(f"ERROR: {error.message}", *filter(None, [error.hint]), sep="\n", file=sys.stderr)  # noqa: T201


def _claim(run: RunDir) -> int:
    """Which start of the run this is. Whoever made it writes launch.json; if they were killed before, it is done here.

    A run without a record of its process would look as if nobody worked on it, and could be started a second time.
    """
    told = processes.marked_attempt(os.environ)
    known = run.read_launch()
    deadline = time.monotonic() + RECORD_PATIENCE_S
    while told is not None and (known is None or known.attempt < told) and time.monotonic() < deadline:
        time.sleep(0.02)
        known = run.read_launch()
    if known and processes.runs(known) and (known.attempt == told or known.pid == os.getpid()):
        return known.attempt
    attempt = told if told is not None else known.attempt + 1 if known else 1
    with contextlib.suppress(OSError):
        run.write_launch(Launch(argv=sys.orig_argv, attempt=attempt, **processes.record(os.getpid())))
    return attempt


def supervised(journal: Journal, work: Callable[[Journal], RunState]) -> int:
    """As `supervise`, for a directory that somebody else holds the lock of."""
    guard = MemoryGuard(
        lambda: None if journal.waits else journal.place,
        lambda error, code: journal.finish(RunState.FAILED, code, error),
    )
    with journal.watching():  # until the last word is written: a second signal must not keep it from being said
        state, code, error = _outcome(journal, guard, work)
        journal.finish(state, code, error)
    return int(code)


def _outcome(
    journal: Journal, guard: MemoryGuard, work: Callable[[Journal], RunState]
) -> tuple[RunState, ExitCode, RunError | None]:
    try:
        with guard.watching():
            state = work(journal)
        journal.interruptible = False
        return state, _CODES[state], None
    except (StopRequested, KeyboardInterrupt):
        return RunState.STOPPED, ExitCode.STOPPED, None
    except BaseException as problem:
        journal.interruptible = False
        error, code = explain(problem, journal.place)
        told = isinstance(problem, EngineError) and problem.told
        _to_stderr(partial(_tell, error) if error.kind in _FORESEEN or told else traceback.print_exc)
        return RunState.FAILED, code, error
