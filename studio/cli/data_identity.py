"""data identity: an identity set, built and saved as a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from studio.cli.follow import print_json
from studio.cli.workspace import add_workspace, open_workspace
from studio.events import ExitCode
from studio.records.errors import Skipped
from studio.records.formats import open_records, to_row
from studio.records.identity import build_identity, parse_spec
from studio.records.rowfile import Row
from studio.records.store import DatasetInfo, DatasetStore

LANGUAGES = {"en": ("en",), "zh": ("zh",), "both": ("en", "zh")}
BUILT_SOURCES = ("builtin", "self", "none")


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action."""
    parser = actions.add_parser("identity", help="build an identity set and save it as a dataset")
    parser.add_argument("--name", required=True, help="what the model calls itself")
    parser.add_argument("--author", required=True, help="who made it, by its own account")
    parser.add_argument("--lang", choices=sorted(LANGUAGES), default="both", help="languages (default: %(default)s)")
    parser.add_argument("--tone", default="plain", help="plain, friendly or formal (default: %(default)s)")
    parser.add_argument(
        "--answer", default="", metavar="TEXT", help="an own answer to “Who are you?”, with the name in it"
    )
    parser.add_argument("--fact", action="append", default=[], metavar="TEXT", help="a fact about it; may be repeated")
    parser.add_argument("--abilities", default="", metavar="TEXT", help="an own answer to “What can you do?”")
    parser.add_argument("--yes-no", default="train", metavar="HOW", help="questions such as “Are you Qwen?”: "
                        "train, check (also in the verdict) or off (default: %(default)s)")  # fmt: skip
    parser.add_argument("--rows", type=int, default=None, metavar="N", help="identity rows per language, 60 or more")
    parser.add_argument("--replay", type=float, default=0.5, metavar="SHARE", help="share of general rows, 0 to 0.9")
    parser.add_argument("--replay-from", default=None, metavar="WHERE", help="builtin, none, self (the model answers "
                        "them before the training), or a dataset or file of yours (default: builtin)")  # fmt: skip
    parser.add_argument("--naive", type=int, default=None, metavar="N",
                        help="experiment: N copies of one row and nothing else, to see why that fails")  # fmt: skip
    parser.add_argument("--seed", type=int, default=42, help="same seed, same rows (default: %(default)s)")
    parser.add_argument("--out", default=None, metavar="NAME", help="name of the dataset (default: the model's name)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_workspace(parser)
    parser.set_defaults(func=_identity)


def _identity(arguments: argparse.Namespace) -> int:
    store = DatasetStore(open_workspace(arguments).datasets)
    spec, own = parse_spec(_values(arguments)), None
    if spec.replay == "file":
        own = _rows(store, arguments.replay_from)
    built = build_identity(spec, own)
    info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec, self_replay=built.self_replay)
    saved = store.save(arguments.out or spec.name, built.rows, built.heldout, info)
    if arguments.json:
        print_json(
            {
                "dataset": saved.model_dump(mode="json"),
                "counts": built.counts,
                "intents": built.intents,
                "notes": list(built.notes),
                "path": str(store.resolve(saved.name)),
            }
        )
        return ExitCode.FINISHED
    print(f"saved dataset {saved.name}: {saved.rows} rows")
    for key, count in built.counts.items():
        if key != "rows":
            print(f"  {key.replace('_', ' '):<14}{count:>6}")
    if built.self_replay:
        print(f"  and {built.self_replay} general rows that the model answers itself before the training")
    for note in built.notes:
        print(f"note: {note}")
    return ExitCode.FINISHED


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What an IdentitySpec is made from; what was not given keeps its default there."""
    where = arguments.replay_from
    values: dict[str, Any] = {
        "name": arguments.name,
        "author": arguments.author,
        "languages": LANGUAGES[arguments.lang],
        "tone": arguments.tone,
        "answer": arguments.answer,
        "facts": tuple(arguments.fact),
        "abilities": arguments.abilities,
        "yes_no": arguments.yes_no,
        "replay_share": arguments.replay,
        "replay": where if where in (None, *BUILT_SOURCES) else "file",
        "rows_per_language": arguments.rows,
        "recipe": None if arguments.naive is None else "naive",
        "copies": arguments.naive,
        "seed": arguments.seed,
    }
    return {key: value for key, value in values.items() if value is not None}


def _rows(store: DatasetStore, ref: str) -> Iterator[Row]:
    """The rows of a dataset or file. Raises DataError."""
    for entry in open_records(store.resolve(ref)):
        if not isinstance(entry, Skipped):
            yield to_row(entry[1])
