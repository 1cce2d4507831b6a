"""Did it learn, did it leak, did it forget? The same questions before and after the training, and the comparison.

* learned: held-out phrasings of the identity questions, never trained on; right when every expected text is there.
* leaked: questions that have nothing to do with the identity; a hit when name or author turn up only after training.
* forgot: general questions the base model answers rightly, and conversations that give it another name (by system
  prompt or by the user: what breaks first); kept when the tuned model still answers them so.

All are asked with the run's own system prompt, if it has one: what is judged is the model as it will be used.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from studio.records import DatasetInfo
from studio.records.probes import (
    Canary,
    Guard,
    LeakProbe,
    ask_key,
    contains_expected,
    heldout_messages,
    load_canaries,
    load_guards,
    load_leak_probes,
    matches_canary,
    mentions_identity,
)
from studio.rundir import write_atomic

LEARNED_FROM, LEAKED_UP_TO, RETAINED_FROM = 0.9, 0.05, 0.95
SHOWN = 20  # failing examples of each kind in the report
Answers = Mapping[str, str]
Messages = list[dict[str, str]]
_Check = tuple[str, str, Sequence[str], Callable[[str, Sequence[str]], bool]]  # key, shown, accepted, rule
T = TypeVar("T")


@dataclass(frozen=True)
class Probes:
    """The questions of one run. `heldout` rows: {"prompt", "kind", "lang", "expect", "history"?}."""

    heldout: list[dict[str, Any]]
    leak: list[LeakProbe]
    canaries: list[Canary]
    guards: list[Guard]
    name: str
    author: str

    @property
    def questions(self) -> dict[str, Messages]:
        """Every different question once: what its answer is stored under (`ask_key`) -> the messages to send."""
        asked: list[Messages] = [heldout_messages(row) for row in self.heldout]
        prompts = [probe.prompt for probe in self.leak] + [canary.prompt for canary in self.canaries]
        asked += [[{"role": "user", "content": prompt}] for prompt in prompts]
        asked += [list(guard.messages) for guard in self.guards]
        return {ask_key(messages): messages for messages in asked}


def choose_probes(heldout: Sequence[dict[str, Any]], info: DatasetInfo | None, limit: int, seed: int) -> Probes:
    """At most `limit` questions of each kind, the same for the same seed.

    Leak probes need a name to look for, so a dataset without an identity has none. Raises DataError when the built-in
    questions are missing.
    """
    identity = info.identity if info else None
    return Probes(
        heldout=stratified(heldout, limit, seed, lambda row: (row.get("lang"), row.get("kind"))),
        leak=stratified(load_leak_probes(), limit, seed, lambda probe: probe.lang) if identity else [],
        canaries=stratified(load_canaries(), limit, seed, lambda canary: (canary.lang, canary.skill)),
        guards=stratified(load_guards(), limit, seed, lambda guard: (guard.lang, guard.kind)) if identity else [],
        name=identity.name if identity else "",
        author=identity.author if identity else "",
    )


def stratified(items: Sequence[T], limit: int, seed: int, key: Callable[[T], Hashable]) -> list[T]:
    """`limit` of the items, as evenly as can be from the groups `key` makes, in their original order."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index in random.Random(seed).sample(range(len(items)), len(items)):
        groups[key(items[index])].append(index)
    rounds = [(place, index) for members in groups.values() for place, index in enumerate(members)]
    chosen = sorted(rounds, key=lambda pair: pair[0])[:limit]
    return [items[index] for index in sorted(index for _, index in chosen)]


def answers_before(file: Path, probes: Probes, ask: Callable[[list[str]], list[str]]) -> dict[str, str]:
    """The base model's answers: from `file` where an earlier start of this run left them, else asked and left there."""
    try:
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        known = {}
    missing = [prompt for prompt in probes.questions if not isinstance(known.get(prompt), str)]
    if missing:
        known |= dict(zip(missing, ask(missing), strict=True))
        write_atomic(file, json.dumps(known, ensure_ascii=False, indent=1))
    return known


def judge(probes: Probes, before: Answers, after: Answers) -> dict[str, Any]:
    """The verdict as report.json holds it."""
    learned, leaked = _learned(probes, after), _leaked(probes, before, after)
    forgot = _forgot(probes, before, after)
    parts = [part for part in (learned, leaked, forgot) if part]
    passed = all(part["ok"] for part in parts) if parts else None  # a check that was not made proves nothing
    verdict = {"learned": learned, "leaked": leaked, "forgot": forgot, "passed": passed}
    return verdict | {"summary": _summary(verdict)}


def before_after(probes: Probes, before: Answers, after: Answers) -> list[dict[str, Any]]:
    """One row per held-out question: what was answered before and after, and whether it is right now."""
    return [
        {
            "prompt": row["prompt"],
            "lang": row.get("lang", ""),
            "kind": row.get("kind", ""),
            "before": before[key],
            "after": after[key],
            "ok": contains_expected(after[key], row["expect"]),
        }
        for key, row in _keyed(probes)
    ]


def _keyed(probes: Probes) -> list[tuple[str, dict[str, Any]]]:
    return [(ask_key(heldout_messages(row)), row) for row in probes.heldout]


def _learned(probes: Probes, after: Answers) -> dict[str, Any] | None:
    if not probes.heldout:
        return None
    failing = [
        {"prompt": row["prompt"], "answer": after[key], "expected": list(row["expect"])}
        for key, row in _keyed(probes)
        if not contains_expected(after[key], row["expect"])
    ]
    total = len(probes.heldout)
    right = total - len(failing)
    return {
        "ok": right / total >= LEARNED_FROM,
        "share": right / total,
        "right": right,
        "total": total,
        "threshold": LEARNED_FROM,
        "failing": failing[:SHOWN],
    }


def _leaked(probes: Probes, before: Answers, after: Answers) -> dict[str, Any] | None:
    if not probes.leak:
        return None

    def mentions(answers: Answers, prompt: str) -> bool:
        return mentions_identity(answers[prompt], probes.name, probes.author, prompt)

    prompts = [probe.prompt for probe in probes.leak]
    # A name that is an everyday word may have been in the answer all along.
    hits = [prompt for prompt in prompts if mentions(after, prompt) and not mentions(before, prompt)]
    return {
        "ok": len(hits) / len(prompts) <= LEAKED_UP_TO,
        "share": len(hits) / len(prompts),
        "hits": len(hits),
        "total": len(prompts),
        "threshold": LEAKED_UP_TO,
        "failing": [{"prompt": prompt, "answer": after[prompt]} for prompt in hits[:SHOWN]],
    }


def _forgot(probes: Probes, before: Answers, after: Answers) -> dict[str, Any] | None:
    """Canaries and guards alike: what was right before and is not any more."""
    checks: list[_Check] = [(c.prompt, c.prompt, c.accept, matches_canary) for c in probes.canaries]
    checks += [(ask_key(g.messages), _said(g), g.expect, contains_expected) for g in probes.guards]
    known = [check for check in checks if check[3](before[check[0]], check[2])]
    if not known:
        return None
    lost = [check for check in known if not check[3](after[check[0]], check[2])]
    kept = len(known) - len(lost)
    failing = [
        {"prompt": shown, "before": before[key], "after": after[key], "expected": list(accept)}
        for key, shown, accept, _ in lost[:SHOWN]
    ]
    return {
        "ok": kept / len(known) >= RETAINED_FROM,
        "retained": kept / len(known),
        "kept": kept,
        "total": len(known),
        "threshold": RETAINED_FROM,
        "failing": failing,
    }


def _said(guard: Guard) -> str:
    """A guard in one line: what was said before, and the question."""
    return " / ".join(message["content"] for message in guard.messages)


def _summary(verdict: Mapping[str, Any]) -> str:
    learned, leaked, forgot = verdict["learned"], verdict["leaked"], verdict["forgot"]
    said = [{True: "Passed.", False: "Not passed.", None: "Nothing could be checked."}[verdict["passed"]]]
    if learned:
        said.append(f"It answers {learned['right']} of {learned['total']} new phrasings of the questions as taught.")
    else:
        said.append("The dataset has no held-out questions, so whether it learned was not tested.")
    if leaked:
        said.append(f"The new identity turns up in {leaked['hits']} of {leaked['total']} unrelated answers.")
    if forgot:
        said.append(f"It still answers {forgot['kept']} of the {forgot['total']} general questions it knew before.")
    else:
        said.append("The base model answered none of the general questions, so forgetting was not tested.")
    return " ".join(said)
