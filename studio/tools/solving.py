"""python -m studio.tools.solving: equations on standard input, their solution on standard output.

A process of its own, so that what takes too long or too much memory can be ended. Texts are read by
`studio.tools.expression` and never given to sympy's own reader, which evaluates Python.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import sys
from typing import Any

from studio.tools.expression import ExpressionError, read_expression

MEMORY_BYTES = 2 * 2**30
MOST_EQUATIONS = 8
MOST_SOLUTIONS = 20
_SPLIT = re.compile(r"[;；\n]+|\band\b")
_EQUALS = re.compile(r"(?<![<>!=])=+(?!=)")
_JOINED = re.compile(r"(?<![^\W\d])(?<!\.)([a-z])([xyz])(?![\w(])")
"""ax is a times x: so people write it."""
_STARTS = (0.5, -0.5, 2, -2, 5, -5, 20, -20)
_FUNCTIONS = (
    "sqrt", "exp", "log", "ln", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "factorial", "gcd",
    "lcm", "floor", "cbrt",
)  # fmt: skip


def main() -> int:
    """Reads {"equations", "unknown", "seconds"} and writes {"answer"} or {"fault"}.

    `seconds` of computing are allowed, beside those it takes to load sympy.
    """
    asked = json.loads(sys.stdin.read())
    import sympy

    _bound(int(asked["seconds"]))
    try:
        found = {"answer": solve(sympy, str(asked["equations"]), str(asked.get("unknown") or ""))}
    except ExpressionError as error:
        found = {"fault": str(error)}
    except (NotImplementedError, ValueError, TypeError, ZeroDivisionError, ArithmeticError):
        found = {"fault": "no way is known to solve it"}
    except (MemoryError, RecursionError, OverflowError):
        found = {"fault": "it is too large"}
    sys.stdout.write(json.dumps(found, ensure_ascii=False))
    return 0


def _bound(seconds: int) -> None:
    """From here on little time and memory; systems without such limits have the caller's patience only."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def solve(sympy: Any, text: str, unknown: str = "") -> str:
    """The solution in words and numbers. Raises ExpressionError, and whatever sympy raises."""
    lines = [line.strip() for line in _SPLIT.split(text) if line.strip()]
    if not lines:
        raise ExpressionError("there is no equation")
    if len(lines) > MOST_EQUATIONS:
        raise ExpressionError(f"there are more than {MOST_EQUATIONS} equations")
    sides = [[_built(sympy, side) for side in _sides(line)] for line in lines]
    if len(sides) == 1 and len(sides[0]) == 1 and not sides[0][0].free_symbols:
        return str(sympy.nsimplify(sides[0][0]))
    zeros = [left[0] - (left[1] if len(left) == 2 else 0) for left in sides]
    symbols = sorted(set().union(*(zero.free_symbols for zero in zeros)), key=str)
    if not symbols:
        return "true" if all(sympy.simplify(zero) == 0 for zero in zeros) else "false"
    wanted = _wanted(sympy, symbols, unknown, len(zeros))
    found = _solutions(sympy, zeros, wanted)
    if not found:
        return "every value is a solution" if all(sympy.simplify(zero) == 0 for zero in zeros) else "no solution"
    words = [", ".join(_said(sympy, symbol, value) for symbol, value in one.items()) for one in found[:MOST_SOLUTIONS]]
    return " or ".join(dict.fromkeys(words))


def _solutions(sympy: Any, zeros: list[Any], wanted: list[Any]) -> list[dict[Any, Any]]:
    """Exact ones; of one equation that has none that can be written down, a number found by search."""
    if len(zeros) > 1 or len(wanted) > 1:
        return list(sympy.solve(zeros, wanted, dict=True))
    zero, symbol = zeros[0], wanted[0]
    try:
        return list(sympy.solve(zero, symbol, dict=True))
    except NotImplementedError:
        if zero.free_symbols != {symbol}:
            raise
    for start in _STARTS:
        with contextlib.suppress(ValueError, ZeroDivisionError, TypeError):
            return [{symbol: sympy.nsolve(zero, symbol, start, prec=15)}]
    raise NotImplementedError


def _sides(line: str) -> list[str]:
    parts = [part.strip() for part in _EQUALS.split(line)]
    if len(parts) > 2 or not all(parts):
        raise ExpressionError(f"{line[:60]!r} is no equation; write it with one equals sign between two sides")
    return parts


def _wanted(sympy: Any, symbols: list[Any], unknown: str, equations: int) -> list[Any]:
    """The unknowns: those that are named, else as many as there are equations, x before others."""
    names = [name for name in re.split(r"[\s,，;]+", unknown) if name]
    chosen = [symbol for symbol in symbols if symbol.name in names]
    if names and not chosen:
        raise ExpressionError(f"{unknown[:40]!r} does not occur in it; its names are {', '.join(map(str, symbols))}")
    if chosen or len(symbols) <= equations:
        return chosen or symbols
    order = "xyzuvwtabc"
    return sorted(symbols, key=lambda symbol: (order.find(symbol.name) % 100, symbol.name))[:equations]


def _said(sympy: Any, symbol: Any, value: Any) -> str:
    """x = sqrt(2) ≈ 1.414213562: the decimal number where the exact one is not plain."""
    exact = str(value)
    if value.free_symbols or (len(exact) < 12 and not value.atoms(sympy.Pow, sympy.Function, sympy.Float)):
        return f"{symbol} = {exact}"
    near = str(sympy.N(value, 10))
    plain = len(exact) <= 80 and not value.atoms(sympy.Float) and "CRootOf" not in exact
    return f"{symbol} = {exact} ≈ {near}" if plain else f"{symbol} ≈ {near}"


def _built(sympy: Any, text: str) -> Any:
    return _expression(sympy, read_expression(_JOINED.sub(r"\1*\2", text)))


def _expression(sympy: Any, node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return sympy.Rational(str(node.value))
    if isinstance(node, ast.Name):
        return {"pi": sympy.pi, "e": sympy.E}.get(node.id) or sympy.Symbol(node.id)
    if isinstance(node, ast.UnaryOp):
        inner = _expression(sympy, node.operand)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.Call):
        return _function(sympy, node)
    assert isinstance(node, ast.BinOp)
    left, right = _expression(sympy, node.left), _expression(sympy, node.right)
    return _OPERATORS[type(node.op)](left, right)


_OPERATORS: dict[type[ast.operator], Any] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
    ast.Mod: lambda a, b: a % b,
    ast.FloorDiv: lambda a, b: a // b,
}


def _function(sympy: Any, node: ast.Call) -> Any:
    assert isinstance(node.func, ast.Name)
    name = node.func.id
    given = [_expression(sympy, one) for one in node.args]
    if name == "abs":
        return sympy.Abs(*given)
    if name == "log10":
        return sympy.log(*given, 10)
    if name not in _FUNCTIONS:
        raise ExpressionError(f"there is no function {name[:40]!r}; known are abs, log10, {', '.join(_FUNCTIONS)}")
    return getattr(sympy, name)(*given)


if __name__ == "__main__":
    sys.exit(main())
