"""answers: a file of prompts in, the answers of base and tuned model out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from studio.cli.output_run import carry_out
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.config import AnswersConfig
from studio.model_choices import find_adapted
from studio.records.template_names import check_template_name
from studio.rundir import RunDir
from studio.schema import build


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("answers", help="ask base and tuned model a file of prompts and write their answers down")
    parser.add_argument(
        "prompts", help="prompts: .txt with one a line, .jsonl, .json, .csv or .xlsx, or a saved dataset"
    )
    parser.add_argument("model", metavar="MODEL|RUN", help="built-in model, folder, hub id, run or RUN#checkpoint-N")
    parser.add_argument("out", help="the table to write: .jsonl or .xlsx; must not exist yet")
    parser.add_argument("--adapter", default=None, metavar="PATH", help="adapter folder or run to ask beside the base")
    parser.add_argument("--no-base", action="store_true", help="do not ask the base model too")
    parser.add_argument(
        "--bits", type=int, choices=(4, 8, 16, 32), default=None,
        help="bits per weight of the base (default: 4 for a run of method qlora, else 16)",
    )  # fmt: skip
    parser.add_argument("--system", default=None, help="system prompt (default: the one the run was trained with)")
    parser.add_argument("--prompt-template", metavar="NAME", help="chat template by name (default: the model's own)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest word (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="only the likeliest words that make up this share")
    parser.add_argument("--top-k", type=int, default=0, help="only so many of the likeliest words (default: all)")
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="no words less likely than this share of the likeliest"
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: fewer repetitions (default: 1)")
    parser.add_argument("--stop-words", nargs="+", default=[], metavar="TEXT", help="texts that end an answer")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same answers (default: 0)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    parser.add_argument("--json", action="store_true", help="print every event as one line of JSON")
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_answers)


def _answers(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    check_template_name(arguments.prompt_template, "prompt_template")
    choice = find_adapted(workspace, arguments.model, arguments.adapter)
    trained = choice.trained()
    own_bits = 4 if trained and trained.method == "qlora" else 16
    settings = {
        "prompts": arguments.prompts,
        # What is meant now: `last` would be another run as soon as this one is there.
        "model": choice.base if arguments.adapter else choice.key,
        "adapter": str(choice.adapter) if arguments.adapter else None,
        "out": str(Path(arguments.out).expanduser().absolute()),
        "compare": not arguments.no_base,
        "bits": arguments.bits or own_bits,
        "system": arguments.system,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "stop_words": arguments.stop_words,
        "chat_template": arguments.prompt_template,
        "seed": arguments.seed,
        "max_new_tokens": arguments.max_new_tokens,
    }
    config = build(AnswersConfig, settings)
    kept = "stopping; what is answered is kept: runs resume {run}"
    return carry_out(workspace, config, _report, stopping=kept, as_json=arguments.json)


def _report(run: RunDir) -> None:
    report: dict[str, Any] = run.read_report() or {}
    console = Console(highlight=False, markup=False)
    changed = f"; {report['changed']} answers differ" if "changed" in report else ""
    refused = f"; {report['refused']} could not be answered" if report.get("refused") else ""
    cut = f"; {report['cut']} reached the longest length" if report.get("cut") else ""
    console.print(f"{report.get('prompts')} prompts, {report.get('answers')} answers{changed}{refused}{cut}")
    console.print(f"answers: {report.get('out')}", soft_wrap=True)
