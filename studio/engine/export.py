"""Merges an adapter into its base model: `python -m studio.engine merge RUN_DIR`.

The story is here and in order: check everything that can be checked at once, load, merge, save beside the goal, prove
that the saved model answers like base + adapter, and only then give it its name. The sums are in `merge.py`, the proof
in `proof.py`; torch is loaded after the first sign of life.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.config import MergeConfig
from studio.engine.adapter import AdapterFiles, open_adapter
from studio.engine.failure import EngineError, explain, model_failure
from studio.engine.journal import Journal, supervise
from studio.events import ExitCode, RunError, RunState, SavedEvent
from studio.presets import ModelError, ModelRef, resolve_model
from studio.rundir import RunDir, write_atomic

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SPARE_BYTES = 64 * 2**20  # tokenizer, model card, and room for the disk to breathe


@dataclass(frozen=True)
class Plan:
    """A merge that can begin: inputs checked, `out` free, `work` the folder beside it that is filled first."""

    config: MergeConfig
    base: ModelRef
    adapter: AdapterFiles
    out: Path
    work: Path


def main(run_dir: str) -> int:
    """Merge as the run directory's config.yaml says; returns the exit code."""
    return supervise(RunDir(Path(run_dir)), merge_run)


def merge_run(journal: Journal) -> RunState:
    """The whole merge. Raises EngineError with everything a person needs, StopRequested when asked to stop."""
    journal.begin()
    with _memory_and_disk_named():
        plan = make_plan(journal.run)
        started = time.time()
        with _working_folder(plan):
            journal.phase("load", f"{plan.base.ref}, {plan.adapter.folder.name}")
            from studio.engine import merge, proof  # seconds to import

            merged = merge.build(plan, journal)
            report = proof.prove(plan, merged, journal)
            with journal.uninterrupted():
                return _settle(plan, report | {"seconds": round(time.time() - started, 1)}, journal)


def make_plan(run: RunDir) -> Plan:
    """Check base, adapter, goal and disk.

    Raises:
        EngineError: kind model (base, adapter), config (out) or disk (out), naming the field.
        ConfigError: config.yaml cannot be used.
    """
    config = run.config()
    if not isinstance(config, MergeConfig):
        raise _refused("config", "kind", f"run {run.id} is a training, not a merge.", "Start it with train.")
    base = _open_base(config.base)
    adapter = open_adapter(config.adapter)
    out = _goal(config.out, run)
    work = out.parent / f".merge-{run.id}"
    _check_disk(out, _expected_bytes(base, config))
    return Plan(config, base, adapter, out, work)


def _open_base(reference: str) -> ModelRef:
    try:
        return resolve_model(reference)
    except ModelError as error:
        message = error.message.removeprefix("model.model_name_or_path: ")
        raise model_failure(f"base: {message}", error.hint, "base") from error


def _goal(text: str, run: RunDir) -> Path:
    """The folder to make. A bare name lies among the workspace's exports."""
    try:
        path = Path(text).expanduser()
        bare = path.name == text
        out = run.path.parent.parent / "exports" / text if bare else path
        out = out.parent.resolve() / out.name
        taken = out.exists() or out.is_symlink()
        out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, RuntimeError):  # a NUL, an unknown ~user
        raise _refused("config", "out", f"out: {text!r} is no folder name.", "Choose another name.") from None
    except OSError as error:
        sentence = f"out: the folder {text!r} cannot be made ({error.strerror or error})."
        raise _refused("disk", "out", sentence, "Choose a folder that can be written.") from None
    if taken or out.name in ("", "."):
        raise taken_already(out)
    return out


def taken_already(out: Path) -> EngineError:
    """A merge never overwrites."""
    free = free_name(out)
    return _refused(
        "config", "out", f"out: {out} exists already, and a merge never overwrites.", f"Choose another, like {free}."
    )


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 … that does not exist."""
    number, found = 1, path
    while found.exists() or found.is_symlink():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _expected_bytes(base: ModelRef, config: MergeConfig) -> int:
    """Bytes of the merged weights, from the sizes in the base's files; 0 when they are not on this machine yet."""
    if not base.local:
        return 0
    files = sorted(Path(base.path_or_id).glob("*.safetensors"))
    try:
        return sum(_numbers(file) for file in files) * DTYPE_BYTES[config.dtype]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise model_failure(
            f"base: a weights file of {Path(base.ref).name} is damaged.", "Copy the model again.", "base"
        ) from None


def _numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, from its header."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > file.stat().st_size:
            raise ValueError("header longer than the file")
        header: dict[str, Any] = json.loads(stream.read(size))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for length in entry["shape"]:
                count *= length
            total += count
    return total


def _check_disk(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed + SPARE_BYTES:
        raise _refused(
            "disk",
            "out",
            f"out: the merged model needs {_size(needed + SPARE_BYTES)} and {out.parent} has {_size(free)} free.",
            "Free some space or choose a folder on another disk.",
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _refused(kind: Any, field: str, message: str, hint: str) -> EngineError:
    return EngineError(RunError(kind=kind, message=message, hint=hint, field=field))


@contextlib.contextmanager
def _working_folder(plan: Plan) -> Iterator[None]:
    """The folder that is filled; gone afterwards, however this ends (unless it has been given its name)."""
    shutil.rmtree(plan.work, ignore_errors=True)  # left by an engine that was killed
    try:
        plan.work.mkdir()
        yield
    finally:
        shutil.rmtree(plan.work, ignore_errors=True)


@contextlib.contextmanager
def _memory_and_disk_named() -> Iterator[None]:
    """Say what a lack of memory or disk means for a merge."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        known, code = explain(error)
        if code is ExitCode.OUT_OF_MEMORY:
            hint = "Close other programs, or merge on a machine with more memory."
            memory = RunError(kind="memory", message="base: the merge needs more memory than there is.", hint=hint)
            raise EngineError(memory.model_copy(update={"field": "base"}), code) from error
        if known.kind == "disk":
            message = f"out: the merged model cannot be written ({getattr(error, 'strerror', None) or error})."
            hint = "Free some space or choose a folder on another disk; nothing was left behind."
            raise EngineError(RunError(kind="disk", message=message, hint=hint, field="out"), code) from error
        raise


def _settle(plan: Plan, report: dict[str, Any], journal: Journal) -> RunState:
    """Give the folder its name, or, when the proof failed, a name nobody takes for a good model."""
    passed = bool(report["proof"]["passed"])
    goal = plan.out if passed else free_name(plan.out.with_name(f"{plan.out.name}.unproven"))
    if goal.exists() or goal.is_symlink():
        raise taken_already(goal)
    plan.work.chmod(0o755)
    plan.work.rename(goal)
    report["out"] = str(goal)
    write_atomic(journal.run.report_file, json.dumps(report, ensure_ascii=False, indent=1))
    if passed:
        journal.emit(SavedEvent(path=str(goal), what="merged"))
        return RunState.FINISHED
    raise EngineError(
        RunError(
            kind="model",
            message=f"adapter: the merged model does not pass the proof: {report['proof']['reason']}.",
            hint=f"It is kept in {goal} to be looked at; do not use it. Try precision float32 or the other base.",
            field="adapter",
        ),
        ExitCode.INTERNAL,
    )
