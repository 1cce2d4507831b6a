"""What `serve` and `chat` are pointed at: a model, or a run with its base, adapter and system prompt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.best_step import best_weights
from studio.checkpoints import complete_checkpoints
from studio.cli.merge import find_run
from studio.config import MergeConfig, RunConfig
from studio.presets import resolve_model
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError
from studio.workspace import Workspace

TUNED = "tuned"


@dataclass(frozen=True)
class Target:
    """What is served: a base model, adapters by name, and the system prompt the run was trained with."""

    base: str
    adapters: dict[str, str]
    system: str | None = None

    @property
    def asked(self) -> str:
        """The model a conversation goes to: the first adapter, or the base when there is none."""
        return next(iter(self.adapters), "base")


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add MODEL|RUN, --adapter and --bits."""
    parser.add_argument("model", metavar="MODEL|RUN", help="built-in model, folder, hub id, run id or run directory")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="adapter folder or run to load beside the base (name: tuned); may be given again",
    )
    parser.add_argument(
        "--bits", type=int, choices=(4, 8, 16, 32), default=16, help="bits per weight of the base (default: 16)"
    )


def find_target(workspace: Workspace, reference: str, adapters: Sequence[str]) -> Target:
    """What the options name. Raises ConfigError or ModelError with a sentence."""
    run = find_run(workspace, reference)
    target = _of_run(run) if run else Target(_base(reference), {})
    extra = dict(_named(workspace, item) for item in adapters)
    return Target(target.base, target.adapters | extra, target.system)


def _base(reference: str) -> str:
    ref = resolve_model(reference)
    return ref.ref if reference == ref.ref and not Path(reference).exists() else ref.path_or_id


def _of_run(run: RunDir) -> Target:
    config = run.config()
    if isinstance(config, MergeConfig):
        return Target(config.out, {})
    if config.method == "full":
        return Target(str(best_weights(run, whole=True)), {}, config.data.system)
    adapter = latest_adapter(run)
    if adapter is None:
        sentence = f"run {run.id} has no adapter yet (it is {run.state()}); wait for its first checkpoint"
        raise ConfigError([FieldError("run", sentence)])
    return Target(config.model.model_name_or_path, {TUNED: str(adapter)}, _system(config))


def _system(config: RunConfig) -> str | None:
    return config.data.system or None


def latest_adapter(run: RunDir) -> Path | None:
    """The adapter of a run: that of its best step, else the finished one, else the latest checkpoint's, else None."""
    best = best_weights(run, whole=False)
    if (best / "adapter_config.json").is_file():
        return best
    kept = complete_checkpoints(run.checkpoints)
    return next((folder for folder in kept if (folder / "adapter_config.json").is_file()), None)


def _named(workspace: Workspace, item: str) -> tuple[str, str]:
    name, equals, reference = item.partition("=")
    if not equals:
        name, reference = TUNED, item
    if not name or not reference or name == "base":
        raise ConfigError([FieldError("adapter", f"{item!r} is not NAME=PATH; `base` is taken by the base model")])
    run = None if (Path(reference) / "adapter_config.json").is_file() else find_run(workspace, reference)
    path = (latest_adapter(run) or run.path) if run else Path(reference).expanduser().absolute()
    return name, str(path)
