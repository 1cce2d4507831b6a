"""runs clone, again, rename, tag, delete, compare and card: what is done to runs that are there already."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from studio import labels, reruns, runner
from studio.cli.follow import follow_or_leave, print_json
from studio.cli.train import make_room, say_started
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.compare import check_count, compare
from studio.config import RunConfig
from studio.events import ExitCode
from studio.preflight import preflight
from studio.run_card import Words, number, percent, render, seconds, size
from studio.run_deletion import delete_runs
from studio.rundir import RunDir, write_atomic
from studio.schema import ConfigError, FieldError, dump_yaml, parse_overrides, walk

PIPED_WIDTH = 200
RUN = "run id, the part of it after the time, or `last`"


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs of this file to `runs`."""
    made = {}
    for name, text, function in (
        ("clone", "write the configuration of a run, to change it and train that", _clone),
        ("again", "run exactly this again", _again),
        ("rename", "give a run another title", _rename),
        ("tag", "add and remove tags", _tag),
        ("delete", "delete runs and all their files", _delete),
        ("compare", "what runs differ in, their verdicts and answers side by side", _compare),
        ("card", "all about a run in one file", _card),
    ):
        made[name] = action = actions.add_parser(name, help=text)
        several = name in ("delete", "compare")
        action.add_argument("runs" if several else "run", nargs="+" if several else None, metavar="RUN", help=RUN)
        action.add_argument("--json", action="store_true", help="print JSON")
        add_workspace(action)
        action.set_defaults(func=function)
    _add_options(made)


def _add_options(made: dict[str, argparse.ArgumentParser]) -> None:
    made["clone"].add_argument("file", nargs="?", type=Path, metavar="FILE", help="where to write it (default: stdout)")
    made["clone"].add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="overrides",
        help="change one field, like --set train.learning_rate=1e-4; may be given again",
    )
    made["again"].add_argument("--detach", action="store_true", help="return as soon as the run has started")
    add_remote_code(made["again"])
    made["rename"].add_argument("title", help="the new title; '' brings the name of its configuration back")
    made["tag"].add_argument("--add", action="append", default=[], metavar="TAG", help="may be given again")
    made["tag"].add_argument("--remove", action="append", default=[], metavar="TAG", help="may be given again")
    made["delete"].add_argument("--yes", action="store_true", help="do not ask")
    made["card"].add_argument("--html", type=Path, metavar="FILE", help="write the card as HTML")
    made["card"].add_argument("--md", type=Path, metavar="FILE", help="write the card as Markdown")
    made["card"].add_argument("--lang", choices=("en", "zh"), default="en", help="language of the card (default: en)")


# ---- the same again --------------------------------------------------------------------------------------------------


def _clone(arguments: argparse.Namespace) -> int:
    run = open_workspace(arguments).run(arguments.run)
    config = reruns.cloned(run, parse_overrides(arguments.overrides))
    text = dump_yaml(config)
    if arguments.file:
        _write(arguments.file, text)
    if arguments.json:
        print_json(config.model_dump(mode="json"))
    elif arguments.file:
        print(f"{arguments.file} has the configuration of {run.id}; train it: train {arguments.file}")
    else:
        print(text, end="")
    return ExitCode.FINISHED


def _again(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    old = workspace.run(arguments.run)
    config = reruns.frozen(old)
    found = preflight(config, workspace)
    for said in [f"{advice.level}: {advice}" for advice in found] + reruns.changed_data(workspace, old):
        print(said, file=sys.stderr)
    if any(advice.level == "error" for advice in found):
        return ExitCode.BAD_INPUT
    make_room(workspace, config)
    run = runner.submit(workspace, config)
    if arguments.detach:
        return say_started(workspace, run, as_json=arguments.json)
    return follow_or_leave(workspace, run, as_json=arguments.json)


# ---- labels, deleting ------------------------------------------------------------------------------------------------


def _rename(arguments: argparse.Namespace) -> int:
    run = open_workspace(arguments).run(arguments.run)
    return _labelled(run, labels.rename(run, arguments.title), arguments)


def _tag(arguments: argparse.Namespace) -> int:
    run = open_workspace(arguments).run(arguments.run)
    changed = arguments.add or arguments.remove
    found = labels.tag(run, arguments.add, arguments.remove) if changed else labels.read_labels(run)
    return _labelled(run, found, arguments)


def _labelled(run: RunDir, found: labels.Labels, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json({"id": run.id} | found.model_dump())
    else:
        print(f"{run.id}: {found.title or '(no title of its own)'}{''.join(f' #{tag}' for tag in found.tags)}")
    return ExitCode.FINISHED


def _delete(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    ids = list(dict.fromkeys(workspace.run(run).id for run in arguments.runs))
    if not arguments.yes and not _agreed(ids):
        print("nothing was deleted; say --yes to delete without being asked", file=sys.stderr)
        return ExitCode.BAD_INPUT
    found = delete_runs(workspace, ids)
    if arguments.json:
        print_json({"deleted": found.runs, "bytes": found.bytes, "refused": found.refused})
    else:
        for run_id in found.runs:
            print(f"{run_id} is deleted")
        for sentence in found.refused:
            print(f"error: {sentence}", file=sys.stderr)
    return ExitCode.BAD_INPUT if found.refused else ExitCode.FINISHED


def _agreed(ids: list[str]) -> bool:
    if not sys.stdin.isatty():
        return False
    print("\n".join(ids))
    what = "this run" if len(ids) == 1 else f"these {len(ids)} runs"
    return input(f"Delete {what} with all checkpoints and results? [y/N] ").strip().lower() in ("y", "yes")


# ---- compare, card ---------------------------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    runs = [workspace.run(run_id) for run_id in check_count([workspace.run(run).id for run in arguments.runs])]
    found = compare(runs)
    if arguments.json:
        print_json(found)
        return ExitCode.FINISHED
    names = [line["name"] if line["title"] else line["id"] for line in found["runs"]]
    _print("Results", names, _result_rows(found))
    known = {spec.path: spec.ui.label for spec in walk(RunConfig)}
    fields = [(_named(row["path"], known), row["values"]) for row in found["fields"]]
    _print("Configuration, where it differs", names, fields)
    _print("Surroundings, where they differ", names, [(row["path"], row["values"]) for row in found["environment"]])
    answers = [
        (row["prompt"], [entry["answer"] if entry else None for entry in row["answers"]]) for row in found["prompts"]
    ]
    _print("Last answers", names, answers)
    return ExitCode.FINISHED


def _named(path: str, known: dict[str, str]) -> str:
    return f"{known[path]} ({path})" if known.get(path) else path


def _result_rows(found: dict[str, Any]) -> list[tuple[str, list[str | None]]]:
    lines, verdicts = found["runs"], found["verdicts"]
    passed = {True: "passed", False: "not passed"}
    shares = {"learned": "learned", "leaked": "leaked", "forgot": "remembered"}
    rows: list[tuple[str, list[str | None]]] = [
        ("state", [line["state"] for line in lines]),
        ("verdict", [passed.get(verdict["passed"], "–") for verdict in verdicts]),
    ]
    for name, shown in shares.items():
        rows.append((shown, [percent((verdict["lights"].get(name) or {}).get("share")) for verdict in verdicts]))
    rows.append(("loss", [number(line["loss"]) for line in lines]))
    rows.append(("validation loss", [number(line["eval_loss"]) for line in lines]))
    rows.append(("time at work", [seconds(line["duration_seconds"]) for line in lines]))
    rows.append(("size", [size(line["size_bytes"]) for line in lines]))
    return [row for row in rows if set(row[1]) != {"–"}]


def _print(title: str, names: list[str], rows: list[tuple[str, list[str | None]]]) -> None:
    print(f"\n{title}")
    if not rows:
        print("  nothing")
        return
    table = Table("", *names, box=None)
    for name, values in rows:
        table.add_row(name, *("–" if value is None else value for value in values))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def _card(arguments: argparse.Namespace) -> int:
    run = open_workspace(arguments).run(arguments.run)
    wanted = {"html": arguments.html, "md": arguments.md}
    if not any(wanted.values()):
        wanted = {kind: Path(f"{run.id}.{kind}") for kind in wanted}
    written = {}
    for kind, file in wanted.items():
        if file:
            _write(file, render(run, "html" if kind == "html" else "md", Words(arguments.lang)))
            written[kind] = str(file)
    print_json({"id": run.id} | written) if arguments.json else print("\n".join(written.values()))
    return ExitCode.FINISHED


def _write(file: Path, text: str) -> None:
    """Write a file a person named. Raises ConfigError when it cannot be."""
    try:
        write_atomic(file, text)
    except OSError as error:
        raise ConfigError([FieldError("file", f"{file} cannot be written ({error.strerror or error})")]) from None
