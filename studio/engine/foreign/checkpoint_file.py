"""Files that `torch.save` wrote: read with `weights_only`, so that nothing in them is ever run.

Such a file may hold objects of the program that wrote it (XTuner's history of losses, DeepSpeed's loss scaler). They
are replaced by stand-ins that do nothing; a name that has no business in a checkpoint is refused.
"""

from __future__ import annotations

import contextlib
import os
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from studio.engine.failure import EngineError, explain, model_failure
from studio.engine.shortage import is_memory

_OF_TRAINING = re.compile(
    r"(mmengine|mmcv|xtuner|deepspeed|transformers|accelerate|peft|trl|numpy|argparse|datetime|enum|pathlib)(\.\w+)+"
    r"|(builtins|__builtin__)\.(list|dict|set|frozenset|tuple|int|float|complex|bool|str|bytes|object|slice|range|type)"
)
_MAPPINGS = re.compile(r"collections\.defaultdict|.+\.(ConfigDict|Dict|BatchEncoding)")
_STAGE = "deepspeed.runtime.zero.config.ZeroStageEnum"
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class Inert:
    """Stands for an object of another program: takes everything, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Whatever it is made of."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def load(path: Path) -> Any:
    """What a file holds; its tensors stay on the disk until they are used. Raises EngineError, field source."""
    with reading(path), careful([path]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


@contextlib.contextmanager
def careful(files: Iterable[Path]) -> Iterator[None]:
    """Inside, every `torch.load` of any library reads weights only; objects named in `files` become stand-ins.

    Raises EngineError, field source, for a file that names something else.
    """
    before = os.environ.get(_FORCED)
    names = sorted({name for path in files for name in _foreign_names(path)})
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(_stand_in(name), name) for name in names]
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals(stand_ins):
            yield
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before


def _foreign_names(path: Path) -> list[str]:
    """The names in a file that are not torch's; all of them harmless, or it is refused."""
    with reading(path):
        if zipfile.is_zipfile(path):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        else:
            names = _names_of_pickles(path)
    for name in names:
        if not (_OF_TRAINING.fullmatch(name) or _MAPPINGS.fullmatch(name)):
            raise _hostile(path, name)
    return names


def _names_of_pickles(path: Path) -> list[str]:
    """As above for the format before torch 1.6: four pickles, then the numbers."""
    names: set[str] = set()
    with path.open("rb") as file:
        for _ in range(4):
            operations = pickletools.genops(file)
            names |= {str(argument).replace(" ", ".") for code, argument, _ in operations if code.name == "GLOBAL"}
    return sorted(name for name in names if not name.startswith("torch.") and name != "collections.OrderedDict")


def _hostile(path: Path, name: str) -> EngineError:
    return model_failure(
        f"source: {path.name} wants {name[:80]} to be run when it is read, which no checkpoint needs; it is refused.",
        "Do not use this file, or get it from whoever made it as safetensors.",
        "source",
    )


def _stand_in(name: str) -> Callable[..., Any]:
    if _MAPPINGS.fullmatch(name):
        return _mapping
    if name == _STAGE:  # a number that is asked for
        from deepspeed.runtime.zero.config import ZeroStageEnum

        return ZeroStageEnum  # type: ignore[no-any-return]
    return Inert


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file raises becomes one sentence; memory and disk stay theirs."""
    try:
        yield
    except EngineError:
        raise
    except OSError as error:
        if is_memory(error):
            raise
        raise unreadable(path, error) from error
    except Exception as error:
        known, _ = explain(error)
        if known.kind != "internal":
            raise
        raise damaged(path, error) from error


def unreadable(path: Path, error: OSError) -> EngineError:
    """The error for a file the system does not let us read."""
    return model_failure(
        f"source: {path.name} cannot be read ({error.strerror or error}).",
        "Make it readable, or copy it to where it can be read.",
        "source",
    )


def damaged(path: Path, error: BaseException) -> EngineError:
    """The error for a file that cannot be read."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    reason = " ".join(text.partition("\n")[0].split())[:120] or type(error).__name__
    return model_failure(
        f"source: {path.name} is damaged, or is no file that torch wrote ({reason}).",
        "Copy the file again.",
        "source",
    )
