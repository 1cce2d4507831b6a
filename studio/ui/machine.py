"""What the form must know of this machine: the choices it cannot offer, and the defaults that suit it."""

from functools import lru_cache
from time import monotonic
from typing import Any

from studio import hardware
from studio.availability import Machine, Reason, defaults_for, options, usable
from studio.ui.sentences import translated

_ASKED_EVERY_S = 60.0


def machine() -> Machine:
    """The machine as an engine sees it; the driver is asked once a minute at most."""
    return _machine(int(monotonic() // _ASKED_EVERY_S))


@lru_cache(maxsize=1)
def _machine(_moment: int) -> Machine:
    return usable(hardware.detect())


def machine_defaults() -> dict[str, Any]:
    """{path: value} of the defaults that suit this machine; a method only where the usual one cannot be had."""
    return defaults_for(machine())


def unavailable() -> dict[str, dict[str, Reason]]:
    """{path: {value: why it cannot be chosen here}}."""
    return options(machine())


def marked(values: tuple[str, ...], reasons: dict[str, Reason]) -> list[tuple[str, str]]:
    """Choices as (label, value); what cannot be chosen here says why."""
    return [(f"{value} ✕ {_why(value, reasons[value])}" if value in reasons else value, value) for value in values]


def _why(value: str, reason: Reason) -> str:
    """The reason without the name that stands before it already."""
    return translated(reason.text).removeprefix(value).strip(" ，,：:")
