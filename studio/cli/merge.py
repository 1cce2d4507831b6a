"""merge: put an adapter into its base model and prove the result."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from studio import runner
from studio.cli.follow import follow
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.config import MergeConfig, RunConfig
from studio.events import RunState
from studio.model_choices import find_run
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, build
from studio.workspace import Workspace


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
        "name": f"merge_{Path(out).name}"[:120],
    }
    run = runner.submit(workspace, build(MergeConfig, settings))
    try:
        code = follow(run, as_json=arguments.json)
    except KeyboardInterrupt:
        print("\nstopping the merge", file=sys.stderr)
        runner.stop(run)
        return 130
    if run.state() is RunState.FINISHED and not arguments.json:
        _report(run)
    return code


def _what(workspace: Workspace, given: list[str]) -> tuple[str, str, str]:
    """(base, adapter, out) from three references, or from a run and an optional out. Raises ConfigError."""
    if len(given) == 3:
        return given[0], _reference(workspace, given[1]), given[2]
    if len(given) > 3:
        raise _wrong("give BASE ADAPTER OUT, or RUN [OUT]")
    run = find_run(workspace, given[0])
    if run is None:
        raise _wrong(f"there is no run {given[0]!r}; `runs list` shows them all, or give BASE ADAPTER OUT")
    config = run.config()
    if not isinstance(config, RunConfig):
        raise _wrong(f"run {run.id} is no training; give the training run")
    out = given[1] if len(given) == 2 else str(_free(workspace.exports / run.id))
    return config.model.model_name_or_path, str(run.path), out


def _reference(workspace: Workspace, adapter: str) -> str:
    """An adapter folder, or the run of that name."""
    run = None if Path(adapter).exists() else find_run(workspace, adapter)
    return str(run.path if run else Path(adapter).expanduser().absolute())


def _free(path: Path) -> Path:
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


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
