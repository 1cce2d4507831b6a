"""data list, rename, delete, split, merge, dedupe, shuffle, sample, filter: the datasets of the workspace, changed.

What makes other rows makes a new dataset; the old one stays as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from studio.cli.follow import print_json
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode
from studio.records import edits
from studio.records.edits import Making
from studio.records.store import DatasetInfo, DatasetStore

Actions: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Work = Callable[[DatasetStore, argparse.Namespace, Making], Sequence[DatasetInfo]]


def add_actions(actions: Actions) -> None:
    """Add the actions."""
    listing = _action(actions, "list", "every dataset of the workspace, newest first")
    listing.set_defaults(func=_list)
    delete = _action(actions, "delete", "remove datasets")
    delete.add_argument("names", nargs="+", metavar="NAME")
    delete.set_defaults(func=_delete)
    rename = _action(actions, "rename", "give a dataset another name")
    _named(rename)
    rename.add_argument("title", metavar="NEW", help="the new name")
    _does(rename, lambda store, asked, making: [store.rename(asked.dataset, asked.title)])
    copy = _making(actions, "copy", "a second dataset with the same rows", drawn=False)
    _named(copy)
    _does(copy, lambda store, asked, making: [edits.save_as(store, asked.dataset, making)])
    _add_drawn(actions)
    merge = _making(actions, "merge", "all rows of several datasets in one", drawn=False)
    merge.add_argument("names", nargs="+", metavar="DATASET")
    _does(merge, lambda store, asked, making: [edits.merge(store, asked.names, making)])
    dedupe = _making(actions, "dedupe", "every row once", drawn=False)
    _named(dedupe)
    dedupe.add_argument("--loose", action="store_true", help="take no notice of case and white space")
    _does(dedupe, lambda store, asked, making: [edits.deduplicate(store, asked.dataset, making, loose=asked.loose)])
    keep = _making(actions, "filter", "only rows of some length", drawn=False)
    _named(keep)
    keep.add_argument("--shortest", type=int, default=1, metavar="N", help="leave out rows with fewer characters")
    keep.add_argument("--longest", type=int, default=None, metavar="N", help="leave out rows with more characters")
    _does(keep, lambda store, asked, making: [
        edits.keep_lengths(store, asked.dataset, making, shortest=asked.shortest, longest=asked.longest)
    ])  # fmt: skip


def _add_drawn(actions: Actions) -> None:
    """The actions that draw something by a seed."""
    split = _making(actions, "split", "two datasets from one")
    _named(split)
    split.add_argument("share", nargs="?", default="7:3", help="7:3, 0.7 or 70%% (default: %(default)s)")
    _does(split, lambda store, asked, making: edits.split(store, asked.dataset, edits.parse_share(asked.share), making))
    shuffle = _making(actions, "shuffle", "the same rows in another order")
    _named(shuffle)
    _does(shuffle, lambda store, asked, making: [edits.shuffle(store, asked.dataset, making)])
    sample = _making(actions, "sample", "some rows, drawn at random")
    _named(sample)
    sample.add_argument("amount", type=float, metavar="AMOUNT", help="a number of rows, or a share below 1")
    _does(sample, lambda store, asked, making: [edits.sample(store, asked.dataset, asked.amount, making)])


def _action(actions: Actions, name: str, text: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_workspace(parser)
    return parser


def _making(actions: Actions, name: str, text: str, *, drawn: bool = True) -> argparse.ArgumentParser:
    parser = _action(actions, name, text)
    parser.add_argument("--name", default="", help="name of the new dataset")
    if drawn:
        parser.add_argument(
            "--seed", type=int, default=edits.SEED, help="same seed, same result (default: %(default)s)"
        )
    return parser


def _named(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a dataset of the workspace; `data list` shows them")


def _does(parser: argparse.ArgumentParser, work: Work) -> None:
    def run(arguments: argparse.Namespace) -> int:
        store = DatasetStore(open_workspace(arguments).datasets)
        making = Making(getattr(arguments, "name", ""), getattr(arguments, "seed", edits.SEED))
        made = work(store, arguments, making)
        if arguments.json:
            print_json([info.model_dump(mode="json") for info in made])
        else:
            for info in made:
                print(f"saved dataset {info.name}: {info.rows} rows")
        return ExitCode.FINISHED

    parser.set_defaults(func=run)


def _list(arguments: argparse.Namespace) -> int:
    store = DatasetStore(open_workspace(arguments).datasets)
    found = store.list()
    if arguments.json:
        print_json({"datasets": [info.model_dump(mode="json") for info in found], "problems": list(store.problems())})
        return ExitCode.FINISHED
    if not found:
        print("no datasets yet; make one: data identity, data import or data fetch")
    else:
        table = Table("dataset", "rows", "kind", "from", "made", box=None)
        for info in found:
            made = info.created_at[:16].replace("T", " ")
            table.add_row(info.name, str(info.rows), info.kind, info.source, made)
        Console(highlight=False, markup=False).print(table)
    for problem in store.problems():
        print(f"note: {problem}")
    return ExitCode.FINISHED


def _delete(arguments: argparse.Namespace) -> int:
    store = DatasetStore(open_workspace(arguments).datasets)
    for name in arguments.names:  # all of them must be there before the first one goes
        store.info(name)
    for name in arguments.names:
        store.delete(name)
    if arguments.json:
        print_json({"deleted": arguments.names})
    else:
        print(f"deleted {', '.join(arguments.names)}")
    return ExitCode.FINISHED
