"""Builds an identity set: many phrasings of "who are you?", answered with one name, mixed with replay.

Questions kept apart for the verdict (held-out) never appear in the rows, nor do variants of them.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from studio.records.errors import DataError
from studio.records.identity_texts import IdentityTexts, Language, Question, Tone, load_replay, load_texts
from studio.records.labels import FACT_LIMIT, LABEL_LIMIT, clean_label
from studio.records.phrasing import question_key, same_question, spread, variants
from studio.records.placeholders import any_placeholder, fill
from studio.records.probes import contains_expected

Row = dict[str, Any]
Origin = Literal["identity", "hard_negative", "replay"]
MAX_FACTS = 10


class IdentitySpec(BaseModel):
    """What the visitor types. Every text is inserted exactly as typed, without surrounding space."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    """What the model calls itself."""
    author: str
    """Who made it, by its own account."""
    languages: tuple[Language, ...] = Field(default=("en", "zh"), min_length=1)
    """Languages of the questions and answers."""
    tone: Tone = "plain"
    """Which set of answer forms is used."""
    facts: tuple[str, ...] = Field(default=(), max_length=MAX_FACTS)
    """Sentences the model can say about itself; empty ones are dropped."""
    rows_per_language: int = Field(default=96, ge=60, le=1000)
    """Identity rows in each language, all with different wording."""
    replay_share: float = Field(default=0.5, ge=0, le=0.9)
    """Share of all rows that are general conversations and hard negatives."""
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Same seed, same rows."""

    @field_validator("name", "author")
    @classmethod
    def check_label(cls, value: str, info: Any) -> str:
        """One printable line of 1 to 80 characters without placeholders."""
        return clean_label(value, info.field_name, LABEL_LIMIT)

    @field_validator("facts")
    @classmethod
    def check_facts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Each fact is one printable line of at most 200 characters."""
        return tuple(clean_label(fact, "fact", FACT_LIMIT) for fact in value if fact.strip())

    @field_validator("languages")
    @classmethod
    def check_languages(cls, value: tuple[Language, ...]) -> tuple[Language, ...]:
        """Each language once, in the given order."""
        return tuple(dict.fromkeys(value))


@dataclass(frozen=True)
class IdentitySet:
    """`rows` to train on, `heldout` questions for the verdict, `counts` by origin and of distinct phrasings."""

    rows: list[Row]
    heldout: list[Row]
    counts: dict[str, int]


def parse_spec(values: Mapping[str, Any]) -> IdentitySpec:
    """An IdentitySpec from form values. Raises DataError with one sentence and the name of the field."""
    try:
        return IdentitySpec(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "identity"
        message = first["msg"].removeprefix("Value error, ")
        title = field.replace("_", " ").capitalize()
        if first["type"] == "missing":
            message = f"{title} is missing. Type it."
        elif first["type"] != "value_error":
            message = f"{title}: {message}."
        raise DataError(message, field=field) from None


def build_identity(spec: IdentitySpec) -> IdentitySet:
    """The rows and held-out questions for a spec; the same for the same spec. Raises DataError."""
    rng = random.Random(spec.seed)
    texts = [load_texts(language) for language in spec.languages]
    identity = [row for text in texts for row in _identity_rows(text, spec, rng)]
    general = _general_rows(texts, spec, len(identity), rng)
    rows = identity + general
    rng.shuffle(rows)
    heldout = [row for text in texts for row in _heldout(text, spec)]
    _refuse_unfilled(rows, heldout)
    return IdentitySet(rows=rows, heldout=heldout, counts=_counts(rows, identity, heldout))


def _values(spec: IdentitySpec, text: IdentityTexts) -> dict[str, str]:
    space, mark = (" ", ".") if text.language == "en" else ("", "。")
    facts = [fact if unicodedata.category(fact[-1]) == "Po" else fact + mark for fact in spec.facts]
    return {"name": spec.name, "author": spec.author, "facts": space.join(facts)}


def _identity_rows(text: IdentityTexts, spec: IdentitySpec, rng: random.Random) -> list[Row]:
    values = _values(spec, text)
    answers = {kind: _cycle(text.answer_forms(spec.tone, kind), rng) for kind in text.kinds(spec.facts)}
    rows = []
    for question in _pick_questions(text, spec, rng):
        user = fill(question.text, values)
        rows.append(_row(user, fill(answers[question.kind](), values), "identity"))
    return rows


def _pick_questions(text: IdentityTexts, spec: IdentitySpec, rng: random.Random) -> list[Question]:
    """`rows_per_language` differently worded questions, in proportion to what there is of each kind."""
    heldout = [question.text for question in text.heldout(spec.facts)]
    by_key = {question_key(q.text): q for q in text.train(spec.facts) if not same_question(q.text, heldout)}
    distinct = list(by_key.values())
    chosen = spread(distinct, key=lambda question: question.kind, rng=rng)[: spec.rows_per_language]
    seen = {question.text for question in chosen}
    for candidate in variants([question.text for question in distinct], text.language, rng):
        if len(chosen) >= spec.rows_per_language:
            break
        if candidate.text not in seen and not same_question(candidate.text, heldout):
            seen.add(candidate.text)
            chosen.append(Question(distinct[candidate.source].kind, candidate.text))
    return chosen


def _general_rows(texts: Sequence[IdentityTexts], spec: IdentitySpec, identity: int, rng: random.Random) -> list[Row]:
    """Hard negatives and replay, so many that they make up `replay_share` of all rows."""
    wanted = round(identity * spec.replay_share / (1 - spec.replay_share))
    if not wanted:
        return []
    negatives = [
        _row(fill(pair.user, _values(spec, text)), fill(pair.assistant, _values(spec, text)), "hard_negative")
        for text in texts
        for pair in text.hard_negatives
    ]
    # "Who is Alice? - I do not know." would contradict a model that is called Alice.
    negatives = [row for row in negatives if not _speaks_of(row["messages"], spec)]
    negatives = rng.sample(negatives, min(len(negatives), max(wanted // 8, 1)))
    heldout = [question.text for text in texts for question in text.heldout(spec.facts)]
    pool = [m for m in load_replay() if not _asks(m, heldout) and not _speaks_of(m, spec)]
    draw = _cycle(pool, rng)
    return negatives + [{"messages": draw(), "origin": "replay"} for _ in range(wanted - len(negatives))]


def _asks(messages: list[dict[str, str]], heldout: Sequence[str]) -> bool:
    return any(m["role"] == "user" and same_question(m["content"], heldout) for m in messages)


def _speaks_of(messages: list[dict[str, str]], spec: IdentitySpec) -> bool:
    return any(contains_expected(m["content"], [label]) for m in messages for label in (spec.name, spec.author))


def _heldout(text: IdentityTexts, spec: IdentitySpec) -> list[Row]:
    values = _values(spec, text)
    expect = {"who": [spec.name], "author": [spec.author], "facts": list(spec.facts)}
    return [
        {"prompt": fill(q.text, values), "kind": q.kind, "lang": text.language, "expect": expect[q.kind]}
        for q in text.heldout(spec.facts)
    ]


def _row(user: str, assistant: str, origin: Origin) -> Row:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, "origin": origin}


def _cycle(items: Sequence[Any], rng: random.Random) -> Callable[[], Any]:
    """A draw that uses each item once before any item twice, in shuffled order."""
    pile: list[Any] = []

    def draw() -> Any:
        if not pile:
            pile.extend(rng.sample(list(items), len(items)))
        return pile.pop()

    return draw


def _refuse_unfilled(rows: Sequence[Row], heldout: Sequence[Row]) -> None:
    contents = [message["content"] for row in rows for message in row["messages"]]
    for content in (*contents, *(row["prompt"] for row in heldout)):
        found = any_placeholder(content)
        if found:
            raise DataError(f"The built-in texts contain the unfilled placeholder {found}. Reinstall the program.")


def _counts(rows: Sequence[Row], identity: Sequence[Row], heldout: Sequence[Row]) -> dict[str, int]:
    origins = Counter(str(row["origin"]) for row in rows)
    return {
        "rows": len(rows),
        "identity": origins["identity"],
        "hard_negative": origins["hard_negative"],
        "replay": origins["replay"],
        "phrasings": len({row["messages"][0]["content"] for row in identity}),
        "heldout": len(heldout),
    }
