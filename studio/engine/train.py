"""One training run, from its directory to its verdict; read `_train` from top to bottom.

python -m studio.engine train RUN_DIR [--resume]

The run's directory shows a sign of life, and bad configurations, models and data are refused, before torch is loaded.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import hardware
from studio.checkpoints import last_checkpoint, remove_torn, step_of
from studio.config import RunConfig
from studio.engine import zero
from studio.engine.adapter import AdapterFiles, adapter_to_continue
from studio.engine.converted import ready
from studio.engine.data import (
    Source,
    changed_since_start,
    chat_tokenizer,
    counts_event,
    find_source,
    highest_token,
    read_tables,
    sentences,
    with_replay,
)
from studio.engine.failure import EngineError, model_failure
from studio.engine.journal import Journal, supervise
from studio.engine.verdict import Probes, answers_before, before_after, choose_probes, judge
from studio.estimate import self_replay_rows
from studio.events import ExitCode, RunError, RunState
from studio.presets import ModelRef, resolve_model
from studio.records import DataError
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.counts import Counts, Prepared, counts_of, numbers_of, unpacked
from studio.rundir import RunDir, write_atomic
from studio.schema import ConfigError, FieldError

if TYPE_CHECKING:
    from studio.engine.answers import Respondent
    from studio.engine.best import Ending
    from studio.engine.callbacks import Watch
    from studio.engine.model import Loaded
    from studio.engine.trainer import Trainer

BASE_ANSWERS = "base_answers.json"
SHORTEST_LIMIT = 64  # tokens an answer to a probe may have at least


@dataclass(frozen=True)
class Inputs:
    """What a run starts from, checked as far as that goes without torch. `checkpoint`: where it is resumed.

    `chat` is None when the tokenizer is not on this machine yet.
    """

    config: RunConfig
    ref: ModelRef
    source: Source
    chat: ChatTokenizer | None
    checkpoint: Path | None
    adapter: AdapterFiles | None


def main(run_dir: str, resume: bool = False) -> int:
    """Train, and return the exit code (`studio.events.ExitCode`). `resume`: go on from the last whole checkpoint."""
    run = RunDir(Path(run_dir).absolute())
    if not resume and last_checkpoint(run.checkpoints):
        print(f"{run.path} has checkpoints already; start it with --resume", file=sys.stderr)  # noqa: T201
        return int(ExitCode.BAD_INPUT)
    return supervise(run, lambda journal: _train(run, journal, resume))


def _train(run: RunDir, journal: Journal, resume: bool) -> RunState:
    clock = _Clock()
    inputs = _read_inputs(run, journal, resume)
    config = inputs.config

    _prepare_process(config, inputs.ref)
    from studio.engine import best, continuing, model, stopping  # torch and its family: seconds

    loaded = model.load(config, inputs.ref)
    if inputs.adapter:
        loaded = continuing.with_adapter(loaded, inputs.adapter, config.lora)
    clock.lap("load")

    journal.phase("tokenise")
    chat = inputs.chat or chat_tokenizer(inputs.ref, loaded.tokenizer, config.model.chat_template)
    loaded.tokenizer.chat_template = chat.template.source
    stopping.remember(loaded.model, loaded.tokenizer, chat.stop_words)
    respondent = _respondent(config, loaded, chat)
    examples, counts = _prepare_examples(run, journal, inputs, loaded, respondent)
    journal.emit(counts_event(counts, examples))
    clock.lap("tokenise")

    journal.phase("train", "asking the base model first" if inputs.checkpoint is None else "")
    trainer, watch = _set_up(run, journal, inputs, loaded, examples, respondent)
    journal.update(max_steps=counts.updates)
    exam = _exam(config, inputs.source, journal)
    if inputs.checkpoint is None:
        watch.sampler.ask("start")
    before = _ask_before(run, journal, exam, respondent)
    clock.lap("before")

    with journal.uninterrupted():
        _fit(run, journal, trainer, inputs.checkpoint)
        ending = best.ending(trainer)
        if trainer.eval_dataset is not None and watch.evaluated_at != journal.step and ending.best_step is None:
            trainer.evaluate()
        clock.lap("train")
        journal.phase("save")
        _save(run, journal, inputs, loaded, ending)
    if journal.stop_requested() or (ending.steps < ending.planned and not ending.early):
        return RunState.STOPPED

    journal.phase("verdict")
    watch.sampler.ask("end")
    report = _judge(journal, exam, respondent, before) if exam else {}
    clock.lap("verdict")
    _write_report(run, inputs, ending, report | _figures(trainer, watch, clock))
    return RunState.FINISHED


class _Clock:
    """Seconds spent in each part of the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now


def _read_inputs(run: RunDir, journal: Journal, resume: bool) -> Inputs:
    """Say hello, then read and check everything that needs no torch."""
    checkpoint = last_checkpoint(run.checkpoints) if resume else None
    journal.begin(resumed_from=step_of(checkpoint) if checkpoint else None)
    journal.phase("load")
    remove_torn(run.checkpoints)
    config = run.config()
    if not isinstance(config, RunConfig):
        raise ConfigError([FieldError("kind", "this run is a merge, not a training")])
    workspace = run.path.parent.parent
    ref = ready(
        resolve_model(config.model.model_name_or_path),
        workspace,
        lambda done, total: journal.progress(done, total, "tensors converted"),
    )
    adapter = adapter_to_continue(config)
    source = find_source(config, workspace)
    for sentence in changed_since_start(run, source):
        journal.warn(sentence, "data.dataset")
    chat = None
    if ref.local and (Path(ref.path_or_id) / "tokenizer.json").is_file():
        chat = chat_tokenizer(ref, None, config.model.chat_template)
        # Read now, so that bad data is refused before the model is loaded; later the tables come from the cache.
        read_tables(config, source, chat, _bytes_read(journal))
    return Inputs(config, ref, source, chat, checkpoint, adapter)


def _bytes_read(journal: Journal) -> Callable[[int, int], None]:
    return lambda done, total: journal.progress(done, total, "bytes of data read")


def _prepare_process(config: RunConfig, ref: ModelRef) -> None:
    """Settings the heavy libraries read when they are imported: quiet, one device, off-line for a local model."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if ref.local:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if "WORLD_SIZE" not in os.environ:  # several visible GPUs would start DataParallel
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if zero.wanted(config):
        zero.prepare_process()
    else:
        sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type] # not used, and a second to import
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a package it does not need
    warnings.filterwarnings("ignore", category=FutureWarning)

    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    from studio.engine.model import is_small

    if is_small(ref):
        torch.set_num_threads(1)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(hardware.recommended_threads())


def _prepare_examples(
    run: RunDir, journal: Journal, inputs: Inputs, loaded: Loaded, respondent: Respondent
) -> tuple[Prepared, Counts]:
    """The examples and their counts; packed only if this model keeps packed examples apart."""
    from studio.engine.attention import leaks

    config, numbers = inputs.config, numbers_of(inputs.config)
    examples = read_tables(config, inputs.source, respondent.chat, _bytes_read(journal))
    for sentence in sentences(examples):
        journal.warn(sentence, "data.dataset")
    asked = self_replay_rows(config, inputs.source.store)
    if asked:
        from studio.engine.self_replay import replay_table

        replay = replay_table(run, journal, respondent, asked, config.train.seed)
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


def _set_up(
    run: RunDir, journal: Journal, inputs: Inputs, loaded: Loaded, examples: Prepared, respondent: Respondent
) -> tuple[Trainer, Watch]:
    """The trainer and what watches it."""
    from studio.engine.best import watchers
    from studio.engine.callbacks import Sampler, SampleWhileTraining, Watch
    from studio.engine.trainer import build_trainer, training_arguments, training_data

    config = inputs.config
    data = training_data(examples, loaded.tokenizer.pad_token_id or 0, flat=_wants_flat(config))
    sampler = Sampler(journal, respondent, config.samples)
    watch = Watch(journal, sampler)
    validate = bool(len(data.validation))
    arguments = training_arguments(config, run.checkpoints, loaded, validate=validate)
    callbacks = [*watchers(config, validate=validate), watch, SampleWhileTraining(sampler)]
    return build_trainer(arguments, loaded, data, callbacks), watch


def _exam(config: RunConfig, source: Source, journal: Journal) -> Probes | None:
    """The questions of the verdict, or None when it is off or the built-in questions are gone."""
    if not config.verdict.enabled:
        return None
    try:
        return choose_probes(source.heldout, source.info, config.verdict.max_probes, config.train.seed)
    except DataError as error:
        journal.warn(f"There is no verdict: {error.message}", "verdict.enabled")
        return None


def _ask(journal: Journal, probes: Probes, respondent: Respondent, prompts: list[str], label: str) -> list[str]:
    """Answers to some of `probes.questions`, with progress; each may be as long as the longest expected text needs."""
    expected = [text for row in probes.heldout for text in row["expect"]]
    longest = max((len(respondent.chat.encode_text(text)) for text in expected), default=0)
    limit = max(SHORTEST_LIMIT, 2 * longest + 40)
    questions = probes.questions
    messages = [questions[prompt] for prompt in prompts]
    return respondent.answer(messages, limit, lambda done, total: journal.progress(done, total, label))


def _ask_before(run: RunDir, journal: Journal, exam: Probes | None, respondent: Respondent) -> dict[str, str]:
    if exam is None:
        return {}
    label = "questions asked before the training"
    return answers_before(
        run.path / BASE_ANSWERS, exam, lambda prompts: _ask(journal, exam, respondent, prompts, label)
    )


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
        journal.warn(ending.sentences[0], "early_stopping.early_stopping_patience")
    card = model_card(inputs.config, inputs.source.sha256, ending)
    journal.emit(save_result(run, inputs.config, loaded, card))


def _judge(journal: Journal, exam: Probes, respondent: Respondent, before: dict[str, str]) -> dict[str, Any]:
    prompts = list(exam.questions)
    answers = _ask(journal, exam, respondent, prompts, "questions asked after the training")
    after = dict(zip(prompts, answers, strict=True))
    return {"verdict": judge(exam, before, after), "before_after": before_after(exam, before, after)}


def _figures(trainer: Trainer, watch: Watch, clock: _Clock) -> dict[str, Any]:
    """The numbers of report.json beside the verdict."""
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last = history[-10:]
    return {
        "seconds": clock.seconds,
        "tokens_per_second": watch.trained_tokens / watch.trained_seconds if watch.trained_seconds else None,
        "train_loss": sum(last) / len(last) if last else None,
        "peak_memory_bytes": watch.peak_memory,
    }


def _write_report(run: RunDir, inputs: Inputs, ending: Ending, report: dict[str, Any]) -> None:
    from studio.engine.saving import continued_from, model_card, rewrite_card

    told = {"ending": asdict(ending), "continued_from": continued_from(inputs.config)}
    report = {"verdict": None, "before_after": []} | told | report
    write_atomic(run.report_file, json.dumps(report, ensure_ascii=False, indent=1))
    if report["verdict"]:
        summary = report["verdict"]["summary"]
        rewrite_card(run, inputs.config, model_card(inputs.config, inputs.source.sha256, ending, summary))
