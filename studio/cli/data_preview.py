"""data preview: the tokens, the loss mask and the counts of a configuration, as the training will see them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from studio.cli.follow import print_json
from studio.cli.progress import progress_bar
from studio.cli.train import load_config
from studio.cli.workspace import add_workspace, open_workspace
from studio.estimate import Plan, plan, zone
from studio.events import ExitCode
from studio.records import xray
from studio.records.errors import DataError
from studio.schema import parse_overrides

STYLES = {xray.CONTEXT: "dim", xray.TRAINED: "bold green", xray.TRUNCATED: "red strike", xray.PADDING: "dim"}
ZONES = {
    "few": "too few to learn anything",
    "good": "enough",
    "parrot": "so many for so few different rows that it will only repeat them",
}
FINDINGS = {
    "double_bos": "rows begin with the begin token twice",
    "no_end": "rows have an answer without an end token: the model will not learn to stop",
    "truncated": "rows are longer than data.max_length and are cut",
    "nothing_trained": "rows have no answer left after the cut and are not trained on",
    "skipped": "rows of the files cannot be used",
}


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the action."""
    parser.add_argument("config", help="a YAML file, or a preset name from list-cfg")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="overrides",
                        help="change one field, like --set data.dataset=nova; may be given again")  # fmt: skip
    parser.add_argument("--batches", type=int, default=1, metavar="N", help="show N batches (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_workspace(parser)
    parser.set_defaults(func=_preview)


def _preview(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    config = load_config(arguments.config, parse_overrides(arguments.overrides))
    with progress_bar("Reading the data") as report:
        found = plan(config, workspace, report, wait=True)
    if found is None:
        raise DataError(
            f"The tokenizer of {config.model.model_name_or_path} is not on this machine, so nothing can be counted. "
            "Give a model folder, or start the training: it downloads the model.",
            field="model.model_name_or_path",
        )
    view = _view(found, max(arguments.batches, 0))
    if arguments.json:
        print_json(view)
    else:
        _show(view)
    return ExitCode.FINISHED


def _view(found: Plan, batches: int) -> dict[str, Any]:
    return {
        "counts": asdict(found.counts) | {"updates_per_distinct": found.counts.updates_per_distinct},
        "zone": zone(found.counts),
        "lengths": xray.histogram(found.prepared, found.numbers.max_length),
        "findings": [asdict(item) for item in xray.findings(found.prepared, found.chat)],
        "notes": [note for source in found.prepared.sources for note in source.table.facts.notes],
        "batches": xray.batches_view(found.prepared, found.recipes, found.chat, found.numbers, batches),
    }


def _show(view: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    counts, lengths = view["counts"], view["lengths"]
    console.print(
        f"{counts['rows_read']} rows read, {counts['rows_skipped']} left out -> {counts['conversations']} examples "
        f"({counts['distinct']} different) -> {counts['packs']} packs -> {counts['updates']} optimizer updates"
    )
    console.print(f"{counts['updates_per_distinct']:.2f} updates per different row: {ZONES[view['zone']]}")
    console.print(
        f"{counts['tokens']} tokens, {counts['trained_tokens']} of them trained; {counts['padding']:.0%} padding; "
        f"half of the rows have at most {lengths['median']} tokens, the longest {lengths['longest']}"
    )
    if counts["validation"]:
        console.print(f"{counts['validation']} rows kept for the evaluation loss, never trained on")
    for item in view["findings"]:
        rows = f" (row {', '.join(map(str, item['rows'][:8]))})" if item["rows"] else ""
        count = item["count"] or "all"  # a template without an end token has none in any row
        console.print(f"note: {count} {FINDINGS[item['code']]}{rows}", markup=False)
    for note in view["notes"]:
        console.print(f"note: {note}", markup=False)
    for number, batch in enumerate(view["batches"], 1):
        console.print(f"\nbatch {number}, shape {batch['shape'][0]} x {batch['shape'][1]}  (green: trained)")
        for row in batch["rows"]:
            _show_row(console, row)


def _show_row(console: Console, row: dict[str, Any]) -> None:
    for example in row["examples"]:
        line = Text(f"row {example['row']}: ")
        for _, piece, state in example["tokens"]:
            line.append(piece.replace("\n", "⏎\n"), style=STYLES[state])
        console.print(line)
    if row["padding"]:
        console.print(Text(f"  + {row['padding']} padding tokens", style=STYLES[xray.PADDING]))
