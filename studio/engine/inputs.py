"""What a training run starts from, checked before torch is loaded; and how its process is prepared for that."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from studio import deepspeed_settings, hardware
from studio.checkpoints import flaw_of, remove_torn, torn
from studio.config import RunConfig
from studio.engine import ranks, zero
from studio.engine.adapter import AdapterFiles, adapter_to_continue
from studio.engine.converted import ready
from studio.engine.data import Source, changed_since_start, chat_tokenizer, find_source, read_tables
from studio.engine.failure import EngineError
from studio.engine.journal import Journal
from studio.engine.quick_import import import_bitsandbytes
from studio.events import RunError
from studio.presets import ModelRef, resolve_model
from studio.records.chat_tokenizer import ChatTokenizer
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError
from studio.trackers import FIELD, lacking


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


def read_inputs(run: RunDir, journal: Journal, checkpoint: Path | None) -> Inputs:
    """Read and check everything that needs no torch. Raises ConfigError, DataError or EngineError."""
    if ranks.is_first_here():
        for path in torn(run.checkpoints):
            reason = flaw_of(path) or "it was not written to its end"
            journal.warn(f"checkpoint: {path.name} is not whole ({reason}).", "checkpoint")
        remove_torn(run.checkpoints)
    config = run.config()
    if not isinstance(config, RunConfig):
        raise ConfigError([FieldError("kind", "this run is a merge, not a training")])
    for problem in lacking(config.train.report_to):
        message, hint = f"{FIELD}: {problem.message}.", f"{problem.hint[:1].upper()}{problem.hint[1:]}."
        raise EngineError(RunError(kind="config", message=message, hint=hint, field=FIELD))
    wrong = deepspeed_settings.faults(config)
    if wrong:
        raise ConfigError([FieldError(deepspeed_settings.FIELD, sentence) for sentence in wrong])
    alone = ranks.world() == 1  # or the launcher, which has warned before it starts the others
    for sentence in deepspeed_settings.remarks(config) if alone else ():
        journal.warn(sentence, deepspeed_settings.FIELD)
    workspace = run.path.parent.parent
    ref = ready(
        resolve_model(config.model.model_name_or_path),
        workspace,
        lambda done, total: journal.progress(done, total, "tensors converted"),
    )
    adapter = adapter_to_continue(config)
    source = find_source(config, workspace)
    for sentence in changed_since_start(run, source) if alone else ():
        journal.warn(sentence, "data.dataset")
    chat = None
    if ref.local and (Path(ref.path_or_id) / "tokenizer.json").is_file():
        chat = chat_tokenizer(ref, None, config.model.chat_template)
        # Read now, so that bad data is refused before the model is loaded; later the tables come from the cache.
        read_tables(config, source, chat, bytes_read(journal))
    return Inputs(config, ref, source, chat, checkpoint, adapter)


def bytes_read(journal: Journal) -> Callable[[int, int], None]:
    """What reports the reading of data to `journal`."""
    return lambda done, total: journal.progress(done, total, "bytes of data read")


def prepare_process(config: RunConfig, ref: ModelRef) -> None:
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

    import_bitsandbytes()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    from studio.engine.model import is_small

    if is_small(ref):
        torch.set_num_threads(1)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(hardware.recommended_threads())
    ranks.join(config.parallel.ddp_timeout)
