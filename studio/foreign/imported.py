"""What an import gives: settings for a RunConfig, and what could not be carried over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class LeftOut:
    """One setting that has no counterpart here: its line in the file, its name there and why."""

    line: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.name}: {self.reason}"


@dataclass(frozen=True)
class Imported:
    """`settings` is a nested mapping of RunConfig fields; `left_out` is in the order of the file."""

    origin: Literal["xtuner", "llamafactory"]
    settings: dict[str, Any]
    left_out: tuple[LeftOut, ...] = ()
