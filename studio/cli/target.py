"""What `serve` and `chat` are pointed at: a model, or a run with its base, adapter and system prompt."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.config import RunConfig
from studio.model_choices import SEPARATOR, find_choice, find_run, training_of
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError
from studio.workspace import Workspace

TUNED = "tuned"


@dataclass(frozen=True)
class Target:
    """What is served: a base model, adapters by name, and the system prompt and precision of the run's training."""

    base: str
    adapters: dict[str, str]
    system: str | None = None
    bits: int = 16

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
        "--bits",
        type=int,
        choices=(4, 8, 16, 32),
        default=None,
        help="bits per weight of the base (default: 4 for a run of method qlora, else 16)",
    )


def find_target(workspace: Workspace, reference: str, adapters: Sequence[str]) -> Target:
    """What the options name. Raises ConfigError or ModelError with a sentence."""
    choice = find_choice(workspace, reference)
    found = {TUNED: str(choice.adapter)} if choice.adapter else {}
    extra = [_named(workspace, item) for item in adapters]
    for name, count in Counter(name for name, _ in extra).items():
        if count > 1:
            raise ConfigError([FieldError("adapter", f"{count} adapters are called {name}; name them as NAME=PATH")])
    adapters_found = found | dict(extra)
    config = choice.trained() or next(filter(None, (_training_around(path) for path in adapters_found.values())), None)
    if config is None:
        return Target(choice.base, adapters_found)
    packed = bool(adapters_found) and config.method == "qlora"
    return Target(choice.base, adapters_found, config.data.system or None, 4 if packed else 16)


def _training_around(adapter: str) -> RunConfig | None:
    """The configuration of the training an adapter's folder lies in, if it lies in one."""
    owner = next((folder for folder in Path(adapter).parents[:2] if (folder / "config.yaml").is_file()), None)
    return training_of(RunDir(owner)) if owner else None


def _named(workspace: Workspace, item: str) -> tuple[str, str]:
    name, equals, reference = item.partition("=")
    if not equals or Path(item).expanduser().exists():  # a folder may have the sign in its name
        name, reference = TUNED, item
    if not name or not reference or name == "base":
        raise ConfigError([FieldError("adapter", f"{item!r} is not NAME=PATH; `base` is taken by the base model")])
    path = Path(reference).expanduser()
    if not (path / "adapter_config.json").is_file() and find_run(workspace, reference.partition(SEPARATOR)[0]):
        chosen = find_choice(workspace, reference)
        return name, str(chosen.adapter or chosen.base)
    return name, str(path.absolute())
