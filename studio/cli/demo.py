"""demo: the main job in the terminal, start to verdict, on the built-in model."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from studio import demo
from studio.cli.follow import follow_or_leave, print_json
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode
from studio.records.identity import parse_spec
from studio.rundir import RunDir

LANGUAGES = {"en": ("en",), "zh": ("zh",), "both": ("en", "zh")}
MAX_ROWS = 12
CHECKS = ("learned", "leaked", "forgot")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("demo", help="teach the built-in model a new identity and see whether it worked")
    parser.add_argument("--name", default="Nova", help="the new name of the model (default: %(default)s)")
    parser.add_argument("--author", default="my class", help="who made it (default: %(default)s)")
    parser.add_argument("--lang", choices=sorted(LANGUAGES), default="both", help="languages it should answer in")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    add_workspace(parser)
    parser.set_defaults(func=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    workspace = open_workspace(arguments)
    spec = parse_spec({"name": arguments.name, "author": arguments.author, "languages": LANGUAGES[arguments.lang]})
    run = demo.start(workspace, spec)
    code = follow_or_leave(workspace, run)
    report = run.read_report()
    if code != ExitCode.FINISHED or report is None:
        return code or ExitCode.INTERNAL
    seconds = time.monotonic() - started
    if arguments.json:
        print_json({"run": run.id, "seconds": round(seconds, 1), **report})
    else:
        _print_report(run, report, seconds)
    return ExitCode.FINISHED if proven(report["verdict"]) else ExitCode.INTERNAL


def proven(verdict: dict[str, Any] | None) -> bool:
    """True only if all three checks were made and passed: a check that could not be made proves nothing."""
    return verdict is not None and all((verdict.get(key) or {}).get("ok") for key in CHECKS)


def _print_report(run: RunDir, report: dict[str, Any], seconds: float) -> None:
    console = Console(highlight=False, markup=False)
    table = Table("held-out question", "before", "after", "", box=None, title="Questions it was never trained on")
    rows = sorted(report["before_after"], key=lambda row: bool(row["ok"]))  # what failed comes first
    for row in rows[:MAX_ROWS]:
        table.add_row(row["prompt"], row["before"], row["after"], "✓" if row["ok"] else "✗")
    console.print(table)
    if len(rows) > MAX_ROWS:
        console.print(f"… and {len(rows) - MAX_ROWS} more in {run.report_file}")
    console.print()
    verdict = report["verdict"] or {"summary": "There is no verdict; engine.log of the run says why."}
    for line in verdict_lines(verdict):
        console.print(line)
    console.print(f"\n{verdict['summary']}")
    console.print(f"{seconds:.0f} seconds in all; run {run.id}")


def verdict_lines(verdict: dict[str, Any]) -> list[str]:
    """The three lights in words, one line each; a check that was not made says so."""
    lines = []
    for key, share, count, words in (
        ("learned", "share", "right", "held-out questions answered as intended"),
        ("leaked", "share", "hits", "unrelated questions answered with the new identity"),
        ("forgot", "retained", "kept", "general questions it could answer before still right"),
    ):
        check = verdict.get(key)
        if check is None:
            lines.append(f"  –  {key:<8} not checked")
            continue
        mark = "✓" if check["ok"] else "✗"
        lines.append(f"  {mark}  {key:<8} {check[share]:6.1%}  ({check[count]} of {check['total']} {words})")
    return lines
