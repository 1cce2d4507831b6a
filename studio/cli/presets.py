"""list-cfg, copy-cfg and import-cfg: find a preset by name, write it to a file, bring a file of another program."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from studio.cli.follow import print_json
from studio.config import RunConfig
from studio.events import ExitCode
from studio.foreign.files import read_foreign
from studio.foreign.imported import Imported
from studio.preset_files import models_table
from studio.presets import compose, list_presets, notes
from studio.reproduce import command_line
from studio.schema import ConfigError, FieldError, build, docs_table, dump_yaml, merge

# A preset and an imported file may leave these to you.
_YOURS = {"model": {"model_name_or_path": "your-model"}, "data": {"dataset": "your-dataset"}}


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three verbs."""
    listing = verbs.add_parser("list-cfg", help="list the presets that can be trained by name")
    listing.add_argument("-p", "--pattern", default="", help="only names that contain this text")
    listing.add_argument("--fields", action="store_true", help="list every field of a configuration instead")
    listing.add_argument("--models", action="store_true", help="list every model, its size and how it loads instead")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(func=_list)
    copy = verbs.add_parser("copy-cfg", help="write a preset as YAML, to be edited and trained")
    copy.add_argument("preset", help="a name from list-cfg, like ember_qlora_identity_e3")
    copy.add_argument("file", nargs="*", help="file or folder to write to (default: print); with --json more names")
    copy.add_argument("--full", action="store_true", help="write every field, not only what differs from the defaults")
    copy.add_argument("--json", action="store_true", help="print each fully resolved configuration as a line of JSON")
    copy.add_argument("--command", action="store_true", help="print the command line that trains it instead")
    copy.set_defaults(func=_copy)
    bring = verbs.add_parser(
        "import-cfg", help="turn an XTuner .py or a LLaMA-Factory YAML into a configuration; nothing of it is executed"
    )
    bring.add_argument("source", type=Path, help="the file")
    bring.add_argument("file", nargs="?", help="file or folder to write to (default: print it)")
    bring.add_argument("--json", action="store_true", help="print configuration and what was left out as JSON")
    bring.set_defaults(func=_import)


def _list(arguments: argparse.Namespace) -> int:
    if arguments.fields:
        print(docs_table(RunConfig), end="")
        return ExitCode.FINISHED
    if arguments.models:
        print(models_table(), end="")
        return ExitCode.FINISHED
    names = list_presets(arguments.pattern)
    if arguments.json:
        print_json(names)
    elif names:
        print("\n".join(names))
    else:
        print(f"no preset contains {arguments.pattern!r}", file=sys.stderr)
    return ExitCode.FINISHED


def _resolved(settings: dict[str, Any]) -> RunConfig:
    return build(RunConfig, merge(RunConfig, _YOURS, settings))


def _copy(arguments: argparse.Namespace) -> int:
    if arguments.json:
        for config in [_resolved(compose(name)) for name in (arguments.preset, *arguments.file)]:
            print(config.model_dump_json())
        return ExitCode.FINISHED
    if len(arguments.file) > 1:
        raise ConfigError([FieldError("file", "only one file can be written; several names need --json")])
    config = _resolved(compose(arguments.preset))
    for note in notes(arguments.preset):
        print(f"note: {note}", file=sys.stderr)
    if arguments.command:
        print(shlex.join(command_line(config)))
        return ExitCode.FINISHED
    text = dump_yaml(config, full=arguments.full)
    return _give(text, arguments.file[0] if arguments.file else None, config.name)


def _import(arguments: argparse.Namespace) -> int:
    found = read_foreign(arguments.source)
    config = _resolved(merge(RunConfig, {"name": arguments.source.stem[:120]}, found.settings))
    if arguments.json:
        print(json.dumps(_as_json(found, config), ensure_ascii=False))
        return ExitCode.FINISHED
    code = _give(dump_yaml(config), arguments.file, config.name)
    if found.left_out:
        print(f"{len(found.left_out)} settings could not be carried over:", file=sys.stderr)
    for one in found.left_out:
        print(f"  {one}", file=sys.stderr)
    return code


def _as_json(found: Imported, config: RunConfig) -> dict[str, Any]:
    left = [{"line": one.line, "name": one.name, "reason": one.reason} for one in found.left_out]
    return {"origin": found.origin, "config": config.model_dump(mode="json"), "left_out": left}


def _give(text: str, target: str | None, name: str) -> int:
    """Prints a configuration, or writes it to a file that must not exist yet."""
    if target is None:
        print(text, end="")
        return ExitCode.FINISHED
    try:
        path = Path(target) / f"{name}.yaml" if Path(target).is_dir() else Path(target)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        print(f"error: {path} exists already; choose another file", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "that is no name a file can have"
        print(f"error: {target[:200]!r} cannot be written ({reason}); choose another place", file=sys.stderr)
        return ExitCode.BAD_INPUT
    print(path)
    return ExitCode.FINISHED
