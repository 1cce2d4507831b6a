"""data inspect, data convert: what the training would read from a file, and the same rows in another format."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from studio.cli.data_import import add_reading, fetch_and_follow, hub_job, options_of
from studio.cli.follow import print_json
from studio.cli.progress import progress_bar
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode
from studio.fetchdir import is_hub_id
from studio.presets import resolve_model
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.conversation import Record
from studio.records.errors import DataError, Skipped, shown
from studio.records.files import SUFFIXES
from studio.records.formats import ReadOptions, RecordStream, open_records, to_row
from studio.records.importing import Tally
from studio.records.outfile import TARGETS, write_file
from studio.records.rowfile import texts_of
from studio.records.store import DatasetStore
from studio.workspace import Workspace

SHOWN_ROWS = 3
SHOWN_SKIPPED = 20
HUB_ROWS = 1000
_CHUNK = 256
Heard = Callable[[int, int], None]


@dataclass
class Report:
    """What a file holds, counted on the way."""

    tally: Tally = field(default_factory=Tally)
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    first: list[Record] = field(default_factory=list)


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the actions."""
    inspect = actions.add_parser("inspect", help="show what the training would read from a dataset, file or hub id")
    inspect.add_argument("dataset", metavar="FILE_OR_DATASET", help="a saved dataset, a file, a folder or a hub id")
    inspect.add_argument("--model", default="crucible/ember", help="whose tokens are counted (default: %(default)s)")
    add_reading(inspect)
    add_workspace(inspect)
    inspect.set_defaults(func=_inspect)
    convert = actions.add_parser("convert", help="write a dataset or file in another format")
    convert.add_argument("dataset", metavar="FILE_OR_DATASET", help="a saved dataset, a file or a folder")
    convert.add_argument("out", type=Path, metavar="OUT", help="the new file: .json, .jsonl, or .txt for texts")
    convert.add_argument("--to", required=True, choices=TARGETS, help="the format to write")
    convert.add_argument("--force", action="store_true", help="replace OUT if it exists")
    add_reading(convert)
    add_workspace(convert)
    convert.set_defaults(func=_convert)


def _inspect(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    tokenizer = _tokenizer(arguments.model)
    try:
        path = DatasetStore(workspace.datasets).resolve(arguments.dataset)
    except DataError:
        if not _names_a_hub(arguments.dataset):
            raise
        found = _of_hub(arguments, tokenizer)
    else:
        found = {"path": str(path), **_document(path, options_of(arguments, allow_placeholders=True), tokenizer)}
    if arguments.json:
        print_json(found)
    else:
        _show(found)
    return ExitCode.FINISHED


def _names_a_hub(text: str) -> bool:
    """owner/name or the address of a page; a bare word is the name of a dataset, and a file has an ending."""
    return ("/" in text and is_hub_id(text) and not text.lower().endswith(SUFFIXES)) or text.startswith("https://")


def _of_hub(arguments: argparse.Namespace, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The first rows of a hub's dataset, as they would be saved; nothing of them stays in the workspace."""
    with tempfile.TemporaryDirectory(prefix="crucible-") as folder:
        apart = Workspace(Path(folder))
        fetched = fetch_and_follow(apart, hub_job(arguments, rows=arguments.rows or HUB_ROWS))
        store = DatasetStore(apart.datasets)
        info = store.info(fetched.dataset)
        rows = _document(store.resolve(info.name), ReadOptions(allow_placeholders=True), tokenizer)
        return rows | {
            "path": info.source,
            "format": info.format,
            "rows_read": info.rows + info.skipped,
            "skipped": [{"row": row, "reason": reason} for row, reason in fetched.first_skipped],
            "skipped_total": info.skipped,
        }


def _tokenizer(model: str) -> ChatTokenizer:
    found = resolve_model(model)
    if not found.local:
        raise DataError(
            f"The model {shown(model)} is not on this machine, so its tokens cannot be counted. Give --model a folder.",
            field="model.model_name_or_path",
        )
    return ChatTokenizer.from_folder(Path(found.path_or_id))


def _count(report: Report, chunk: list[tuple[int, Record] | Skipped], tokenizer: ChatTokenizer) -> None:
    """Adds some entries; a record the chat template refuses is one that had to be skipped."""
    good = [entry for entry in chunk if not isinstance(entry, Skipped)]
    encoded = iter(tokenizer.encode_many([record for _, record in good]))
    for entry in chunk:
        if isinstance(entry, Skipped):
            report.tally.add(entry)
            continue
        found = next(encoded)
        if isinstance(found, DataError):
            report.tally.add(Skipped(entry[0], found.message))
            continue
        report.tally.add(entry)
        report.tokens += len(found.ids)
        report.trained_tokens += sum(found.mask)
        report.longest = max(report.longest, len(found.ids))
        if len(report.first) < SHOWN_ROWS:
            report.first.append(entry[1])


def _document(path: Path, options: ReadOptions, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Everything counted in one pass, in bounded memory. Raises DataError."""
    stream = open_records(path, options)
    report = Report()
    with progress_bar("Reading") as heard:
        entries = iter(stream)
        while chunk := list(islice(entries, _CHUNK)):
            _count(report, chunk, tokenizer)
            heard(stream.done, stream.total)
    tally = report.tally
    return {
        "format": stream.mapping.name,
        "label": stream.mapping.label,
        "encoding": stream.rows.encoding,
        "rows_read": tally.rows,
        "conversations": tally.conversations,
        "texts": tally.texts,
        "skipped": [{"row": entry.row, "reason": entry.reason} for entry in tally.first_skipped],
        "skipped_total": tally.skipped,
        "warnings": stream.notes,
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "longest": report.longest,
        "first": [to_row(record) for record in report.first],
    }


def _show(report: dict[str, Any]) -> None:
    encoding = f", {report['encoding']}" if report["encoding"] else ""
    print(f"{report['path']}\nformat: {report['format']} ({report['label']}){encoding}")
    skipped = report["skipped_total"]
    texts = f", {report['texts']} texts" if report["texts"] else ""
    print(f"rows: {report['rows_read']} read, {skipped} skipped, {report['conversations']} conversations{texts}")
    print(f"tokens: {report['tokens']}, of which trained {report['trained_tokens']}; longest row {report['longest']}")
    show_skipped(report["skipped"], skipped)
    for warning in report["warnings"]:
        print(f"note: {warning}")
    for number, row in enumerate(report["first"], 1):
        print(f"\nrow {number}")
        for message in row.get("messages", ()):
            print(f"  {message['role']:<10}{shown(' '.join(texts_of({'messages': [message]})), 200)}")
        if "text" in row:
            print(f"  {'text':<10}{shown(row['text'], 200)}")


def show_skipped(skipped: list[dict[str, Any]], total: int) -> None:
    """The first rows that were left out, with reasons."""
    for entry in skipped[:SHOWN_SKIPPED]:
        print(f"  skipped row {entry['row']}: {entry['reason']}")
    if total > SHOWN_SKIPPED:
        print(f"  … and {total - SHOWN_SKIPPED} more")


def _convert(arguments: argparse.Namespace) -> int:
    path = DatasetStore(open_workspace(arguments).datasets).resolve(arguments.dataset)
    stream = open_records(path, options_of(arguments))
    with progress_bar("Converting") as heard:
        written = write_file(_heard(stream, heard), arguments.to, arguments.out, force=arguments.force)
    skipped = [{"row": entry.row, "reason": entry.reason} for entry in written.first_skipped]
    if arguments.json:
        print_json(
            {"path": str(written.path), "rows": written.rows, "skipped": skipped, "skipped_total": written.skipped}
        )
    else:
        print(f"wrote {written.rows} rows to {written.path}, {written.skipped} left out")
        show_skipped(skipped, written.skipped)
    # Rows are missing from the result: a script that goes on must be able to notice.
    return ExitCode.BAD_INPUT if written.skipped else ExitCode.FINISHED


def _heard(stream: RecordStream, heard: Heard) -> Iterator[tuple[int, Record] | Skipped]:
    for number, entry in enumerate(stream):
        if number % _CHUNK == 0:
            heard(stream.done, stream.total)
        yield entry
