"""Blind votes of a workspace: which of two models answered better, without knowing which was which.

`chat/votes.jsonl` has one vote a line and is only ever added to, so that several pages can vote at once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.workspace import Workspace

Choice = Literal["left", "right", "both", "neither"]
CHOICES: tuple[str, ...] = get_args(Choice)
"""Which side was better: "both": equally good, "neither": equally bad."""
_RESTART = "restart"
_OTHER = {"left": "right", "right": "left"}


class Vote(BaseModel):
    """One line: a vote between two models, or the word that their count begins again."""

    model_config = ConfigDict(extra="ignore")

    left: str = Field(max_length=4096)
    right: str = Field(max_length=4096)
    choice: Literal["left", "right", "both", "neither", "restart"]
    at: float = Field(default_factory=time.time)


def add_vote(workspace: Workspace, left: str, right: str, choice: str) -> None:
    """Record a vote. Raises OSError; ValueError for a choice that is none."""
    if choice not in CHOICES:
        raise ValueError(f"a vote is one of {', '.join(CHOICES)}")
    _add(workspace, Vote(left=left, right=right, choice=choice))


def restart(workspace: Workspace, left: str, right: str) -> None:
    """Begin the count of two models again; what was voted stays in the file. Raises OSError."""
    _add(workspace, Vote(left=left, right=right, choice="restart"))


def tally(workspace: Workspace, left: str, right: str) -> dict[str, int]:
    """Votes by choice between two models, on whichever side they were then."""
    found = dict.fromkeys(CHOICES, 0)
    for vote in _votes(_file(workspace)):
        if {vote.left, vote.right} != {left, right}:
            continue
        if vote.choice == _RESTART:
            found = dict.fromkeys(CHOICES, 0)
            continue
        turned = vote.left != left
        found[_OTHER.get(vote.choice, vote.choice) if turned else vote.choice] += 1
    return found


def _file(workspace: Workspace) -> Path:
    return workspace.path / "chat" / "votes.jsonl"


def _add(workspace: Workspace, vote: Vote) -> None:
    file = _file(workspace)
    file.parent.mkdir(exist_ok=True)
    # One write to a file opened for appending: votes of several pages do not mix.
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (vote.model_dump_json() + "\n").encode())
    finally:
        os.close(handle)


def _votes(file: Path) -> Iterator[Vote]:
    """Every vote that can be read."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield Vote.model_validate(json.loads(line))
        except (ValidationError, ValueError):
            continue
