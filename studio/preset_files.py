"""The data files presets are composed from: models, methods, datasets and the layer of XTuner's habits.

Every file is checked when it is read, so that a slip in one is a sentence that names file, entry and key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.config import Method
from studio.schema import ConfigError, FieldError

PRESETS = Path(__file__).resolve().parent.parent / "presets"
Settings = dict[str, Any]
"""A nested mapping of RunConfig fields, only those that differ from the defaults."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C reads two hundred models in a tenth of the time


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Variation(_Part):
    """Settings, and more of them for one method."""

    config: Settings = {}
    methods: dict[Method, Settings] = {}

    def settings(self, method: str) -> tuple[Settings, Settings]:
        """What is set for every method, then for this one."""
        return self.config, self.methods.get(method, {})  # type: ignore[call-overload]


class ModelPreset(Variation):
    """One model of presets/models.

    `parameters` are billions of weights, `shape` is what they are computed from; `template` names a chat template for
    models that bring none, `xtuner` is set only together with datasets of the xtuner layer; `order` sorts lists.
    """

    name: str
    title: str = Field(min_length=1)
    model_name_or_path: str = Field(min_length=1)
    context_length: int = Field(gt=0)
    licence: str = Field(min_length=1)
    order: int = 0
    parameters: float | None = Field(default=None, gt=0)
    loading: Literal["native", "converted", "remote_code"] = "native"
    template: str | None = None
    shape: dict[str, int | bool] = {}
    aliases: tuple[str, ...] = ()
    xtuner: Variation = Variation()


class MethodPreset(_Part):
    """One file of presets/methods; `order` sorts by memory needed, the least first."""

    name: str
    title: str
    order: int
    aliases: tuple[str, ...] = ()
    config: Settings


class Composing(_Part):
    """How a dataset is composed: under which layer, at how many epochs it is listed, what its suffixes change."""

    layer: str | None = None
    epochs: int = Field(default=3, gt=0)
    method: Method | None = None
    aliases: tuple[str, ...] = ()
    lengths: dict[int, Settings] = {}
    gpus: dict[int, Settings] = {}
    note: str = ""


class DatasetPreset(BaseModel):
    """One file of presets/datasets that has a `config`; its other keys belong to `studio.records`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    label: str = Field(min_length=1)
    config: Settings
    preset: Composing = Composing()


class Layer(Variation):
    """One file of presets/layers: what many presets share.

    `names` sets more for whole preset names, `same_as` says which name an irregular one stands for, `refused` why
    names with that text in them cannot be had.
    """

    name: str
    names: dict[str, Settings] = {}
    same_as: dict[str, str] = {}
    refused: dict[str, str] = {}


@dataclass(frozen=True)
class Library:
    """Everything there is to compose from, by name; models and methods in the order of lists."""

    models: dict[str, ModelPreset]
    methods: dict[str, MethodPreset]
    datasets: dict[str, DatasetPreset]
    layers: dict[str, Layer]
    prompts: dict[str, str]


PartT = TypeVar("PartT", bound=BaseModel)


def _fault(path: Path, message: str) -> ConfigError:
    return ConfigError([FieldError("preset", f"the file {path.parent.name}/{path.name} {message}", "file")])


def _contents(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob("*.yaml")):
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            raise _fault(path, f"cannot be read{f' (line {mark.line + 1})' if mark else ''}; correct it") from None
        if not isinstance(content, dict):
            raise _fault(path, "must be a mapping; correct it")
        yield path, content


def _checked(kind: type[PartT], path: Path, name: str, content: Mapping[str, Any]) -> PartT:
    try:
        return kind.model_validate({**content, "name": name})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        what = "is missing" if first["type"] == "missing" else f"is wrong ({first['msg']})"
        raise _fault(path, f"cannot be used: in {name}, {where} {what}; correct it") from None


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one, the second winning leaf by leaf."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _models(folder: Path) -> dict[str, ModelPreset]:
    """A file holds one model, named like it, or a family: `models`, each over what they have `shared`."""
    found: list[ModelPreset] = []
    for path, content in _contents(folder):
        order, shared = content.pop("order", 1000), content.pop("shared", {})
        family = content.pop("models", None)
        entries = {path.stem: content} if family is None else family
        if not isinstance(entries, dict) or not isinstance(shared, dict) or not isinstance(order, int):
            raise _fault(path, "must have `order` as a number, `shared` and `models` as mappings; correct it")
        if family is not None and content:
            raise _fault(path, f"has {next(iter(content))!r}, which belongs under `shared`; correct it")
        for place, (name, entry) in enumerate(entries.items()):
            if not isinstance(entry, dict):
                raise _fault(path, f"cannot be used: {name} must be a mapping; correct it")
            found.append(
                _checked(ModelPreset, path, str(name), {"order": 1000 * order + place, **_over(shared, entry)})
            )
    return {model.name: model for model in sorted(found, key=lambda model: (model.order, model.name))}


def _simple(kind: type[PartT], folder: Path) -> dict[str, PartT]:
    return {path.stem: _checked(kind, path, path.stem, content) for path, content in _contents(folder)}


@cache
def library(root: Path = PRESETS) -> Library:
    """All data files under a folder. Raises ConfigError when one of them is wrong."""
    datasets: dict[str, DatasetPreset] = {}
    prompts: dict[str, str] = {}
    for path, content in _contents(root / "datasets"):
        if content.get("kind") == "system_prompts":
            prompts |= content["prompts"]
        elif "config" in content:
            datasets[path.stem] = _checked(DatasetPreset, path, path.stem, content)
    methods = _simple(MethodPreset, root / "methods")
    found = Library(
        models=_models(root / "models"),
        methods=dict(sorted(methods.items(), key=lambda item: item[1].order)),
        datasets=datasets,
        layers=_simple(Layer, root / "layers"),
        prompts=prompts,
    )
    for name, dataset in datasets.items():
        if dataset.preset.layer not in (None, *found.layers):
            raise _fault(root / "datasets" / f"{name}.yaml", f"names the layer {dataset.preset.layer!r}: there is none")
    return found


def models_table(parts: Library | None = None) -> str:
    """A Markdown table of every model: name, what it is loaded from, size, context, how it loads, template, licence."""
    head = "| name | model | weights (billions) | context | loading | chat template | licence |"
    rows = [head, "|" + " --- |" * head.count(" |")]
    for model in (parts or library()).models.values():
        size = "" if model.parameters is None else f"{model.parameters:g}"
        own = model.template or "its own"
        cells = (model.name, model.model_name_or_path, size, model.context_length, model.loading, own, model.licence)
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"
