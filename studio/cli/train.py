"""train: run a configuration file or a preset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from studio import chat_memory, runner
from studio.cli.follow import follow_or_leave, print_json
from studio.cli.queued import place_of
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.config import AnyConfig, RunConfig
from studio.estimate import Advice
from studio.events import ExitCode
from studio.preflight import preflight
from studio.presets import compose
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, build, merge, parse_overrides, parse_yaml
from studio.workspace import Workspace
from studio.yaml_text import YamlFault, read_text


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("train", help="train a configuration file or a preset")
    parser.add_argument(
        "config", nargs="?", help="a YAML file, or a preset name from list-cfg; without it --set has to say everything"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="overrides",
        help="change one field, like --set train.learning_rate=1e-4; may be given again",
    )
    parser.add_argument("--work-dir", default=None, metavar="NAME", help="a name for the run")
    parser.add_argument("--detach", action="store_true", help="return as soon as the run has started or is queued")
    parser.add_argument("--gpus", type=_cards, metavar="0,1", help="the cards it shall have (default: any free one)")
    parser.add_argument("--gpu-count", type=int, default=1, metavar="N", help="keep any N cards for it; 0: none")
    parser.add_argument("--json", action="store_true", help="print events (or, detached, the run) as JSON")
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_train)


def load_config(reference: str | None, overrides: dict[str, Any]) -> RunConfig:
    """A file or a preset name, with overrides laid over it; None: the overrides alone. Raises ConfigError."""
    if reference is None:
        return build(RunConfig, overrides)
    path = Path(reference)
    if path.suffix == ".py" and _is_file(path):
        message = f"{path} is a Python file, which is never run here; turn it into YAML with `studio import-cfg {path}`"
        raise ConfigError([FieldError("config", message)])
    if path.suffix in (".yaml", ".yml") or _is_file(path):
        try:
            settings = parse_yaml(read_text(path))
        except YamlFault as error:
            raise ConfigError([FieldError("config", str(error))]) from None
    else:
        settings = compose(reference)
    return build(RunConfig, merge(RunConfig, settings, overrides))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name no file can have
        return False


def _train(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    overrides = parse_overrides(arguments.overrides)
    if arguments.work_dir:
        overrides["name"] = arguments.work_dir
    config = load_config(arguments.config, overrides)
    if not _fit(preflight(config, workspace)):
        return ExitCode.BAD_INPUT
    make_room(workspace, config)
    run = runner.submit(workspace, config, gpus=arguments.gpus, gpu_count=arguments.gpu_count)
    if arguments.detach:
        return say_started(workspace, run, as_json=arguments.json)
    return follow_or_leave(workspace, run, as_json=arguments.json)


def _cards(text: str) -> list[int]:
    try:
        return [int(card) for card in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of card numbers like 0,1") from None


def make_room(workspace: Workspace, config: AnyConfig) -> None:
    """The memory a chat of this workspace holds, if the run needs it."""
    if runner.needs_chat_memory(workspace, config):
        for record in chat_memory.release(workspace):
            print(f"the chat with {record.base} was ended: the run needs its memory", file=sys.stderr)


def _fit(found: list[Advice]) -> bool:
    for advice in found:
        print(f"{advice.level}: {advice}", file=sys.stderr)
    return not any(advice.level == "error" for advice in found)


def say_started(workspace: Workspace, run: RunDir, *, as_json: bool, word: str = "has started") -> int:
    """Say that a run is at work or at which place of the queue it waits."""
    place = place_of(workspace, run)
    if as_json:
        print_json({"id": run.id, "path": str(run.path), "place": place[0] if place else None})
    elif place:
        print(f"{run.id} waits at place {place[0]} of the queue: {place[1]}; see it: queue list")
    else:
        print(f"{run.id} {word}; watch it: runs follow {run.id}")
    return ExitCode.FINISHED
