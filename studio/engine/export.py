"""Writes a model in another format: `python -m studio.engine export RUN_DIR`.

The story is here and in order: what is asked for is checked, an adapter is merged first, the format is written beside
its goal, proven, and only then gets its name. Each format has its module in `studio.engine.formats`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from studio.config import ExportConfig, MergeConfig
from studio.engine.adapter import open_adapter, open_base
from studio.engine.converted import ready
from studio.engine.journal import Journal, supervise
from studio.engine.output_folder import check_disk, filling, open_goal, refused, settle, shortages_named, work_folder
from studio.events import RunState
from studio.export_targets import Goal, advice, needed_bytes
from studio.model_choices import ModelChoice
from studio.rundir import RunDir

MERGED = "merged"  # folder inside the working folder
_MERGE_DTYPE = {"f32": "float32", "f16": "float16"}
Writer = Callable[["Plan", Path, Journal], dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """An export that can begin: inputs checked, `out` free, `work` the folder beside it that is filled first."""

    config: ExportConfig
    run: RunDir
    choice: ModelChoice
    out: Path
    work: Path


def main(run_dir: str) -> int:
    """Export as the run directory's config.yaml says; returns the exit code."""
    return supervise(RunDir(Path(run_dir)), export_run)


def export_run(journal: Journal) -> RunState:
    """The whole export. Raises EngineError with everything a person needs, StopRequested when asked to stop."""
    journal.begin()
    config = journal.run.config()
    if not isinstance(config, ExportConfig):
        raise refused("config", "kind", f"run {journal.run.id} is no export.", "Start it with what it is.")
    if config.format == "hub":
        from studio.engine.formats import upload

        return upload.upload_run(config, journal)
    with shortages_named("the export", "model"):
        plan = make_plan(config, journal.run)
        with filling(plan.work, journal):
            return _write(plan, journal)


def make_plan(config: ExportConfig, run: RunDir) -> Plan:
    """Check model, adapter, format, goal and disk.

    Raises EngineError: kind model (base, adapter), config (out, format) or disk (out), naming the field.
    """
    base = open_base(config.model)
    adapter = open_adapter(config.adapter) if config.adapter else None
    out = open_goal(config.out)
    choice = ModelChoice(base.ref, "base", Path(base.ref).name, base.ref, adapter.folder if adapter else None)
    goal: Goal = config.format
    stopping = next((one for one in advice(choice, goal) if one.level == "error"), None)
    if stopping:
        fix = f"{stopping.fix[:1].upper()}{stopping.fix[1:]}."
        raise refused("model", stopping.field, f"{stopping.field}: {stopping.message}.", fix)
    number_format = str(config.bits) if goal == "bitsandbytes" else config.gguf_type
    check_disk(out, needed_bytes(choice, goal, number_format), "the export")
    return Plan(config, run, choice, out, work_folder(run, out))


def _write(plan: Plan, journal: Journal) -> RunState:
    config, started = plan.config, time.time()
    report: dict[str, Any] = {"format": config.format, "base": config.model}
    source, merge_report = _source(plan, journal)
    if merge_report:
        report["merge"] = merge_report
    result = plan.work / "result"
    result.mkdir()
    journal.phase("export", config.format)
    writer: Writer = import_module(f"studio.engine.formats.{_MODULES[config.format]}").export
    report |= writer(plan, source, journal)
    journal.interruptible = False  # from here on it is done; a late stop must not call it stopped
    report["size_bytes"] = sum(file.stat().st_size for file in result.rglob("*") if file.is_file())
    report["seconds"] = round(time.time() - started, 1)
    return settle(journal, (result, plan.out), report, "export", "Try another number format.")


_MODULES = {"bitsandbytes": "quantized", "gguf": "gguf_export", "ollama": "gguf_export"}


def _source(plan: Plan, journal: Journal) -> tuple[Path, dict[str, Any]]:
    """The folder of plain weights to export and, if an adapter was merged into it first, the report of that."""
    config = plan.config
    if plan.choice.adapter is None:
        base = ready(open_base(config.model), plan.run.path.parent.parent, None, "model")
        return _local(base.path_or_id, base.local), {}
    from studio.engine import merge  # seconds to import

    folder = plan.work / MERGED
    folder.mkdir()
    dtype = _MERGE_DTYPE.get(config.gguf_type, "bfloat16") if config.format != "bitsandbytes" else "bfloat16"
    settings = {"base": config.model, "adapter": str(config.adapter), "merge_base": config.merge_base, "dtype": dtype}
    merging = MergeConfig(out=str(plan.out), max_shard_size=config.max_shard_size, **settings)
    report = merge.merge_folder(merging, journal, folder)
    if not report["proof"]["passed"]:
        sentence = f"adapter: the merged model does not pass the proof: {report['proof']['reason']}."
        raise refused("model", "adapter", sentence, "Try the other base to merge into.")
    return folder, report


def _local(path: str, local: bool) -> Path:
    """The folder of a model, fetched from the hub if it is not on this machine."""
    if local:
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))
