"""Did it learn, did it leak, did it forget? The same questions before and after the training, and the comparison.

* learned: questions never trained on: held-out phrasings of an identity, the user's own, or validation rows with a
  short answer; right by the rule of `studio.records.probes.answered`.
* leaked: questions that have nothing to do with the identity; a hit when name or author turn up only after training.
* forgot: general questions the base model answers rightly, and conversations that give it another name (by system
  prompt or by the user: what breaks first); kept when the tuned model still answers them so.
* perplexity: how well held-back rows are predicted; decides only where there are no questions to learn.

All are asked with the run's own system prompt, if it has one: what is judged is the model as it will be used.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from studio.records import DatasetInfo
from studio.records.probes import (
    Canary,
    Guard,
    LeakProbe,
    answered,
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
QUICK_LEARNED, QUICK_LEAK, QUICK_KEPT = 6, 3, 3
"""Questions of each kind in a check during the training; as many canaries as guards are kept watch on."""
SHOWN = 20  # failing examples of each kind in the report
Answers = Mapping[str, str]
Messages = list[dict[str, str]]
_Check = tuple[str, str, Sequence[str], Callable[[str, Sequence[str]], bool]]  # key, shown, accepted, rule
T = TypeVar("T")


@dataclass(frozen=True)
class HeldBack:
    """Perplexities of the validation rows before and after the training."""

    rows: int
    before: float
    after: float


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


def choose_probes(
    heldout: Sequence[dict[str, Any]],
    info: DatasetInfo | None,
    limit: int,
    seed: int,
    own: Sequence[dict[str, Any]] = (),
) -> Probes:
    """At most `limit` questions of each kind, the same for the same seed, and all of the user's `own`.

    Leak probes need a name to look for, so a dataset without an identity has none. Raises DataError when the built-in
    questions are missing.
    """
    identity = info.identity if info else None
    return Probes(
        heldout=[*own, *_chosen_rows(heldout, limit, seed)],
        leak=stratified(load_leak_probes(), limit, seed, lambda probe: probe.lang) if identity else [],
        canaries=stratified(load_canaries(), limit, seed, lambda canary: (canary.lang, canary.skill)),
        guards=stratified(load_guards(), limit, seed, lambda guard: (guard.lang, guard.kind)) if identity else [],
        name=identity.name if identity else "",
        author=identity.author if identity else "",
    )


def quick_probes(probes: Probes, before: Answers, seed: int) -> Probes:
    """A few of the questions for a check during the training; canaries and guards only where the base was right."""
    known = [canary for canary in probes.canaries if matches_canary(before[canary.prompt], canary.accept)]
    obeyed = [guard for guard in probes.guards if contains_expected(before[ask_key(guard.messages)], guard.expect)]
    return replace(
        probes,
        heldout=_chosen_rows(probes.heldout, QUICK_LEARNED, seed),
        leak=stratified(probes.leak, QUICK_LEAK, seed, lambda probe: probe.lang),
        canaries=stratified(known, QUICK_KEPT, seed, lambda canary: (canary.lang, canary.skill)),
        guards=stratified(obeyed, QUICK_KEPT, seed, lambda guard: (guard.lang, guard.kind)),
    )


def _chosen_rows(rows: Sequence[dict[str, Any]], limit: int, seed: int) -> list[dict[str, Any]]:
    return stratified(rows, limit, seed, lambda row: (row.get("lang"), row.get("kind")))


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


def judge(probes: Probes, before: Answers, after: Answers, held_back: HeldBack | None = None) -> dict[str, Any]:
    """The verdict as report.json holds it. `held_back`: perplexities of the validation rows, if there are any."""
    learned, leaked = _learned(probes, after), _leaked(probes, before, after)
    forgot, perplexity = _forgot(probes, before, after), _perplexity(held_back)
    parts = [part for part in (learned or perplexity, leaked, forgot) if part]
    passed = all(part["ok"] for part in parts) if parts else None  # a check that was not made proves nothing
    verdict = {"learned": learned, "leaked": leaked, "forgot": forgot, "perplexity": perplexity, "passed": passed}
    return verdict | {"summary": _summary(verdict, taught=bool(probes.name))}


def before_after(probes: Probes, before: Answers, after: Answers) -> list[dict[str, Any]]:
    """One row per held-out question: what was answered before and after, and whether it is right now."""
    return [
        {
            "prompt": row["prompt"],
            "lang": row.get("lang", ""),
            "kind": row.get("kind", ""),
            "before": before[key],
            "after": after[key],
            "ok": answered(row, after[key]),
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
        if not answered(row, after[key])
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
        "asked": len(checks),
        "threshold": RETAINED_FROM,
        "failing": failing,
    }


def _perplexity(found: HeldBack | None) -> dict[str, Any] | None:
    """Better than before is right; by how much is for a person to judge."""
    if found is None:
        return None
    return {"ok": found.after < found.before, "before": found.before, "after": found.after, "rows": found.rows}


def _said(guard: Guard) -> str:
    """A guard in one line: what was said before, and the question."""
    return " / ".join(message["content"] for message in guard.messages)


def _summary(verdict: Mapping[str, Any], *, taught: bool) -> str:
    learned, leaked, forgot = verdict["learned"], verdict["leaked"], verdict["forgot"]
    said = [{True: "Passed.", False: "Not passed.", None: "Nothing could be checked."}[verdict["passed"]]]
    if learned and taught:
        said.append(f"It answers {learned['right']} of {learned['total']} new phrasings of the questions as taught.")
    elif learned:
        said.append(f"It answers {learned['right']} of {learned['total']} questions it was not trained on as expected.")
    elif not verdict["perplexity"]:
        said.append("The dataset has no held-out questions, so whether it learned was not tested.")
    if verdict["perplexity"]:
        said.append(_said_of_rows(verdict["perplexity"]))
    if leaked:
        said.append(f"The new identity turns up in {leaked['hits']} of {leaked['total']} unrelated answers.")
    if forgot:
        said.append(f"It still answers {forgot['kept']} of the {forgot['total']} general questions it knew before.")
    else:
        said.append("The base model answered none of the general questions, so forgetting was not tested.")
    return " ".join(said)


def _said_of_rows(perplexity: Mapping[str, Any]) -> str:
    rows, before, after = perplexity["rows"], perplexity["before"], perplexity["after"]
    return f"The perplexity of {rows} held-back rows went from {before:.2f} to {after:.2f}."
