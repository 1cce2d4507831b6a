"""A configuration as what starts it again: the command line and the YAML, each the same to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from studio.config import RunConfig
from studio.presets import compose
from studio.schema import ConfigError, build, flatten, merge, walk


def base_preset(config: RunConfig) -> str | None:
    """The preset a configuration is named after, if there is one of that name."""
    try:
        compose(config.name)
    except ConfigError:
        return None
    return config.name


def command_line(config: RunConfig, program: Sequence[str] = ("studio",)) -> list[str]:
    """The arguments that train exactly this configuration: from a preset where it is named after one.

    Join them with `shlex.join` to show them.
    """
    preset = base_preset(config)
    wanted = flatten(RunConfig, config.model_dump(mode="json"))
    given = _values(compose(preset)) if preset else {}
    defaults = {spec.path: _plain(spec.default) for spec in walk(RunConfig) if not spec.required}
    changed = {path: value for path, value in wanted.items() if given.get(path, defaults.get(path, _NOTHING)) != value}
    start = [*program, "train", *([preset] if preset else [])]
    return [*start, *(part for path, value in changed.items() for part in ("--set", f"{path}={_written(value)}"))]


def same_run(config: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations train the same, field by field."""
    return config.model_dump() == other.model_dump()


_NOTHING = object()


def _values(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a preset as the configuration will hold them: whole, so that lists of sections have every field."""
    placeholder = {"data": {"dataset": "-"}}
    whole = flatten(RunConfig, build(RunConfig, merge(RunConfig, placeholder, settings)).model_dump(mode="json"))
    return {path: whole[path] for path in flatten(RunConfig, settings)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _written(value: Any) -> str:
    """A value in one line of YAML that reads back as the same value."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
