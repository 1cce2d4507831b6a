"""Imports of the heavy libraries without what they do not need: torch's compiler, and searches for garbage.

Each of the two is a fifth of what a start computes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

MANY = 500
"""Modules that are worth being left out of every later search for garbage."""


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """While libraries are imported: hundreds of thousands of objects come to stay, and nothing of them is garbage.

    If many modules came, later searches do not go through them either.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - before >= MANY:
            gc.freeze()
        if collects:
            gc.enable()


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Both at once, for whatever imports torch's family inside: two thirds of the computing, for a chat server."""
    with without_collecting():
        import_bitsandbytes()
        yield


def import_bitsandbytes() -> None:
    """Import it, as PEFT does in any case. What it has compiled is compiled when it is first called."""
    import torch

    plain = torch.compile
    torch.compile = functools.partial(_at_first_call, plain)
    try:
        with contextlib.suppress(ImportError):  # whoever needs it will say so
            import bitsandbytes  # noqa: F401
    finally:
        torch.compile = plain


def _at_first_call(plain: Callable[..., Any], function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`torch.compile` as a decorator, with or without options, that waits for the first call."""
    if function is None:
        return functools.partial(_at_first_call, plain, **options)
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not compiled:
            compiled.append(plain(function, **options))
        return compiled[0](*args, **kwargs)

    return call
