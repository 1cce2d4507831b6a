"""Renders the part of Go's text/template that Modelfiles for Ollama are written in here.

Actions with trimmed white space, `if`, `else if`, `else`, `range $i, $x := …`, `end`, variables, fields, quoted texts,
and the functions eq, ne, and, or, not, len, slice. Whatever else a template says raises GoTemplateError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ITEM = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(:=)|([=(),])|(\d+)|(\$?[\w.]+|\$))')
_SPACE = " \t\r\n"


class GoTemplateError(ValueError):
    """A template that is broken or says something this renderer does not know."""


def render(source: str, values: Mapping[str, Any]) -> str:
    """The text of a template for `values`. Raises GoTemplateError."""
    parser = _Parser(list(_parts(source)))
    nodes = parser.block(())
    return "".join(_Run(values).write(nodes, values))


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class _Node:
    """A text, or an action: its first word, its items, and what stands in it."""

    kind: str
    text: str = ""
    items: list[str] = field(default_factory=list)
    body: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


def _parts(source: str) -> Iterator[_Node]:
    """Texts and actions one after the other, white space trimmed as the actions say."""
    at, trim = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at : start if start >= 0 else len(source)]
        text = text.lstrip(_SPACE) if trim else text
        if start >= 0 and source[start + 2 : start + 4] in ("- ", "-\n", "-\t"):
            text = text.rstrip(_SPACE)
        if text:
            yield _Node("text", text)
        if start < 0:
            return
        items, at, trim = _action(source, start)
        yield _Node("action", items=items)


def _action(source: str, start: int) -> tuple[list[str], int, bool]:
    """(items, where the action ends, whether what follows is trimmed)."""
    at = start + 2 + (2 if source[start + 2 : start + 3] == "-" else 0)
    items: list[str] = []
    while True:
        end = re.compile(r"(\s-)?\}\}|\s+\}\}").match(source, at)
        if end:
            return items, end.end(), "-" in end.group()
        found = _ITEM.match(source, at)
        if not found:
            raise GoTemplateError(f"something unknown at {source[at : at + 20]!r}")
        items.append(found.group().strip())
        at = found.end()


class _Parser:
    def __init__(self, parts: list[_Node]) -> None:
        self._parts, self._at = parts, 0

    def block(self, ends: tuple[str, ...]) -> list[_Node]:
        """The nodes up to one of `ends`, which is left to be read."""
        nodes: list[_Node] = []
        while self._at < len(self._parts):
            part = self._parts[self._at]
            word = part.items[0] if part.items else ""
            if part.kind == "action" and word in ("end", "else"):
                if word not in ends:
                    raise GoTemplateError(f"an unexpected {word}")
                return nodes
            self._at += 1
            nodes.append(self._opened(part, word) if word in ("if", "range") else part)
        if ends:
            raise GoTemplateError("an end is missing")
        return nodes

    def _opened(self, part: _Node, word: str) -> _Node:
        node = _Node(word, items=part.items[1:], body=self.block(("end", "else")))
        closing = self._parts[self._at]
        self._at += 1
        if closing.items[0] == "else":
            if closing.items[1:2] == ["if"]:  # its end closes this one too
                node.otherwise = [self._opened(_Node("action", items=closing.items[1:]), "if")]
            else:
                node.otherwise = self.block(("end",))
                self._at += 1
        return node


# ---- writing ---------------------------------------------------------------------------------------------------------


class _Run:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._scopes: list[dict[str, Any]] = [{"$": values}]

    def write(self, nodes: list[_Node], dot: Any) -> Iterator[str]:
        """The texts of `nodes`; `.` is `dot`."""
        for node in nodes:
            if node.kind == "text":
                yield node.text
            elif node.kind == "if":
                chosen = node.body if self._value(node.items, dot) else node.otherwise
                yield from self._inside(chosen, dot, {})
            elif node.kind == "range":
                yield from self._range(node, dot)
            elif node.items[1:2] == [":="]:
                self._scopes[-1][node.items[0]] = self._value(node.items[2:], dot)
            elif node.items[1:2] == ["="]:
                self._scope_of(node.items[0])[node.items[0]] = self._value(node.items[2:], dot)
            else:
                yield str(self._value(node.items, dot))

    def _inside(self, nodes: list[_Node], dot: Any, names: dict[str, Any]) -> Iterator[str]:
        self._scopes.append(names)
        yield from self.write(nodes, dot)
        self._scopes.pop()

    def _range(self, node: _Node, dot: Any) -> Iterator[str]:
        names: list[str] = []
        items = node.items
        if ":=" in items:
            place = items.index(":=")
            names, items = [item for item in items[:place] if item != ","], items[place + 1 :]
        for number, value in enumerate(self._value(items, dot)):
            given = [number, value] if len(names) == 2 else [value]
            yield from self._inside(node.body, value, dict(zip(names, given, strict=False)))

    def _scope_of(self, name: str) -> dict[str, Any]:
        scope: dict[str, Any]
        for scope in reversed(self._scopes):
            if name in scope:
                return scope
        raise GoTemplateError(f"there is no variable {name}")

    def _value(self, items: Sequence[str], dot: Any) -> Any:
        value, rest = self._expression(list(items), dot)
        if rest:
            raise GoTemplateError(f"{rest[0]!r} is not understood")
        return value

    def _expression(self, items: list[str], dot: Any) -> tuple[Any, list[str]]:
        """The value of a function with its arguments, or of one term; and the items behind it."""
        if not items:
            raise GoTemplateError("an empty action")
        if items[0] not in _FUNCTIONS:
            return self._term(items, dot)
        name, rest = items[0], items[1:]
        arguments: list[Any] = []
        while rest and rest[0] != ")":
            value, rest = self._term(rest, dot)
            arguments.append(value)
        return _FUNCTIONS[name](*arguments), rest

    def _term(self, items: list[str], dot: Any) -> tuple[Any, list[str]]:
        first, rest = items[0], items[1:]
        if first == "(":
            value, rest = self._expression(rest, dot)
            if not rest or rest[0] != ")":
                raise GoTemplateError("a bracket is not closed")
            return value, rest[1:]
        if first.startswith('"'):
            return json.loads(first), rest
        if first.isdigit():
            return int(first), rest
        name, *fields = first.split(".")
        if name and not name.startswith("$"):
            raise GoTemplateError(f"{first!r} is not understood")
        value = self._scope_of(name)[name] if name else dot
        for one in filter(None, fields):
            value = value.get(one, "") if isinstance(value, Mapping) else ""
        return value, rest


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *others: first in others,
    "ne": lambda first, second: first != second,
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
    "len": len,
    "slice": lambda value, *ends: value[slice(*ends) if len(ends) > 1 else slice(ends[0], None)],
}
