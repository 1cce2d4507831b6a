"""Self-replay: the base model answers general questions before the training, and its answers are mixed in.

What it could do is then part of what it learns, for any model and without a data set. The answers are kept in the run,
so that a resumed run trains on the same rows.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from studio.engine.journal import Journal
from studio.engine.together import same_file
from studio.records import Conversation, Message
from studio.records.counts import Mixed
from studio.records.general_prompts import general_prompts
from studio.records.sources import ends_of
from studio.records.token_table import table_of
from studio.rundir import RunDir, write_atomic

if TYPE_CHECKING:
    from studio.engine.answers import Respondent

LONGEST_ANSWER = 128  # tokens


def replay_table(
    run: RunDir, journal: Journal, respondent: Respondent, count: int, seed: int, *, asks: bool = True
) -> Mixed:
    """The rows as tokens; asked now unless an earlier start of this run did. Raises DataError.

    `asks`: this process does, or helps to; of several, all take what the first one was answered.
    """
    same_file(run.self_replay_file)
    if asks and not _stored(run):
        _ask(run, journal, respondent, count, seed)
    same_file(run.self_replay_file)
    rows = _stored(run)
    conversations = [_conversation(row, respondent.system) for row in rows]
    encoded = [(number, respondent.chat.encode(item)) for number, item in enumerate(conversations, 1)]
    return Mixed(table_of(encoded, run.path / "self_replay", ends_of(respondent.chat)))


def _conversation(row: list[dict[str, str]], system: str | None) -> Conversation:
    """With the run's system prompt, under which it was answered."""
    return Conversation(messages=tuple(Message.model_validate(message) for message in row)).with_system(system)


def _stored(run: RunDir) -> list[list[dict[str, str]]]:
    try:
        lines = run.self_replay_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["messages"] for line in lines]
    except (OSError, ValueError, KeyError):
        return []


def _ask(run: RunDir, journal: Journal, respondent: Respondent, count: int, seed: int) -> None:
    prompts = general_prompts(("en", "zh"), count, seed)
    label = "general questions answered by the base model"
    answers = respondent.answer(prompts, LONGEST_ANSWER, lambda done, total: journal.progress(done, total, label))
    rows = [
        [*prompt, {"role": "assistant", "content": answer}]
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer.strip()
    ]
    text = "".join(json.dumps({"messages": row, "origin": "self_replay"}, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(run.self_replay_file, text)
