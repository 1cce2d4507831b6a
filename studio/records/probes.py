"""Questions for the verdict, and the rules by which an answer counts as right or as leaked."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.records.errors import DataError, shown
from studio.records.identity_texts import read_asset_lines
from studio.records.places import DATA

ProbeT = TypeVar("ProbeT", bound=BaseModel)


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
        raise DataError(
            f"A built-in probe is malformed: {shown(str(row.get('prompt')))}. Fetch the project again."
        ) from None
