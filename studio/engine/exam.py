"""The exam of one run: the verdict's questions, asked before, now and then during, and after the training.

Nothing asked here changes the training: random states and the model's mode are given back (`answers.undisturbed`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from studio.diagnosis import Check
from studio.engine import ranks
from studio.engine.activity import during
from studio.engine.inputs import Inputs
from studio.engine.journal import Journal
from studio.engine.ticker import counting
from studio.engine.verdict import (
    HeldBack,
    Probes,
    answers_before,
    before_after,
    choose_probes,
    judge,
    quick_probes,
)
from studio.events import VerdictEvent
from studio.records import DataError
from studio.records.batches import validation_rows
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.counts import Prepared
from studio.records.probes import OWN, heldout_row
from studio.records.validation_probes import validation_questions
from studio.rundir import RunDir, write_atomic

if TYPE_CHECKING:
    from studio.engine.answers import Respondent
    from studio.engine.perplexity import HeldBackRows

BASE_ANSWERS, BASE_PERPLEXITY, CHECKS = "base_answers.json", "base_perplexity.json", "checks.json"
SHORTEST_LIMIT = 64  # tokens an answer to a probe may have at least
QUICK_LIMIT = 24  # the same in a check during the training


def exam_of(run: RunDir, journal: Journal, inputs: Inputs, respondent: Respondent, examples: Prepared) -> Exam:
    """The exam a configuration asks for; one without questions when the verdict is off, or another process asks."""
    config = inputs.config
    probes = _questions(inputs, examples, respondent.chat, journal) if ranks.answers(config) else None
    rows: HeldBackRows | None = None
    if probes and len(examples.validation):
        from studio.engine.perplexity import HeldBackRows

        pad = respondent.tokenizer.pad_token_id or 0
        rows = HeldBackRows(validation_rows(examples), pad, config.train.per_device_train_batch_size)
    return Exam(run, journal, respondent, probes, rows, config.train.seed, together=ranks.divided(config))


def _questions(inputs: Inputs, examples: Prepared, chat: ChatTokenizer, journal: Journal) -> Probes | None:
    """The questions, or None when the verdict is off or the built-in questions are gone."""
    config, source = inputs.config, inputs.source
    if not config.verdict.enabled:
        return None
    limit, own = config.verdict.max_probes, [heldout_row(p.messages, p.expect, OWN) for p in config.verdict.probes]
    try:
        heldout = source.heldout
        if not heldout and not own:
            heldout = validation_questions(examples, config.data, source.store, chat, limit)
        return choose_probes(heldout, source.info, limit, config.train.seed, own)
    except DataError as error:
        journal.warn(f"There is no verdict: {error.message}", "verdict.enabled")
        return None


@dataclass
class Exam:
    """Asks one model `probes` and has it read `rows`, or does nothing without probes, and judges.

    `checks`: those made so far, the first of them of the base model. `together`: all processes ask, at the same moment.
    """

    run: RunDir
    journal: Journal
    respondent: Respondent
    probes: Probes | None
    rows: HeldBackRows | None = None
    seed: int = 42
    before: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    final: Check | None = None
    together: bool = False
    _quick: Probes | None = None
    _perplexity: float | None = None

    def begin(self) -> None:
        """Ask the base model; what an earlier start of this run has asked is not asked again."""
        if self.probes is None:
            return
        if self.together:  # what is asked again must be the same everywhere
            self._as_the_first_knows()
        label = "questions asked before the training"
        self.before = answers_before(
            self.run.path / BASE_ANSWERS, self.probes, lambda prompts: self._ask(prompts, label)
        )
        self._perplexity = self._perplexity_before()
        self._quick = quick_probes(self.probes, self.before, self.seed)
        self.checks = self._earlier_checks()
        if self.checks:
            return
        base = self._judged(self.before)
        if self.journal.step:  # an earlier start left none: what is known is the base model's, and that of step 0
            self.checks = [base.model_copy(update={"step": 0})]
        else:
            self.tell(base, self._perplexity)

    def _as_the_first_knows(self) -> None:
        from studio.engine.together import same_file

        for name in (BASE_ANSWERS, BASE_PERPLEXITY, CHECKS):
            same_file(self.run.path / name)

    @property
    def learning_is_checked(self) -> bool:
        """Whether a check says how much was learned, without which no step is better than the first."""
        return bool(self._quick and self._quick.heldout)

    @property
    def quick_share(self) -> float:
        """Of all questions, the share a check asks."""
        return len(self._quick.questions) / len(self.probes.questions) if self._quick and self.probes else 0.0

    def check(self) -> Check | None:
        """Ask a few of the questions now; None when there are none, or at a step that was checked already."""
        if self._quick is None or not self._quick.questions or self.checks[-1].step == self.journal.step:
            return None
        questions = self._quick.questions
        limit = max(QUICK_LIMIT, self._longest(self._quick) + QUICK_LIMIT // 2)
        with during("verdict"):
            answers = self.respondent.answer(list(questions.values()), limit)
        return self._judged(dict(zip(questions, answers, strict=True)))

    def tell(self, check: Check, perplexity: float | None = None) -> None:
        """Keep a check and write its event."""
        self.checks.append(check)
        self._write(CHECKS, [one.model_dump() for one in self.checks])
        shares = check.model_dump(include={"learned", "leaked", "retained"})
        self.journal.emit(VerdictEvent(**shares, perplexity=perplexity))

    def finish(self) -> dict[str, Any]:
        """Ask the trained model; the parts of report.json that follow from its answers, and one last event."""
        if self.probes is None:
            return {"verdict": None, "before_after": []}
        prompts = list(self.probes.questions)
        after = dict(zip(prompts, self._ask(prompts, "questions asked after the training"), strict=True))
        perplexity, held_back = self._read("held-back rows read after the training"), None
        if self.rows and self._perplexity and perplexity:
            held_back = HeldBack(len(self.rows.chosen), self._perplexity, perplexity)
        verdict = judge(self.probes, self.before, after, held_back)
        self.journal.emit(VerdictEvent(**_shares(verdict), perplexity=perplexity))
        self.final = self._judged(after)
        return {"verdict": verdict, "before_after": before_after(self.probes, self.before, after)}

    def _judged(self, answers: Mapping[str, str]) -> Check:
        """A check from answers to the few questions."""
        assert self._quick is not None
        verdict = judge(self._quick, self.before, answers)
        return Check(step=self.journal.step, passed=bool(verdict["passed"]), **_shares(verdict))

    def _ask(self, prompts: Sequence[str], label: str) -> list[str]:
        """Answers to some of the questions, with progress; each may be as long as the longest expected text needs."""
        assert self.probes is not None
        questions = self.probes.questions
        messages = [questions[prompt] for prompt in prompts]
        limit = max(SHORTEST_LIMIT, 2 * self._longest(self.probes) + 40)
        with during("verdict"), counting(self.journal, label, len(messages)) as told:
            return self.respondent.answer(messages, limit, told)

    def _longest(self, probes: Probes) -> int:
        """Tokens of the longest expected text."""
        expected = [text for row in probes.heldout for text in row["expect"]]
        return max((len(self.respondent.chat.encode_text(text)) for text in expected), default=0)

    def _read(self, label: str) -> float | None:
        if self.rows is None:
            return None
        with during("verdict"), counting(self.journal, label, len(self.rows.chosen)) as told:
            return self.rows.perplexity(self.respondent.model, self.respondent.precision, told)

    def _perplexity_before(self) -> float | None:
        """The base model's, from the run where an earlier start left it."""
        if self.rows is None:
            return None
        known = self._stored(BASE_PERPLEXITY)
        if isinstance(known, float):
            return known
        found = self._read("held-back rows read before the training")
        self._write(BASE_PERPLEXITY, found)
        return found

    def _earlier_checks(self) -> list[Check]:
        """Those of an earlier start of this run, up to the step it goes on from."""
        found = self._stored(CHECKS)
        try:
            checks = [Check.model_validate(one) for one in found] if isinstance(found, list) else []
        except ValueError:
            return []
        return [check for check in checks if check.step <= self.journal.step]

    def _stored(self, name: str) -> Any:
        try:
            return json.loads((self.run.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _write(self, name: str, value: Any) -> None:
        if ranks.is_first():  # another process could be ahead, and the first would find what it has yet to tell
            write_atomic(self.run.path / name, json.dumps(value))


def _shares(verdict: Mapping[str, Any]) -> dict[str, float | None]:
    """The three shares of a verdict; None for what is not asked."""
    learned, leaked, forgot = (verdict[name] or {} for name in ("learned", "leaked", "forgot"))
    return {"learned": learned.get("share"), "leaked": leaked.get("share"), "retained": forgot.get("retained")}
