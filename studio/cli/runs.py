"""runs: look after runs. Here: list, show, follow, stop, resume; the rest is in `studio.cli.runs_library`."""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console
from rich.table import Column, Table

from studio import run_queue, runner
from studio.cli import runs_library
from studio.cli.follow import follow_or_leave, print_json
from studio.cli.memory import remedies_json, remedies_text
from studio.cli.queued import place_of
from studio.cli.train import make_room, say_started
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode, RankStatus, RunState
from studio.library import Line, free_bytes, lines, matches, read_line
from studio.run_card import number, seconds, size
from studio.rundir import RunDir
from studio.schema import parse_overrides

PIPED_WIDTH, SHORTEST_ID = 240, 40  # characters
# From which width of the terminal a column is shown.
COLUMNS = {"state": 0, "step": 100, "model": 150, "dataset": 150, "verdict": 0, "loss": 0, "time": 100, "size": 0}
RUN = "run id, the part of it after the time, or `last`"
SORTS = {
    "newest": lambda line: -line["created_at"],
    "loss": lambda line: (line["loss"] is None, line["loss"] or 0),
    "duration": lambda line: -(line["duration_seconds"] or 0),
    "size": lambda line: -line["size_bytes"],
    "name": lambda line: line["name"].casefold(),
}


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its own verbs."""
    parser = verbs.add_parser("runs", help="list, show, compare, delete runs and more")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    made = {}
    for name, text, function in (
        ("list", "every run, newest first", _list),
        ("show", "one run in detail", _show),
        ("follow", "watch a run until it ends", _follow),
        ("stop", "save and stop a run", _stop),
        ("resume", "continue a run from its last checkpoint", _resume),
    ):
        made[name] = action = actions.add_parser(name, help=text)
        if name != "list":
            action.add_argument("run", help=RUN)
        action.add_argument("--json", action="store_true", help="print JSON")
        add_workspace(action)
        action.set_defaults(func=function)
    made["list"].add_argument("--search", default="", metavar="WORDS", help="only runs whose names or tags have them")
    made["list"].add_argument("--state", choices=[str(state) for state in RunState], help="only runs in this state")
    made["list"].add_argument("--tag", metavar="TAG", help="only runs with this tag")
    made["list"].add_argument("--sort", choices=sorted(SORTS), default="newest", help="default: newest")
    made["resume"].add_argument("--detach", action="store_true", help="return as soon as the run goes on")
    made["resume"].add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="overrides",
        help="change a field from here on, like --set train.per_device_train_batch_size=1; may be given again",
    )
    runs_library.add_actions(actions)


def _list(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    runner.look_after(workspace)
    wanted = (arguments.tag or "").casefold()
    rows = [
        line
        for line in lines(workspace)
        if matches(line, arguments.search)
        and arguments.state in (None, line["state"])
        and (not wanted or wanted in [tag.casefold() for tag in line["tags"]])
    ]
    rows.sort(key=SORTS[arguments.sort])
    if arguments.json:
        print_json(rows)
    elif rows:
        _table(rows)
        found = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
        total = sum(line["size_bytes"] for line in rows)
        print(f"{found}, {size(total)} on disk, {size(free_bytes(workspace))} free")
    elif arguments.search or arguments.state or arguments.tag:
        print("no run is like that; `runs list` shows them all")
    else:
        print("no runs yet; start one: demo, or train CONFIG")
    return ExitCode.FINISHED


def _table(rows: list[Line]) -> None:
    """As many columns as the terminal has room for; an id is never cut, for it is typed again."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    chosen = [name for name, least in COLUMNS.items() if console.width >= least]
    table = Table(Column("run", overflow="fold", min_width=SHORTEST_ID), box=None)
    for name in chosen:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for row in rows:
        verdict = {True: "passed", False: "not passed", None: ""}[row["verdict_passed"]]
        cells = {
            "state": row["state"],
            "step": f"{row['step']}/{row['max_steps']}" if row["max_steps"] else "",
            "model": row["model"],
            "dataset": row["dataset"],
            "verdict": verdict,
            "loss": number(row["loss"]),
            "time": seconds(row["duration_seconds"]),
            "size": size(row["size_bytes"]),
        }
        labels = " ".join([*([row["title"]] if row["title"] else []), *(f"#{tag}" for tag in row["tags"])])
        table.add_row(f"{row['id']}\n  {labels}" if labels else row["id"], *(cells[name] for name in chosen))
    console.print(table)


def _show(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    run = workspace.run(arguments.run)
    details = read_line(run) | {"path": str(run.path)}
    place = place_of(workspace, run)
    if place:
        details["queue"] = {"place": place[0], "why": place[1]}
    launch = run.read_launch()
    if launch:
        details["launch"] = launch.model_dump(include={"argv", "pid", "attempt", "host", "gpus"})
    report = run.read_report() or {}
    if arguments.json:
        status = run.read_status()
        error = status.error.model_dump() if status and status.error else None
        ranks = [one.model_dump() for one in run.read_ranks()]
        print_json(details | {"error": error, "remedies": remedies_json(run), "report": report or None, "ranks": ranks})
        return ExitCode.FINISHED
    for key, value in details.items():
        if value not in (None, "", []) and key != "launch":
            print(f"{key:>16}  {_shown(key, value)}")
    for line in rank_lines(run):
        print(f"{'process':>16}  {line}")
    verdict, diagnosis = report.get("verdict"), report.get("diagnosis")
    if isinstance(verdict, dict):
        print(f"{'summary':>16}  {verdict.get('summary', '')}")
    if isinstance(diagnosis, dict):
        print(f"{'diagnosis':>16}  {diagnosis.get('message', '')} {diagnosis.get('hint', '')}".rstrip())
    for line in remedies_text(run):
        print(line)
    return ExitCode.FINISHED


def rank_lines(run: RunDir) -> list[str]:
    """What each process of a run with several was doing last, and where its log is."""
    live, status = run.state().live, run.read_status()
    blamed = status.error.rank if status and status.error else None
    return [
        "  ".join(
            [
                f"{one.rank} on {one.host} (pid {one.pid})",
                _last_seen(one, live=live, blamed=blamed),
                *([size(one.memory_bytes)] if one.memory_bytes else []),
                *([f"{one.tokens_per_second:,.0f} tokens/s"] if one.tokens_per_second else []),
                *([one.error.message] if one.error else []),
                run.rank_log(one.rank).name,
            ]
        )
        for one in run.read_ranks()
    ]


def _last_seen(one: RankStatus, *, live: bool, blamed: int | None) -> str:
    """What a process was doing; one that left no word at the end of the run died, or was ended with the others."""
    state = str(one.state) if live or not one.state.live else "died" if one.rank == blamed else "ended"
    return f"{state}, step {one.step}" + (f", {one.busy}" if one.busy and state in ("running", "died") else "")


def _shown(key: str, value: object) -> str:
    if isinstance(value, dict):
        return f"place {value['place']}: {value['why']}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("_at"):
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
        if key == "duration_seconds":
            return seconds(value)
        return size(value) if key == "size_bytes" else f"{value:g}"
    return str(value)


def _follow(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    runner.look_after(workspace)
    return follow_or_leave(workspace, workspace.run(arguments.run), as_json=arguments.json)


def _stop(arguments: argparse.Namespace) -> int:
    run = open_workspace(arguments).run(arguments.run)
    if run_queue.read(run):
        raise run_queue.StartRefused(f"run {run.id} waits in the queue; take it out: queue remove {run.id}", run.id)
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
    workspace = open_workspace(arguments)
    run = workspace.run(arguments.run)
    changes = parse_overrides(arguments.overrides)
    if run.state().resumable:
        make_room(workspace, run.config())
    runner.resume(run, changes or None)
    if arguments.detach:
        return say_started(workspace, run, as_json=arguments.json, word="goes on")
    return follow_or_leave(workspace, run, as_json=arguments.json)
