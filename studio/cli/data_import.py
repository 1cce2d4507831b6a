"""data import, data fetch: a file, a folder or a dataset of a hub becomes a dataset of the workspace."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from studio.cli.follow import POLL_S, print_json
from studio.cli.progress import progress_bar
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode, RunState
from studio.fetchdir import FetchJob, FetchStatus, job_for, job_for_folder
from studio.fetching import start_fetch, stop_fetch
from studio.records.errors import DataError
from studio.records.formats import ReadOptions
from studio.records.importing import import_file
from studio.records.store import DatasetInfo, DatasetStore
from studio.workspace import Workspace

SHOWN_SKIPPED = 20


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a file is read, and --json."""
    columns = "a format such as alpaca, or instruction=question,output=answer (default: found in the rows)"
    parser.add_argument("--mapping", default=None, metavar="M", help=f"how its columns are read: {columns}")
    parser.add_argument("--split", default=None, metavar="S", help="one of several splits, such as train or test")
    parser.add_argument("--subset", default=None, metavar="S", help="one of several subsets of a hub dataset")
    parser.add_argument("--rows", type=_count, default=None, metavar="N", help="read at most N rows, the first ones")
    parser.add_argument("--strict", action="store_true", help="refuse the file while any row cannot be used")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def options_of(arguments: argparse.Namespace, *, allow_placeholders: bool = False) -> ReadOptions:
    """The options of `add_reading`."""
    return ReadOptions(
        mapping=arguments.mapping,
        split=arguments.split,
        strict=arguments.strict,
        allow_placeholders=allow_placeholders,
        limit=arguments.rows,
    )


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the actions."""
    bring = actions.add_parser("import", help="save a file or folder of any format as a dataset")
    bring.add_argument("file", metavar="FILE", help="a file, or a folder of texts")
    bring.add_argument("--name", default="", help="name of the dataset (default: the file's name)")
    add_reading(bring)
    add_workspace(bring)
    bring.set_defaults(func=_import)
    fetch = actions.add_parser("fetch", help="save a dataset of Hugging Face or ModelScope as a dataset")
    fetch.add_argument("dataset", metavar="ID", help="owner/name, the address of its page, or a downloaded folder")
    fetch.add_argument("--hub", choices=("huggingface", "modelscope"), default=None, help="default: huggingface")
    fetch.add_argument("--name", default="", help="name of the dataset (default: its name on the hub)")
    add_reading(fetch)
    add_workspace(fetch)
    fetch.set_defaults(func=_fetch)


def _import(arguments: argparse.Namespace) -> int:
    store = DatasetStore(open_workspace(arguments).datasets)
    path = Path(arguments.file).expanduser()
    with progress_bar("Importing") as heard:
        found = import_file(store, path, options_of(arguments), arguments.name, heard)
    skipped = [(entry.row, entry.reason) for entry in found.skipped]
    _report(store, found.info, skipped, found.notes, as_json=arguments.json)
    return ExitCode.FINISHED


def _fetch(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    status = fetch_and_follow(workspace, hub_job(arguments, title=arguments.name, rows=arguments.rows))
    store = DatasetStore(workspace.datasets)
    _report(store, store.info(status.dataset), status.first_skipped, status.notes, as_json=arguments.json)
    return ExitCode.FINISHED


def hub_job(arguments: argparse.Namespace, **settings: Any) -> FetchJob:
    """The job for an id, an address or a folder, with the options of `add_reading`. Raises DataError."""
    settings |= {name: getattr(arguments, name) for name in ("subset", "split", "mapping", "strict")}
    folder = Path(arguments.dataset).expanduser()
    if folder.is_dir():
        return job_for_folder(folder, **settings)
    return job_for(arguments.dataset, getattr(arguments, "hub", None), **settings)


def fetch_and_follow(
    workspace: Workspace, job: FetchJob, title: str = "Starting", again: str = "start it again"
) -> FetchStatus:
    """Starts a fetch and shows it until it has ended; ends it on Ctrl-C.

    Raises DataError when it fails; `again` says what to do if it left no reason.
    """
    fetch = start_fetch(workspace, job)
    try:
        with progress_bar(title) as heard:
            while (status := fetch.status()).state.live or status.state is RunState.QUEUED:
                heard(status.done, status.total)
                time.sleep(POLL_S)
    except BaseException:
        stop_fetch(fetch)
        raise
    if status.state is RunState.FINISHED:
        return status
    if status.error:
        raise DataError(status.error.message, field=status.error.field)
    raise DataError(f"The fetch was {status.state} before it had ended. Read {fetch.log_file}; then {again}.")


def _report(
    store: DatasetStore, info: DatasetInfo, skipped: list[tuple[int, str]], notes: list[str], *, as_json: bool
) -> None:
    if as_json:
        rows = [{"row": row, "reason": reason} for row, reason in skipped]
        path = str(store.resolve(info.name))
        print_json({"dataset": info.model_dump(mode="json"), "path": path, "skipped": rows, "notes": notes})
        return
    print(f"saved dataset {info.name}: {info.rows} rows ({info.format}), {info.skipped} left out")
    for row, reason in skipped[:SHOWN_SKIPPED]:
        print(f"  skipped row {row}: {reason}")
    for note in notes:
        print(f"note: {note}")
