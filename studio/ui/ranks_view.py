"""The processes of a run beside each other, as the Monitor shows them: what each does, since when, what it costs.

What processes write about themselves is data from files: whoever shows it sets it as text.
"""

from __future__ import annotations

import shlex
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from studio.config import RunConfig
from studio.events import Launch, RankPoint, RanksEvent, RankStatus, RunState
from studio.launch_lines import machine_argv
from studio.rundir import ENDED, RunDir
from studio.ui.engine_log import last_words
from studio.ui.live_curves import Watched
from studio.ui.run_lines import facts
from studio.ui.sentences import translated

SILENT_S = 15.0  # a process writes once a second; a machine that swaps may miss a few
STUCK_S = 30.0
STUCK_STEPS = 8  # a step that takes so many times the usual one while others wait is no slow step
RUNS_KEPT = 24
LINES_SHOWN = 16
COURSES_FOR = 16  # of more processes than that nobody reads the small curves
AT_WORK = ("load", "step", "samples", "evaluation", "verdict", "save")
"""What a process says it is in the middle of; any other word is work of an unknown kind."""
WRONG = ("failed", "died", "silent", "stuck")
SPEAKERS = 4  # so many of those that went wrong are asked for their last words


@dataclass
class Stalls:
    """Since when each process of a run has said the very same; a lower bound: looked at only while somebody does."""

    _said: dict[int, tuple[tuple[Any, ...], float]] = field(default_factory=dict)

    def since(self, status: RankStatus, now: float) -> float:
        """Unix seconds of the first look at which process `status.rank` was where it is."""
        mark = (status.attempt, status.phase, status.step, status.batch, status.busy, status.moves, status.meetings)
        known = self._said.get(status.rank)
        if known is None or known[0] != mark:
            known = self._said[status.rank] = (mark, now)
        return known[1]


@dataclass(frozen=True)
class Scene:
    """What all rows are judged by: `usual` seconds of a step (0: unknown), whether any process `waits` for another that
    is in the middle of something, which one is `blamed` for the end, and how often at most one has met others and begun
    a batch (`reached`)."""

    state: RunState
    now: float
    usual: float
    waits: bool
    blamed: int | None
    reached: tuple[int, int]


class Watching:
    """What is remembered of the runs somebody looks at, from one look to the next."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._stalls: OrderedDict[str, Stalls] = OrderedDict()

    def ranks(self, run: RunDir, language: str) -> dict[str, Any]:
        """Everything the page shows of the processes of a run; no rows for a run with one."""
        spread = {key: facts(run)[key] for key in ("processes", "machines", "machine", "address", "sharding")}
        if spread["processes"] == 1:
            return {**spread, "live": False, "ranks": [], "waiting": []}
        state, launch = run.state(), run.read_launch()
        statuses = {
            one.rank: _by_our_clock(run, one, spread) for one in run.read_ranks() if _of_this_start(one, launch)
        }
        told = self._told(run)
        latest = {point.rank: point for point in told[-1].ranks} if told else {}
        status = run.read_status()
        blamed = status.error.rank if status and status.error else None
        scene = _scene(state, statuses.values(), latest.values(), blamed)
        stalls = self._stalls_of(run)
        rows = [
            _row(rank, statuses.get(rank), latest.get(rank), scene, stalls) | _place(rank, spread)
            for rank in _shown(spread, statuses)
        ]
        for row in rows:
            row |= _left(run, row, statuses.get(row["rank"]), language)
        for row in [row for row in rows if row["state"] in WRONG][:SPEAKERS]:
            row["last_words"] = last_words(run.rank_log(row["rank"]))
        if len(rows) <= COURSES_FOR:
            _add_courses(rows, told)
        waiting = _lines(run, spread) if state.live and not told else []
        return {**spread, "live": state.live, "ranks": rows, "waiting": waiting}

    def _told(self, run: RunDir) -> list[RanksEvent]:
        """The last points of this start, oldest first."""
        curves = self._watched.of(run)
        with curves.lock:
            while curves.read(run):
                pass
            return list(curves.ranks)

    def _stalls_of(self, run: RunDir) -> Stalls:
        found = self._stalls.setdefault(str(run.path), Stalls())
        self._stalls.move_to_end(str(run.path))
        while len(self._stalls) > RUNS_KEPT:
            self._stalls.popitem(last=False)
        return found


def _by_our_clock(run: RunDir, status: RankStatus, spread: Mapping[str, Any]) -> RankStatus:
    """A process of another machine was heard of when its file was written here, whatever the clock there shows."""
    if status.machine == spread["machine"]:
        return status
    try:
        written = run.rank_file(status.rank).stat().st_mtime
    except OSError:
        return status
    return status.model_copy(update={"updated_at": written})


def _scene(
    state: RunState, statuses: Collection[RankStatus], points: Collection[RankPoint], blamed: int | None
) -> Scene:
    """`blamed`: the process the run failed for, if it was one."""
    steps = [point.step_seconds for point in points if point.step_seconds]
    return Scene(
        state=state,
        now=time.time(),
        usual=median(steps) if steps else 0.0,
        waits=len({one.busy is None for one in statuses if one.state is RunState.RUNNING}) == 2,
        blamed=blamed,
        reached=max(((one.meetings, one.batch) for one in statuses), default=(0, 0)),
    )


def _lines(run: RunDir, spread: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The line that starts the part of each other machine, while a run on several has not begun its training."""
    status = run.read_status()
    if spread["machines"] < 2 or spread["machine"] or (status and status.phase not in (None, "load")):
        return []
    config = run.config()
    assert isinstance(config, RunConfig)  # nothing else is spread out
    lines = [(n, shlex.join(machine_argv(config, n))) for n in range(1, min(spread["machines"], LINES_SHOWN + 1))]
    return [{"machine": machine, "command": command} for machine, command in lines]


def _of_this_start(status: RankStatus, launch: Launch | None) -> bool:
    return launch is None or status.attempt is None or status.attempt >= launch.attempt


def _shown(spread: Mapping[str, Any], statuses: Mapping[int, RankStatus]) -> Sequence[int]:
    """Machine 0 keeps the run and hears of all processes; another machine knows its own."""
    if spread["machine"] == 0:
        return range(spread["processes"])
    each = spread["processes"] // spread["machines"]
    own = range(spread["machine"] * each, (spread["machine"] + 1) * each)
    return sorted({*own, *statuses})


def _place(rank: int, spread: Mapping[str, Any]) -> dict[str, Any]:
    """The machine a process belongs to, by the order torch numbers them in."""
    machine = rank // max(1, spread["processes"] // spread["machines"])
    return {"machine": machine, "here": machine == spread["machine"]}


def _row(rank: int, status: RankStatus | None, point: RankPoint | None, scene: Scene, stalls: Stalls) -> dict[str, Any]:
    state, since = _state(status, point, scene, stalls)
    step = point.step_seconds if point else None
    waited = point.waited_seconds if point else None
    return {
        "rank": rank,
        "host": (status.host if status else "") or (point.host if point else ""),
        "pid": status.pid if status else 0,
        "state": state,
        "since": since,
        "step": status.step if status else None,
        "batch": status.batch if status else None,
        "memory_bytes": (status.memory_bytes if status else None) or (point.memory_bytes if point else None),
        "tokens_per_second": point.tokens_per_second if point else status.tokens_per_second if status else None,
        "waited": min(1.0, waited / step) if step and waited is not None else None,
    }


def _state(
    status: RankStatus | None, point: RankPoint | None, scene: Scene, stalls: Stalls
) -> tuple[str, float | None]:
    """What a process does, and since when where that matters: unix seconds."""
    if status is None:
        return _unseen(point, scene), None
    if status.error or status.state in ENDED or not scene.state.live:
        return _end(status, scene), status.updated_at
    if scene.now - status.updated_at > SILENT_S:
        return "silent", status.updated_at
    since = stalls.since(status, scene.now)
    behind = (status.meetings, status.batch) < scene.reached or (status.busy == "step" and scene.waits)
    if status.phase == "train" and behind and scene.now - since >= max(STUCK_S, STUCK_STEPS * scene.usual):
        return "stuck", since
    if status.busy is None:  # before the training each prepares itself and says no more than that
        return ("load" if status.phase in ("load", "tokenise") else "waiting" if scene.waits else "busy"), since
    return (status.busy if status.busy in AT_WORK else "busy"), since


def _end(status: RankStatus, scene: Scene) -> str:
    """How a process ended. Of a failed run the one that is to blame failed, or died without a word; what the others
    say of missing it is no failure of theirs."""
    own = status.error is not None and not status.error.lost
    if own:
        return "failed"
    if scene.state in (RunState.FAILED, RunState.LOST):
        return "died" if status.rank == scene.blamed else "ended"
    return status.state.value if status.state in ENDED else scene.state.value


def _unseen(point: RankPoint | None, scene: Scene) -> str:
    """Of a process that has written nothing here: it is about to, or lives on another machine."""
    if not scene.state.live:
        return "unknown" if point is None else "ended"
    return "starting" if point is None else "elsewhere"


def _left(run: RunDir, row: Mapping[str, Any], status: RankStatus | None, language: str) -> dict[str, Any]:
    """What a process has left behind: its log, and of one that failed why."""
    log = run.rank_log(row["rank"])
    error = status.error if status else None
    said = {"message": translated(error.message, language), "hint": translated(error.hint, language)} if error else None
    return {"log": log.is_file(), "error": said, "last_words": ""}


def _add_courses(rows: Sequence[dict[str, Any]], told: Sequence[RanksEvent]) -> None:
    """The course of the tokens per second of each process, for the small curves."""
    by_rank = [{point.rank: point.tokens_per_second for point in event.ranks} for event in told]
    for row in rows:
        row["course"] = [points.get(row["rank"]) for points in by_rank]
