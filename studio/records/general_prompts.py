"""General prompts for self-replay: the base model answers them before training and is trained on its own answers.

Besides everyday questions they hold what breaks first when a model learns a name of its own: identities given by a
system prompt, and renaming within the conversation.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

from studio.records.errors import DataError
from studio.records.identity_texts import load_conversations
from studio.records.phrasing import spread

FILE = "general_prompts.jsonl"


def general_prompts(languages: Collection[str], count: int, seed: int) -> list[list[dict[str, str]]]:
    """`count` conversations that end with a user's turn, the same for the same seed, every skill in its share.

    Each is used once before any is used twice. A system prompt may come first. Raises DataError when none is there.
    """
    pool: list[dict[str, Any]] = [row for row in load_conversations(FILE) if row["lang"] in languages]
    if not pool:
        raise DataError(
            f"There are no general prompts in {', '.join(sorted(languages)) or 'no language'}.", "languages"
        )
    rng = random.Random(seed)
    drawn: list[dict[str, Any]] = []
    while len(drawn) < count:
        drawn += spread(pool, key=lambda row: f"{row['lang']} {row['skill']}", rng=rng)
    return [[dict(message) for message in row["messages"]] for row in drawn[: max(count, 0)]]
