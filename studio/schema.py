"""Generic tools over a pydantic configuration model: walk, load, dump, override, explain.

Nothing here knows a hyper-parameter. A model is a tree of `Section`s; a leaf is a `Field` whose type, range, default,
docstring and `Ui` hints are all written on the field itself, and everything else is derived from that declaration.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from studio.yaml_text import YamlFault, read_yaml

Kind = Literal["bool", "int", "float", "str", "list", "sections", "choice"]


@dataclass(frozen=True)
class Ui:
    """What a form needs to know beyond the type: label, other accepted names, where and when to show the field."""

    label: str = ""
    aliases: tuple[str, ...] = ()
    advanced: bool = False
    multiline: bool = False
    when: tuple[str, tuple[str, ...]] | None = None
    """(path, values): the field matters only while the field at `path` has one of `values`."""
    spellings: tuple[tuple[str, str], ...] = ()
    """(other name, value): names of a value that are accepted in place of it; case does not matter."""


class Section(BaseModel):
    """Base of every configuration model: unknown keys, NaN and booleans in number fields are errors."""

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def check_no_bool_as_number(cls, value: Any, info: Any) -> Any:
        """`true` in a number field is a slip, not a 1."""
        if isinstance(value, bool) and bool not in _leaf_types(cls.model_fields[info.field_name].annotation):
            raise ValueError("must not be true or false")
        return value


ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class FieldError:
    """One wrong field: its dotted path, a stable code with its numbers (for translation) and an English sentence.

    In a list of sections `path` is that of the list, `entry` the number of the entry (from 1) and `name` its field.
    """

    path: str
    message: str
    code: str = "invalid"
    context: dict[str, Any] = field(default_factory=dict)
    entry: int = 0
    name: str = ""

    def __str__(self) -> str:
        where = f"{self.path} {self.entry}, {self.name}".rstrip(", ") if self.entry else self.path
        return f"{where}: {self.message}" if where else self.message


class ConfigError(ValueError):
    """The configuration is wrong; `errors` names every wrong field, what is wrong and what to do."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(map(str, self.errors)))


@dataclass(frozen=True)
class FieldSpec:
    """One leaf of a model as a form, a table or a command line needs it."""

    path: str
    name: str
    section: str
    annotation: Any
    default: Any
    required: bool
    help: str
    ui: Ui
    choices: tuple[str, ...] | None
    minimum: float | None
    maximum: float | None
    optional: bool
    kind: Kind
    item: type[BaseModel] | None = None
    """The section each entry is made of, for a list of sections."""


def _leaf_types(annotation: Any) -> set[Any]:
    """The plain types a union annotation admits, without None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return {leaf for arg in get_args(annotation) for leaf in _leaf_types(arg)}
    origin = get_origin(annotation)
    return {type(a) for a in get_args(annotation)} if origin is Literal else {origin or annotation}


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The section class behind an annotation, or None for a leaf."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def entry_type(annotation: Any) -> type[BaseModel] | None:
    """The section class of the entries of a list of sections, or None for anything else."""
    return section_type(get_args(annotation)[0]) if get_origin(annotation) is list else None


def _bounds(info: FieldInfo) -> tuple[float | None, float | None]:
    low = next((getattr(m, "ge", getattr(m, "gt", None)) for m in info.metadata if isinstance(m, Ge | Gt)), None)
    high = next((getattr(m, "le", getattr(m, "lt", None)) for m in info.metadata if isinstance(m, Le | Lt)), None)
    return low, high


def _choices(annotation: Any) -> tuple[str, ...] | None:
    args = [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        args = list(get_args(annotation))
    found = [str(v) for a in args if get_origin(a) is Literal for v in get_args(a)]
    return tuple(found) or None


def _kind(annotation: Any) -> Kind:
    leaves = _leaf_types(annotation) - {type(None)}
    if entry_type(annotation):
        return "sections"
    if _choices(annotation):
        return "choice"
    for kind, leaf in (("list", list), ("str", str), ("float", float), ("int", int), ("bool", bool)):
        if leaf in leaves:
            return kind  # type: ignore[return-value]
    raise TypeError(f"no form control for a field of type {annotation!r}")


def _spec(prefix: str, name: str, info: FieldInfo) -> FieldSpec:
    low, high = _bounds(info)
    default = None if info.default is PydanticUndefined else info.default
    if info.default_factory is not None:
        default = info.default_factory()  # type: ignore[call-arg]
    return FieldSpec(
        path=f"{prefix}{name}",
        name=name,
        section=prefix.rstrip("."),
        annotation=info.annotation,
        default=default,
        required=info.is_required(),
        help=(info.description or "").strip(),
        ui=next((m for m in info.metadata if isinstance(m, Ui)), Ui()),
        choices=_choices(info.annotation),
        minimum=low,
        maximum=high,
        optional=type(None) in _leaf_types(info.annotation),
        kind=_kind(info.annotation),
        item=entry_type(info.annotation),
    )


def walk(model: type[BaseModel]) -> list[FieldSpec]:
    """Every leaf field of `model` in declaration order, with its dotted path."""
    return list(_walked(model, ""))


@lru_cache(maxsize=64)  # asked at every keystroke in a form, and the classes never change
def _walked(model: type[BaseModel], prefix: str) -> tuple[FieldSpec, ...]:
    specs: list[FieldSpec] = []
    for name, info in model.model_fields.items():
        section = section_type(info.annotation)
        specs += _walked(section, f"{prefix}{name}.") if section else [_spec(prefix, name, info)]
    return tuple(specs)


def names(model: type[BaseModel]) -> dict[str, str]:
    """Every accepted spelling (dotted path, bare name, alias) -> dotted path. A clash is a programming error."""
    return dict(_names(model))


@lru_cache(maxsize=64)
def _names(model: type[BaseModel]) -> dict[str, str]:
    table: dict[str, str] = {}
    for spec in walk(model):
        for spelling in {spec.path, spec.name, *spec.ui.aliases}:
            if table.setdefault(spelling, spec.path) != spec.path:
                raise ValueError(f"the name {spelling!r} stands for both {table[spelling]} and {spec.path}")
    return table


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known name closest to `word`, or None when nothing is close."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return found[0] if found else None


def _unknown(key: str, known: Mapping[str, str]) -> FieldError:
    candidates = [*known, *{path.split(".")[0] for path in known.values()}]
    near = nearest(key, candidates) or nearest(key.rsplit(".", 1)[-1], candidates)
    path = known.get(near, near) if near else None
    hint = f"did you mean {near!r}{'' if near == path else f' ({path})'}?" if near else "see `studio list-cfg --fields`"
    return FieldError(key, f"unknown field; {hint}", "unknown", {"nearest": near or ""})


def _flatten(mapping: Mapping[Any, Any], sections: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (section prefix, key as written, value) of every leaf of a nested mapping."""
    for raw_key, value in mapping.items():
        key = str(raw_key)
        info = sections.model_fields.get(key)
        section = section_type(info.annotation) if info else None
        if section and isinstance(value, Mapping):
            yield from _flatten(value, section, f"{prefix}{key}.")
        elif section and value is None:
            continue
        elif key == "betas" and isinstance(value, list | tuple):  # the notes' pair; each half is an alias of its own
            yield from ((prefix, f"betas.{i}", part) for i, part in enumerate(value))
        else:
            yield prefix, key, value


def flatten(model: type[BaseModel], mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Nested or flat mapping with any accepted spelling -> {dotted path: value}.

    Raises:
        ConfigError: unknown key (names the nearest), or one field given twice under two names.
    """
    known = names(model)
    specs = {spec.path: spec for spec in walk(model)}
    flat: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    errors: list[FieldError] = []
    for prefix, key, value in _flatten(mapping, model):
        path = known.get(f"{prefix}{key}")
        if path is None and key in known and known[key].startswith(prefix):
            path = known[key]
        if path is None:
            errors.append(_section_or_unknown(model, f"{prefix}{key}", known))
            continue
        value = _value(specs[path], value, errors)
        if path in flat and flat[path] != value:
            errors.append(FieldError(path, f"given twice, as {spelled[path]!r} and {key!r}; keep one", "twice"))
        else:
            flat[path], spelled[path] = value, key
    if errors:
        raise ConfigError(errors)
    return flat


def _value(spec: FieldSpec, value: Any, errors: list[FieldError]) -> Any:
    """A value under its canonical name; entries of a list of sections under theirs."""
    if spec.item:
        return _entries(spec.item, spec.path, value, errors)
    if spec.ui.spellings and isinstance(value, str) and value not in (spec.choices or ()):
        return {name.lower(): real for name, real in spec.ui.spellings}.get(value.strip().lower(), value)
    return value


def _entries(item: type[BaseModel], path: str, value: Any, errors: list[FieldError]) -> Any:
    """The entries of a list of sections under their canonical names; what is wrong in one goes to `errors`."""
    found: list[Any] = []
    for number, entry in enumerate(value if isinstance(value, list | tuple) else [], 1):
        try:
            found.append(nest(flatten(item, entry)) if isinstance(entry, Mapping) else entry)
        except ConfigError as error:
            errors += [replace(one, path=path, entry=number, name=one.path) for one in error.errors]
    return found if isinstance(value, list | tuple) else value


def _section_or_unknown(model: type[BaseModel], key: str, known: Mapping[str, str]) -> FieldError:
    info = model.model_fields.get(key)
    if info and section_type(info.annotation):
        return FieldError(key, "is a section and needs named fields under it", "section")
    return _unknown(key, known)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted path: value} -> nested mapping."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, leaf = path.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


_SENTENCES = {
    "missing": "is required; please give a value",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be one of {expected}",
    "float_parsing": "must be a number, like 0.0002 or 2e-4",
    "float_type": "must be a number, like 0.0002 or 2e-4",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "model_type": "must be a mapping of fields",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "finite_number": "must be a finite number",
    "value_error": "{error}",
}


def _sentence(error: Mapping[str, Any]) -> FieldError:
    code = str(error["type"])
    context = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in (error.get("ctx") or {}).items()}
    known = _SENTENCES.get(code)  # pydantic's own words may hold braces: those of a pattern
    text = known.format_map({**context, "error": context.get("error", "")}) if known else str(error["msg"])
    given = error.get("input")
    if code not in ("missing", "value_error", "model_type") and isinstance(given, str | int | float):
        text += f" (got {_shown(given, meant=code.endswith('_parsing'))})"
    parts = [p for p in error["loc"] if not (isinstance(p, str) and ("[" in p or p in ("str", "float", "int")))]
    first = next((place for place, part in enumerate(parts) if isinstance(part, int)), len(parts))
    path, inside = ".".join(map(str, parts[:first])), ".".join(str(part) for part in parts[first + 1 :])
    if first < len(parts) and (inside or code == "model_type"):
        return FieldError(path, text, code, context, entry=int(parts[first]) + 1, name=inside)
    return FieldError(path, text, code, context)


def _shown(given: str | float, *, meant: bool) -> str:
    """A wrong value for a sentence, with the number that was probably `meant`."""
    if not isinstance(given, str):
        return "a number of many digits" if isinstance(given, int) and given.bit_length() > 64 else str(given)
    number = given.strip(" ,;，；。%").replace(",", ".")
    likely = meant and number != given and re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", number)
    return f"{given[:60]!r}; did you mean {number[:30]}?" if likely else repr(given[:60])


def errors_by_field(error: ValidationError) -> list[FieldError]:
    """A pydantic ValidationError as one `FieldError` per wrong field, in plain words."""
    seen: dict[tuple[str, int, str], FieldError] = {}
    for item in error.errors(include_url=False):
        found = _sentence(item)
        seen.setdefault((found.path, found.entry, found.name), found)
    return list(seen.values())


def build(model: type[ModelT], mapping: Any) -> ModelT:
    """Validate a mapping written with any accepted spelling.

    Raises:
        ConfigError: naming every wrong field.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError([FieldError("", "the configuration must be a mapping of fields, like `name: x`", "shape")])
    tree = nest(flatten(model, mapping))
    for name, info in model.model_fields.items():
        if section_type(info.annotation) and info.is_required():
            tree.setdefault(name, {})  # so that the error names the missing leaf, not its section
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(errors_by_field(error)) from None


def parse_yaml(text: str) -> dict[str, Any]:
    """YAML text -> mapping. Raises ConfigError, with the line number where there is one."""
    try:
        data = read_yaml(text)
    except YamlFault as error:
        raise ConfigError([FieldError("", str(error), "yaml")]) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError([FieldError("", "the YAML must be a mapping of fields, like `name: my-run`", "shape")])
    return data


def load_yaml(text: str, model: type[ModelT]) -> ModelT:
    """YAML text -> validated model. Raises ConfigError."""
    return build(model, parse_yaml(text))


def dump_yaml(config: BaseModel, *, full: bool = False) -> str:
    """A model as YAML: only what differs from the defaults, or every field with `full`."""
    data = config.model_dump(mode="json", exclude_defaults=not full)
    for name in ("kind", "schema_version"):  # a file must say what it is, whatever the defaults are
        if name in type(config).model_fields:
            data = {name: getattr(config, name), **{k: v for k, v in data.items() if k != name}}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def merge(model: type[BaseModel], *layers: Mapping[Any, Any]) -> dict[str, Any]:
    """Lay mappings over each other, later ones win field by field; returns a nested mapping with canonical names."""
    flat: dict[str, Any] = {}
    for layer in layers:
        flat |= flatten(model, layer)
    return nest(flat)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["train.learning_rate=1e-4", "lr=1e-4"]` -> {key: value}; values are read as YAML.

    Raises:
        ConfigError: an item without `=`.
    """
    result: dict[str, Any] = {}
    for item in overrides:
        key, sign, value = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError([FieldError(item, "an override is written field=value, like train.learning_rate=1e-4")])
        try:
            parsed = read_yaml(value)
        except YamlFault:
            parsed = value
        result[key.strip()] = value if parsed is None and value.strip() not in ("null", "~") else parsed
    return result


def docs_table(model: type[BaseModel]) -> str:
    """A Markdown table of every field: path, other names, type, default, range, help."""
    rows = ["| field | also accepted as | type | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for spec in walk(model):
        kind = " \\| ".join(spec.choices) if spec.choices else spec.kind
        if spec.item:
            kind = f"list of: {', '.join(f'`{inner.name}`' for inner in walk(spec.item))}"
        low, high = spec.minimum, spec.maximum
        if low is not None or high is not None:
            kind += f" {'' if low is None else f'{low:g}'}…{'' if high is None else f'{high:g}'}"
        default = "required" if spec.required else f"`{spec.default!r}`"
        aliases = ", ".join(f"`{a}`" for a in spec.ui.aliases)
        rows.append(f"| `{spec.path}` | {aliases} | {kind} | {default} | {' '.join(spec.help.split())} |")
    return "\n".join(rows) + "\n"
