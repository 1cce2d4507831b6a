"""The calculator: arithmetic that is parsed and bounded, exact as long as it can be."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

from studio.tools.expression import ExpressionError, read_expression
from studio.tools.tool import Tool, ToolError

Number = Fraction | float
MOST_BITS = 12_000
"""Size of an exact number: some 3600 digits, less than what Python prints."""
DIGITS = 15
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "expression": {"type": "string", "description": "for example (3 + 4) * 2 ** 10, sqrt(2), 15% or 7!"}
    },
    "required": ["expression"],
}
_CONSTANTS: dict[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}
_SMOOTH: dict[str, Callable[..., float]] = {
    name: getattr(math, name)
    for name in (
        "sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh",
        "tanh", "hypot", "degrees", "radians",
    )
} | {"ln": math.log, "cbrt": math.cbrt}  # fmt: skip
_CIRCULAR = ("sin", "cos", "tan")
"""Of these the last digit is noise: the sine of pi is nothing."""
_EXACT: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "floor": math.floor,
    "ceil": math.ceil,
    "sum": lambda *numbers: sum(numbers),
}
_WHOLE: dict[str, Callable[..., int]] = {
    "gcd": math.gcd,
    "lcm": math.lcm,
    "factorial": math.factorial,
    "comb": math.comb,
}
_LARGEST_WHOLE: dict[str, int] = {"factorial": 1000, "comb": 5000, "gcd": 10**30, "lcm": 10**30, "round": 1000}


def calculator() -> Tool:
    """The tool."""
    return Tool("calculate", "Works out an arithmetic expression exactly.", _PARAMETERS, _answer)


def _answer(arguments: dict[str, Any]) -> str:
    return calculate(str(arguments["expression"]))


def calculate(text: str) -> str:
    """The value of an expression as text. Raises ToolError with a sentence."""
    try:
        return _shown(_value(read_expression(text.strip().rstrip("=?？＝ "))))
    except ExpressionError as error:
        raise ToolError(f"calculate: {error}") from None
    except ZeroDivisionError:
        raise ToolError("calculate: this divides by zero") from None
    except OverflowError:
        raise ToolError("calculate: the result is too large") from None
    except (TypeError, IndexError):
        raise ToolError("calculate: a function has too few or too many arguments") from None
    except ValueError:
        raise ToolError("calculate: this has no real value, such as the root of a negative number") from None


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant):
        return _bounded(_literal(node))
    if isinstance(node, ast.Name):
        return _constant(node.id)
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        return _bounded(_power(left, right) if isinstance(node.op, ast.Pow) else _OPERATORS[type(node.op)](left, right))
    assert isinstance(node, ast.Call)
    return _bounded(_called(node))


def _literal(node: ast.Constant) -> Number:
    """As it was written: 0.1 is a tenth, not the float beside it."""
    assert isinstance(node.value, int | float)
    return Fraction(str(node.value)) if math.isfinite(node.value) else float(node.value)


def _constant(name: str) -> float:
    if name not in _CONSTANTS:
        raise ExpressionError(f"{name[:40]!r} is no number; known are {', '.join(_CONSTANTS)}")
    return _CONSTANTS[name]


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        if base in (0, 1, -1) or abs(exponent) * _bits(base) <= MOST_BITS:
            return base ** int(exponent)
        raise OverflowError
    return math.pow(base, exponent)  # which knows no imaginary numbers, and says so


def _called(node: ast.Call) -> Number:
    assert isinstance(node.func, ast.Name)
    name, given = node.func.id, [_value(one) for one in node.args]
    if name in _SMOOTH:
        result = float(_SMOOTH[name](*map(float, given)))
        return round(result, DIGITS) if name in _CIRCULAR else result
    if name in _EXACT:
        return _exact(_EXACT[name](*given))
    if name == "round":
        return Fraction(round(Fraction(given[0]), *(_whole(name, one) for one in given[1:])))
    if name not in _WHOLE:
        raise ExpressionError(
            f"there is no function {name[:40]!r}; known are {', '.join(sorted([*_SMOOTH, *_EXACT, *_WHOLE, 'round']))}"
        )
    return Fraction(_WHOLE[name](*(_whole(name, one) for one in given)))


def _exact(number: float | Fraction) -> Number:
    return number if isinstance(number, float) else Fraction(number)


def _whole(name: str, number: Number) -> int:
    if number != int(number):
        raise ExpressionError(f"{name} takes whole numbers")
    whole = int(number)
    if abs(whole) > _LARGEST_WHOLE[name]:
        raise OverflowError
    return whole


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _bounded(number: Number) -> Number:
    """Raises OverflowError for what has grown too large to go on with."""
    if isinstance(number, Fraction):
        if _bits(number) > MOST_BITS:
            raise OverflowError
        return number
    if not math.isfinite(number):
        raise OverflowError
    return number


def _shown(number: Number) -> str:
    """Whole numbers in full, others with at most 15 digits."""
    if isinstance(number, Fraction):
        if number.denominator == 1:
            return str(number.numerator)
        exact = Context(prec=DIGITS).divide(Decimal(number.numerator), Decimal(number.denominator))
        return _plain(exact)
    if number == int(number) and abs(number) < 10**DIGITS:
        return str(int(number))
    return _plain(Context(prec=DIGITS).create_decimal(repr(number)))


def _plain(number: Decimal) -> str:
    """Without an exponent where it is short enough without, and without zeros at the end."""
    small = -7 <= number.adjusted() < DIGITS
    text = format(number, "f") if small else format(number.normalize(), "E")
    return text.rstrip("0").rstrip(".") if small and "." in text else text
