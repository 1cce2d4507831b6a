"""The machines of one run: they meet before anything is trained, hear of each other while it runs, and end together.

Machine 0 listens at `parallel.main_process_ip`, port `parallel.port`; each of the others has one line to it
(`studio.wire`) from its start to its end. Over it goes, about once a second, how far the run is and whether it shall
stop; and at the end, how it ended and why. A line that breaks or falls silent is a machine that is gone. torch's own
store, at a port machine 0 tells, is only opened once all have met.

A machine other than 0 has a run directory of its own, in which its launcher keeps the state of the run proper.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
from pydantic import ValidationError

from studio.config import RunConfig
from studio.engine.failure import EngineError
from studio.engine.journal import Journal
from studio.events import ExitCode, RankStatus, RunError, RunState
from studio.rundir import write_atomic
from studio.wire import Line

Ended = tuple[RunState, RunError | None, ExitCode]
"""How a run, or one machine's part of it, ended."""
BEAT_S = 1.0
SILENCE_S = 30.0
LAST_WORDS_S = 8.0
END_S = 40.0
FAREWELL_S = 3.0


@dataclass
class Peer:
    """Another machine, as this one knows it. `said`: its last word, once it has ended."""

    machine: int
    host: str
    line: Line
    said: dict[str, Any] | None = None
    gone: threading.Event = field(default_factory=threading.Event)
    clock: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        """As a person calls it."""
        return f"machine {self.machine} ({self.host})" if self.host else f"machine {self.machine}"


@dataclass(frozen=True)
class Meeting:
    """What machine 0 decided for all: where torch's store is, the run's id on all machines, the step to go on from."""

    address: str
    port: int
    token: str
    run_id: str
    resume_step: int | None


class Together:
    """The lines of one machine to the others, and the threads that listen. Made by `studio.engine.gathering`."""

    def __init__(self, journal: Journal, config: RunConfig, meeting: Meeting, peers: list[Peer]) -> None:
        self.journal, self.config, self.meeting, self.peers = journal, config, meeting, peers
        self.problem: RunError | None = None
        self._told: dict[int, float] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._listen, args=(peer,), daemon=True) for peer in peers]
        self._threads.append(threading.Thread(target=self._beat, daemon=True))

    @property
    def first(self) -> bool:
        """Whether this is machine 0."""
        return not self.config.parallel.machine_rank

    def begin(self) -> None:
        """From here on the others are listened to."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Hang up."""
        self._ended.set()
        for peer in self.peers:
            peer.line.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=2 * BEAT_S)

    # ---- while the run is at work ----

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            news = {"kind": "beat", "stop": self.journal.stop_requested(), "time": time.time()}
            news |= self._progress() if self.first else self._ranks()
            for peer in self.peers:
                with contextlib.suppress(OSError):  # whoever listens to it finds out, and says so
                    peer.line.send(news)

    def _progress(self) -> dict[str, Any]:
        known = self.journal.run.read_status()
        return known.model_dump(mode="json", include={"phase", "step", "max_steps"}) if known else {}

    def _ranks(self) -> dict[str, Any]:
        """What this machine's ranks say of themselves, as far as machine 0 does not know it."""
        found = [one for one in self.journal.run.read_ranks() if one.attempt == self.journal.status.attempt]
        news = [one for one in found if self._told.get(one.rank) != one.updated_at]
        self._told |= {one.rank: one.updated_at for one in news}
        return {"ranks": [one.model_dump(mode="json") for one in news]}

    def _listen(self, peer: Peer) -> None:
        heard = time.monotonic()
        while not self._ended.is_set():
            try:
                message = peer.line.receive(BEAT_S)
                if message is not None:
                    self._take(peer, message)
            except (OSError, TypeError, ValueError):  # the end of the line, or what no machine of ours says
                break
            if message is not None:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_S:
                break
        peer.gone.set()
        if peer.said is None and not self._ended.is_set():
            self._fail(lost(peer.name))

    def _take(self, peer: Peer, message: dict[str, Any]) -> None:
        if message.get("stop") and not self.journal.stop_requested():
            with contextlib.suppress(OSError):
                self.journal.run.request_stop()
        match message.get("kind"):
            case "beat" if self.first:
                self._keep(peer, message)
            case "beat":
                self._follow(message)
            case "ended":
                peer.said = message
                if message.get("state") == RunState.STOPPED:
                    with contextlib.suppress(OSError):
                        self.journal.run.request_stop()
                elif message.get("state") != RunState.FINISHED:
                    self._fail(told_of(peer, message))

    def _follow(self, news: dict[str, Any]) -> None:
        """Machine 0's progress is this machine's."""
        changes = {name: news[name] for name in ("phase", "step", "max_steps") if news.get(name) is not None}
        with contextlib.suppress(OSError, EngineError, ValidationError, ValueError):
            checked = type(self.journal.status).model_validate(self.journal.status.model_dump() | changes)
            self.journal.update(**{name: getattr(checked, name) for name in changes})

    def _keep(self, peer: Peer, news: dict[str, Any]) -> None:
        """The state of another machine's ranks is kept beside that of this machine's, by this machine's clock."""
        each, run = self.config.parallel.processes_per_machine, self.journal.run
        behind = time.time() - _number(news.get("time"), time.time())
        for said in news.get("ranks") or []:
            with contextlib.suppress(ValidationError, OSError):
                one = RankStatus.model_validate(said)
                if one.rank // each == peer.machine and run.ranks.is_dir():
                    known = {"attempt": self.journal.status.attempt, "updated_at": one.updated_at + behind}
                    write_atomic(run.rank_file(one.rank), one.model_copy(update=known).model_dump_json(indent=1))

    def _fail(self, error: RunError) -> None:
        """The first failure counts, but one that is only an echo makes room for what it echoes."""
        with self._lock:
            if self.problem is None or (self.problem.lost and not error.lost):
                self.problem = error

    def carry_out(self, work: Callable[[], None]) -> None:
        """Do `work`, which waits for this machine's ranks; they are ended once another machine has failed.

        Raises:
            EngineError: the ranks were ended for another machine's sake. And whatever `work` raises.
        """
        # It says that signals are not handled; they are, by the journal.
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
        raised: list[BaseException] = []
        thread = threading.Thread(target=_catching, args=(work, raised), name="ranks", daemon=True)
        thread.start()
        while thread.is_alive() and self.problem is None:
            thread.join(0.2)
        thread.join(FAREWELL_S)  # a rank that fails by itself says more than one that is ended
        ended = thread.is_alive()
        if ended:
            end_children()
            thread.join(LAST_WORDS_S)  # with its ranks gone the agent has nothing to wait for but its store
        if self.problem is not None and (ended or not raised):
            raise EngineError(self.problem, code_of(self.problem), told=True)
        if raised:
            raise raised[0]

    # ---- the end ----

    def settle(self, state: RunState, error: RunError | None, code: ExitCode) -> Ended:
        """How the whole run ended, given how it ended here; tells the others, or is told by machine 0."""
        settled = self._decide(state, error, code) if self.first else self._ask(state, error, code)
        self.close()
        return settled

    def _decide(self, state: RunState, error: RunError | None, code: ExitCode) -> Ended:
        if state is RunState.FAILED and error is not None and error.lost:
            self._wait_for(lambda: self.problem is not None and not self.problem.lost, LAST_WORDS_S)
        if state is RunState.FAILED and self.problem is not None and (error is None or error.lost):
            error, code = self.problem, code_of(self.problem)
        said = {"kind": "ended", "state": str(state), "code": int(code), "error": error.model_dump() if error else None}
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.line.send(said)
        self._wait_for(lambda: all(peer.gone.is_set() for peer in self.peers), LAST_WORDS_S)
        return state, error, code

    def _ask(self, state: RunState, error: RunError | None, code: ExitCode) -> Ended:
        said = {"kind": "ended", "state": str(state), "code": int(code), "error": error.model_dump() if error else None}
        main = self.peers[0]
        with contextlib.suppress(OSError):
            main.line.send(said)
        patience = END_S if state is RunState.FAILED else float("inf")
        self._wait_for(lambda: main.said is not None or main.gone.is_set(), patience)
        if main.said is None:
            own = error if error is not None and not error.lost else None
            return RunState.FAILED, own or self.problem or lost(main.name), ExitCode.INTERNAL
        told = RunState(main.said["state"]) if main.said.get("state") in list(RunState) else RunState.FAILED
        if told is not RunState.FAILED:
            return told, None, ExitCode.STOPPED if told is RunState.STOPPED else ExitCode.FINISHED
        final = told_of(main, main.said)
        return RunState.FAILED, final, code_of(final)

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.1)


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise


def _catching(work: Callable[[], None], raised: list[BaseException]) -> None:
    try:
        work()
    except BaseException as problem:
        raised.append(problem)


def end_children() -> None:
    """End this launcher's ranks and whatever they started."""
    end(psutil.Process().children(recursive=True))


def end(children: list[psutil.Process]) -> None:
    """End processes; they are asked first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.send_signal(number)
        deadline = time.monotonic() + FAREWELL_S
        while (children := [child for child in children if _works(child)]) and time.monotonic() < deadline:
            time.sleep(0.05)


def _works(process: psutil.Process) -> bool:
    """Whether it has not ended. Its exit code is left for torch's agent to fetch."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def code_of(error: RunError) -> ExitCode:
    """The exit code of a failure that another machine told."""
    if error.kind in ("config", "data", "model"):
        return ExitCode.BAD_INPUT
    return ExitCode.OUT_OF_MEMORY if error.kind == "memory" else ExitCode.INTERNAL


def lost(name: str) -> RunError:
    """A machine that is heard no more."""
    return RunError(
        kind="internal",
        message=f"The connection to {name} was lost: it was switched off, its run was killed, or the network broke.",
        hint="Look at that machine, then resume the run on every machine (runs resume last).",
    )


def told_of(peer: Peer, message: dict[str, Any]) -> RunError:
    """Why the run failed, as the machine said on which it did."""
    try:
        error = RunError.model_validate(message.get("error"))
    except ValidationError:
        return lost(peer.name)
    if error.rank is not None or "machine " in error.message.lower():  # the process, or the machine, is named already
        return error
    return error.model_copy(update={"message": f"{error.message.rstrip('.')} (on machine {peer.machine})."})
