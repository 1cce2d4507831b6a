"""Which checkpoints of a run are whole; how they are finished, counted and deleted."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from studio.durable import sync_tree, write_atomic

STATE = "trainer_state.json"  # the trainer writes it last
MANIFEST = "files.json"  # and this is written when the disk has everything: size in bytes of each file
# What ZeRO and FSDP2 divide, whole and by name, in a folder of its own: whoever looks for the weights of a model takes
# every file of this kind. A run that divides nothing has optimizer.pt.
OPTIMIZER = "state/optimizer.safetensors"
FACTS = "state/optimizer.json"  # beside it: what is no tensor
_GONE = ".gone"


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step in `folder`, or None."""
    return next(iter(complete_checkpoints(folder)), None)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Every complete checkpoint in `folder`, newest first."""
    return sorted((path for path in _checkpoints(folder) if is_complete(path)), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Optimizer updates done when `checkpoint-N` was written."""
    return int(checkpoint.name.partition("-")[2])


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint: each leaves the state of its random numbers."""
    return len(_random_states(checkpoint)) or 1


def divided_by(checkpoint: Path) -> int:
    """Among how many processes DeepSpeed's own files divide the optimizer; 0 where there are none."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))


def divides_weights(checkpoint: Path) -> bool:
    """Whether DeepSpeed's own files divide the weights too (stage 3)."""
    return any(checkpoint.glob("global_step*/*zero_pp_rank_*_model_states.pt"))


def _random_states(checkpoint: Path) -> list[Path]:
    """Those of several processes; that of a single one has no number."""
    return [path for path in checkpoint.glob("rng_state_*.pth") if path.stem[10:].isdigit()]


def is_complete(checkpoint: Path) -> bool:
    """True for a checkpoint that was written to its end and of which nothing is missing now.

    Without a list of its files (the writer was killed just before that) each file must at least have its own end. Of
    several writers nobody knows without the list whether all had come to theirs.
    """
    state = _read(checkpoint / STATE)
    if not isinstance(state, dict) or state.get("global_step") != step_of(checkpoint):
        return False
    if not (checkpoint / MANIFEST).exists():
        return not _random_states(checkpoint) and all(
            _has_its_end(path) for path in checkpoint.rglob("*") if path.is_file()
        )
    listed = _read(checkpoint / MANIFEST)
    return isinstance(listed, dict) and all(_size(checkpoint / name) == size for name, size in listed.items())


def flaw_of(checkpoint: Path) -> str:
    """The first file a checkpoint that is not whole lacks, or that was cut; empty where none can be named."""
    listed = _read(checkpoint / MANIFEST)
    known = listed if isinstance(listed, dict) else {}
    wrong = [name for name, size in known.items() if _size(checkpoint / name) != size]
    cut = [path for path in checkpoint.rglob("*") if path.is_file() and not _has_its_end(path)]
    found = [*wrong, *(path.relative_to(checkpoint).as_posix() for path in cut)]
    return min(found) if found else "" if (checkpoint / STATE).is_file() else STATE


def torn(folder: Path) -> list[Path]:
    """Checkpoints that were not written to their end or of which something is missing now, newest first."""
    return sorted((path for path in _checkpoints(folder) if not is_complete(path)), key=step_of, reverse=True)


def seal(checkpoint: Path) -> None:
    """Have the disk keep a checkpoint that has just been written, then list its files. Raises OSError."""
    sizes = sync_tree(checkpoint)
    write_atomic(checkpoint / MANIFEST, json.dumps({name: size for name, size in sizes.items() if name != STATE}))


def rotate(folder: Path, limit: int | None, keep: Path | None = None) -> None:
    """Delete the checkpoints of the lowest steps until `limit` are left (None or below 1: all of them stay).

    The last one and `keep` stay in any case. The clock is not asked: it may have been set back.
    """
    found = sorted(_checkpoints(folder), key=step_of)
    if not limit or limit < 1 or not found:
        return
    protected = {found[-1]} | {path for path in found if keep and path.name == keep.name}
    spare = len(found) - max(limit, len(protected))
    for path in [path for path in found if path not in protected][: max(0, spare)]:
        remove(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is half deleted is no longer called a checkpoint."""
    gone = checkpoint.with_name(f".{checkpoint.name}{_GONE}")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_torn(folder: Path) -> None:
    """Delete what is left of half-written and half-deleted checkpoints: it takes room."""
    for path in _checkpoints(folder):
        if not is_complete(path):
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".*{_GONE}"):
        shutil.rmtree(path, ignore_errors=True)


def settle(checkpoint: Path) -> None:
    """Make a checkpoint's memory of the best one right again after the workspace was moved or copied."""
    state = _read(checkpoint / STATE)
    best = state.get("best_model_checkpoint") if isinstance(state, dict) else None
    if not isinstance(best, str):
        return
    here = checkpoint.parent / Path(best).name
    if str(here) != best and here.is_dir():
        write_atomic(checkpoint / STATE, json.dumps(state | {"best_model_checkpoint": str(here)}, indent=2))


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.name.startswith("checkpoint-") and path.name[11:].isdigit()]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _has_its_end(path: Path) -> bool:
    """False for a cut safetensors file or archive of torch; of other formats nothing is known."""
    try:
        if path.suffix == ".safetensors":
            return _safetensors_size(path) == path.stat().st_size
        return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return False


def _safetensors_size(path: Path) -> int:
    """What a safetensors file must measure by its own header: its length in 8 bytes, JSON, then the numbers."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return 8 + length + int(max(ends, default=0))
