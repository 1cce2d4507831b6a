"""list-cfg and copy-cfg: find a preset by name, write it to a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from studio.cli.follow import print_json
from studio.config import RunConfig
from studio.events import ExitCode
from studio.presets import compose, list_presets
from studio.schema import build, docs_table, dump_yaml


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both verbs."""
    listing = verbs.add_parser("list-cfg", help="list the presets that can be trained by name")
    listing.add_argument("-p", "--pattern", default="", help="only names that contain this text")
    listing.add_argument("--fields", action="store_true", help="list every field of a configuration instead")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(func=_list)
    copy = verbs.add_parser("copy-cfg", help="write a preset as YAML, to be edited and trained")
    copy.add_argument("preset", help="a name from list-cfg, like ember_qlora_identity_e3")
    copy.add_argument("file", nargs="?", type=Path, help="file or folder to write to (default: print it)")
    copy.add_argument("--full", action="store_true", help="write every field, not only what differs from the defaults")
    copy.add_argument("--json", action="store_true", help="print the fully resolved configuration as JSON")
    copy.set_defaults(func=_copy)


def _list(arguments: argparse.Namespace) -> int:
    if arguments.fields:
        print(docs_table(RunConfig), end="")
        return ExitCode.FINISHED
    names = list_presets(arguments.pattern)
    if arguments.json:
        print_json(names)
    elif names:
        print("\n".join(names))
    else:
        print(f"no preset contains {arguments.pattern!r}", file=sys.stderr)
    return ExitCode.FINISHED


def _copy(arguments: argparse.Namespace) -> int:
    settings = compose(arguments.preset)
    settings.setdefault("data", {}).setdefault("dataset", "your-dataset")
    config = build(RunConfig, settings)
    if arguments.json:
        print(config.model_dump_json())
        return ExitCode.FINISHED
    text = dump_yaml(config, full=arguments.full)
    if arguments.file is None:
        print(text, end="")
        return ExitCode.FINISHED
    return _write(arguments.file, arguments.preset, text)


def _write(target: Path, preset: str, text: str) -> int:
    path = target / f"{preset}.yaml" if target.is_dir() else target
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        print(f"error: {path} exists already; choose another file", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except OSError as error:
        print(f"error: {path} cannot be written ({error.strerror}); choose another place", file=sys.stderr)
        return ExitCode.BAD_INPUT
    print(path)
    return ExitCode.FINISHED
