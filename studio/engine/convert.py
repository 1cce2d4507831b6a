"""Makes an adapter's folder complete: `python -m studio.engine convert RUN_DIR`.

From what XTuner, DeepSpeed or PEFT wrote, or from one of our own runs. The story is here and in order: find the
adapter and how it was trained, give its tensors the names of the base model, write everything beside them that using
it takes, prove it on the base, and only then give the folder its name. torch is loaded after the first sign of life.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import ConvertConfig
from studio.engine.convertplan import Plan, find_base, make_plan
from studio.engine.journal import Journal, supervise
from studio.engine.output_folder import filling, settle, shortages_named
from studio.engine.quick_import import quickly
from studio.events import RunState
from studio.rundir import RunDir

if TYPE_CHECKING:
    from studio.engine.foreign.sources import Found


_SAID_OF_LORA = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora")


def main(run_dir: str) -> int:
    """Import as the run directory's config.yaml says; returns the exit code."""
    return supervise(RunDir(Path(run_dir)), convert_run)


def convert_run(journal: Journal) -> RunState:
    """The whole import. Raises EngineError with everything a person needs, StopRequested when asked to stop."""
    journal.begin()
    with shortages_named("the import", "base"):
        plan = make_plan(journal.run)
        with filling(plan.work, journal):
            started = time.time()
            report = _copied(plan, journal) if plan.model else _imported(plan, journal)
            journal.interruptible = False  # from here on it is done; a late stop must not call it stopped
            report["seconds"] = round(time.time() - started, 1)
            report["size_bytes"] = sum(file.stat().st_size for file in plan.work.rglob("*") if file.is_file())
            return settle(journal, (plan.work, plan.out), report, "export")


def _copied(plan: Plan, journal: Journal) -> dict[str, Any]:
    """A run that trained every weight: its model as it is, with a card."""
    from studio.engine.giveaway_model import copy_model

    assert plan.model is not None
    journal.phase("convert", plan.model.name)
    return copy_model(plan, journal)


def _imported(plan: Plan, journal: Journal) -> dict[str, Any]:
    """The adapter of a source, or the model of a training of every weight, complete and proven."""
    with quickly():
        from studio.engine import giveaway, import_proof, imported_model  # torch: seconds to import
        from studio.engine.foreign import sources
        from studio.engine.loading import quiet

    quiet()
    assert plan.place is not None
    journal.phase("load", plan.place.name)
    found = sources.read(plan.place, plan.config.settings)
    for note in found.notes:
        journal.warn(note, "source")
    base = find_base(plan, found.settings, journal)
    if found.weights is not None:
        return imported_model.write_model(plan, found, base, journal)
    journal.phase("convert", f"{found.place.name} → {base.named}")
    adapter = import_proof.fit(plan, found, base)
    tokenizer = giveaway.write_beside(plan, found, base, journal)
    journal.phase("proof", base.named)
    proof = import_proof.prove(plan, base, tokenizer, found.settings, journal)
    report = _report(plan.config, found, adapter.config, base.named) | {"proof": proof}
    giveaway.write_card(plan, found, report)
    return report


def _report(config: ConvertConfig, found: Found, lora: dict[str, Any], base: str) -> dict[str, Any]:
    return {
        "source": config.source,
        "source_kind": found.place.kind,
        "base": base,
        "settings": found.settings.origin,
        "lora": {name: _told(lora[name]) for name in _SAID_OF_LORA},
        "tensors": len(found.named.tensors),
        "notes": found.notes,
    }


def _told(value: Any) -> Any:
    """A value as JSON takes it: PEFT holds names of layers as a set."""
    return sorted(value) if isinstance(value, set) else value
