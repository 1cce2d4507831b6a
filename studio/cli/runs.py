"""runs: list, show, follow, stop and resume runs."""

from __future__ import annotations

import argparse
import time

from rich.console import Console
from rich.table import Table

from studio import runner
from studio.cli.follow import follow, print_json
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode, RunState


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its own verbs."""
    parser = verbs.add_parser("runs", help="list, show, follow, stop or resume runs")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, text, function in (
        ("list", "every run, newest first", _list),
        ("show", "one run in detail", _show),
        ("follow", "watch a run until it ends", _follow),
        ("stop", "save and stop a run", _stop),
        ("resume", "continue a run from its last checkpoint", _resume),
    ):
        action = actions.add_parser(name, help=text)
        if name != "list":
            action.add_argument("run", help="run id, the part of it after the time, or `last`")
        action.add_argument("--json", action="store_true", help="print JSON")
        if name == "resume":
            action.add_argument("--detach", action="store_true", help="return as soon as the run goes on")
        add_workspace(action)
        action.set_defaults(func=function)


def _list(arguments: argparse.Namespace) -> int:
    rows = [run.describe() for run in open_workspace(arguments).list_runs()]
    if arguments.json:
        print_json(rows)
        return ExitCode.FINISHED
    if not rows:
        print("no runs yet; start one: demo, or train CONFIG")
        return ExitCode.FINISHED
    table = Table("run", "state", "step", "method", "verdict", "started", box=None)
    for row in rows:
        verdict = {True: "passed", False: "not passed", None: ""}[row["verdict_passed"]]
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_at"]))
        steps = f"{row['step']}/{row['max_steps']}"
        table.add_row(row["id"], row["state"], steps, row.get("method", row["kind"]), verdict, started)
    Console(highlight=False, markup=False).print(table)
    return ExitCode.FINISHED


def _show(arguments: argparse.Namespace) -> int:
    run = open_workspace(arguments).run(arguments.run)
    details = run.describe() | {"path": str(run.path)}
    launch = run.read_launch()
    if launch:
        details["launch"] = launch.model_dump(include={"argv", "pid", "attempt", "host"})
    details["report"] = run.read_report()
    if arguments.json:
        print_json(details)
        return ExitCode.FINISHED
    for key, value in details.items():
        if value not in (None, "") and key not in ("launch", "report"):
            print(f"{key:>14}  {value}")
    verdict = (run.read_report() or {}).get("verdict")
    if isinstance(verdict, dict):
        print(f"{'summary':>14}  {verdict.get('summary', '')}")
    return ExitCode.FINISHED


def _follow(arguments: argparse.Namespace) -> int:
    return follow(open_workspace(arguments).run(arguments.run), as_json=arguments.json)


def _stop(arguments: argparse.Namespace) -> int:
    run = open_workspace(arguments).run(arguments.run)
    before = run.state()
    state = runner.stop(run)
    if arguments.json:
        print_json({"id": run.id, "state": str(state)})
    elif before.live:
        print(f"{run.id} is {state}")
    else:
        print(f"{run.id} was not running; it is {state}")
    return ExitCode.FINISHED if state in (RunState.STOPPED, RunState.FINISHED) else ExitCode.INTERNAL


def _resume(arguments: argparse.Namespace) -> int:
    run = open_workspace(arguments).run(arguments.run)
    runner.resume(run)
    if arguments.detach:
        print_json({"id": run.id}) if arguments.json else print(f"{run.id} goes on; watch it: runs follow {run.id}")
        return ExitCode.FINISHED
    return follow(run, as_json=arguments.json)
