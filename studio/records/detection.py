"""Which format a file has: its first rows vote, the most specific mapping that fits a row gets its vote."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import yaml

from studio.records.cells import kind_of
from studio.records.errors import DataError, nearest, shown
from studio.records.mappings import Mapping, load_mappings, write_mapping
from studio.records.places import PRESETS

VOTERS = 200
_LONGEST_SEEN = 20_000  # characters of a cell that a pattern looks at
_NUMBERING = {"id", "idx", "index", "unnamed: 0", ""}  # columns that say nothing about a format


class UnknownColumns(DataError):
    """No known format has the file's `columns`: a person has to say which is which (`suggest` proposes)."""

    def __init__(self, message: str, columns: Sequence[str]) -> None:
        super().__init__(message)
        self.columns = tuple(columns)


def detect(rows: Iterable[Any], name: str) -> Mapping:
    """The format of a file called `name`, from its first 200 rows.

    Raises:
        UnknownColumns: rows with columns no format has.
        DataError: no rows with columns at all.
    """
    votes, loose = Counter[str](), Counter[str]()
    headings: dict[str, str] = {}
    first: Any = None
    for _, row in zip(range(VOTERS), rows, strict=False):
        first = row if first is None or (isinstance(row, dict) and not (first and isinstance(first, dict))) else first
        if isinstance(row, dict):
            headings |= {key.strip().lower(): key for key in row if isinstance(key, str) and key.strip().lower() != key}
            _vote(row, votes, loose)
    if votes or loose:
        return _elected(votes or loose)
    if not isinstance(first, dict):
        raise DataError(f"{name} holds no JSON objects, but {kind_of(first)}. {_known()}")
    plain = {key.strip().lower(): value for key, value in first.items() if isinstance(key, str)}
    if headings and any(_fits(mapping, plain) for mapping in _candidates()):
        return _renamed(detect([plain], name), headings)
    raise UnknownColumns(_unknown_columns(first, name), [str(key) for key in first])


def suggest(columns: Sequence[str], rows: Sequence[Any]) -> dict[str, str]:
    """A proposal for a table nobody knows: our names (instruction, input, output, system, text) to its columns.

    Names decide first (English and Chinese), then how long the texts of `rows` are: the longest are the answers.
    """
    found: dict[str, str] = {}
    for ours, words in _column_names().items():
        match = next((c for word in words for c in columns if _plain_name(c) == word and c not in found.values()), None)
        if match is not None:
            found[ours] = match
    if "output" not in found and "text" in found and "instruction" not in found:
        return {"text": found["text"]}
    found.pop("text", None)
    lengths = _lengths([c for c in columns if c not in found.values()], rows)
    for ours in ("output", "instruction"):
        if ours not in found and lengths:
            found[ours] = lengths.pop()
    if "instruction" not in found:
        return {"text": found["output"]} if "output" in found else {}
    return {ours: found[ours] for ours in ("instruction", "input", "output", "system") if ours in found}


def _lengths(columns: Sequence[str], rows: Sequence[Any]) -> list[str]:
    """The columns that hold texts, the one with the longest texts last."""
    totals: dict[str, int] = {}
    for column in columns:
        cells = [row.get(column) for row in rows[:VOTERS] if isinstance(row, dict)]
        texts = [cell for cell in cells if isinstance(cell, str) and not _is_number(cell)]
        if texts and len(texts) * 2 >= len(cells):
            totals[column] = sum(map(len, texts))
    return sorted(totals, key=lambda column: totals[column])


def _is_number(cell: str) -> bool:
    return not cell.strip() or re.fullmatch(r"[\s\d.,:+/%-]+", cell) is not None


def _plain_name(column: str) -> str:
    return re.sub(r"[\s_\-.:：]+", "", column).lower()


@lru_cache(maxsize=1)
def _column_names() -> dict[str, list[str]]:
    content = yaml.safe_load((PRESETS / "column_names.yaml").read_text(encoding="utf-8"))
    return {ours: [_plain_name(word) for word in words] for ours, words in content["names"].items()}


@lru_cache(maxsize=1)
def _candidates() -> tuple[Mapping, ...]:
    """The mappings that can be detected, the most specific first."""
    return tuple(sorted((m for m in load_mappings() if m.detect), key=lambda m: (-m.weight, m.name)))


def _vote(row: dict[Any, Any], votes: Counter[str], loose: Counter[str]) -> None:
    for mapping in _candidates():
        if _fits(mapping, row):
            votes[mapping.name] += 1
            return
    # Nothing fits, but the columns may say what the row was meant to be; then its fault can be named.
    meant = next((m for m in _candidates() if not m.match and not m.exact and m.required <= row.keys()), None)
    if meant:
        loose[meant.name] += 1


def _elected(votes: Counter[str]) -> Mapping:
    """The winner. A mapping that refines another also reads the other's rows, so it takes their votes."""
    total = Counter(votes)
    for mapping in _candidates():
        if mapping.refines in votes and votes[mapping.name] * 10 >= votes[mapping.refines] > 0:
            total[mapping.name] += votes[mapping.refines]
    best = max(total.values())
    return next(mapping for mapping in _candidates() if total[mapping.name] == best)


def _fits(mapping: Mapping, row: dict[Any, Any]) -> bool:
    wanted = mapping.required | set(mapping.also)
    if any(row.get(column) is None for column in wanted):
        return False
    if mapping.exact and not _telling(row) <= wanted | set(mapping.columns.values()):
        return False
    for column, pattern in mapping.match.items():
        if not re.search(pattern, str(row.get(column, ""))[:_LONGEST_SEEN]):
            return False
    return _has_shape(mapping, row)


def _telling(row: dict[Any, Any]) -> set[str]:
    return {key for key in map(str, row) if key.lower() not in _NUMBERING}


def _has_shape(mapping: Mapping, row: dict[Any, Any]) -> bool:
    """Whether the cells look like what the shape reads; a table holds lists as text."""
    if mapping.shape in ("text", "tagged"):
        return isinstance(row[next(iter(mapping.required))], str)
    if mapping.shape == "moss":
        return isinstance(row[mapping.column("chat")], dict)
    if mapping.shape == "messages":
        return _list_of(row[mapping.column("messages")], mapping.column("role"))
    if mapping.shape == "turns":
        cell = row[mapping.column("turns")]
        return _list_of(cell, mapping.column("output")) and (not mapping.plain or _is_plain(cell, mapping))
    return True


def _is_plain(cell: Any, mapping: Mapping) -> bool:
    """One turn that answers nothing."""
    return isinstance(cell, list) and len(cell) == 1 and not cell[0].get(mapping.column("input"))


def _list_of(cell: Any, key: str) -> bool:
    if isinstance(cell, str):
        return cell.lstrip().startswith("[") and re.search(rf"""['"]{re.escape(key)}['"]\s*:""", cell) is not None
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], dict) and key in cell[0]


def _renamed(mapping: Mapping, headings: dict[str, str]) -> Mapping:
    """The mapping for a table whose headings are written with capitals or spaces."""
    wanted = {key: mapping.column(key) for key in ("instruction", "output", "text", "chosen", "rejected", "messages")}
    columns = {key: headings.get(column, column) for key, column in (wanted | mapping.columns).items()}
    return Mapping.model_validate(mapping.model_dump() | {"columns": columns})


def _known() -> str:
    """The formats by label and columns, each set of columns once, without the variants that need more than columns."""
    plain = [m for m in load_mappings() if m.detect and not (m.match or m.exact or m.also or m.template or m.plain)]
    formats = {", ".join(sorted(m.required)): m.label for m in reversed(plain)}
    return f"Known formats: {'; '.join(f'{label} with {columns}' for columns, label in reversed(formats.items()))}."


def _unknown_columns(row: dict[Any, Any], name: str) -> str:
    columns = list(row)
    if not columns:
        return f"{name} holds an empty object. Add at least one row. {_known()}"
    listed = ", ".join(f"'{shown(str(column), 30)}'" for column in columns[:12])
    wanted = {column for mapping in _candidates() for column in mapping.required}
    hint = next((found for column in columns if (found := nearest(str(column)[:60], wanted))), "")
    proposal = shown(write_mapping(suggest([str(column) for column in columns], [row])), 80)
    remedy = f" Set the column mapping, for example to {proposal}." if proposal else ""
    return f"{name} has the columns {listed}, which is no known format.{hint}{remedy} {_known()}"
