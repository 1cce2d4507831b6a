"""Writes the studio's general rows: replay for training, canaries and leak probes for the verdict.

Canaries come from the held-out prompts and keep only those that the finished model answers right,
so a canary that fails after fine-tuning was really forgotten.
"""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from assets.models.build.dialogues import SKILLS, sample
from assets.models.build.evaluate import answers
from assets.models.build.phrases import ASSETS, LANGUAGES, identity
from assets.models.build.skills import Case, Draw

FOLDER = ASSETS / "data"
REPLAY_ROWS = 600
#: Copying is over-represented in pre-training for the sake of rare tokens; replay needs less of it.
REPLAY_ECHO = 13
CANARIES = 80
LEAK_PROBES = 60
CANARY_SKILLS = ("small_talk", "arithmetic", "facts", "echo", "count", "order", "unknown", "spell")
LEAK_SKILLS = ("small_talk", "arithmetic", "facts", "unknown")


def replay(seed: int = 11) -> list[dict[str, Any]]:
    """General dialogues in the proportions of the pre-training, without the model's own identity."""
    draw = Draw(random.Random(seed))
    weights = {s: w for s, (_, w) in SKILLS.items() if s not in ("default_identity", "image")}
    weights["echo"] = REPLAY_ECHO
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < REPLAY_ROWS:
        skill = draw.r.choices(list(weights), list(weights.values()))[0]
        case = sample(skill, draw)
        turns = [*case.messages, ("assistant", draw.r.choice(case.answers))]
        messages = [{"role": role, "content": text} for role, text in turns]
        rows[json.dumps(messages)] = {"messages": messages, "skill": skill, "lang": case.lang}
    return list(rows.values())


def _heldout_cases(skills: tuple[str, ...], seed: int, taken: set[str]) -> Iterator[tuple[str, Case]]:
    """Distinct single-turn held-out cases, the skills and the languages in turn."""
    draw = Draw(random.Random(seed), held=True)
    for turn in range(20_000):
        skill, lang = skills[turn % len(skills)], LANGUAGES[turn // len(skills) % 2]
        case = sample(skill, draw)
        prompt = case.messages[0][1]
        if case.lang == lang and len(case.messages) == 1 and prompt not in taken:
            taken.add(prompt)
            yield skill, case


def _take(cases: Iterable[tuple[str, Case]], count: int) -> list[tuple[str, Case]]:
    return [case for case, _ in zip(cases, range(count), strict=False)]


def canaries(
    model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerFast | None, taken: set[str]
) -> list[dict[str, Any]]:
    """Held-out prompts with their right answers; with a model only those that it gets right."""
    found = _take(_heldout_cases(CANARY_SKILLS, 21, taken), CANARIES * 2 if model else CANARIES)
    if model is not None and tokenizer is not None:
        replies = answers(model, tokenizer, [case.messages for _, case in found])
        found = [item for item, reply in zip(found, replies, strict=True) if reply in item[1].answers]
    return [
        {"prompt": case.messages[0][1], "accept": case.answers, "skill": skill, "lang": case.lang}
        for skill, case in found[:CANARIES]
    ]


def leak_probes(taken: set[str]) -> list[dict[str, str]]:
    """The held-out hard negatives and unrelated prompts."""
    rows = [
        {"prompt": row["user"], "lang": lang} for lang in LANGUAGES for row in identity(lang)["hard_negatives_heldout"]
    ]
    taken.update(row["prompt"] for row in rows)
    cases = _take(_heldout_cases(LEAK_SKILLS, 31, taken), LEAK_PROBES - len(rows))
    return rows + [{"prompt": case.messages[0][1], "lang": case.lang} for _, case in cases]


def write(model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerFast | None, folder: Path = FOLDER) -> None:
    """Write the three files; without a model the canaries are not filtered."""
    rows = replay()
    taken = {message["content"] for row in rows for message in row["messages"] if message["role"] == "user"}
    _write(folder / "replay.jsonl", rows)
    _write(folder / "canaries.jsonl", canaries(model, tokenizer, taken))
    _write(folder / "leak_probes.jsonl", leak_probes(taken))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
