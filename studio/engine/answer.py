"""Answers a file of prompts: `python -m studio.engine answer RUN_DIR`.

The story is here and in order: read the prompts, find out who is asked, load each base model once, ask, and write the
table beside its goal. Every answer is kept in the run directory at once, so that a run that was stopped goes on where
it was. The models are asked as a chat asks them: same template, same sampling, same answer for the same seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pydantic import ValidationError

from studio.config import AnswersConfig, RunConfig
from studio.engine.answer_table import SUFFIXES, KeptAnswers, write_table
from studio.engine.dialogue import BASE, Backend, Busy, Options, Piece, PromptError, Request, Sampling
from studio.engine.failure import model_failure
from studio.engine.journal import Journal, supervise
from studio.engine.output_folder import open_goal, refused, shortages_named
from studio.engine.quick_import import quickly
from studio.events import RunState, SavedEvent
from studio.model_choices import ModelChoice, find_adapted
from studio.records.errors import DataError, shown
from studio.records.prompt_file import PromptFile, PromptRow, read_prompts
from studio.records.store import DatasetStore
from studio.records.template_names import check_template_name
from studio.rundir import RunDir, write_atomic
from studio.workspace import Workspace

TUNED = "tuned"
AT_ONCE = 12  # of the answers a backend takes at a time
BUSY_S = 0.05


@dataclass(frozen=True)
class Session:
    """One base model in memory and who is asked in it: names of columns, and the model's own name for each."""

    base: str
    adapters: dict[str, str]
    columns: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What is asked of whom, checked."""

    config: AnswersConfig
    prompts: PromptFile
    sessions: list[Session]
    system: str | None
    out: Path

    @property
    def columns(self) -> list[str]:
        """Who answers, the base model first."""
        return [column for session in self.sessions for column in session.columns]


def main(run_dir: str) -> int:
    """Answer as the run directory's config.yaml says; returns the exit code."""
    return supervise(RunDir(Path(run_dir)), answer_run)


def answer_run(journal: Journal) -> RunState:
    """The whole story. Raises EngineError with everything a person needs, StopRequested when asked to stop."""
    journal.begin()
    with shortages_named("the table of answers", "bits"):
        plan = make_plan(journal.run)
        for sentence in _warnings(plan.prompts):
            journal.warn(sentence, "prompts")
        kept = KeptAnswers(journal.run.answers_file)
        started = time.monotonic()
        for session in plan.sessions:
            _hold(session, plan, kept, journal)
        journal.interruptible = False  # from here on it is done; a late stop must not call it stopped
        return _settle(plan, kept, journal, time.monotonic() - started)


def make_plan(run: RunDir) -> Plan:
    """Prompts, models and goal, checked before anything heavy is loaded.

    Raises:
        EngineError: kind config, data or disk, naming the field.
        ConfigError, ModelError, DataError: model, adapter or prompts cannot be used.
    """
    config = run.config()
    if not isinstance(config, AnswersConfig):
        raise refused("config", "kind", f"run {run.id} asks no prompts.", "Start it with what it is.")
    workspace = Workspace(run.path.parent.parent)
    out = open_goal(config.out)
    if out.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise refused("config", "out", f"out: {out.name} is no table of answers.", f"Choose a name with {known}.")
    check_template_name(config.chat_template, "chat_template")
    prompts = read_prompts(_prompt_file(workspace, config.prompts))
    choice = find_adapted(workspace, config.model, config.adapter)
    trained = choice.trained()
    system = config.system if config.system is not None else (trained.data.system or None) if trained else None
    return Plan(config, prompts, sessions_of(choice, trained, compare=config.compare), system, out)


def _prompt_file(workspace: Workspace, reference: str) -> Path:
    """A file, or the rows of a saved dataset of the workspace."""
    path = Path(reference).expanduser()
    try:
        return path if path.exists() else DatasetStore(workspace.datasets).resolve(reference)
    except (DataError, OSError):
        sentence = f"There is no file {shown(reference, 120)}, and no saved dataset of that name. Check the path."
        raise DataError(sentence, field="prompts") from None


def sessions_of(choice: ModelChoice, trained: RunConfig | None, *, compare: bool) -> list[Session]:
    """An adapter and its base share one session; a whole model and the one it was made of have one each."""
    if choice.adapter:
        columns = {BASE: BASE} if compare else {}
        return [Session(choice.base, {TUNED: str(choice.adapter)}, {**columns, TUNED: TUNED})]
    if choice.what == "base":
        return [Session(choice.base, {}, {BASE: BASE})]
    origin = trained.model.model_name_or_path if trained and compare else None
    before = [Session(origin, {}, {BASE: BASE})] if origin else []
    return [*before, Session(choice.base, {}, {TUNED: BASE})]


def _warnings(prompts: PromptFile) -> list[str]:
    skipped = prompts.skipped
    if not skipped:
        return prompts.notes
    rows = "1 row" if len(skipped) == 1 else f"{len(skipped)} rows"
    return [*prompts.notes, f"{rows} left out; row {skipped[0].row}: {skipped[0].reason}"]


def _hold(session: Session, plan: Plan, kept: KeptAnswers, journal: Journal) -> None:
    """Ask everything that has no answer yet."""
    total = len(plan.prompts.rows) * len(plan.columns)
    open_questions = [
        (row, column) for row in plan.prompts.rows for column in session.columns if not kept.has(row.row, column)
    ]
    if not open_questions:
        return
    journal.phase("load", session.base)
    with quickly():
        from studio.engine import backend  # seconds to import

    options = Options(
        session.base, session.adapters, "", 0, plan.config.bits, None, None,
        journal.run.path.parent.parent,
    )  # fmt: skip
    talker = backend.open_backend(options, lambda _: None)
    try:
        journal.phase("answer", f"{len(plan.prompts.rows)} prompts")
        asking = _Asking(talker, session, plan)
        for answer in asking.answers(open_questions):
            kept.add(answer)
            journal.progress(len(kept), total, "answers")
    finally:
        talker.close()


class _Asking:
    """Some questions at a time, each told in the order in which they are answered."""

    def __init__(self, talker: Backend, session: Session, plan: Plan) -> None:
        self.talker, self.session, self.plan = talker, session, plan
        config = plan.config
        self.sampling = Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            min_p=config.min_p,
            repetition_penalty=config.repetition_penalty,
            max_tokens=config.max_new_tokens,
            seed=config.seed,
            stop=tuple(config.stop_words),
        )
        self.ended: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def answers(self, questions: list[tuple[PromptRow, str]]) -> Iterator[dict[str, Any]]:
        """Every answer as {"row", "column", "answer" or "error", "tokens", "cut"}."""
        under_way = 0
        for row, column in questions:
            while under_way >= AT_ONCE or not self._begin(row, column):
                if under_way:
                    yield self.ended.get()
                    under_way -= 1
                else:
                    time.sleep(BUSY_S)
            under_way += 1
        for _ in range(under_way):
            yield self.ended.get()

    def _begin(self, row: PromptRow, column: str) -> bool:
        """False when too many answers are under way."""
        parts: list[str] = []

        def emit(piece: Piece) -> None:
            parts.append(piece.text)
            if piece.last:
                text = "".join(parts)
                said = {"error": piece.error} if piece.error else {"answer": text, "cut": piece.finish == "length"}
                self.ended.put({"row": row.row, "column": column, **said, "tokens": piece.completion_tokens})

        def refuse(reason: str) -> None:
            self.ended.put({"row": row.row, "column": column, "error": reason, "tokens": 0})

        try:
            self.talker.begin(self._request(row, self.session.columns[column]), emit)
        except ValidationError as error:  # a conversation in an order no model is asked in
            refuse(str(error.errors()[0]["msg"]).removeprefix("Value error, "))
        except PromptError as error:
            refuse(str(error))
        except Busy:
            return False
        return True

    def _request(self, row: PromptRow, model: str) -> Request:
        from studio.engine.chat_api_messages import Message, check_pictures

        messages = list(row.messages)
        if self.plan.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.plan.system})
        asked = [Message.model_validate(message) for message in messages]
        check_pictures(asked)
        template = self.plan.config.chat_template or None
        return Request(model, tuple(message.turn() for message in asked), sampling=self.sampling, template=template)


def _settle(plan: Plan, kept: KeptAnswers, journal: Journal, seconds: float) -> RunState:
    """Write the table and the report. Raises EngineError when not a single prompt was answered."""
    rows = plan.prompts.rows
    report = kept.report(rows, plan.columns)
    if not report["answers"]:
        raise model_failure(
            f"prompts: none of the {len(rows)} prompts could be answered: {report['first_error']}",
            "Change the prompts, the model or its chat template.",
            "prompts",
        )
    journal.phase("save", plan.out.name)
    write_table(plan.out, rows, plan.columns, kept)
    report |= {"out": str(plan.out), "skipped": len(plan.prompts.skipped), "seconds": round(seconds, 1)}
    report |= {"system": plan.system or "", "model": plan.config.model, "adapter": plan.config.adapter or ""}
    write_atomic(journal.run.report_file, json.dumps(report, ensure_ascii=False, indent=1))
    journal.emit(SavedEvent(path=str(plan.out), what="answers"))
    return RunState.FINISHED
