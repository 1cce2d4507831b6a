"""Writes a model in another format: `python -m studio.engine export RUN_DIR`.

The story is here and in order: what is asked for is checked, an adapter is merged first, the format is written beside
its goal, proven, and only then gets its name. Each format has its module in `studio.engine.formats`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from studio.config import ExportConfig, MergeConfig
from studio.engine.adapter import open_base
from studio.engine.converted import ready
from studio.engine.export_plan import Plan, make_plan
from studio.engine.journal import Journal, supervise
from studio.engine.output_folder import filling, refused, settle, shortages_named
from studio.engine.quick_import import quickly
from studio.events import RunState
from studio.rundir import RunDir

MERGED = "merged"  # folder inside the working folder
_MERGE_DTYPE = {"f32": "float32", "f16": "float16"}
Writer = Callable[[Plan, Path, Journal], dict[str, Any]]


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


def _write(plan: Plan, journal: Journal) -> RunState:
    config, started = plan.config, time.time()
    report: dict[str, Any] = {"format": config.format, "base": config.model}
    source, merge_report = _source(plan, journal)
    if merge_report:
        report["merge"] = merge_report
    result = plan.work / "result"
    result.mkdir()
    journal.phase("export", config.format)
    with quickly():
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
    return folder, merge.merge_folder(merging, journal, folder)


def _local(path: str, local: bool) -> Path:
    """The folder of a model, fetched from the hub if it is not on this machine."""
    if local:
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))
