"""A file of another program, told by what is in it."""

from __future__ import annotations

from pathlib import Path

from studio.foreign.imported import Imported
from studio.foreign.llamafactory import SIGNS, read_llamafactory
from studio.foreign.xtuner import read_xtuner
from studio.schema import ConfigError, FieldError, parse_yaml
from studio.yaml_text import YamlFault, read_text


def read_foreign(path: Path) -> Imported:
    """Reads an XTuner `.py` or a LLaMA-Factory YAML or JSON file; nothing of it is executed.

    Raises:
        ConfigError: the file cannot be read, or is neither.
    """
    try:
        text = read_text(path)
    except YamlFault as error:
        raise ConfigError([FieldError("file", str(error))]) from None
    return read_foreign_text(text, path.name)


def read_foreign_text(text: str, name: str) -> Imported:
    """As `read_foreign`, for a text already read (an upload); `name` is what the file is called."""
    if name.lower().endswith(".py"):
        return read_xtuner(text)
    found = parse_yaml(text)
    if SIGNS & set(map(str, found)):
        return read_llamafactory(text)
    if {"model", "data", "kind"} & set(map(str, found)):
        message = f"{name} is a configuration of this program already; train it as it is"
    else:
        message = f"{name} is neither XTuner's (a .py file) nor LLaMA-Factory's (YAML with stage or finetuning_type)"
    raise ConfigError([FieldError("file", message)])
