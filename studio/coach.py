"""Remarks on the curves of a run, by rules: what a person who has seen many of them would say, and what to change.

Works on the events alone, so that a run can be commented while it trains, after it, and on another machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from studio.events import EvalEvent, LogEvent, VerdictEvent

NoteKind = Literal["nan", "spike", "divergence", "plateau", "eval_rising", "memorised", "warmup_short"]
NoteLevel = Literal["info", "warning", "error"]


class Note(BaseModel):
    """One remark. `step`: where on the curve it belongs; `changes`: field path -> value to try next, may be empty."""

    model_config = ConfigDict(frozen=True)

    kind: NoteKind
    level: NoteLevel
    step: int
    message: str
    hint: str
    changes: dict[str, Any] = {}


def notes(
    points: Sequence[LogEvent],
    evals: Sequence[EvalEvent] = (),
    verdicts: Sequence[VerdictEvent] = (),
    finished: bool = False,
) -> list[Note]:
    """What there is to say of the curves, in the order of their steps. `finished`: no point will be added.

    Points may come in the order of writing, with steps repeated after a resume: the last of each step counts.
    """
    return []
