"""merge: put an adapter into its base model and prove the result."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from studio.cli.output_run import carry_out
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.config import MergeConfig
from studio.model_choices import SEPARATOR, find_choice, find_run
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, build
from studio.workspace import Workspace, free_path


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "merge",
        help="merge an adapter into its base model",
        usage="%(prog)s BASE ADAPTER OUT [options]\n       %(prog)s RUN [OUT] [options]",
    )
    parser.add_argument(
        "what", nargs="+", metavar="BASE ADAPTER OUT | RUN [OUT]", help="models and folders, or a finished run"
    )
    parser.add_argument("--max-shard-size", default="2GB", metavar="SIZE", help="largest weights file (default: 2GB)")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32 (default: bfloat16)")
    parser.add_argument("--merge-base", default="original", help="original (default) or dequantized 4-bit weights")
    parser.add_argument(
        "--layout",
        choices=("converted", "original"),
        default="converted",
        help="of a base that was converted (InternLM2 and others): as every tool reads it (default), or as it was",
    )
    parser.add_argument("--device", default="cpu", help="where the sums are done: cpu (default), cuda or auto")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="PATH[:WEIGHT]",
        help="one more adapter that is added, and how much of it (default 1); may be repeated",
    )
    parser.add_argument("--weight", type=float, default=1.0, help="how much of ADAPTER is added (default: 1)")
    parser.add_argument("--json", action="store_true", help="print every event as one line of JSON")
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    base, adapter, out = _what(workspace, arguments.what)
    settings = {
        "base": base,
        "adapter": adapter,
        "out": str(Path(out).expanduser().absolute()),
        "max_shard_size": arguments.max_shard_size,
        "dtype": arguments.dtype,
        "merge_base": arguments.merge_base,
        "layout": arguments.layout,
        "device": arguments.device,
        "weight": arguments.weight,
        "more_adapters": [_weighted(workspace, text) for text in arguments.adapter],
        "name": f"merge_{Path(out).name}"[:120],
    }
    config = build(MergeConfig, settings)
    return carry_out(workspace, config, _report, stopping="stopping the merge", as_json=arguments.json)


def _what(workspace: Workspace, given: list[str]) -> tuple[str, str, str]:
    """(base, adapter, out) from three references, or from a run and an optional out. Raises ConfigError."""
    if len(given) == 3:
        return given[0], _adapter(workspace, given[1]), given[2]
    if len(given) > 3:
        raise _wrong("give BASE ADAPTER OUT, or RUN [OUT]")
    if find_run(workspace, given[0].partition(SEPARATOR)[0]) is None:
        raise _wrong(f"there is no run {given[0]!r}; `runs list` shows them all, or give BASE ADAPTER OUT")
    choice = find_choice(workspace, given[0])
    run = choice.run
    if run is None or choice.trained() is None:
        raise _wrong(f"{given[0]} is no training; give the training run")
    out = given[1] if len(given) == 2 else str(free_path(workspace.exports / choice.key.replace(SEPARATOR, "_")))
    return choice.base, str(choice.adapter or choice.base), out


def _adapter(workspace: Workspace, reference: str) -> str:
    """The folder of an adapter: that of a path, of a run (its best step) or of RUN#checkpoint-N."""
    known = find_run(workspace, reference.partition(SEPARATOR)[0]) if not Path(reference).exists() else None
    choice = find_choice(workspace, reference) if known else None
    return str((choice and choice.adapter) or Path(reference).expanduser().absolute())


def _weighted(workspace: Workspace, text: str) -> dict[str, Any]:
    """PATH:WEIGHT as the configuration has it; a path may have colons of its own."""
    path, _, weight = text.rpartition(":")
    try:
        number = float(weight)
    except ValueError:
        path = ""
    return {"path": _adapter(workspace, path), "weight": number} if path else {"path": _adapter(workspace, text)}


def _wrong(sentence: str) -> ConfigError:
    return ConfigError([FieldError("merge", sentence)])


def _report(run: RunDir) -> None:
    report: dict[str, Any] = run.read_report() or {}
    proof = report.get("proof", {})
    console = Console(highlight=False, markup=False)
    console.print(f"merged model: {report.get('out')}", soft_wrap=True)
    console.print(f"{report.get('shards')} weights file(s), {report.get('size_bytes', 0) / 1e6:.0f} MB in all")
    console.print(
        f"proof: {proof.get('answers_equal')} of {proof.get('prompts')} answers equal to base + adapter; largest logit "
        f"difference {proof.get('max_logit_difference', 0):.2g} (allowed {proof.get('tolerance', 0):.2g})",
        soft_wrap=True,
    )
    show_bases(console, report)


def show_bases(console: Console, report: dict[str, Any]) -> None:
    """Of a 4-bit run: what both bases it can be merged into make of the answers."""
    for name, found in report.get("bases", {}).items():
        title = "unpacked 4-bit weights" if name == "dequantized" else "original weights"
        chosen = " (chosen)" if report.get("merge_base") == name else ""
        console.print(
            f"on the {title}{chosen}: largest logit difference to what was trained "
            f"{found['max_logit_difference']:.2g}, {found['answers_equal']} of {found['prompts']} answers equal",
            soft_wrap=True,
        )
