"""export job: a configuration or an earlier run as the text of a job for Slurm, SkyPilot or Kubernetes."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from studio.cli.follow import print_json
from studio.cli.train import add_deepspeed, load_config, overrides_of
from studio.cli.workspace import add_workspace, open_workspace
from studio.cluster_jobs import FILE_NAMES, JOB_KINDS, SUBMIT, job_text
from studio.config import RunConfig
from studio.durable import write_atomic
from studio.events import ExitCode
from studio.launch_lines import for_machine, machine_lines
from studio.model_choices import find_run
from studio.reruns import cloned
from studio.schema import ConfigError, FieldError
from studio.workspace import Workspace


def add_format(formats: Any) -> None:
    """Add the format to those of `export`."""
    parser: argparse.ArgumentParser = formats.add_parser(
        "job", help="the text of a training as a job for a cluster: slurm, skypilot or kubernetes"
    )
    parser.add_argument("scheduler", choices=JOB_KINDS, help="who is to run it")
    parser.add_argument("config", metavar="CONFIG|RUN", help="a YAML file, a preset name, or an earlier training")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="overrides",
                        help="change one field, like --set parallel.num_machines=2; may be given again")  # fmt: skip
    add_deepspeed(parser)
    parser.add_argument("--out", default=None, metavar="FILE", help="write it to a new file (default: print it)")
    parser.add_argument("--json", action="store_true", help="print the text and the line for each machine as JSON")
    add_workspace(parser)
    parser.set_defaults(func=_export)


def _export(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    config = _config(workspace, arguments.config, overrides_of(arguments))
    kind = arguments.scheduler
    file = arguments.out or FILE_NAMES[kind]
    text = job_text(kind, config, file=file)
    submit = shlex.join([*SUBMIT[kind], str(file)])
    if arguments.out:
        _write(Path(arguments.out), text)
    if arguments.json:
        print_json({"text": text, "file": arguments.out, "submit": submit, "machines": machine_lines(config)})
    elif arguments.out:
        print(f"written: {arguments.out}; submit it: {submit}", file=sys.stderr)
    else:
        print(text, end="")
    return ExitCode.FINISHED


def _config(workspace: Workspace, reference: str, overrides: dict[str, Any]) -> RunConfig:
    """A file, a preset or an earlier training, as machine 0 runs it. Raises ConfigError."""
    run = None if Path(reference).suffix in (".yaml", ".yml") else find_run(workspace, reference)
    return for_machine(cloned(run, overrides) if run else load_config(reference, overrides, scheduled=True), 0)


def _write(path: Path, text: str) -> None:
    if path.exists():
        raise ConfigError([FieldError("out", f"{path} exists already; choose another name")])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as problem:
        raise ConfigError([FieldError("out", f"{path} cannot be written ({problem.strerror})")]) from None
