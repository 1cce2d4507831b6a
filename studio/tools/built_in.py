"""The tools that come with the studio."""

from __future__ import annotations

from studio.tools.calculator import calculator
from studio.tools.clock import clock
from studio.tools.search import search
from studio.tools.solver import solver
from studio.tools.tool import Tool


def built_in() -> dict[str, Tool]:
    """Every one of them by its name, also those that are off."""
    return {tool.name: tool for tool in (calculator(), solver(), clock(), search())}
