"""Column mappings: which column of a file means what. They are data in presets/datasets, not code."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from studio.records.errors import DataError, nearest, shown
from studio.records.places import PRESETS

Shape = Literal["messages", "turns", "single", "tagged", "text", "preference", "moss"]
_REQUIRED: dict[Shape, tuple[str, ...]] = {
    "messages": ("messages",),
    "turns": ("turns",),
    "single": ("instruction", "output"),
    "tagged": ("text",),
    "text": ("text",),
    "preference": ("chosen", "rejected"),
    "moss": ("chat",),
}
_IN_TEMPLATE = re.compile(r"\{(\w+)\}")
_PAIR = re.compile(r"""\s*([^=,]*?)\s*=\s*(?:"([^"]*)"|([^,]*?))\s*(?:,|$)""")
_FIELD = "data.mapping"


class Mapping(BaseModel):
    """One known format.

    `columns` maps what this program calls a column to what the file calls it; which names a shape knows is said in the
    function of `shapes*.py` that reads it. `roles` maps the file's names of speakers to ours, `tags` the marks of
    speakers inside one text. `template` joins columns to a question, `system` is the system prompt of rows without
    their own, `trim` cuts what has no question or no answer, `plain` reads a turn without input as a plain text,
    `plugins` takes calls out of answers.

    For detection a row must have the required columns and those of `also`, must match the patterns of `match` and,
    if `exact`, have no other columns; `refines` names a mapping whose rows this one reads as well. A file may also have
    the keys of a dataset preset (`config`), which are not for this package.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    kind: Literal["mapping"] = "mapping"
    shape: Shape
    label: str
    columns: dict[str, str] = {}
    roles: dict[str, str] = {}
    tags: dict[str, str] = {}
    ends: tuple[str, ...] = ()
    system: str = ""
    template: str = ""
    no_answer: tuple[str, ...] = ()
    trim: bool = False
    image: Literal["keep", "front", "only"] = "keep"
    plain: bool = False
    plugins: bool = False
    aliases: tuple[str, ...] = ()
    detect: bool = True
    also: tuple[str, ...] = ()
    match: dict[str, str] = {}
    exact: bool = False
    rank: int = 0
    refines: str = ""

    @cached_property
    def required(self) -> frozenset[str]:
        """Columns of the file without which a row cannot be read."""
        wanted = [key for key in _REQUIRED[self.shape] if not (self.template and key == "instruction")]
        return frozenset([*(self.column(key) for key in wanted), *_IN_TEMPLATE.findall(self.template)])

    @cached_property
    def tag_pattern(self) -> re.Pattern[str]:
        """Finds the mark of a speaker; leading space of a mark is not needed at the very start of a text."""
        marks = [rf"(?:\A\s*|{tag[: -len(tag.lstrip())]}){re.escape(tag.lstrip())}" for tag in self.tags]
        return re.compile("(" + "|".join(marks) + ")")

    @property
    def weight(self) -> int:
        """How specific the mapping is: of several that fit a row, the one with most weight is meant."""
        return 10 * self.rank + len(self.required) + len(self.also) + 2 * len(self.match) + self.exact

    def column(self, key: str) -> str:
        """The file's name for a column; the key itself when the mapping does not rename it."""
        return self.columns.get(key, key)

    def fill(self, row: dict[str, str]) -> str:
        """The template with the row's texts in it; what is inserted is never looked at again."""
        return _IN_TEMPLATE.sub(lambda found: row[found.group(1)], self.template)


@lru_cache(maxsize=4)
def load_mappings(folder: Path = PRESETS) -> tuple[Mapping, ...]:
    """All mapping files of a folder, by name. A malformed file is a defect of the installation and raises."""
    contents = _contents(folder)
    prompts = system_prompts(folder)
    found = []
    for name, content in contents.items():
        if content.get("kind") == "mapping":
            prompt = prompts[content["system_prompt"]] if "system_prompt" in content else ""
            found.append(Mapping.model_validate({"name": name, "system": prompt, **content}))
    return tuple(found)


@lru_cache(maxsize=1)
def known_mappings() -> str:
    """SHA-256 of all mappings: another one when any of them reads its rows in another way."""
    return hashlib.sha256(json.dumps([mapping.model_dump() for mapping in load_mappings()]).encode()).hexdigest()


@lru_cache(maxsize=4)
def system_prompts(folder: Path = PRESETS) -> dict[str, str]:
    """The named system prompts (coder, lawyer, sql, ...) that mappings and imported configs refer to."""
    found: dict[str, str] = {}
    for content in _contents(folder).values():
        if content.get("kind") == "system_prompts":
            found |= content["prompts"]
    return found


def named_mapping(name: str) -> Mapping | None:
    """The mapping with that name or alias, also in XTuner's spelling with `_map_fn` at the end; None if unknown."""
    wanted = name.strip().lower().removesuffix("_map_fn")
    return next((m for m in load_mappings() if wanted in (m.name, *m.aliases)), None)


def parse_mapping(text: str) -> Mapping:
    """A mapping by name, or written out: `instruction=question, output=answer`. Raises DataError (data.mapping)."""
    found = None if "=" in text else named_mapping(text)
    if found:
        return found
    if "=" in text:
        return _inline(text)
    names = [name for mapping in load_mappings() for name in (mapping.name, *mapping.aliases)]
    hint = nearest(text.strip().removesuffix("_map_fn")[:80], names)
    raise DataError(
        f"There is no column mapping called '{shown(text, 60)}'.{hint} Give a name such as alpaca, or columns such as "
        "instruction=question, output=answer.",
        field=_FIELD,
    )


def write_mapping(columns: dict[str, str]) -> str:
    """Columns as the text `parse_mapping` reads: `instruction=question, output=answer`."""
    return ", ".join(
        f'{key}="{name}"' if re.search(r"[,\s]|^$", name) else f"{key}={name}" for key, name in columns.items()
    )


_INLINE: dict[Shape, tuple[str, ...]] = {
    "text": ("text",),
    "preference": ("chosen", "rejected", "prompt", "input", "system"),
    "messages": ("messages", "role", "content", "loss", "system", "tools", "images"),
    "single": ("instruction", "output", "input", "system", "history"),
}


def _inline(text: str) -> Mapping:
    columns = _pairs(text)
    shape: Shape = next((shape for shape, keys in _INLINE.items() if keys[0] in columns), "single")
    known = _INLINE[shape]
    every = dict.fromkeys(key for keys in _INLINE.values() for key in keys)
    for key in columns:
        if key not in known:
            hint = nearest(key[:40], every)
            raise DataError(
                f"The column mapping has '{shown(key, 40)}', which does not belong there.{hint} "
                f"Known here: {', '.join(known)}.",
                field=_FIELD,
            )
    missing = [key for key in _REQUIRED[shape] if key not in columns]
    if missing:
        raise DataError(
            f"The column mapping says nothing about '{missing[0]}'. Write it like instruction=question, output=answer, "
            "or text=body for plain texts.",
            field=_FIELD,
        )
    chat = named_mapping("messages")
    roles = chat.roles if chat else {}
    return Mapping(name="columns", shape=shape, label="Columns", columns=columns, roles=roles, detect=False)


def _pairs(text: str) -> dict[str, str]:
    columns: dict[str, str] = {}
    place = 0
    while place < len(text):
        found = _PAIR.match(text, place)
        if not found or not found[1]:
            raise DataError(
                f"The column mapping cannot be read at '{shown(text[place:], 30)}'. Write it like "
                "instruction=question, output=answer.",
                field=_FIELD,
            )
        key, column = found[1].lower(), found[2] if found[2] is not None else found[3]
        if not column or key in columns:
            problem = "is named twice" if column else "has no column"
            raise DataError(f"In the column mapping '{shown(key, 40)}' {problem}. Correct it.", field=_FIELD)
        columns[key] = column
        place = found.end()
    return columns


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))}
