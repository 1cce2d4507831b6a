"""Wording of questions: light surface noise, comparison that sees through it, and even mixing."""

from __future__ import annotations

import random
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

Item = TypeVar("Item")
_PREFIXES = {
    "en": ("Hi, ", "Hello! ", "Hey, ", "Excuse me, ", "Quick question: ", "By the way, "),
    "zh": ("你好，", "请问，", "嗨，", "您好！", "打扰一下，", "顺便问一下，"),
}
_END_MARKS = "?.!？。！"


@dataclass(frozen=True)
class Variant:
    """A noisy form of question number `source`."""

    source: int
    text: str


def variants(questions: Sequence[str], language: str, rng: random.Random) -> Iterator[Variant]:
    """Noisy forms of the questions: a greeting in front, no mark at the end, lower case. Ends after all of them."""
    changes: list[Callable[[str], str]] = [_without_mark, str.lower, lambda text: _without_mark(text).lower()]
    changes += [_with_prefix(prefix) for prefix in _PREFIXES[language]]
    jobs = [(index, change) for index in range(len(questions)) for change in changes]
    rng.shuffle(jobs)
    for index, change in jobs:
        yield Variant(index, change(questions[index]))


def same_question(text: str, others: Sequence[str]) -> bool:
    """Whether a question equals one of the others but for case, punctuation, spaces or a greeting in front."""
    return question_key(text) in _keys(tuple(others))


@lru_cache(maxsize=65536)
def question_key(text: str) -> str:
    """What remains of a question without case, punctuation, spaces and greetings."""
    key = _letters(text)
    shortened = True
    while shortened:
        shortened = False
        for prefix in _PREFIX_KEYS:
            if key.startswith(prefix) and len(key) > len(prefix):
                key, shortened = key[len(prefix) :], True
    return key


def spread(
    items: Sequence[Item], key: Callable[[Item], str], rng: random.Random, weights: Mapping[str, float] | None = None
) -> list[Item]:
    """All items, shuffled, such that every beginning holds each kind in proportion to its number or weight."""
    groups: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    placed = []
    for number, (kind, group) in enumerate(groups.items()):
        rng.shuffle(group)
        weight = weights[kind] if weights else len(group)
        placed += [((index + 0.5) / weight, number, item) for index, item in enumerate(group)]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


def cycle(items: Sequence[Item], rng: random.Random) -> Callable[[], Item]:
    """A draw that uses each item once before any item twice, in shuffled order."""
    pile: list[Item] = []

    def draw() -> Item:
        if not pile:
            pile.extend(rng.sample(list(items), len(items)))
        return pile.pop()

    return draw


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in folded if char.isalnum())


_PREFIX_KEYS = tuple(_letters(prefix) for prefixes in _PREFIXES.values() for prefix in prefixes)


@lru_cache(maxsize=64)
def _keys(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(question_key(text) for text in texts)


def _without_mark(text: str) -> str:
    return text.rstrip(_END_MARKS)


def _with_prefix(prefix: str) -> Callable[[str], str]:
    return lambda text: prefix + text
