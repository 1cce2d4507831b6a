"""A Python configuration file as values, by its syntax tree: nothing of it is ever executed.

Understood are constants, names, `dict(...)`, lists, arithmetic and texts made of known parts. Everything else becomes
`Unknown`, which says its line and what it was.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from studio.schema import ConfigError, FieldError

_LONGEST_TEXT = 100_000
_LARGEST = 10**18
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


@dataclass(frozen=True)
class Symbol:
    """A name from elsewhere, like `torch.float16` or `alpaca_map_fn`."""

    name: str

    @property
    def last(self) -> str:
        """The part after the last dot."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Unknown:
    """Something that would have to be executed."""

    what: str


@dataclass(eq=False)
class Val:
    """A value and its line. `value` is a constant, a Symbol, Unknown, a dict of Vals by key or a list of Vals."""

    value: Any
    line: int
    used: bool = False

    def get(self, path: str) -> Val | None:
        """The value at a dotted path, or None; what lies on the way counts as used."""
        node: Val | None = self
        for key in path.split("."):
            if node is None or not isinstance(node.value, dict):
                return None
            node.used = True
            node = node.value.get(key)
        return node


@dataclass
class Module:
    """The top-level names of a file, and the statements that were not understood as (line, what)."""

    names: dict[str, Val] = field(default_factory=dict)
    statements: list[tuple[int, str]] = field(default_factory=list)


def parse_python(text: str) -> Module:
    """Reads the assignments of a configuration file. Raises ConfigError when it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes in texts are theirs
            tree = ast.parse(text)
        module = Module()
        for statement in tree.body:
            _read_statement(statement, module)
        return module
    except SyntaxError as error:
        message = f"the Python file cannot be read at line {error.lineno}: {error.msg}"
        raise ConfigError([FieldError("", message, "python")]) from None
    except (ValueError, MemoryError, RecursionError):
        raise ConfigError(
            [FieldError("", "the Python file cannot be read: it is nested too deeply or damaged")]
        ) from None


def _read_statement(statement: ast.stmt, module: Module) -> None:
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass):
        return
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return
    if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
        value = _value(statement.value, module.names)
        for target in statement.targets:
            assert isinstance(target, ast.Name)
            module.names[target.id] = value
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        module.names[statement.target.id] = _value(statement.value, module.names)
    elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        name = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement)
        sum_ = ast.copy_location(ast.BinOp(name, statement.op, statement.value), statement)
        module.names[statement.target.id] = _value(sum_, module.names)
    elif isinstance(statement, ast.If) and isinstance(test := _plain_test(statement, module), bool):
        for inner in statement.body if test else statement.orelse:
            _read_statement(inner, module)
    else:
        module.statements.append((statement.lineno, _shown(statement)))


def _plain_test(statement: ast.If, module: Module) -> Any:
    """The test of an `if`, when it is known."""
    return _value(statement.test, module.names).value


def _value(node: ast.expr, names: dict[str, Val]) -> Val:
    """An expression as a value; a name gives the very Val it stands for, so that both count as used together."""
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    return Val(_plain(node, names), node.lineno)


def _plain(node: ast.expr, names: dict[str, Val]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str | int | float | bool | None) else Unknown(_shown(node))
    if isinstance(node, ast.Name | ast.Attribute):
        dotted = _dotted(node)
        return Symbol(dotted) if dotted else Unknown(_shown(node))
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_value(item, names) for item in node.elts]
    if isinstance(node, ast.Dict | ast.Call):
        return _mapping(node, names)
    if isinstance(node, ast.IfExp):
        test = _plain(node.test, names)
        return (
            _value(node.body if test else node.orelse, names).value if isinstance(test, bool) else Unknown("a choice")
        )
    return _computed(node, names)


def _mapping(node: ast.Dict | ast.Call, names: dict[str, Val]) -> Any:
    """`{...}` and `dict(...)` as a dict of Vals; any other call is Unknown."""
    if isinstance(node, ast.Dict):
        keys = [_plain(key, names) if key else Unknown("**") for key in node.keys]
        pairs = list(zip(keys, node.values, strict=True))
    elif isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        pairs = [(keyword.arg or Unknown("**"), keyword.value) for keyword in node.keywords]
    else:
        return Unknown(_shown(node))
    return {str(key.what if isinstance(key, Unknown) else key): _value(value, names) for key, value in pairs}


def _computed(node: ast.expr, names: dict[str, Val]) -> Any:
    """Arithmetic, comparisons and texts of known parts."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        lists = [_value(side, names).value for side in (node.left, node.right)]
        if all(isinstance(part, list) for part in lists):
            return [*lists[0], *lists[1]]
    parts: list[Any] = []
    action: Callable[..., Any] | None = None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        parts, action = [_known(node.operand, names)], operator.neg
    elif isinstance(node, ast.BinOp):
        parts, action = [_known(node.left, names), _known(node.right, names)], _BINARY.get(type(node.op))
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        parts = [_known(node.left, names), _known(node.comparators[0], names)]
        action = _COMPARE.get(type(node.ops[0]))
    elif isinstance(node, ast.JoinedStr):
        parts = [_known(item.value if isinstance(item, ast.FormattedValue) else item, names) for item in node.values]
        action = _joined if not any(isinstance(i, ast.FormattedValue) and i.format_spec for i in node.values) else None
    if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Add) and any(isinstance(p, str) for p in parts):
        action = None  # "x" * 10**9 and "%999999999d" % 1 would eat the memory
    if action is None or any(isinstance(part, Unknown) for part in parts):
        return Unknown(_shown(node))
    try:
        result = action(*parts)
    except (TypeError, ValueError, ArithmeticError):
        return Unknown(_shown(node))
    return result if _is_small(result) else Unknown(_shown(node))


def _known(node: ast.expr, names: dict[str, Val]) -> Any:
    """A constant small enough to compute with, else Unknown. A used name counts as used: its value goes on."""
    found = _value(node, names)
    if isinstance(found.value, str | int | float | None) and _is_small(found.value):
        found.used = True
        return found.value
    return Unknown(_shown(node))


def _joined(*parts: Any) -> str:
    return "".join(map(str, parts))


def _is_small(value: Any) -> bool:
    """Texts and numbers that cannot grow out of hand when they are multiplied once more."""
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT
    return not isinstance(value, int | float) or abs(value) <= _LARGEST


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else None
    return None


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else f"{text[:57]}…"
