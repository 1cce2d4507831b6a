"""The coach's notes for the page: worked out from the live curves, no more often than worth it, shared by all."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

from studio import coach
from studio.events import EvalEvent, LogEvent, VerdictEvent
from studio.rundir import RunDir
from studio.ui.live_curves import LiveCurves, Table, Watched
from studio.ui.sentences import translated

PAUSE_S = 2.0
PAUSE_FACTOR = 20  # of the time that thinking took: never more than a twentieth of a core


@dataclass
class _Thought:
    stamp: tuple[int, bool]
    again_at: float
    notes: list[coach.Note] = field(default_factory=list)


class Coaching:
    """Notes by run; the curves of a live run are looked at again every few seconds."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._thoughts: dict[str, _Thought] = {}

    def notes(self, run: RunDir, finished: bool, language: str) -> dict[str, Any]:
        """What there is to say of a run, in the visitor's language."""
        curves = self._watched.of(run)
        with curves.lock:
            while curves.read(run):
                pass
            thought = self._think(str(run.path), curves, finished)
        return {"notes": [_said(note, language) for note in thought.notes]}

    def _think(self, key: str, curves: LiveCurves, finished: bool) -> _Thought:
        stamp = (curves.offset, finished)
        known = self._thoughts.get(key)
        if known is not None:
            ended = known.stamp[1] != finished
            if known.stamp == stamp or (time.monotonic() < known.again_at and not ended):
                return known
        begun = time.monotonic()
        points, evals = _events(curves.points, LogEvent), _events(curves.evals, EvalEvent)
        found = coach.notes(points, evals, _events(curves.exams, VerdictEvent), finished)
        now = time.monotonic()
        thought = self._thoughts[key] = _Thought(stamp, now + max(PAUSE_S, PAUSE_FACTOR * (now - begun)), found)
        return thought


def _events(table: Table, kind: Any) -> list[Any]:
    """Rows as events, without checks: the values were checked when they were read."""
    names = [name for name in table.columns if name in kind.model_fields]
    rows = zip(*(table.columns[name].tolist() for name in names), strict=True)
    return [kind.model_construct(**dict(zip(names, map(_value, names, row), strict=True))) for row in rows]


def _value(name: str, value: float) -> float | int | None:
    if math.isnan(value):
        return None
    return int(value) if name == "step" else value


def _said(note: coach.Note, language: str) -> dict[str, Any]:
    said = {"message": translated(note.message, language), "hint": translated(note.hint, language)}
    return note.model_dump() | said
