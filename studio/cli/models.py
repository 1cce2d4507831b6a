"""models: the base models on this machine, and fetching one from a hub."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from studio.cli.data_import import fetch_and_follow
from studio.cli.follow import print_json
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode
from studio.fetchdir import model_job
from studio.model_cache import offline
from studio.model_files import facts
from studio.model_library import FOLDERS, OnDisk, check, folder_of, list_models
from studio.records.errors import DataError


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("models", help="list, check and fetch base models")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listed = actions.add_parser("list", help=f"every model on this machine (more folders: {FOLDERS})")
    listed.add_argument("--json", action="store_true", help="print JSON")
    add_workspace(listed)
    listed.set_defaults(func=_list)
    fetch = actions.add_parser("fetch", help="download a model of Hugging Face or ModelScope; goes on where it ended")
    fetch.add_argument("model", metavar="ID", help="owner/name, or the address of its page")
    fetch.add_argument("--hub", choices=("huggingface", "modelscope"), default=None, help="default: huggingface")
    fetch.add_argument("--revision", default=None, metavar="R", help="a branch, a tag or a commit (default: main)")
    fetch.add_argument("--endpoint", default=None, metavar="URL", help="the address of a mirror")
    fetch.add_argument("--json", action="store_true", help="print the result as JSON")
    add_workspace(fetch)
    fetch.set_defaults(func=_fetch)
    checked = actions.add_parser("check", help="say everything that is wrong with a model folder")
    checked.add_argument("path", metavar="PATH", help="a folder, or a model of the list")
    checked.add_argument("--json", action="store_true", help="print JSON")
    checked.set_defaults(func=_check)


def _list(arguments: argparse.Namespace) -> int:
    found = list_models(open_workspace(arguments))
    if arguments.json:
        print_json([model.as_dict() for model in found])
        return ExitCode.FINISHED
    table = Table(box=None, pad_edge=False)
    for title in ("Model", "Where", "Type", "Numbers", "Size", ""):
        table.add_column(title)
    for model in found:
        table.add_row(model.value, model.where, model.kind, model.dtype, size(model.size_bytes), _state(model))
    Console(highlight=False, markup=False, soft_wrap=True, width=1000).print(table)  # a path is never broken
    return ExitCode.FINISHED


def _state(model: OnDisk) -> str:
    return "" if model.complete else f"cannot be used: {model.problem}"


def size(amount: int) -> str:
    """Bytes as people say them."""
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"


def _fetch(arguments: argparse.Namespace) -> int:
    if offline():
        raise DataError("The hubs are switched off (environment variable HF_HUB_OFFLINE). Unset it to fetch a model.")
    job = model_job(arguments.model, arguments.hub, revision=arguments.revision, endpoint=arguments.endpoint)
    status = fetch_and_follow(
        open_workspace(arguments), job, f"Fetching {job.id}", "start it again: it goes on where it was"
    )
    if arguments.json:
        print_json({"id": job.id, "path": status.path, "size_bytes": status.total})
    else:
        print(f"{job.id} is on this machine: {status.path}")
    return ExitCode.FINISHED


def _check(arguments: argparse.Namespace) -> int:
    found = check(arguments.path)
    folder = folder_of(arguments.path)
    if arguments.json:
        problems = [{"message": fault.message, "fix": fault.fix} for fault in found]
        print_json({"ok": not found, "path": str(folder), "problems": problems})
    elif found:
        for fault in found:
            print(f"{fault.message}; {fault.fix}")
    else:
        known = facts(folder)
        print(f"{folder.name} is complete: {known.model_type}, {known.dtype}, {size(known.weight_bytes)} of weights")
    return ExitCode.BAD_INPUT if found else ExitCode.FINISHED
