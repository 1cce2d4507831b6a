"""train: run a configuration file or a preset."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from studio import chat_memory, runner, wire
from studio.cli import machines
from studio.cli.follow import follow_or_leave, print_json
from studio.cli.queued import place_of
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.config import AnyConfig, RunConfig
from studio.estimate import Advice
from studio.events import ExitCode
from studio.launch_lines import spread_of
from studio.preflight import preflight
from studio.presets import compose
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, build, flatten, merge, parse_overrides, parse_yaml
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
    parser.add_argument(
        "--gpu-count", type=int, metavar="N", help="keep any N cards for it; 0: none (default: 1 a process)"
    )
    parser.add_argument("--json", action="store_true", help="print events (or, detached, the run) as JSON")
    _add_spread(parser)
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_train)


def _add_spread(parser: argparse.ArgumentParser) -> None:
    """Options for several processes and machines."""
    group = parser.add_argument_group(
        "several processes and machines",
        "NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT in the environment say the same as the fields num_processes, "
        "num_machines, machine_rank, main_process_ip and main_process_port; options win over them.",
    )
    add_deepspeed(group)
    group.add_argument(
        "--hostfile",
        metavar="FILE",
        help="start the machines of this file, lines like 'worker-1 slots=8', over ssh; the first one is machine 0",
    )
    group.add_argument(
        "--slurm",
        metavar="partition=NAME,…",
        help="write a job for Slurm with these options of sbatch and submit it; only written where there is no sbatch",
    )
    group.add_argument(
        "--stop-on-signal", action="store_true", help="SIGTERM stops the run and waits for it: for schedulers"
    )
    group.add_argument("--part", help=argparse.SUPPRESS)


def load_config(
    reference: str | None,
    overrides: dict[str, Any],
    environment: Mapping[str, str] | None = None,
    *,
    scheduled: bool = False,
) -> RunConfig:
    """A file or a preset name, with overrides laid over it; None: the overrides alone. Raises ConfigError.

    `environment`: where the course notes' variables for several processes are looked for; they win over the file only.
    `scheduled`: a scheduler will tell where machine 0 is.
    """
    settings = _settings(reference) if reference else {}
    known, wanted = flatten(RunConfig, settings), flatten(RunConfig, overrides)
    told = spread_of(environment or {}, known, wanted)
    later = {"parallel.main_process_ip": "localhost"} if scheduled else {}
    return build(RunConfig, merge(RunConfig, later, settings, told, overrides))


def _settings(reference: str) -> dict[str, Any]:
    """What a file or a preset says."""
    path = Path(reference)
    if path.suffix == ".py" and _is_file(path):
        message = f"{path} is a Python file, which is never run here; turn it into YAML with `studio import-cfg {path}`"
        raise ConfigError([FieldError("config", message)])
    if path.suffix in (".yaml", ".yml") or _is_file(path):
        try:
            return parse_yaml(read_text(path))
        except YamlFault as error:
            raise ConfigError([FieldError("config", str(error))]) from None
    return compose(reference)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name no file can have
        return False


def _train(arguments: argparse.Namespace) -> int:
    if arguments.part:
        return _take_part(arguments)
    workspace = open_workspace(arguments)
    overrides = overrides_of(arguments)
    if arguments.work_dir:
        overrides["name"] = arguments.work_dir
    if arguments.hostfile and arguments.slurm:
        raise ConfigError([FieldError("hostfile", "Slurm chooses the machines itself; give --hostfile or --slurm")])
    if arguments.hostfile:
        return _train_on_hosts(workspace, arguments, overrides)
    config = load_config(arguments.config, overrides, os.environ, scheduled=arguments.slurm is not None)
    if arguments.slurm is not None:
        return machines.submit_to_slurm(workspace, config, arguments.slurm, as_json=arguments.json)
    return _start(workspace, config, arguments)


def add_deepspeed(parser: argparse._ActionsContainer) -> None:
    """Add the course notes' option, which `overrides_of` reads."""
    parser.add_argument(
        "--deepspeed", metavar="NAME", help="zero1 to zero3_offload, or a JSON file of your own settings"
    )


def overrides_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `--set` and `--deepspeed` (the name of a preset, or a file) say. Raises ConfigError."""
    overrides, choice = parse_overrides(arguments.overrides), arguments.deepspeed
    if choice and choice.endswith(".json"):
        return overrides | {"parallel.deepspeed_config": str(Path(choice).expanduser().absolute())}
    return overrides | ({"parallel.deepspeed": choice} if choice else {})


def _train_on_hosts(workspace: Workspace, arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    hosts = machines.overrides_of(machines.read_hosts(arguments.hostfile))
    told = flatten(RunConfig, overrides)
    address = told.get("parallel.main_process_ip")
    config = load_config(arguments.config, told | hosts | ({"parallel.main_process_ip": address} if address else {}))
    return machines.start_and_follow(workspace, config, arguments, str(address) if address else None)


def _take_part(arguments: argparse.Namespace) -> int:
    """One machine's part, started by DeepSpeed's launcher: leave it at work and go."""
    found = machines.read_part(arguments.part, os.environ)
    if found is None:
        return ExitCode.FINISHED
    config, arguments.detach = found[0], True
    return _start(Workspace(found[1]), config, arguments)


def _start(workspace: Workspace, config: RunConfig, arguments: argparse.Namespace) -> int:
    print("checking model, data, memory and disk before the start …", file=sys.stderr, flush=True)
    advice = preflight(config, workspace)
    if not _fit(advice):
        _tell_machine_0(config, next(str(one) for one in advice if one.level == "error"))
        return ExitCode.BAD_INPUT
    make_room(workspace, config)
    stopping = _StopsOnSigterm() if arguments.stop_on_signal and not arguments.detach else None
    run = runner.submit(workspace, config, gpus=arguments.gpus, gpu_count=arguments.gpu_count)
    if arguments.detach:
        return say_started(workspace, run, as_json=arguments.json)
    if stopping:
        stopping.watch(run)
    return follow_or_leave(workspace, run, as_json=arguments.json)


class _StopsOnSigterm:
    """From now on SIGTERM stops the run to be watched, also one that comes while it is only being started."""

    def __init__(self) -> None:
        self.run: RunDir | None = None
        self.heard = False
        signal.signal(signal.SIGTERM, self._hear)

    def watch(self, run: RunDir) -> None:
        """This is the run."""
        self.run = run
        if self.heard:
            runner.stop_in_background(run)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self.heard = True
        if self.run:
            runner.stop_in_background(self.run)


def _tell_machine_0(config: RunConfig, sentence: str) -> None:
    """So that the run there does not wait for this machine."""
    section = config.parallel
    if section.machine_rank and section.main_process_ip:
        message = {"kind": "hello", "protocol": wire.PROTOCOL, "machine": section.machine_rank, "problem": sentence}
        if not wire.decline(section.main_process_ip, section.port, message):
            print("machine 0 could not be told; it waits for this one", file=sys.stderr)


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
