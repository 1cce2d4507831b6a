"""Arithmetic and equations as people and models write them, read into a syntax tree of a few allowed kinds.

Nothing is evaluated here: the text becomes Python's own syntax tree, which is walked node by node.
"""

from __future__ import annotations

import ast
import re
import unicodedata

LONGEST = 1000
"""Characters of an expression."""
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "—": "-"})
_RAISED = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_PERCENT = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*%(?!\s*[\w(.])")
_FACTORIAL = re.compile(r"(?<![\w.])(\d+)\s*!(?!=)")
_THOUSANDS = re.compile(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_TIMES = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*(?=[^\W\d_]|\()(?![eE][+-]?\d)")
_CLOSED_TIMES = re.compile(r"\)\s*(?=[\w(])")
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|\w+)")
_ALLOWED = (
    ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Call, ast.Load, ast.UAdd, ast.USub,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow,
)  # fmt: skip


class ExpressionError(ValueError):
    """A text that is no expression; the message is a clause for a sentence."""


def read_expression(text: str) -> ast.expr:
    """A text as a tree of numbers, names, calls of named functions and + - * / // % **. Raises ExpressionError."""
    if len(text) > LONGEST:
        raise ExpressionError(f"it is longer than {LONGEST} characters")
    plain = _plain(text)
    if not plain:
        raise ExpressionError("it is empty")
    try:
        tree = ast.parse(plain, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ExpressionError(f"{_short(text)} is no expression that can be read") from None
    for node in ast.walk(tree):
        _check(node, text)
    return tree


def _check(node: ast.AST, text: str) -> None:
    if not isinstance(node, _ALLOWED):
        raise ExpressionError(f"{_short(text)} is more than arithmetic; only numbers, names and functions are allowed")
    if isinstance(node, ast.Constant) and type(node.value) not in (int, float):
        raise ExpressionError(f"{_short(repr(node.value))} is no number")
    if isinstance(node, ast.Call) and (not isinstance(node.func, ast.Name) or node.keywords):
        raise ExpressionError(f"{_short(text)} calls what is no function of arithmetic")


def _plain(text: str) -> str:
    """Other people's signs as Python's."""
    text = _RAISED.sub(lambda found: f"**{found[1].translate(_SUPERSCRIPTS)}", text)
    text = _ROOT.sub(r"sqrt(\1)", text).replace("√", "sqrt")
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS).replace("^", "**").strip()
    text = _FACTORIAL.sub(r"factorial(\1)", _PERCENT.sub(r"(\1/100)", text))
    if not re.search(r"[^\W\d_]", text):  # with names in it, a comma stands between the arguments of a function
        text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return _CLOSED_TIMES.sub(")*", _TIMES.sub(r"\1*", text))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
