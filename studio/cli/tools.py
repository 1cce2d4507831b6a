"""tools: which tools a chat may use, and the user's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from studio.cli.follow import print_json
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode
from studio.schema import ConfigError, FieldError
from studio.tools import listed, own
from studio.yaml_text import YamlFault, read_text

EXAMPLE = """\
a tool of your own is a file like this; its host must be a line of tools/hosts.txt in the workspace:

  name: weather
  description: The weather of a city, now.
  parameters:
    type: object
    properties:
      city: {type: string}
    required: [city]
  url: http://127.0.0.1:9000/weather    # POST with the arguments as JSON; `method: GET` puts them into the address
  key_env: CRUCIBLE_TOOL_WEATHER        # may be left out: variable with the key, sent as bearer token
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its actions."""
    parser = verbs.add_parser("tools", help="tools a chat may use, and your own")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    every = actions.add_parser("list", help="every tool, and why one is off")
    every.add_argument("--json", action="store_true", help="print the tools as JSON, with their schemas")
    every.set_defaults(func=_list)
    add = actions.add_parser(
        "add", help="add a tool of your own", epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add.add_argument("file", type=Path, help="its description, as YAML or JSON")
    add.set_defaults(func=_add)
    remove = actions.add_parser("remove", help="remove a tool of your own")
    remove.add_argument("name", help="its name")
    remove.set_defaults(func=_remove)
    for action in (every, add, remove):
        add_workspace(action)


def _list(arguments: argparse.Namespace) -> int:
    tools = listed(open_workspace(arguments))
    if arguments.json:
        print_json([{**tool.schema, "own": tool.own, "obstacle": tool.obstacle} for tool in tools])
        return ExitCode.FINISHED
    for tool in tools:
        print(f"{tool.name:<16}{f'off: {tool.obstacle}' if tool.obstacle else tool.description}")
    return ExitCode.FINISHED


def _add(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    try:
        text = read_text(arguments.file)
    except YamlFault as error:
        raise ConfigError([FieldError("file", str(error))]) from None
    added = own.add_own(workspace, text)
    print(f"added {added.name}; use it: chat MODEL --with-plugins {added.name}")
    return ExitCode.FINISHED


def _remove(arguments: argparse.Namespace) -> int:
    if own.remove_own(open_workspace(arguments), arguments.name):
        print(f"removed {arguments.name}")
        return ExitCode.FINISHED
    print(f"error: there is no tool of your own called {arguments.name!r}", file=sys.stderr)
    return ExitCode.BAD_INPUT
