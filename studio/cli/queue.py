"""queue: see and change the order of the runs that wait."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from studio import run_queue, runner
from studio.cli.follow import print_json
from studio.cli.queued import describe
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode
from studio.workspace import Workspace

RUN = "run id, the part of it after the time, or `last`"


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its own verbs."""
    parser = verbs.add_parser("queue", help="see and change the order of the runs that wait")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    made = {}
    for name, text, function in (
        ("list", "what runs, what waits and for what", _list),
        ("move", "give a waiting run another place", _move),
        ("next", "start a waiting run before all others", _next),
        ("pause", "let a run, or the whole queue, wait", _pause),
        ("resume", "let a paused run, or the whole queue, go on", _resume),
        ("remove", "take a run out of the queue", _remove),
        ("settings", "how many runs may go at once", _settings),
    ):
        made[name] = action = actions.add_parser(name, help=text)
        action.add_argument("--json", action="store_true", help="print the queue as JSON")
        add_workspace(action)
        action.set_defaults(func=function)
    for name in ("move", "next", "remove"):
        made[name].add_argument("run", help=RUN)
    for name in ("pause", "resume"):
        made[name].add_argument("run", nargs="?", help=f"{RUN}; without it the whole queue")
    made["move"].add_argument("place", type=int, help="its new place, counted from 1")
    made["settings"].add_argument(
        "--max-running", type=int, metavar="N", help="runs at once that share the main memory (default: 1)"
    )


def _move(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    run_queue.move(workspace.run(arguments.run), arguments.place)
    return _after(workspace, arguments)


def _next(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    run_queue.run_next(workspace.run(arguments.run))
    return _after(workspace, arguments)


def _pause(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    if arguments.run:
        run_queue.pause(workspace.run(arguments.run))
    else:
        run_queue.pause_all(workspace)
    return _after(workspace, arguments)


def _resume(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    if arguments.run:
        run_queue.unpause(workspace.run(arguments.run))
    else:
        run_queue.unpause_all(workspace)
    return _after(workspace, arguments)


def _remove(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    run_queue.remove(workspace.run(arguments.run))
    return _after(workspace, arguments)


def _settings(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    if arguments.max_running is not None:
        run_queue.change_settings(workspace, max_running=arguments.max_running)
    return _after(workspace, arguments)


def _list(arguments: argparse.Namespace) -> int:
    return _after(open_workspace(arguments), arguments)


def _after(workspace: Workspace, arguments: argparse.Namespace) -> int:
    """Have the queue go on, and show it as it is now."""
    runner.look_after(workspace)
    found = describe(workspace)
    print_json(found) if arguments.json else _print(found)
    return ExitCode.FINISHED


def _print(found: dict[str, Any]) -> None:
    held = "paused" if found["paused"] else "open"
    print(f"The queue is {held}; runs at once without a GPU of their own: {found['max_running']}")
    if not found["running"] and not found["waiting"]:
        print("nothing runs and nothing waits; start a run: demo, or train CONFIG")
        return
    table = Table("", "run", "cards", "since", "", box=None)
    for run in found["running"]:
        table.add_row("▶", run["id"], _cards(run["gpus"]), "", f"{run['state']}, step {run['step']}/{run['max_steps']}")
    for run in found["waiting"]:
        wanted = _cards(run["gpus"]) or (f"any {run['gpu_count']}" if run["gpu_count"] > 1 else "")
        since = time.strftime("%m-%d %H:%M", time.localtime(run["queued_at"]))
        table.add_row(str(run["place"]), run["id"], wanted, since, run["why"])
    Console(highlight=False, markup=False).print(table)


def _cards(gpus: list[int] | None) -> str:
    return ",".join(map(str, gpus or []))
