"""The exam of one run: the verdict's questions, asked before, now and then during, and after the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from studio.config import RunConfig
from studio.engine.activity import during
from studio.engine.data import Source
from studio.engine.journal import Journal
from studio.engine.verdict import Probes, answers_before, before_after, choose_probes, judge
from studio.records import DataError
from studio.rundir import RunDir

if TYPE_CHECKING:
    from studio.engine.answers import Respondent

BASE_ANSWERS = "base_answers.json"
SHORTEST_LIMIT = 64  # tokens an answer to a probe may have at least


def exam_questions(config: RunConfig, source: Source, journal: Journal) -> Probes | None:
    """The questions of the verdict, or None when it is off or the built-in questions are gone."""
    if not config.verdict.enabled:
        return None
    try:
        return choose_probes(source.heldout, source.info, config.verdict.max_probes, config.train.seed)
    except DataError as error:
        journal.warn(f"There is no verdict: {error.message}", "verdict.enabled")
        return None


class Exam:
    """Asks one model `probes`, or nothing when there are none, and judges the answers."""

    def __init__(self, run: RunDir, journal: Journal, respondent: Respondent, probes: Probes | None) -> None:
        self.run, self.journal, self.respondent, self.probes = run, journal, respondent, probes
        self.before: dict[str, str] = {}

    def begin(self) -> None:
        """Ask the base model; what an earlier start of this run has asked is not asked again."""
        if self.probes is None:
            return
        label = "questions asked before the training"
        self.before = answers_before(
            self.run.path / BASE_ANSWERS, self.probes, lambda prompts: self._ask(prompts, label)
        )

    def finish(self) -> dict[str, Any]:
        """Ask the trained model; the parts of report.json that follow from its answers."""
        if self.probes is None:
            return {"verdict": None, "before_after": []}
        prompts = list(self.probes.questions)
        after = dict(zip(prompts, self._ask(prompts, "questions asked after the training"), strict=True))
        return {
            "verdict": judge(self.probes, self.before, after),
            "before_after": before_after(self.probes, self.before, after),
        }

    def _ask(self, prompts: Sequence[str], label: str) -> list[str]:
        """Answers to some of the questions, with progress; each may be as long as the longest expected text needs."""
        assert self.probes is not None
        questions = self.probes.questions
        messages = [questions[prompt] for prompt in prompts]
        limit = max(SHORTEST_LIMIT, 2 * self._longest(self.probes) + 40)

        def told(done: int, total: int) -> None:
            self.journal.progress(done, total, label)

        with during("verdict"):
            return self.respondent.answer(messages, limit, told)

    def _longest(self, probes: Probes) -> int:
        """Tokens of the longest expected text."""
        expected = [text for row in probes.heldout for text in row["expect"]]
        return max((len(self.respondent.chat.encode_text(text)) for text in expected), default=0)
