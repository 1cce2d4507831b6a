"""Builds an identity set: many phrasings of "who are you?", answered with one name, mixed with replay.

Questions kept apart for the verdict (held-out) never appear in the rows, nor do variants of them.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studio.records.errors import DataError
from studio.records.identity_general import General, general_rows
from studio.records.identity_spec import IdentitySpec, parse_spec
from studio.records.identity_texts import YES_NO, IdentityTexts, Kind, Pair, Question, load_texts
from studio.records.phrasing import cycle, question_key, same_question, spread, variants
from studio.records.placeholders import any_placeholder, fill

__all__ = ["IdentitySet", "IdentitySpec", "build_identity", "parse_spec"]

Row = dict[str, Any]
WEIGHTS: Mapping[str, float] = {
    "who": 32, "name": 20, "author": 26, "follow_up": 6, "ability": 2, "facts": 6,
    "other_name": 4, "other_author": 2, "confirm_name": 2, "confirm_author": 2, "is_ai": 2, "is_human": 2,
}  # fmt: skip
"""How many of about 100 rows are of each kind."""


@dataclass(frozen=True)
class IdentitySet:
    """What to train on, and what to ask afterwards.

    `rows`: `{"messages", "origin", "intent"?}`, origin "identity", "hard_negative" or "replay". `heldout`: questions
    for the verdict, `{"prompt", "kind", "lang", "expect", "history"?}`. `counts` by origin, `intents` identity rows by
    kind of question, `phrasings` differently worded questions by language. `self_replay`: how many rows the base model
    is to add by answering general prompts. `notes` are sentences for the user.
    """

    rows: list[Row]
    heldout: list[Row]
    counts: dict[str, int]
    intents: dict[str, int]
    phrasings: dict[str, int]
    self_replay: int = 0
    notes: tuple[str, ...] = ()


def build_identity(spec: IdentitySpec, replay_rows: Iterable[Mapping[str, Any]] | None = None) -> IdentitySet:
    """The rows and held-out questions for a spec; the same for the same spec. Raises DataError.

    `replay_rows`: general rows (`{"messages"}` or `{"text"}`) that are used when `spec.replay` is "file".
    """
    builders = [_Builder(spec, load_texts(language)) for language in spec.languages]
    heldout = [row for builder in builders for row in builder.heldout()]
    phrasings: dict[str, int]
    if spec.recipe == "naive":
        identity, general = builders[0].naive(), General()
        phrasings = {builders[0].text.language: 1}
    else:
        own: dict[str, list[Row]] = {builder.text.language: builder.rows() for builder in builders}
        identity = [row for rows in own.values() for row in rows]
        phrasings = {language: len({r["messages"][-2]["content"] for r in rows}) for language, rows in own.items()}
        prompts = [row["prompt"] for row in heldout]
        general = general_rows(spec, [b.text for b in builders], len(identity), prompts, replay_rows)
    rows = identity + general.rows
    random.Random(spec.seed).shuffle(rows)
    _refuse_unfilled(identity, heldout)
    return IdentitySet(
        rows=rows,
        heldout=heldout,
        counts=_counts(rows, phrasings, heldout),
        intents=dict(Counter(str(row["intent"]) for row in identity)),
        phrasings=phrasings,
        self_replay=general.self_replay,
        notes=general.notes,
    )


class _Builder:
    """The identity rows and held-out questions of one language."""

    def __init__(self, spec: IdentitySpec, text: IdentityTexts) -> None:
        self.spec, self.text = spec, text
        self.rng = random.Random(f"{spec.seed}-{text.language}")
        self.values = _values(spec, text)
        self._answers: dict[Kind, Callable[[], str]] = {}

    def rows(self) -> list[Row]:
        """`rows_per_language` rows, all with different questions."""
        return [self._row(question) for question in self._pick()]

    def naive(self) -> list[Row]:
        """Copies of one question and its answer: the course's recipe, kept to show why it fails."""
        first = self.text.train(())[0]
        answer = self.spec.answer or self._filled(self.text.answer_forms(self.spec.tone, first.asks)[0])
        return [
            {"messages": _exchange(self._filled(first.text), answer), "origin": "identity", "intent": first.kind}
            for _ in range(self.spec.copies)
        ]

    def heldout(self) -> list[Row]:
        """The questions of the verdict and what has to be in their answers; none whose answer is open."""
        found = []
        for question in self._usable(self.text.heldout(self.spec.facts)):
            expect = self._expect(question.asks)
            if expect and (question.kind not in YES_NO or self.spec.yes_no == "check"):
                row = {"prompt": self._filled(question.text), "kind": question.kind, "lang": self.text.language}
                history = {"history": self._history(question)} if question.first else {}
                found.append({**row, "expect": expect, **history})
        return found

    def _pick(self) -> list[Question]:
        """Differently worded questions: the kinds by their weights, then variants with light surface noise."""
        wanted = self.spec.rows_per_language
        heldout = [self._filled(question.text) for question in self._usable(self.text.heldout(self.spec.facts))]
        usable = [q for q in self._usable(self.text.train(self.spec.facts)) if not same_question(q.text, heldout)]
        distinct = list({question_key(question.text): question for question in usable}.values())
        chosen = spread(distinct, key=lambda question: question.kind, rng=self.rng, weights=WEIGHTS)[:wanted]
        seen = {question.text for question in chosen}
        for candidate in variants([question.text for question in distinct], self.text.language, self.rng):
            if len(chosen) >= wanted:
                break
            if candidate.text not in seen and not same_question(candidate.text, heldout):
                seen.add(candidate.text)
                chosen.append(replace(distinct[candidate.source], text=candidate.text))
        return chosen

    def _usable(self, questions: Sequence[Question]) -> list[Question]:
        """Without yes/no questions if none are wanted, and without "Are you Qwen?" for a model that is called so."""
        own = [self.spec.name.casefold(), self.spec.author.casefold()]
        others = [other for other in self.text.others if any(_overlap(other.casefold(), label) for label in own)]
        return [
            question
            for question in questions
            if question.kind not in YES_NO
            or (self.spec.yes_no != "off" and not any(other in question.text for other in others))
        ]

    def _row(self, question: Question) -> Row:
        messages = [*self._history(question), *_exchange(self._filled(question.text), self._answer(question.asks))]
        return {"messages": messages, "origin": "identity", "intent": question.kind}

    def _history(self, question: Question) -> list[dict[str, str]]:
        first = question.first
        if first is None:
            return []
        if isinstance(first, Pair):
            return _exchange(first.user, first.assistant)
        return _exchange(self.rng.choice(self.text.questions[first].train), self._answer(first))

    def _answer(self, kind: Kind) -> str:
        """The next answer to a question of a kind: every form once before any form twice."""
        if kind not in self._answers:
            self._answers[kind] = cycle(self._forms(kind), self.rng)
        return self._answers[kind]()

    def _forms(self, kind: Kind) -> list[str]:
        if self.spec.answer and kind in ("who", "name"):
            return [self.spec.answer]
        if self.spec.abilities and kind == "ability":
            return [self.spec.abilities]
        return [self._filled(form) for form in self.text.answer_forms(self.spec.tone, kind)]

    def _filled(self, form: str) -> str:
        return fill(form, self.values).strip()

    def _expect(self, kind: Kind) -> list[str]:
        name, author, words = self.spec.name, self.spec.author, self.text.words
        known: dict[Kind, list[str]] = {
            "who": [name],
            "name": [name],
            "author": [author],
            "other_name": [words.no, name],
            "other_author": [words.no, author],
            "confirm_name": [words.yes, name],
            "confirm_author": [words.yes, author],
            "is_ai": [words.yes, name],
            "is_human": [words.no, name],
            "facts": list(self.spec.facts),
        }
        return known.get(kind, [self.spec.abilities] if self.spec.abilities else [])


def _values(spec: IdentitySpec, text: IdentityTexts) -> dict[str, str]:
    space, mark = (" ", ".") if text.language == "en" else ("", "。")
    facts = [fact if unicodedata.category(fact[-1]) == "Po" else fact + mark for fact in spec.facts]
    return {"name": spec.name, "author": spec.author, "facts": space.join(facts)}


def _overlap(other: str, label: str) -> bool:
    return other in label or label in other


def _exchange(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _refuse_unfilled(rows: Sequence[Row], heldout: Sequence[Row]) -> None:
    contents = [message["content"] for row in rows for message in row["messages"]]
    for content in (*contents, *(row["prompt"] for row in heldout)):
        found = any_placeholder(content)
        if found:
            raise DataError(f"The built-in texts contain the unfilled placeholder {found}. Reinstall the program.")


def _counts(rows: Sequence[Row], phrasings: Mapping[str, int], heldout: Sequence[Row]) -> dict[str, int]:
    origins = Counter(str(row["origin"]) for row in rows)
    return {
        "rows": len(rows),
        "identity": origins["identity"],
        "hard_negative": origins["hard_negative"],
        "replay": origins["replay"],
        "phrasings": sum(phrasings.values()),
        "heldout": len(heldout),
    }
