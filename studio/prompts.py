"""A prompt as the configuration holds it: a text, or the messages of a conversation that end with the user's turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from typing_extensions import TypedDict

LONGEST = 20_000  # characters of one text
MOST_TURNS = 100
ROLES = ("system", "user", "assistant")


class Turn(TypedDict):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: str


def read_prompt(value: Any) -> Any:
    """A prompt as typed: messages may also be written as JSON in one line. Raises ValueError with a sentence."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        value = _parsed(value)
    if isinstance(value, list | tuple):
        return _checked(value)
    if isinstance(value, str) and len(value) > LONGEST:
        raise ValueError(f"a prompt must have at most {LONGEST} characters; shorten it")
    return value


Prompt = Annotated[str | list[Turn], BeforeValidator(read_prompt)]


def messages_of(prompt: str | Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The conversation a prompt stands for."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def texts(prompts: Sequence[Any]) -> list[str]:
    """Those of the prompts that are a single, non-empty question."""
    return [prompt for prompt in prompts if isinstance(prompt, str) and prompt.strip()]


def as_line(item: Any) -> str:
    """An entry of a list as one line of a form: a text as it is, messages as JSON."""
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def _parsed(text: str) -> Any:
    """JSON that stands for messages; any other text is a question of its own."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _checked(turns: Sequence[Any]) -> list[dict[str, str]]:
    """Messages in an order that a chat template can write. Raises ValueError."""
    if not 1 <= len(turns) <= MOST_TURNS:
        raise ValueError(f"a prompt of several messages must have 1 to {MOST_TURNS} of them")
    for number, turn in enumerate(turns, 1):
        _check_turn(number, turn)
    roles = [turn["role"] for turn in turns if turn["role"] != "system"]
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise ValueError("in a prompt of several messages only the first may be the system's")
    if roles != [("user", "assistant")[place % 2] for place in range(len(roles))] or not len(roles) % 2:
        raise ValueError("a prompt of several messages must go user, assistant, user, and end with the user")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _check_turn(number: int, turn: Any) -> None:
    known = isinstance(turn, Mapping) and set(turn) == {"role", "content"} and turn["role"] in ROLES
    if not known or not isinstance(turn["content"], str) or not turn["content"].strip():
        raise ValueError(
            f"message {number} of a prompt must be {{role: user, content: a text}}; roles are {', '.join(ROLES)}"
        )
    if len(turn["content"]) > LONGEST:
        raise ValueError(f"message {number} of a prompt must have at most {LONGEST} characters; shorten it")
