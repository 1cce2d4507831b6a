"""Labels and helps of all `RunConfig` fields as interface texts: English from the fields, Chinese from a file."""

import json
from functools import cache
from pathlib import Path

from studio.config import RunConfig
from studio.schema import walk

CHINESE = Path(__file__).resolve().parents[2] / "assets" / "i18n" / "fields.zh.json"


def label_key(path: str) -> str:
    """Key of the label of the field at ``path``."""
    return f"field.{path}"


def help_key(path: str) -> str:
    """Key of the help text of the field at ``path``."""
    return f"field.{path}.help"


@cache
def field_texts(language: str) -> dict[str, str]:
    """``{key: text}`` for the labels and helps of all fields in "en" or "zh-CN"."""
    texts: dict[str, str] = {}
    chinese = json.loads(CHINESE.read_text(encoding="utf-8")) if language != "en" else {}
    for spec in walk(RunConfig):
        own = chinese.get(spec.path, {})
        texts[label_key(spec.path)] = own.get("label") or spec.ui.label or spec.name
        texts[help_key(spec.path)] = own.get("help") or " ".join(spec.help.split())
    return texts
