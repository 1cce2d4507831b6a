"""YAML written by people, read with limits: nothing is executed, nothing hangs, nothing is silently overridden.

The safe loader alone is not enough: it reads ten megabytes for minutes, lets aliases stand for billions of values, and
lets the last of two equal keys win.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LONGEST = 2**20
"""Characters of a file or text."""
DEEPEST = 50
"""Levels of nesting."""
MOST = 100_000
"""Values, each alias counted as what it stands for."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))


class YamlFault(ValueError):
    """A text that is not read: one sentence that says where and why."""


def read_text(path: Path) -> str:
    """A text file of limited size. Raises YamlFault when it is no file, too large or not UTF-8."""
    try:
        if not path.is_file():
            reason = "it is no file" if path.exists() else "it does not exist"
            raise YamlFault(f"{str(path)[:200]} cannot be read: {reason}; check the path")
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(LONGEST + 1)
    except UnicodeDecodeError:
        raise YamlFault(f"{path} cannot be read: it is not UTF-8 text; check the path") from None
    except (OSError, ValueError) as error:
        if isinstance(error, YamlFault):
            raise
        reason = getattr(error, "strerror", None) or "that is no name a file can have"
        raise YamlFault(f"{str(path)[:200]!r} cannot be read: {reason}; check the path") from None
    if len(text) > LONGEST:
        raise YamlFault(f"{path} is larger than 1 MB; a configuration is a few lines, so this is another file")
    return text


def read_yaml(text: str) -> Any:
    """YAML text -> plain Python values; None for an empty one. Raises YamlFault."""
    if len(text) > LONGEST:
        raise YamlFault("the YAML is longer than 1 MB; a configuration is a few lines, so this is another text")
    try:
        _check_events(text)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Nodes().measure(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise YamlFault(_sentence(problem, getattr(error, "problem_mark", None))) from None
    except (RecursionError, ValueError, OverflowError, TypeError) as error:
        if isinstance(error, YamlFault):
            raise
        many = "digits" in str(error)  # Python's own words name its settings
        raise YamlFault(_sentence("a number of thousands of digits" if many else str(error)[:200])) from None


def _sentence(problem: str, mark: Any = None) -> str:
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"the YAML cannot be read{where}: {problem}"


def _check_events(text: str) -> None:
    """Depth, number and tags, before anything is built that has them."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        tag = getattr(event, "tag", None)
        if tag and tag not in (*_PLAIN, "!"):
            shown = tag.replace("tag:yaml.org,2002:", "!!")[:80]
            raise YamlFault(_sentence(f"the tag {shown} is not allowed; write a plain value", event.start_mark))
        if depth > DEEPEST:
            raise YamlFault(_sentence(f"more than {DEEPEST} levels of nesting", event.start_mark))
        if count > MOST:
            raise YamlFault(_sentence(f"more than {MOST} values", event.start_mark))


class _Nodes:
    """Counts what a graph of nodes stands for when every alias is written out, and finds keys given twice."""

    def __init__(self) -> None:
        self.sizes: dict[int, tuple[int, int]] = {}
        self.open: set[int] = set()

    def measure(self, node: yaml.Node) -> tuple[int, int]:
        """(values, levels) below a node."""
        known = self.sizes.get(id(node))
        if known:
            return known
        if id(node) in self.open:
            raise YamlFault(_sentence("a value that contains itself", node.start_mark))
        self.open.add(id(node))
        below = [self.measure(child) for child in self._children(node)]
        size, depth = 1 + sum(one[0] for one in below), 1 + max((one[1] for one in below), default=0)
        if size > MOST or depth > 2 * DEEPEST:
            raise YamlFault(_sentence("aliases that stand for too many values; write them out", node.start_mark))
        self.open.discard(id(node))
        self.sizes[id(node)] = size, depth
        return size, depth

    def _children(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if not isinstance(node, yaml.MappingNode):
            return []
        seen: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            first, old = seen.setdefault(key.value, (key, value))
            if old is not value and not _alike(old, value):
                line = first.start_mark.line + 1
                message = f"{key.value[:80]!r} is given twice with different values, first at line {line}; keep one"
                raise YamlFault(_sentence(message, key.start_mark))
        return [child for pair in node.value for child in pair]


def _alike(one: yaml.Node, other: yaml.Node) -> bool:
    return isinstance(one, yaml.ScalarNode) and isinstance(other, yaml.ScalarNode) and one.value == other.value
