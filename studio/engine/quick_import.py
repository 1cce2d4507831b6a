"""Importing bitsandbytes, which PEFT does in any case, without torch's compiler: a fifth of a start's computing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any


def import_bitsandbytes() -> None:
    """Import it; functions it has compiled are compiled when they are first called, not when they are defined."""
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
