"""What an export is about to do, checked before anything heavy is loaded: model, adapter, format, goal, disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from studio.config import ExportConfig
from studio.engine.adapter import open_adapter, open_base
from studio.engine.output_folder import check_disk, open_goal, refused, work_folder
from studio.export_targets import Goal, advice, needed_bytes
from studio.model_choices import ModelChoice
from studio.output_leftovers import clear_leftovers
from studio.rundir import RunDir


@dataclass(frozen=True)
class Plan:
    """An export that can begin: inputs checked, `out` free, `work` the folder beside it that is filled first."""

    config: ExportConfig
    run: RunDir
    choice: ModelChoice
    out: Path
    work: Path


def make_plan(config: ExportConfig, run: RunDir) -> Plan:
    """Check model, adapter, format, goal and disk.

    Raises EngineError: kind model (base, adapter), config (out, format) or disk (out), naming the field.
    """
    base = open_base(config.model)
    adapter = open_adapter(config.adapter) if config.adapter else None
    out = open_goal(config.out)
    clear_leftovers(run, out.parent)  # before the disk is measured
    choice = ModelChoice(base.ref, "base", Path(base.ref).name, base.ref, adapter.folder if adapter else None)
    goal: Goal = config.format
    stopping = next((one for one in advice(choice, goal) if one.level == "error"), None)
    if stopping:
        fix = f"{stopping.fix[:1].upper()}{stopping.fix[1:]}."
        raise refused("model", stopping.field, f"{stopping.field}: {stopping.message}.", fix)
    number_format = str(config.bits) if goal == "bitsandbytes" else config.gguf_type
    check_disk(out, needed_bytes(choice, goal, number_format), "the export")
    return Plan(config, run, choice, out, work_folder(run, out))
