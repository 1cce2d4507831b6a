"""Which tools there are in a workspace: the built-in ones and the user's own."""

from __future__ import annotations

from studio.tools.built_in import built_in
from studio.tools.own import own_tools
from studio.tools.tool import Tool
from studio.workspace import Workspace


def listed(workspace: Workspace) -> list[Tool]:
    """Every tool, also those that are off (see `Tool.obstacle`); an own one never hides a built-in one."""
    found = built_in()
    for tool in own_tools(workspace):
        found.setdefault(tool.name, tool)
    return list(found.values())


def available(workspace: Workspace) -> list[Tool]:
    """The tools that can be used now."""
    return [tool for tool in listed(workspace) if tool.obstacle is None]
