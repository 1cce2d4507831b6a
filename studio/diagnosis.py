"""What a verdict means and what to change next, in plain sentences: rules over the numbers of a finished run.

`diagnose` gives report.json its `diagnosis`. The rules come from the courses' own runs: one repeated row with fewer
than about twenty updates teaches nothing, with many it destroys the rest; many phrasings and general rows do neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from studio.config import RunConfig

Kind = Literal[
    "good",
    "too_few_updates",
    "learning_rate_low",
    "learning_rate_high",
    "parrot",
    "forgetting",
    "overfit",
    "not_enough_data",
    "template_mismatch",
    "unchecked",
]
UPDATES_FROM = 60
"""Fewer optimizer updates are the first suspect when something was not learned."""
PRESSED_FROM = 5.0
"""Optimizer updates per different row from which a run is called a parrot rather than forgetful."""
FELL_TO = 0.5  # share of the first loss that is a clear fall
MOST_EPOCHS, MOST_REPLAY = 100.0, 400
FEW_ROWS = 10  # different rows, with fewer of which more updates soon make a parrot
MOST_OF = 0.75  # share of the highest "learned" among the checks
MORE_ROWS = "Better still, use more different rows."
PATIENCE = 3  # checks worse than the best after which a training ends
RISEN_BY = 1.5  # times its lowest, from which a loss has clearly gone up again


class Diagnosis(BaseModel):
    """report.json's `diagnosis`: what the numbers mean, what to do, and the fields to change in a clone of the run.

    `changes`: {dotted field path: new value}, empty when the remedy is not a setting.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    message: str
    hint: str = ""
    changes: dict[str, Any] = {}


class Check(BaseModel):
    """One check during the training: shares from 0 to 1, None for what is not asked; `passed` as the verdict is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    learned: float | None = None
    leaked: float | None = None
    retained: float | None = None
    passed: bool = False

    @property
    def score(self) -> float:
        """How good the model is at that step, from 0 to 1: the mean of what was asked."""
        unleaked = None if self.leaked is None else 1 - self.leaked
        asked = [share for share in (self.learned, unleaked, self.retained) if share is not None]
        return sum(asked) / len(asked) if asked else 0.0


def best_of(checks: Sequence[Check]) -> Check | None:
    """The check of a trained step with the highest score, the latest of equal ones; None before there is one."""
    trained = [check for check in checks if check.step]
    return max(trained, key=lambda check: (check.score, check.step), default=None)


def enough(checks: Sequence[Check]) -> bool:
    """Whether training on is of no use: the last two checks are passed, or the last three are worse than the best."""
    trained = [check for check in checks if check.step]
    if len(trained) > 1 and trained[-1].passed and trained[-2].passed:
        return True
    best = best_of(trained)
    if best is None or not best.learned:
        return False
    return sum(check.step > best.step for check in trained) >= PATIENCE


class Evidence(BaseModel):
    """What a diagnosis goes by beside the verdict; report.json keeps it. Losses are means over a few points.

    `updates`: those of the saved weights; `distinct`: different rows trained on, `general`: those of them that are
    general conversations; `own_template`: False when the configuration names another chat template than the model's.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    updates: int
    distinct: int
    general: int = 0
    first_loss: float | None = None
    lowest_loss: float | None = None
    last_loss: float | None = None
    own_template: bool = True
    checks: tuple[Check, ...] = ()

    @property
    def pressed(self) -> float:
        """Optimizer updates per different row."""
        return self.updates / max(self.distinct, 1)

    @property
    def fell(self) -> bool | None:
        """Whether the training loss clearly fell; None when there are too few points to say."""
        if not self.first_loss or self.last_loss is None:
            return None
        return self.last_loss <= FELL_TO * self.first_loss

    @property
    def rose(self) -> bool:
        """Whether the training loss ended clearly above its lowest, or above where it began."""
        if self.last_loss is None or self.lowest_loss is None or not self.first_loss:
            return False
        return self.last_loss > self.first_loss or (
            self.last_loss > RISEN_BY * self.lowest_loss and self.last_loss > FELL_TO * self.first_loss
        )


@dataclass(frozen=True)
class _Facts:
    """All that the rules look at. `verdict` is report.json's; empty without one."""

    config: RunConfig
    verdict: Mapping[str, Any]
    seen: Evidence

    def part(self, name: str) -> Mapping[str, Any]:
        """One part of the verdict; empty when it was not checked."""
        found: Mapping[str, Any] = self.verdict.get(name) or {}
        return found

    def failed(self, *names: str) -> bool:
        """Whether one of these parts was checked and is below its threshold."""
        return any(self.part(name).get("ok") is False for name in names)


def diagnose(config: RunConfig, verdict: Mapping[str, Any] | None, evidence: Evidence) -> Diagnosis:
    """The first rule that fits a finished run; `verdict` as report.json holds it."""
    facts = _Facts(config, verdict or {}, evidence)
    return next(found for rule in _RULES if (found := rule(facts)) is not None)


def _unchecked(facts: _Facts) -> Diagnosis | None:
    apart = facts.config.data.validation_dataset
    if facts.verdict.get("passed") is False or facts.part("learned") or facts.part("perplexity"):
        return None
    return Diagnosis(
        kind="unchecked",
        message="There was nothing to check what it learned by, so whether it learned is not known.",
        hint="Write probes in verdict.probes, or keep some rows apart with data.validation_share.",
        changes={"data.validation_share": 0.1} if facts.config.data.validation_share < 0.1 and not apart else {},
    )


def _good(facts: _Facts) -> Diagnosis | None:
    if not facts.verdict.get("passed"):
        return None
    if facts.part("learned"):
        message = "It learned what it was taught, and nothing else was damaged."
    else:
        message = "The held-back rows are better predicted than before, and nothing else was damaged."
    return Diagnosis(kind="good", message=message, hint="Try it in Chat, then export it.")


def _template(facts: _Facts) -> Diagnosis | None:
    """Another template than the model's own: it then neither knows what it knew nor where an answer ends."""
    asked, known = facts.part("forgot").get("asked", 0), facts.part("forgot").get("total", 0)
    if facts.seen.own_template or (asked and known > asked / 4 and not facts.failed("learned")):
        return None
    return Diagnosis(
        kind="template_mismatch",
        message=f"With the chat template of this run the base model answers {known} of {asked} general questions.",
        hint="Use the model's own chat template: leave model.chat_template empty.",
        changes={"model.chat_template": None},
    )


def _too_high(facts: _Facts) -> Diagnosis | None:
    broken = facts.failed("learned") and facts.failed("forgot") and facts.seen.updates >= UPDATES_FROM
    if not facts.seen.rose and not (broken and facts.seen.fell is False):
        return None
    rate = facts.config.train.learning_rate
    return Diagnosis(
        kind="learning_rate_high",
        message=f"The learning rate {rate:g} is too high: the training loss rose again and answers were damaged.",
        hint=f"Try {_round(rate / 4):g}.",
        changes={"train.learning_rate": _round(rate / 4)},
    )


def _parrot(facts: _Facts) -> Diagnosis | None:
    if not (facts.failed("leaked", "forgot")) or facts.seen.pressed < PRESSED_FROM:
        return None
    rows = "one row" if facts.seen.distinct == 1 else f"{facts.seen.distinct} different rows"
    updates = facts.seen.updates
    message = f"It has become a parrot: {updates} updates on {rows} made it forget or repeat itself elsewhere."
    sane = _sane_step(facts)
    if sane:
        hint = f"At step {sane} it had learned it and damaged nothing yet: stop there. {MORE_ROWS}"
        return Diagnosis(kind="parrot", message=message, hint=hint, changes={"train.max_steps": sane})
    return Diagnosis(
        kind="parrot",
        message=message,
        hint="Build an identity set in the Data tab, with many phrasings; or mix in general rows with self-replay.",
        changes={"data.self_replay": MOST_REPLAY} if not facts.config.data.self_replay else {},
    )


def _forgetting(facts: _Facts) -> Diagnosis | None:
    if not (facts.failed("leaked", "forgot")):
        return None
    if facts.seen.general < facts.seen.distinct / 4 and not facts.config.data.self_replay:
        return Diagnosis(
            kind="forgetting",
            message="It learned at the cost of what it knew: nearly all rows are of one kind.",
            hint="Mix in general rows: with self-replay the base model writes them itself.",
            changes={"data.self_replay": max(50, min(facts.seen.distinct, MOST_REPLAY))},
        )
    rate, learned = facts.config.train.learning_rate, not facts.failed("learned")
    message = "It learned at the cost of what it knew, although general rows are mixed in."
    return Diagnosis(
        kind="forgetting" if learned else "learning_rate_high",
        message=message if learned else "It was damaged and did not learn.",
        hint=f"Halve the learning rate to {_round(rate / 2):g}.",
        changes={"train.learning_rate": _round(rate / 2)},
    )


def _too_few(facts: _Facts) -> Diagnosis | None:
    updates = facts.seen.updates
    if updates >= UPDATES_FROM and not _rising(facts.seen.checks):
        return None
    factor = max(2, math.ceil(UPDATES_FROM / max(updates, 1)))
    changes = more_updates(facts.config, factor)
    said = f"It was updated only {updates} times, too few to learn this."
    if updates >= UPDATES_FROM:
        said = f"It was still getting better when it ended, after {updates} updates."
    hint = f"Give it about {updates * factor} updates: {_told(changes)}."
    if facts.seen.distinct < FEW_ROWS:
        hint = f"{hint} {MORE_ROWS}"
    return Diagnosis(kind="too_few_updates", message=said, hint=hint, changes=changes)


def _too_low(facts: _Facts) -> Diagnosis | None:
    if facts.seen.fell is not False:
        return None
    rate, updates = facts.config.train.learning_rate, facts.seen.updates
    return Diagnosis(
        kind="learning_rate_low",
        message=f"The training loss hardly fell in {updates} updates: the learning rate {rate:g} is too low.",
        hint=f"Try {_round(min(rate * 5, 0.5)):g}.",
        changes={"train.learning_rate": _round(min(rate * 5, 0.5))},
    )


def _overfit(facts: _Facts) -> Diagnosis | None:
    if not facts.failed("perplexity"):
        return None
    changes: dict[str, Any] = {"train.load_best_model_at_end": True}
    if facts.config.verdict.stop_at_best:  # only one of the two may choose the step
        changes = {"train.num_train_epochs": max(round(facts.config.train.num_train_epochs / 2, 1), 0.1)}
    return Diagnosis(
        kind="overfit",
        message="It knows its rows by heart, but held-back rows are predicted worse than before.",
        hint="Keep the step with the lowest validation loss, or train for fewer epochs.",
        changes=changes,
    )


def _too_little(facts: _Facts) -> Diagnosis:
    taught = max(facts.seen.distinct - facts.seen.general, 1)
    rows = "one row is too little" if taught == 1 else f"{taught} different rows are too few"
    return Diagnosis(
        kind="not_enough_data",
        message=f"The training loss fell, but other phrasings are not answered as taught: {rows}.",
        hint="Add rows that ask the same in other words; the Data tab builds them for an identity.",
    )


_RULES: tuple[Callable[[_Facts], Diagnosis | None], ...] = (
    _unchecked,
    _good,
    _template,
    _too_high,
    _parrot,
    _forgetting,
    _too_few,
    _too_low,
    _overfit,
    _too_little,
)


def more_updates(config: RunConfig, factor: int) -> dict[str, Any]:
    """The one change that gives a run about `factor` times as many updates, at the lowest price."""
    train = config.train
    if train.max_steps > 0:
        return {"train.max_steps": train.max_steps * factor}
    if train.gradient_accumulation_steps >= factor:  # costs no time at all
        return {"train.gradient_accumulation_steps": train.gradient_accumulation_steps // factor}
    return {"train.num_train_epochs": min(math.ceil(train.num_train_epochs * factor), MOST_EPOCHS)}


def _told(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} {value:g}" for path, value in changes.items())


def _rising(checks: Sequence[Check]) -> bool:
    """Whether the last check knew more than any before it."""
    known = [check.learned or 0.0 for check in checks]
    return len(known) > 1 and known[-1] > max(known[:-1])


def _sane_step(facts: _Facts) -> int | None:
    """The last checked step before the end that knew most of what was ever learned and had damaged nothing yet."""
    most = max((check.learned or 0.0 for check in facts.seen.checks), default=0.0)
    sane = [
        check.step
        for check in facts.seen.checks
        if check.learned and check.learned >= MOST_OF * most and not check.leaked and check.retained in (None, 1.0)
    ]
    return sane[-1] if sane and sane[-1] < facts.seen.updates else None


def _round(rate: float) -> float:
    """A learning rate a person would write: one significant digit."""
    return float(f"{rate:.0e}")
