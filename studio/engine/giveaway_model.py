"""A run that trained every weight, as a complete model folder to give away."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from studio.engine.convertplan import Plan
from studio.engine.failure import model_failure
from studio.engine.foreign.settings import Settings
from studio.engine.giveaway import own_card
from studio.engine.import_proof import conversations
from studio.engine.journal import Journal
from studio.engine.loading import choose_holding, load_base, load_tokenizer, quiet
from studio.engine.questions import ask
from studio.engine.saving import CARD
from studio.presets import ModelRef

# What a trainer leaves in a checkpoint to go on from; it says nothing to others, and some of it is pickled.
_OF_TRAINER = re.compile(
    r"(optimizer|scheduler|scaler|rng_state.*|training_args|trainer_state|files|latest|zero_to_fp32)(\.\w+)?"
)


def copy_model(plan: Plan, journal: Journal) -> dict[str, Any]:
    """Copy it, read it back, ask it. Returns the report; raises EngineError when it cannot be loaded."""
    assert plan.model is not None
    quiet()
    files = [path for path in sorted(plan.model.iterdir()) if path.is_file() and not _OF_TRAINER.fullmatch(path.name)]
    if not any(path.suffix == ".safetensors" for path in files):
        raise model_failure(f"source: {plan.model.name} holds no weights.", "Choose another checkpoint.", "source")
    for done, path in enumerate(files, start=1):
        shutil.copyfile(path, plan.work / path.name)
        journal.progress(done, len(files), "files copied")
    card = own_card(plan.trained) if plan.trained else ""
    if card:
        (plan.work / CARD).write_text(card, encoding="utf-8")
    return {
        "source": plan.config.source,
        "source_kind": "model",
        "base": str(plan.model),
        "settings": "",
        "notes": [],
        "proof": _proof(plan, files, journal),
    }


def _proof(plan: Plan, files: list[Path], journal: Journal) -> dict[str, Any]:
    """Every weights file is what it was, and the copy loads and answers."""
    journal.phase("proof", plan.out.name)
    weights = [path for path in files if path.suffix == ".safetensors"]
    other = [path.name for path in weights if _sha256(path) != _sha256(plan.work / path.name)]
    ref = ModelRef(str(plan.work), str(plan.work), local=True)
    model = load_base(ref, choose_holding(16, ref), "source")
    tokenizer = load_tokenizer(str(plan.work), field="source")
    traces = ask(model, tokenizer, conversations(plan, Settings()), journal, "questions")
    reason = f"{other[0]} is not what it was" if other else "" if traces else "none of the questions could be asked"
    return {
        "prompts": len(traces),
        "rows": [{"prompt": trace.prompt, "model": trace.answer} for trace in traces],
        "files_equal": len(weights) - len(other),
        "reason": reason,
        "passed": not reason,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
