"""Files between machines that share no disk, over the process group, in pieces of bounded size.

The run lives on the first machine: what others write to a checkpoint is collected there, and what they need to go on
from one is sent to them.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import torch
import torch.distributed

from studio.engine import ranks
from studio.engine.together import agree, attempt, carrier, of_all, of_first

PIECE = 64 * 2**20  # bytes in memory at once
Wanted = Callable[[str], bool]
"""Whether a file, by its path in a folder, is to be sent."""


def apart(folder: Path) -> bool:
    """Whether this process sees another `folder` than the first process does. All processes must ask together."""
    if ranks.world() == 1:
        return False
    mark = folder / f".{of_first(uuid.uuid4().hex)}.tmp"
    failure = attempt(mark.touch) if ranks.is_first() else None
    agree(failure)
    elsewhere = not mark.exists()
    of_all(None)  # nobody looks any more
    if ranks.is_first():
        mark.unlink(missing_ok=True)
    return elsewhere


def collect(folder: Path, *, here: bool) -> None:
    """Bring the files of `folder` on other machines to the first process's; there they are deleted.

    `here`: this process sees the first one's folder. All processes must call it together. Raises OSError where a disk
    is full, and an EngineError that says so in the others.
    """
    sends = not here and ranks.is_first_here()
    for source, files in enumerate(of_all(_files(folder) if sends else [])):
        for name, size in files:
            _send(folder / name, size, source, receives=ranks.is_first(), to=0)
    if sends:
        shutil.rmtree(folder, ignore_errors=True)


def fetch(folder: Path, *, here: bool, wanted: Wanted) -> None:
    """Bring the files of the first process's `folder` that are `wanted` on some other machine to that machine.

    All processes must call it together; `wanted` is asked in the first process of each machine that lacks them.
    """
    receives = not here and ranks.is_first_here()
    files = of_first(_files(folder))
    asked = [wanted(name) for name, _ in files] if receives else [False] * len(files)
    said = of_all(asked)
    for number, (name, size) in enumerate(files):
        if any(answers[number] for answers in said):
            _send(folder / name, size, 0, receives=asked[number], to=None)


def _files(folder: Path) -> list[tuple[str, int]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in found]


def _send(path: Path, size: int, source: int, *, receives: bool, to: int | None) -> None:
    """One file from process `source` to process `to` (None: to all that take part); each process has its own `path`."""
    own = ranks.rank()
    takes_part = to is None or own in (source, to)
    failure: Exception | None = None
    file: IO[bytes] | None = None
    if own == source or receives:
        failure, file = _open(path, "rb" if own == source else "wb")
    for length in _pieces(size) if takes_part else ():
        piece = torch.zeros(length, dtype=torch.uint8)
        if own == source and file and not failure:
            failure = attempt(lambda piece=piece, file=file: _read(file, piece))  # type: ignore[misc]
        piece = _carry(piece, source, to)
        if receives and file and not failure:
            failure = attempt(lambda piece=piece, file=file: file.write(piece.numpy().data))  # type: ignore[misc]
    if file:
        failure = attempt(file.close) or failure
    agree(failure)


def _open(path: Path, mode: str) -> tuple[Exception | None, IO[bytes] | None]:
    found: list[IO[bytes]] = []

    def work() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.append(path.open(mode))

    return attempt(work), found[0] if found else None


def _read(file: IO[bytes], piece: torch.Tensor) -> None:
    if file.readinto(piece.numpy().data) != piece.numel():  # type: ignore[attr-defined]
        raise OSError(f"{file.name} is shorter than it was")


def _carry(piece: torch.Tensor, source: int, to: int | None) -> torch.Tensor:
    sent = piece.to(carrier())
    if to is None:
        torch.distributed.broadcast(sent, src=source)
    elif ranks.rank() == source:
        torch.distributed.send(sent, dst=to)
    else:
        torch.distributed.recv(sent, src=source)
    return sent.cpu()


def _pieces(size: int) -> Iterator[int]:
    for start in range(0, size, PIECE):
        yield min(PIECE, size - start)
