"""Loads the built-in texts of identity sets: questions, answer forms, hard negatives and replay rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.records.errors import DataError
from studio.records.places import DATA, IDENTITY

Language = Literal["en", "zh"]
Tone = Literal["plain", "friendly", "formal"]
Kind = Literal["who", "author", "facts"]


@dataclass(frozen=True)
class Question:
    """One phrasing of a question, with `{{name}}` still to be filled, and what it asks for."""

    kind: Kind
    text: str


class Pair(BaseModel):
    """A question and its answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    user: str
    assistant: str


class Split(BaseModel):
    """Phrasings to train on and phrasings kept apart."""

    train: list[str] = Field(min_length=1)
    heldout: list[str] = Field(min_length=1)


class WhoAuthor(BaseModel):
    """Questions by kind."""

    who: Split
    author: Split


class Facts(BaseModel):
    """Questions about further facts; `answers` are forms with `{{facts}}`."""

    questions: list[str] = []
    heldout: list[str] = []
    answers: list[str] = []


class IdentityTexts(BaseModel):
    """Everything an identity set is built from, in one language."""

    model_config = ConfigDict(extra="ignore")

    language: Language
    questions: WhoAuthor
    answers: dict[Tone, dict[Kind, list[str]]]
    facts: Facts = Facts()
    hard_negatives: list[Pair] = []

    def kinds(self, facts: Sequence[str]) -> tuple[Kind, ...]:
        """Kinds of question an identity with these facts has."""
        return ("who", "author", "facts") if facts else ("who", "author")

    def train(self, facts: Sequence[str]) -> list[Question]:
        """Distinct phrasings to train on."""
        return self._collect(self.questions.who.train, self.questions.author.train, self.facts.questions, facts)

    def heldout(self, facts: Sequence[str]) -> list[Question]:
        """Distinct phrasings kept apart for the verdict."""
        return self._collect(self.questions.who.heldout, self.questions.author.heldout, self.facts.heldout, facts)

    def answer_forms(self, tone: Tone, kind: Kind) -> list[str]:
        """Answer forms with placeholders; facts are said as they are when there is no form for them."""
        forms = self.answers[tone].get(kind, [])
        if kind == "facts":
            return forms or self.facts.answers or ["{{facts}}"]
        return forms

    def _collect(self, who: list[str], author: list[str], about: list[str], facts: Sequence[str]) -> list[Question]:
        found = [Question("who", text) for text in who] + [Question("author", text) for text in author]
        if facts:
            found += [Question("facts", text) for text in about]
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


def load_replay() -> list[list[dict[str, str]]]:
    """Messages of the built-in general conversations. Raises DataError when the file is missing or malformed."""
    return _load_replay(DATA / "replay.jsonl")


@lru_cache(maxsize=4)
def _load_replay(path: Path) -> list[list[dict[str, str]]]:
    rows = [row["messages"] for row in read_asset_lines(path, ("messages",))]
    return [[{"role": m["role"], "content": m["content"]} for m in messages] for messages in rows]


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
