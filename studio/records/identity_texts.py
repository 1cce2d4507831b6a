"""Loads the built-in texts of identity sets: questions, answer forms, hard negatives and replay rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from studio.records.errors import DataError
from studio.records.places import DATA, IDENTITY

Language = Literal["en", "zh"]
Tone = Literal["plain", "friendly", "formal", "short", "detailed"]
Kind = Literal[
    "who", "name", "author",
    "other_name", "other_author", "confirm_name", "confirm_author", "is_ai", "is_human",
    "ability", "facts", "follow_up",
]  # fmt: skip
"""What a question is after: its intent."""
KINDS: tuple[Kind, ...] = get_args(Kind)
YES_NO = frozenset({"other_name", "other_author", "confirm_name", "confirm_author", "is_ai", "is_human"})
"""Kinds of question whose answer begins with yes or no. Very small models never get that word right."""
_OF_QUESTIONS = frozenset(KINDS) - {"facts", "follow_up"}


class Pair(BaseModel):
    """A question and its answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    user: str
    assistant: str


@dataclass(frozen=True)
class Question:
    """One phrasing of a question, with `{{name}}` still to be filled.

    `kind` is its intent and `asks` the kind whose answers fit; they differ for a follow-up only, which comes after
    `first`: an ordinary exchange, or a question of the kind `first` names with its answer.
    """

    kind: Kind
    text: str
    asks: Kind
    first: Pair | Kind | None = None


class FollowUp(BaseModel):
    """The second turn of a conversation: see Question."""

    first: Pair | Kind
    asks: Kind
    text: str


class Split(BaseModel):
    """Phrasings to train on and phrasings kept apart."""

    train: list[str] = Field(min_length=1)
    heldout: list[str] = Field(min_length=1)


class FollowUps(BaseModel):
    """Second turns to train on and second turns kept apart."""

    train: list[FollowUp] = []
    heldout: list[FollowUp] = []


class Facts(BaseModel):
    """Questions about further facts; `answers` are forms with `{{facts}}`."""

    questions: list[str] = []
    heldout: list[str] = []
    answers: list[str] = []


class Words(BaseModel):
    """The first word of an answer to a yes/no question."""

    yes: str
    no: str


class IdentityTexts(BaseModel):
    """Everything an identity set is built from, in one language."""

    model_config = ConfigDict(extra="ignore")

    language: Language
    words: Words
    others: list[str]
    questions: dict[Kind, Split]
    follow_up: FollowUps = FollowUps()
    answers: dict[Tone, dict[Kind, list[str]]]
    shared: dict[Kind, list[str]]
    facts: Facts = Facts()
    hard_negatives: list[Pair] = []

    @model_validator(mode="after")
    def check_complete(self) -> IdentityTexts:
        """Every kind of question is there, and every style has an answer to each."""
        if set(self.questions) != _OF_QUESTIONS:
            raise ValueError("kinds of questions are missing or unknown")
        if not all(self.answer_forms(tone, kind) for tone in get_args(Tone) for kind in _OF_QUESTIONS):
            raise ValueError("a style has no answer to some kind of question")
        return self

    def train(self, facts: Sequence[str]) -> list[Question]:
        """Distinct phrasings to train on; questions about facts only if there are facts."""
        found = [Question(kind, text, kind) for kind, split in self.questions.items() for text in split.train]
        return self._distinct(found, self.follow_up.train, self.facts.questions if facts else [])

    def heldout(self, facts: Sequence[str]) -> list[Question]:
        """Distinct phrasings kept apart for the verdict."""
        found = [Question(kind, text, kind) for kind, split in self.questions.items() for text in split.heldout]
        return self._distinct(found, self.follow_up.heldout, self.facts.heldout if facts else [])

    def answer_forms(self, tone: Tone, kind: Kind) -> list[str]:
        """Answer forms with placeholders: those of the style, else the shared ones; names are told as under "who"."""
        if kind == "facts":
            return self.facts.answers or ["{{facts}}"]
        forms = self.answers.get(tone, {})
        return forms.get(kind) or self.shared.get(kind) or (forms.get("who", []) if kind == "name" else [])

    @staticmethod
    def _distinct(found: list[Question], seconds: Sequence[FollowUp], about: Sequence[str]) -> list[Question]:
        found += [Question("follow_up", second.text, second.asks, second.first) for second in seconds]
        found += [Question("facts", text, "facts") for text in about]
        return list({question.text: question for question in found}.values())


def load_texts(language: Language) -> IdentityTexts:
    """The built-in texts of a language. Raises DataError when the file is missing or malformed."""
    return _load_texts(IDENTITY / f"{language}.yaml")


@lru_cache(maxsize=8)
def _load_texts(path: Path) -> IdentityTexts:
    try:
        return IdentityTexts.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        raise _broken(path, error) from None


def load_replay() -> list[dict[str, Any]]:
    """The built-in general conversations: `{"messages", "skill", "lang"}`. Raises DataError when they are missing."""
    return load_conversations("replay.jsonl")


def load_conversations(name: str) -> list[dict[str, Any]]:
    """Rows `{"messages", "skill", "lang"}` of a file that ships with the project. Raises DataError."""
    return _load_conversations(DATA / name)


@lru_cache(maxsize=4)
def _load_conversations(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "messages": [{"role": m["role"], "content": m["content"]} for m in row["messages"]],
            "skill": str(row.get("skill", "")),
            "lang": str(row.get("lang", "")),
        }
        for row in read_asset_lines(path, ("messages",))
    ]


def read_asset_lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file that ships with the project; every row has `keys`, and there is at least one."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        if not rows or not all(key in row for row in rows for key in keys):
            raise ValueError(f"it needs rows with {', '.join(keys)}")
    except (OSError, ValueError, TypeError) as error:
        raise _broken(path, error) from None
    return rows


def _broken(path: Path, error: Exception) -> DataError:
    reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be used ({type(error).__name__})"
    return DataError(f"The built-in file {path.parent.name}/{path.name} {reason}. Fetch the project again.")
