"""Column mappings: which column of a file means what. They are data in presets/datasets, not code."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from studio.records.places import PRESETS

Shape = Literal["messages", "turns", "single"]
_REQUIRED: dict[Shape, tuple[str, ...]] = {
    "messages": ("messages",),
    "turns": ("turns",),
    "single": ("instruction", "output"),
}


class Mapping(BaseModel):
    """One known format. `columns` maps what this program calls a column to what the file calls it.

    A file may also have the keys of a dataset preset (`config`), which are not for this package.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    kind: Literal["mapping"]
    shape: Shape
    label: str
    columns: dict[str, str]
    no_answer: tuple[str, ...] = ()

    @property
    def required(self) -> frozenset[str]:
        """Columns of the file without which it is not this format."""
        return frozenset(self.columns[key] for key in _REQUIRED[self.shape])

    def column(self, key: str) -> str:
        """The file's name for a column; the key itself when the mapping does not rename it."""
        return self.columns.get(key, key)


@lru_cache(maxsize=4)
def load_mappings(folder: Path = PRESETS) -> tuple[Mapping, ...]:
    """All mapping files of a folder, by name. A malformed file is a defect of the installation and raises."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if content.get("kind") == "mapping":
            found.append(Mapping(name=path.stem, **content))
    return tuple(found)
