"""Labels and helps of all fields of configurations as interface texts: English from the fields, Chinese from files."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from studio.config import AnswersConfig, ConvertConfig, ExportConfig, MergeConfig, RunConfig
from studio.schema import FieldSpec, walk

CHINESE = Path(__file__).resolve().parents[2] / "assets" / "i18n" / "fields.zh.json"
OUTPUTS = MergeConfig, ExportConfig, ConvertConfig, AnswersConfig
"""What is made of trained models. Their fields follow those of a run; of two with one name the first is described."""
CHINESE_OUTPUTS = CHINESE.with_name("outputs.zh.json")


def label_key(path: str) -> str:
    """Key of the label of the field at ``path``."""
    return f"field.{path}"


def help_key(path: str) -> str:
    """Key of the help text of the field at ``path``."""
    return f"field.{path}.help"


@cache
def field_texts(language: str) -> dict[str, str]:
    """``{key: text}`` for the labels and helps of all fields in "en" or "zh-CN".

    A field of an entry of a list of sections is called after the list: ``field.data.sources.weight``. In Chinese it
    takes the text of the field of that name beside the list.
    """
    texts: dict[str, str] = {}
    chinese = json.loads(CHINESE.read_text(encoding="utf-8")) if language != "en" else {}
    for spec in walk(RunConfig):
        own = chinese.get(spec.path, {})
        texts |= _of_field(spec.path, spec, own)
        for inner in walk(spec.item) if spec.item else ():
            texts |= _of_field(f"{spec.path}.{inner.path}", inner, chinese.get(f"{spec.section}.{inner.path}", {}))
    return _output_texts(language) | texts


def _output_texts(language: str) -> dict[str, str]:
    chinese = json.loads(CHINESE_OUTPUTS.read_text(encoding="utf-8")) if language != "en" else {}
    texts: dict[str, str] = {}
    for spec in [spec for model in OUTPUTS for spec in walk(model)]:
        texts = _of_field(spec.path, spec, chinese.get(spec.path, {})) | texts
        for inner in walk(spec.item) if spec.item else ():
            path = f"{spec.path}.{inner.path}"
            texts = _of_field(path, inner, chinese.get(path, {})) | texts
    return texts


def _of_field(path: str, spec: FieldSpec, own: Mapping[str, str]) -> dict[str, str]:
    label, help_text = spec.ui.label or spec.name, " ".join(spec.help.split())
    return {label_key(path): own.get("label") or label, help_key(path): own.get("help") or help_text}
