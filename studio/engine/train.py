"""One training run, from its directory to its verdict; read `train` from top to bottom.

python -m studio.engine train RUN_DIR [--resume]

The run's directory shows a sign of life, and bad configurations, models and data are refused, before torch is loaded.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.checkpoints import remove_torn
from studio.config import RunConfig
from studio.diagnosis import diagnose
from studio.engine import ranks
from studio.engine.data import chat_tokenizer, counts_event, highest_token, read_tables, sentences, with_replay
from studio.engine.exam import Exam, exam_of
from studio.engine.failure import EngineError, model_failure
from studio.engine.inputs import Inputs, bytes_read, prepare_process, read_inputs
from studio.engine.journal import Journal
from studio.engine.start import start
from studio.engine.ticker import importing, loading
from studio.estimate import self_replay_rows
from studio.events import RunError, RunState
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.counts import Counts, Prepared, counts_of, numbers_of, unpacked
from studio.rundir import RunDir

if TYPE_CHECKING:
    from studio.diagnosis import Evidence
    from studio.engine.answers import Respondent
    from studio.engine.best import Ending
    from studio.engine.callbacks import Watch
    from studio.engine.checking import CheckWhileTraining
    from studio.engine.model import Loaded
    from studio.engine.trainer import Trainer


def main(run_dir: str, resume: bool = False) -> int:
    """Train, and return the exit code (`studio.events.ExitCode`). `resume`: go on from the last whole checkpoint."""
    return start(run_dir, lambda: train, resume=resume)


def train(run: RunDir, journal: Journal, checkpoint: Path | None) -> RunState:
    """One run, from the first check to the verdict; goes on from `checkpoint` if there is one. Returns how it ended."""
    began = time.monotonic()
    inputs = read_inputs(run, journal, checkpoint)
    config = inputs.config

    with importing(journal):
        prepare_process(config, inputs.ref)
        from studio.engine import best, model, report, resume_point, stopping, zero  # torch and its family: seconds

    laps = report.Laps(began)
    with loading(journal):
        zero.join(config, run, model.choose_precision(config.model.dtype, inputs.ref))
        inputs = replace(inputs, checkpoint=resume_point.meet(run, inputs.checkpoint, config))
        loaded = _load(inputs)
    laps.lap("load")

    journal.phase("tokenise")
    chat = inputs.chat or chat_tokenizer(inputs.ref, loaded.tokenizer, config.model.chat_template)
    loaded.tokenizer.chat_template = chat.template.source
    stopping.remember(loaded.model, loaded.tokenizer, chat.stop_words)
    respondent = _respondent(config, loaded, chat)
    examples, counts = _prepare_examples(run, journal, inputs, loaded, respondent)
    journal.emit(counts_event(counts, examples))
    laps.lap("tokenise")

    journal.phase("train", "asking the base model first" if inputs.checkpoint is None else "")
    exam = exam_of(run, journal, inputs, respondent, examples)
    trainer, watch = _set_up(inputs, loaded, examples, exam)
    journal.update(max_steps=counts.updates)
    _ask_before(inputs, exam, trainer, watch)
    laps.lap("before")

    with journal.uninterrupted():
        _fit(run, journal, trainer, inputs.checkpoint)
        ending = best.ending(trainer)
        if trainer.eval_dataset is not None and watch.evaluated_at != journal.step and ending.best_step is None:
            trainer.evaluate()
        laps.lap("train")
        journal.phase("save")
        _save(run, journal, inputs, loaded, ending)
        stopped = ranks.any_of(journal.stop_requested())
    if stopped or (ending.steps < ending.planned and not ending.early):
        return RunState.STOPPED
    if not ranks.answers(config):
        return RunState.FINISHED

    journal.phase("verdict")
    watch.sampler.ask("end")
    found = exam.finish()
    laps.lap("verdict")
    if not ranks.is_first():
        return RunState.FINISHED
    curve = report.curve_of(trainer)
    best.name_best(run, ending, exam, curve.validation, whole=config.method == "full")
    evidence = report.evidence_of(inputs, counts, ending, curve, exam)
    found |= _diagnosed(config, found["verdict"], evidence)
    report.write_report(run, inputs, ending, found | report.figures(curve, watch, laps))
    return RunState.FINISHED


def _load(inputs: Inputs) -> Loaded:
    """The model, and the adapter a run goes on from."""
    from studio.engine import continuing, model

    loaded = model.load(inputs.config, inputs.ref)
    return continuing.with_adapter(loaded, inputs.adapter, inputs.config.lora) if inputs.adapter else loaded


def _prepare_examples(
    run: RunDir, journal: Journal, inputs: Inputs, loaded: Loaded, respondent: Respondent
) -> tuple[Prepared, Counts]:
    """The examples and their counts; packed only if this model keeps packed examples apart."""
    from studio.engine.attention import leaks

    config, numbers = inputs.config, numbers_of(inputs.config)
    examples = read_tables(config, inputs.source, respondent.chat, bytes_read(journal))
    for sentence in sentences(examples):
        journal.warn(sentence, "data.dataset")
    asked = self_replay_rows(config, inputs.source.store)
    if asked:
        from studio.engine.self_replay import replay_table

        asks = ranks.answers(config)
        replay = replay_table(run, journal, respondent, asked, config.train.seed, asks=asks)
        examples = with_replay(examples, replay, numbers)
    _check_fits(journal, examples, loaded)
    if examples.packing and leaks(loaded.model, loaded.vocabulary, flat=_wants_flat(config)):
        message = "data.packing: this model's attention would let packed conversations see each other."
        if config.data.packing:
            hint = "Turn packing off."
            raise EngineError(RunError(kind="config", message=message, hint=hint, field="data.packing"))
        journal.warn(f"{message} They are not packed.", "data.packing")
        examples = unpacked(examples)
    return examples, counts_of(examples, numbers)


def _respondent(config: RunConfig, loaded: Loaded, chat: ChatTokenizer) -> Respondent:
    from studio.engine.answers import Respondent

    return Respondent(loaded.model, loaded.tokenizer, chat, loaded.precision, config.data.system)


def _check_fits(journal: Journal, examples: Prepared, loaded: Loaded) -> None:
    """Token ids must have an embedding; examples longer than the model's context are worth a warning."""
    highest = highest_token(examples)
    if highest >= loaded.vocabulary:
        raise model_failure(
            f"model.model_name_or_path: the tokenizer writes token {highest}, the model knows {loaded.vocabulary}.",
            "Tokenizer and weights do not belong together; copy the model again.",
        )
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    longest = int(examples.examples.length.max())
    if context and longest > context:
        journal.warn(
            f"The longest conversation has {longest} tokens, the model was made for {context}. Lower data.max_length.",
            "data.max_length",
        )


def _wants_flat(config: RunConfig) -> bool:
    return config.model.attn_implementation == "flash_attention_2"


def _set_up(inputs: Inputs, loaded: Loaded, examples: Prepared, exam: Exam) -> tuple[Trainer, Watch]:
    """The trainer and what watches it."""
    from studio.engine import gpu_meter, soundness
    from studio.engine.best import watchers
    from studio.engine.callbacks import Sampler, SampleWhileTraining, Watch
    from studio.engine.pace import Pace
    from studio.engine.saving import complete_checkpoint
    from studio.engine.trackers import trackers
    from studio.engine.trainer import build_trainer, plan_of, training_arguments, training_data

    config, run, journal, respondent = inputs.config, exam.run, exam.journal, exam.respondent
    pad, shares = loaded.tokenizer.pad_token_id or 0, config.data_parallel_size
    data = training_data(examples, pad, flat=_wants_flat(config), shares=shares)
    pace = Pace(plan=plan_of(config, data))
    sampler = Sampler(journal, respondent, config.samples, pace, asks=ranks.answers(config))
    watch = Watch(journal, sampler, pace, gpu_meter.meter_of(config, loaded, examples, ranks.world()))
    guard = soundness.Guard(journal, soundness.batches_of(config, data.train, shares))
    validate = bool(len(data.validation))
    arguments = training_arguments(config, run.checkpoints, loaded, validate=validate)
    callbacks = [
        *watchers(config, validate=validate),
        watch,
        SampleWhileTraining(sampler),
        *(trackers(config, journal) if ranks.is_first() else ()),
    ]
    trainer = build_trainer(arguments, loaded, data, callbacks, pace, guard)
    watch.trainer = trainer
    trainer.complete = lambda folder: complete_checkpoint(folder, config, loaded, inputs.source.sha256)
    return trainer, watch


def _ask_before(inputs: Inputs, exam: Exam, trainer: Trainer, watch: Watch) -> None:
    """What the base model is asked, and what is asked again while it is trained."""
    from studio.engine.agreement import Agreement

    if inputs.checkpoint is None:
        watch.sampler.ask("start")
    with watch.pace.rehearsing():
        exam.begin()
    checking = _checking(inputs.config, exam, watch, exam.journal)
    trainer.add_callback(checking)
    if ranks.world() > 1:
        trainer.add_callback(Agreement(checking))


def _diagnosed(config: RunConfig, verdict: Any, evidence: Evidence) -> dict[str, Any]:
    return {"diagnosis": diagnose(config, verdict, evidence).model_dump(), "evidence": evidence.model_dump()}


def _checking(config: RunConfig, exam: Exam, watch: Watch, journal: Journal) -> CheckWhileTraining:
    from studio.engine.checking import CheckWhileTraining

    section = config.verdict
    if section.stop_at_best and not exam.learning_is_checked:
        journal.warn(
            "There are no questions that tell what was learned, so no step is the best.", "verdict.stop_at_best"
        )
    every = config.samples.evaluation_freq if section.check_while_training else 0
    watch.pace.quick_share = exam.quick_share if every else 0.0
    return CheckWhileTraining(exam, watch.pace, every, choose=section.stop_at_best)


def _fit(run: RunDir, journal: Journal, trainer: Trainer, checkpoint: Path | None) -> None:
    journal.phase("train")
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except BaseException:
        remove_torn(run.checkpoints)
        raise


def _save(run: RunDir, journal: Journal, inputs: Inputs, loaded: Loaded, ending: Ending) -> None:
    from studio.engine.saving import model_card, save_result

    if ending.early:
        journal.update(force=True, max_steps=ending.steps)
        by_checks = ending.by == "checks"
        field = "verdict.stop_at_best" if by_checks else "early_stopping.early_stopping_patience"
        journal.warn(ending.sentences[0], field)
    card = model_card(inputs.config, inputs.source.sha256, ending)
    journal.emit(save_result(run, inputs.config, loaded, card))
