"""Reads one cell of a row; whatever is wrong with it becomes a reason a person can act on."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping as Dict
from typing import Any

from studio.records.conversation import broken_text
from studio.records.errors import shown

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


class RowError(Exception):
    """One row cannot be used; the text says why, as a clause for a sentence."""


def kind_of(value: Any) -> str:
    """What a value is, in words: `a number`, `a list`, ..."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "binary data"}
    return names.get(type(value), "something else")


def text(item: Dict[str, Any], key: str, where: str = "", *, optional: bool = False) -> str:
    """The text under `key`. Raises RowError; a missing or null one is "" when it is optional.

    `where` names the part of the row (`message 2`); empty means the row itself.
    """
    value = item.get(key)
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if value is None:
        raise RowError(_nothing(key, where, null=key in item))
    raise RowError(f"{_named(key, where)} is {_not_text(value)}")


def flag(item: Dict[str, Any], key: str, where: str = "") -> bool:
    """A switch that is on unless it says otherwise: true or false, 1 or 0, or one of them as text. Raises RowError."""
    value = item.get(key)
    word = str(value).lower() if isinstance(value, str) else value
    if word is None or word in _TRUE or word == 1:
        return True
    if word in _FALSE or word == 0:
        return False
    raise RowError(f"{_named(key, where)} is {shown(str(value), 20)}, not true or false")


def listed(item: Dict[str, Any], key: str, where: str = "") -> list[Any]:
    """The list under `key`, which tables hold as text (JSON, or as Python prints it). Raises RowError."""
    value = unpacked(item.get(key))
    if isinstance(value, list):
        return value
    raise RowError(f"{_named(key, where)} is {kind_of(value)}, not a list")


def unpacked(value: Any) -> Any:
    """What a text stands for if it is a JSON (or Python) list or object; the value itself otherwise."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    for parse in (json.loads, _python_literal):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list | dict):
            return found
    return value


def storable(value: Any, what: str) -> None:
    """Raises RowError when a JSON value (a tool, a call) holds something no file or tokenizer can hold."""
    try:
        reason = broken_text(json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\\u0000", "\x00"))
    except RecursionError:
        reason = "is nested too deeply"
    except (TypeError, ValueError):
        reason = "holds a value that JSON does not know"
    if reason:
        raise RowError(f"{what} {reason}")


def table_cell(value: Any) -> Any:
    """A cell of a table file as the text a person saw there: 42 is "42", an empty cell is None."""
    if value is None or isinstance(value, str | list | dict | bytes):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if value != value:  # not a number: how tables mark an empty cell
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def missing_column(column: str, row: Dict[str, Any]) -> RowError:
    """The reason for a row without a column it needs, with what it has instead."""
    found = ", ".join(f"'{shown(str(key), 30)}'" for key in list(row)[:6])
    return RowError(f"the column '{shown(column, 40)}' is missing" + (f"; it has {found}" if found else ""))


def _python_literal(value: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in the data are not the user's concern
        return ast.literal_eval(value)


def _named(key: str, where: str) -> str:
    return f"'{shown(key, 40)}' of {where}" if where else f"'{shown(key, 40)}'"


def _nothing(key: str, where: str, *, null: bool) -> str:
    if where:
        return f"{where} has {'a null' if null else 'no'} '{shown(key, 40)}'"
    return f"'{shown(key, 40)}' is {'null' if null else 'missing'}; write the text or delete the row"


def _not_text(value: Any) -> str:
    if isinstance(value, bool):
        return f"{str(value).lower()}, not text; put it in quotes"
    if isinstance(value, int | float):
        return f"a number ({shown(repr(value), 24)}), not text; put it in quotes"
    return f"{kind_of(value)}, not text"
