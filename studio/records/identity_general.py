"""The rows of an identity set that are not about the identity: hard negatives and replay against forgetting."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.records.errors import DataError
from studio.records.identity_spec import IdentitySpec
from studio.records.identity_texts import IdentityTexts, load_replay
from studio.records.phrasing import cycle, same_question, spread
from studio.records.probes import contains_expected

Row = dict[str, Any]
NEGATIVES = 5
"""One in so many general rows is a hard negative."""


@dataclass(frozen=True)
class General:
    """Rows, how many more the base model is to answer itself, and what there is to say about them."""

    rows: list[Row] = field(default_factory=list)
    self_replay: int = 0
    notes: tuple[str, ...] = ()


def general_rows(
    spec: IdentitySpec,
    texts: Sequence[IdentityTexts],
    identity: int,
    heldout: Sequence[str],
    replay_rows: Iterable[Mapping[str, Any]] | None,
) -> General:
    """So many rows that they make up `replay_share` of all, next to `identity` rows about the identity.

    None of them asks a `heldout` question. Raises DataError when the rows of a file are wanted and there are none.
    """
    rng = random.Random(spec.seed + 1)
    wanted = 0 if spec.replay == "none" else round(identity * spec.replay_share / (1 - spec.replay_share))
    if not wanted:
        return General()
    negatives = _negatives(spec, texts, max(wanted // NEGATIVES, 1), rng)
    missing = wanted - len(negatives)
    if spec.replay == "self":
        return General(negatives, missing)
    if spec.replay == "file":
        replay, notes = _from_file(replay_rows, missing, heldout, rng)
        return General(negatives + replay, notes=notes)
    return General(negatives + _built_in(spec, missing, heldout, rng))


def _negatives(spec: IdentitySpec, texts: Sequence[IdentityTexts], count: int, rng: random.Random) -> list[Row]:
    pairs = [pair for text in texts for pair in text.hard_negatives]
    rows: list[Row] = [
        {
            "messages": [{"role": "user", "content": p.user}, {"role": "assistant", "content": p.assistant}],
            "origin": "hard_negative",
        }
        for p in pairs
    ]
    # "Who is Alice? - I do not know." would contradict a model that is called Alice.
    usable = [row for row in rows if not _speaks_of(row["messages"], spec)]
    return spread(usable, key=lambda row: str(row["messages"][-1]["content"]), rng=rng)[:count]


def _built_in(spec: IdentitySpec, count: int, heldout: Sequence[str], rng: random.Random) -> list[Row]:
    """Built-in conversations, every skill in its share: identities by system prompt and renaming break first."""
    pool = [
        row for row in load_replay() if not _asks(row["messages"], heldout) and not _speaks_of(row["messages"], spec)
    ]
    drawn: list[Row] = []
    while pool and len(drawn) < count:
        drawn += spread(pool, key=lambda row: str(row["skill"]), rng=rng)
    return [{"messages": row["messages"], "origin": "replay"} for row in drawn[:count]]


def _from_file(
    rows: Iterable[Mapping[str, Any]] | None, count: int, heldout: Sequence[str], rng: random.Random
) -> tuple[list[Row], tuple[str, ...]]:
    pool = [dict(row) for row in rows or ()]
    usable = [row for row in pool if not _asks(row.get("messages", []), heldout)]
    if not usable:
        raise DataError("Replay from a file needs rows, and there are none. Choose a file with rows.", field="replay")
    notes = []
    if len(usable) < len(pool):
        notes.append(_left_out(len(pool) - len(usable)))
    if len(usable) < count:
        notes.append(f"The replay file has {len(usable)} rows where {count} are wanted, so rows are used repeatedly.")
    draw = cycle(usable, rng)
    return [{**draw(), "origin": "replay"} for _ in range(count)], tuple(notes)


def _left_out(count: int) -> str:
    asks, was = ("ask", "were") if count > 1 else ("asks", "was")
    return f"{count} of the replay rows {asks} a held-out question and {was} left out."


def _asks(messages: Sequence[Mapping[str, Any]], heldout: Sequence[str]) -> bool:
    return any(m["role"] == "user" and same_question(str(m["content"]), heldout) for m in messages)


def _speaks_of(messages: Sequence[Mapping[str, Any]], spec: IdentitySpec) -> bool:
    return any(contains_expected(str(m["content"]), [label]) for m in messages for label in (spec.name, spec.author))
