"""data: build an identity set, or look into a dataset or file as the training will read it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from studio.cli.follow import print_json
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode
from studio.presets import resolve_model
from studio.records.chat_tokenizer import ChatTokenizer, Encoded
from studio.records.errors import DataError, shown
from studio.records.formats import ReadResult, read_file
from studio.records.identity import build_identity, parse_spec
from studio.records.store import DatasetInfo, DatasetStore

LANGUAGES = {"en": ("en",), "zh": ("zh",), "both": ("en", "zh")}
SHOWN_ROWS = 3
SHOWN_SKIPPED = 20


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its own verbs."""
    parser = verbs.add_parser("data", help="build an identity set, or inspect a dataset or file")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_identity(actions.add_parser("identity", help="build an identity set and save it as a dataset"))
    _add_inspect(actions.add_parser("inspect", help="show what the training would read from a dataset or file"))


def _add_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="what the model calls itself")
    parser.add_argument("--author", required=True, help="who made it, by its own account")
    parser.add_argument("--lang", choices=sorted(LANGUAGES), default="both", help="languages (default: %(default)s)")
    parser.add_argument("--tone", default="plain", help="plain, friendly or formal (default: %(default)s)")
    parser.add_argument("--fact", action="append", default=[], metavar="TEXT", help="a fact about it; may be repeated")
    parser.add_argument("--replay", type=float, default=0.5, metavar="SHARE", help="share of general rows, 0 to 0.9")
    parser.add_argument("--rows", type=int, default=None, metavar="N", help="identity rows per language, 60 or more")
    parser.add_argument("--seed", type=int, default=42, help="same seed, same rows (default: %(default)s)")
    parser.add_argument("--out", default=None, metavar="NAME", help="name of the dataset (default: the model's name)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_workspace(parser)
    parser.set_defaults(func=_identity)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="FILE_OR_DATASET", help="a saved dataset, or a .json or .jsonl file")
    parser.add_argument("--model", default="crucible/ember", help="whose tokens are counted (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_workspace(parser)
    parser.set_defaults(func=_inspect)


def _identity(arguments: argparse.Namespace) -> int:
    values: dict[str, Any] = {
        "name": arguments.name,
        "author": arguments.author,
        "languages": LANGUAGES[arguments.lang],
        "tone": arguments.tone,
        "facts": tuple(arguments.fact),
        "replay_share": arguments.replay,
        "seed": arguments.seed,
    }
    if arguments.rows is not None:
        values["rows_per_language"] = arguments.rows
    spec = parse_spec(values)
    built = build_identity(spec)
    info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec)
    store = DatasetStore(open_workspace(arguments).datasets)
    saved = store.save(arguments.out or spec.name, built.rows, built.heldout, info)
    if arguments.json:
        print_json({"dataset": saved.model_dump(), "counts": built.counts, "path": str(store.resolve(saved.name))})
        return ExitCode.FINISHED
    print(f"saved dataset {saved.name}: {saved.rows} rows")
    for key in ("identity", "hard_negative", "replay", "phrasings", "heldout"):
        print(f"  {key.replace('_', ' '):<14}{built.counts[key]:>6}")
    return ExitCode.FINISHED


def _inspect(arguments: argparse.Namespace) -> int:
    store = DatasetStore(open_workspace(arguments).datasets)
    path = store.resolve(arguments.dataset)
    read = read_file(path, allow_placeholders=True)
    report = _report(path, read, _tokenizer(arguments.model))
    if arguments.json:
        print_json(report)
    else:
        _show(report)
    return ExitCode.FINISHED


def _tokenizer(model: str) -> ChatTokenizer:
    found = resolve_model(model)
    if not found.local:
        raise DataError(
            f"The model {shown(model)} is not on this machine, so its tokens cannot be counted. Give --model a folder.",
            field="model.model_name_or_path",
        )
    return ChatTokenizer.from_folder(Path(found.path_or_id))


def _report(path: Path, read: ReadResult, tokenizer: ChatTokenizer) -> dict[str, Any]:
    encoded: list[Encoded] = [tokenizer.encode(conversation) for conversation in read.conversations]
    return {
        "path": str(path),
        "format": read.format,
        "rows_read": read.rows_read,
        "conversations": len(read.conversations),
        "skipped": [{"row": entry.row, "reason": entry.reason} for entry in read.skipped],
        "warnings": read.warnings,
        "tokens": sum(len(item.ids) for item in encoded),
        "trained_tokens": sum(sum(item.mask) for item in encoded),
        "longest": max(len(item.ids) for item in encoded),
        "first": [{"messages": conversation.as_dicts()} for conversation in read.conversations[:SHOWN_ROWS]],
    }


def _show(report: dict[str, Any]) -> None:
    print(f"{report['path']}\nformat: {report['format']}")
    skipped = len(report["skipped"])
    print(f"rows: {report['rows_read']} read, {skipped} skipped, {report['conversations']} conversations")
    print(f"tokens: {report['tokens']}, of which trained {report['trained_tokens']}; longest row {report['longest']}")
    for entry in report["skipped"][:SHOWN_SKIPPED]:
        print(f"  skipped row {entry['row']}: {entry['reason']}")
    if skipped > SHOWN_SKIPPED:
        print(f"  … and {skipped - SHOWN_SKIPPED} more; --json lists them all")
    for warning in report["warnings"]:
        print(f"note: {warning}")
    for number, row in enumerate(report["first"], 1):
        print(f"\nconversation {number}")
        for message in row["messages"]:
            print(f"  {message['role']:<10}{shown(message['content'], 200)}")
