"""The folder a merge, an import or an export makes: checked before, filled beside its place, named when it is proven.

Nothing is ever overwritten, and nothing half-made is left behind.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from studio.engine.failure import EngineError, explain
from studio.engine.journal import Journal
from studio.events import ErrorKind, ExitCode, RunError, RunState, SavedEvent
from studio.model_library import UNPROVEN
from studio.output_leftovers import clear_leftovers
from studio.output_leftovers import work_folder as work_folder
from studio.rundir import write_atomic
from studio.workspace import free_path

What = Literal["adapter", "merged", "export", "answers"]
SPARE_BYTES = 64 * 2**20  # tokenizer, model card, and room for the disk to breathe


def refused(kind: ErrorKind, field: str, message: str, hint: str) -> EngineError:
    """An EngineError for bad input."""
    return EngineError(RunError(kind=kind, message=message, hint=hint, field=field))


def open_goal(text: str) -> Path:
    """The folder to make, which must not exist. Raises EngineError of kind config or disk, field out."""
    try:
        path = Path(text).expanduser()
        out = path.parent.resolve() / path.name
        taken = out.exists() or out.is_symlink()
        out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, RuntimeError):  # a NUL, an unknown ~user
        raise refused("config", "out", f"out: {text!r} is no folder name.", "Choose another name.") from None
    except OSError as error:
        sentence = f"out: the folder {text!r} cannot be made ({error.strerror or error})."
        raise refused("disk", "out", sentence, "Choose a folder that can be written.") from None
    if taken or out.name in ("", "."):
        raise taken_already(out)
    return out


def taken_already(out: Path) -> EngineError:
    """Nothing is overwritten."""
    sentence = f"out: {out} exists already, and what is there is never overwritten."
    return refused("config", "out", sentence, f"Choose another, like {free_path(out)}.")


def check_disk(out: Path, needed: int, what: str) -> None:
    """`needed` bytes for `what`. Raises EngineError of kind disk, field out, when there are fewer free."""
    free = shutil.disk_usage(out.parent).free
    if free < needed + SPARE_BYTES:
        raise refused(
            "disk",
            "out",
            f"out: {what} needs {said_size(needed + SPARE_BYTES)} and {out.parent} has {said_size(free)} free.",
            "Free some space or choose a folder on another disk.",
        )


def said_size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@contextlib.contextmanager
def filling(work: Path, journal: Journal) -> Iterator[None]:
    """`work` is there to be filled, and gone afterwards, however this ends, unless it was given its name."""
    shutil.rmtree(work, ignore_errors=True)  # left by an engine that was killed
    clear_leftovers(journal.run, work.parent)
    try:
        work.mkdir()
        yield
    finally:
        journal.interruptible = False  # a second stop must not break off the cleaning
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def shortages_named(what: str, field: str) -> Iterator[None]:
    """Say what a lack of memory or disk means for `what` ("the merge"); a lack of memory is blamed on `field`."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        known, code = explain(error)
        if code is ExitCode.OUT_OF_MEMORY:
            hint = "Close other programs, or do it on a machine with more memory."
            memory = RunError(kind="memory", message=f"{field}: {what} needs more memory than there is.", hint=hint)
            raise EngineError(memory.model_copy(update={"field": field}), code) from error
        if known.kind == "disk":
            message = f"out: {what} cannot be written ({getattr(error, 'strerror', None) or error})."
            hint = "Free some space or choose a folder on another disk; nothing was left behind."
            raise EngineError(RunError(kind="disk", message=message, hint=hint, field="out"), code) from error
        raise


def name_folder(journal: Journal, work: Path, goal: Path) -> None:
    """Give the filled folder its name and write that down. Raises EngineError when the name was taken meanwhile."""
    if goal.exists() or goal.is_symlink():
        raise taken_already(goal)
    for file in work.rglob("*"):  # the libraries write files nobody else can read
        file.chmod(0o755 if file.is_dir() else 0o644)
    work.chmod(0o755)
    work.rename(goal)


def settle(
    journal: Journal, folders: tuple[Path, Path], report: dict[str, Any], what: What, hint: str = ""
) -> RunState:
    """Name a proven result and write its report. `folders`: (filled, goal). `report["proof"]` has `passed`, `reason`.

    Raises EngineError when the proof failed: the folder is kept under a name nobody takes for a good result.
    """
    work, out = folders
    passed = bool(report["proof"]["passed"])
    goal = out if passed else free_path(out.with_name(f"{out.name}{UNPROVEN}"))
    name_folder(journal, work, goal)
    report["out"] = str(goal)
    write_atomic(journal.run.report_file, json.dumps(report, ensure_ascii=False, indent=1))
    if passed:
        journal.emit(SavedEvent(path=str(goal), what=what))
        return RunState.FINISHED
    raise EngineError(
        RunError(
            kind="model",
            message=f"out: the result does not pass the proof: {report['proof']['reason']}.",
            hint=f"It is kept in {goal} to be looked at; do not use it. {hint}".strip(),
        ),
        ExitCode.INTERNAL,
    )
