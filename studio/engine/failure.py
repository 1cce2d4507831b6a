"""From an exception to what a person is told: a RunError (kind, sentence, hint, field) and the exit code.

Imports nothing heavy, so that it also explains a failure to import. Exceptions of torch and safetensors are known by
their class name and message.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from studio.engine import ranks
from studio.engine.shortage import NOWHERE, Place, is_memory, out_of_memory
from studio.events import LOST, ExitCode, RunError
from studio.presets import ModelError
from studio.records import DataError
from studio.schema import ConfigError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
_DISK_TEXT = re.compile(
    r"no space left on device|disk quota exceeded|os error (28|122|30|27)\b|"
    r"read-only file system|PytorchStreamWriter failed|unexpected pos \d+ vs",
    re.IGNORECASE,
)
_LOST_CLASSES = ("DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
_LOST = re.compile(
    r"closed by peer|reset by peer|gloo/|\bgloo\b.*(timeout|timed out)|timed out waiting|broken pipe|\bNCCL\b|"
    r"ProcessGroup|TCPStore|socket",
    re.IGNORECASE,
)


class EngineError(Exception):
    """A failure the engine itself found; says everything a person needs. `told`: its traceback is in a log already."""

    def __init__(self, error: RunError, code: ExitCode = ExitCode.BAD_INPUT, *, told: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.code, self.told = error, code, told


def explain(error: BaseException, place: Place = NOWHERE) -> tuple[RunError, ExitCode]:
    """What to tell a person about `error`, looking through its causes for the one that explains it.

    `place`: where in the run it happened.
    """
    chain = list(_chain(error))
    for item in chain:
        known = _ours(item)
        if known:
            return known
    if any(is_memory(item) for item in chain):
        return out_of_memory(chain, place), ExitCode.OUT_OF_MEMORY
    for item in chain:
        if _is_disk(item):
            return _disk(item), ExitCode.INTERNAL
    for item in chain:
        if is_lost(item):
            return _lost(item), ExitCode.INTERNAL
    return _internal(error), ExitCode.INTERNAL


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    seen: set[int] = set()
    item: BaseException | None = error
    while item is not None and id(item) not in seen:
        seen.add(id(item))
        yield item
        item = item.__cause__ or (None if item.__suppress_context__ else item.__context__)


def _ours(error: BaseException) -> tuple[RunError, ExitCode] | None:
    if isinstance(error, EngineError):
        return error.error, error.code
    if isinstance(error, ConfigError):
        field = error.errors[0].path if error.errors else ""
        hint = "Correct the field and start a new run."
        return RunError(kind="config", message=str(error), hint=hint, field=field), ExitCode.BAD_INPUT
    if isinstance(error, ModelError):
        return model_failure(error.message, error.hint).error, ExitCode.BAD_INPUT
    if isinstance(error, DataError):
        return _data(error), ExitCode.BAD_INPUT
    return None


def _data(error: DataError) -> RunError:
    message = f"{error.field}: {error.message.removeprefix(f'{error.field}: ')}"
    if error.field.startswith("model."):  # the chat template and the tokenizer are read by the same package
        return RunError(kind="model", message=message, field=error.field)
    return RunError(
        kind="data", message=message, hint="Correct the data, then press Resume or start a new run.", field=error.field
    )


def model_failure(message: str, hint: str, field: str = "model.model_name_or_path") -> EngineError:
    """An EngineError of kind model."""
    return EngineError(RunError(kind="model", message=message, hint=hint, field=field))


def _is_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _DISK:
        return True
    return type(error).__name__ in ("SafetensorError", "RuntimeError", "OSError") and bool(
        _DISK_TEXT.search(str(error))
    )


def _disk(error: BaseException) -> RunError:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        message = "workspace: the run directory cannot be written (no permission)."
        hint = "Make the workspace writable or choose another with --workspace, then resume the run."
    elif number == errno.EIO:
        message, hint = "workspace: the disk reports an error.", "Check the disk, then resume the run."
    else:
        message = "workspace: the disk is full; what was saved before is undamaged."
        hint = "Free some space, then resume the run from its last checkpoint."
    return RunError(kind="disk", message=message, hint=hint, field="workspace")


def is_lost(error: BaseException) -> bool:
    """Whether a process of a run with several only noticed that another one is gone, or does not answer."""
    name, text = type(error).__name__, str(error)
    if name in _LOST_CLASSES:
        return True
    return ranks.world() > 1 and name in ("RuntimeError", "ConnectionError", "ValueError") and bool(_LOST.search(text))


def _lost(error: BaseException) -> RunError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return RunError(
        kind="internal",
        message=f"The connection to another process was closed, or it did not answer ({first[:300]}).",
        hint="The logs of the other processes and machines say more. Then resume the run.",
        details={LOST: True},
    )


def _internal(error: BaseException) -> RunError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    said = f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__
    return RunError(
        kind="internal",
        message=f"The engine stopped at something unexpected ({said}).",
        hint="The full story is at the end of engine.log.",
    )
