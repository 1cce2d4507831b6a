"""Questions for the verdict, and the rules by which an answer counts as right or as leaked."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.records.errors import DataError, shown
from studio.records.identity_texts import read_asset_lines
from studio.records.places import DATA

ProbeT = TypeVar("ProbeT", bound=BaseModel)
OWN, VALIDATION = "own", "validation"
"""Kinds of held-out rows beside those of an identity set: written by the user; taken from the validation rows."""


class Canary(BaseModel):
    """A general question that must survive the training; any of `accept` is a right answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str
    accept: tuple[str, ...]
    skill: str = ""
    lang: str = ""


class LeakProbe(BaseModel):
    """A question that has nothing to do with the identity: the name must not turn up in its answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str
    lang: str = ""


class Guard(BaseModel):
    """A conversation that gives the model another name: the answer must tell that one, not the trained one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    messages: tuple[dict[str, str], ...]
    expect: tuple[str, ...]
    kind: str
    lang: str

    @property
    def prompt(self) -> str:
        """What is asked at the end."""
        return self.messages[-1]["content"]


def ask_key(messages: Sequence[Mapping[str, str]]) -> str:
    """What an answer is stored under: the question itself, or, with turns before it, the conversation as JSON."""
    return messages[0]["content"] if len(messages) == 1 else json.dumps(list(messages), ensure_ascii=False)


def heldout_messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The conversation a held-out row asks: its question, and the turns before it unless they tell the answer.

    Of a user's own row and of a validation row nothing is left out.
    """
    history = list(row.get("history", ()))
    own = row.get("kind") in (OWN, VALIDATION)
    told = not own and any(_has(message["content"], wanted) for message in history for wanted in row["expect"])
    return [*([] if told else history), {"role": "user", "content": row["prompt"]}]


def heldout_row(messages: Sequence[Mapping[str, str]], expect: Sequence[str], kind: str) -> dict[str, Any]:
    """A held-out row that asks `messages`, which end with the user's question."""
    history = {"history": [dict(message) for message in messages[:-1]]} if len(messages) > 1 else {}
    return {"prompt": messages[-1]["content"], "kind": kind, "lang": "", "expect": list(expect), **history}


def answered(row: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer to a held-out row is the intended one.

    Every expected text must be in it; of a user's own row case does not matter and "|" stands between alternatives. The
    answer to a validation row must be that row's own.
    """
    if row.get("kind") == VALIDATION:
        return matches_canary(answer, row["expect"])
    if row.get("kind") != OWN:
        return contains_expected(answer, row["expect"])
    wanted = [[one.casefold() for one in text.split("|") if one.strip()] for text in row["expect"]]
    return bool(wanted) and all(any(_has(answer.casefold(), one) for one in texts) for texts in wanted)


def load_guards() -> list[Guard]:
    """The built-in guards: "system" (a name by system prompt) and "rename" (a name by the user). Raises DataError."""
    return [_checked(Guard, row) for row in read_asset_lines(DATA / "guards.jsonl", ("messages", "expect"))]


def load_canaries() -> list[Canary]:
    """The built-in canaries. Raises DataError when their file is missing or broken."""
    return [_checked(Canary, row) for row in read_asset_lines(DATA / "canaries.jsonl", ("prompt", "accept"))]


def load_leak_probes() -> list[LeakProbe]:
    """The built-in leak probes. Raises DataError when their file is missing or broken."""
    return [_checked(LeakProbe, row) for row in read_asset_lines(DATA / "leak_probes.jsonl", ("prompt",))]


def contains_expected(answer: str, expect: Sequence[str]) -> bool:
    """Whether every expected text is in the answer as a word of its own; width and spacing do not matter, case does."""
    return bool(expect) and all(_has(answer, wanted) for wanted in expect)


def matches_canary(answer: str, accept: Sequence[str]) -> bool:
    """Whether the answer is one of the accepted ones; width, spacing, case and the final mark do not matter."""
    given = _loose(answer)
    return any(_loose(accepted) == given for accepted in accept)


def mentions_identity(answer: str, name: str, author: str, prompt: str = "") -> bool:
    """Whether an answer speaks of the name or the author although the prompt does not."""
    return any(_has(answer, label) and not _has(prompt, label) for label in (name, author) if label)


def normalise(text: str) -> str:
    """NFKC with every run of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _has(text: str, label: str) -> bool:
    """Whether a label occurs as a word of its own: the name "Al" is not in "Also"; Hanzi need no boundary."""
    pattern = re.escape(normalise(label))
    first, last = normalise(label)[:1], normalise(label)[-1:]
    before = r"(?<![A-Za-z0-9])" if first.isascii() and first.isalnum() else ""
    after = r"(?![A-Za-z0-9])" if last.isascii() and last.isalnum() else ""
    return re.search(before + pattern + after, normalise(text)) is not None


def _loose(text: str) -> str:
    return normalise(text).casefold().rstrip(".!?。 ")


def _checked(cls: type[ProbeT], row: dict[str, object]) -> ProbeT:
    try:
        return cls.model_validate(row)
    except ValidationError:
        asked = shown(str(row.get("prompt") or row.get("messages")))
        raise DataError(f"A built-in probe is malformed: {asked}. Fetch the project again.") from None
