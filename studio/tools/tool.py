"""One tool: a description for the model, and the function behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LONGEST_RESULT = 8000
"""Characters of a result a model is given to read."""


class ToolError(Exception):
    """A tool cannot do what it was asked; the message is one sentence, for the model and for a person."""


@dataclass(frozen=True)
class Tool:
    """A tool by name. `work` takes the arguments as checked and gives text; `parameters` is a JSON schema.

    `obstacle` is the sentence that says why it is off, None when it can be used. `own`: made by the user.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    work: Callable[[dict[str, Any]], str] = field(repr=False)
    obstacle: str | None = None
    own: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as the OpenAI protocol describes it."""
        described = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": described}

    def use(self, arguments: str | Mapping[str, Any]) -> str:
        """What it says to `arguments`, a JSON object or its text. Raises ToolError with a sentence."""
        if self.obstacle:
            raise ToolError(self.obstacle)
        result = self.work(self._fitting(_object(arguments)))
        if len(result) > LONGEST_RESULT:
            return f"{result[:LONGEST_RESULT]}\n… (cut: {len(result)} characters in all)"
        return result

    def _fitting(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments with the names the tool knows; one that came without a name is the first of them."""
        known: Mapping[str, Any] = self.parameters.get("properties", {})
        required = list(self.parameters.get("required", ()))
        if set(given) == {"input"} and "input" not in known:
            first = next(iter([*required, *known]), None)
            given = {first: given["input"]} if first else {}
        missing = [name for name in required if name not in given]
        if missing:
            raise ToolError(f"{self.name}: the argument {missing[0]} is missing")
        unknown = [name for name in given if name not in known]
        if unknown and self.parameters.get("additionalProperties") is not True:
            raise ToolError(f"{self.name}: there is no argument {unknown[0][:60]}; known: {', '.join(known) or 'none'}")
        return given


def _object(arguments: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(arguments, Mapping):
        return dict(arguments)
    try:
        found = json.loads(arguments, strict=False) if arguments.strip() else {}
    except (ValueError, RecursionError):
        raise ToolError("the arguments are not valid JSON") from None
    if not isinstance(found, dict):
        raise ToolError("the arguments are not a JSON object")
    return found
