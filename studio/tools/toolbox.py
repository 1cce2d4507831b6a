"""Which tools there are in a workspace: the built-in ones and the user's own."""

from __future__ import annotations

from studio.tools.clock import clock
from studio.tools.tool import Tool
from studio.workspace import Workspace


def listed(workspace: Workspace) -> list[Tool]:
    """Every tool, also those that are off (see `Tool.obstacle`)."""
    del workspace
    return [clock()]


def available(workspace: Workspace) -> list[Tool]:
    """The tools that can be used now."""
    return [tool for tool in listed(workspace) if tool.obstacle is None]
