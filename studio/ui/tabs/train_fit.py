"""Whether the configuration fits, how long it takes, what would help: the promise of `studio.memory` for the page."""

from dataclasses import asdict
from functools import lru_cache
from time import monotonic
from typing import Any

from studio.bounds import UNKNOWN
from studio.config import RunConfig
from studio.devices import Device, cards, present
from studio.estimate import Plan
from studio.memory import Fit, advise_method, facts_of, fit, shape_of
from studio.remedies import Fix, MethodChoice
from studio.speed import recorded
from studio.ui.i18n import field_label as label
from studio.ui.sentences import translated
from studio.workspace import Workspace

HERE = "here"
_ASKED_EVERY_S = 5.0  # asking the driver takes a moment, and a form asks at every change


def devices() -> dict[str, Device]:
    """What a run can be compared with, by the name the page sends back: this machine first, then the list."""
    here = {f"{HERE}:{number}": device for number, device in enumerate(_present(int(monotonic() // _ASKED_EVERY_S)))}
    return here | {card.name: card.device for card in cards()}


@lru_cache(maxsize=1)
def _present(_moment: int) -> tuple[Device, ...]:
    return present()


def device_of(card: str) -> Device:
    """The device that was chosen; this machine's first for any other word."""
    known = devices()
    return known.get(card) or next(iter(known.values()))


def fit_json(config: RunConfig, found: Plan | None, workspace: Workspace, card: str) -> dict[str, Any]:
    """The fit on the chosen card, and all cards to choose from; without `verdict` for a model of unknown size."""
    known = devices()
    chosen = card if card in known else next(iter(known))
    shown: dict[str, Any] = {
        "card": chosen,
        "cards": [
            {"value": value, "name": one.name, "kind": one.kind, "here": one.present, "bytes": one.memory_bytes}
            for value, one in known.items()
        ],
    }
    shape, device = shape_of(config), known[chosen]
    if shape is None:
        return shown
    facts = facts_of(found.prepared, found.counts) if found else UNKNOWN
    speed = recorded(config, workspace) if device.present else None
    result = fit(config, shape, device, facts, speed=speed)
    methods = advise_method(config, shape, device, facts)
    return shown | _of(result) | {"methods": [_method(choice, config) for choice in methods]}


def _of(found: Fit) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "low": found.low,
        "expected": found.expected,
        "high": found.high,
        "free": found.device.free_bytes,
        "total": found.device.memory_bytes,
        "host": found.host_bytes,
        "parts": [[name, size] for name, size in found.components.items() if size],
        "seconds": found.seconds,
        "step": found.seconds_per_step,
        "speed": asdict(found.speed),
        "fixes": [_fix(one) for one in found.fixes],
    }


def _fix(one: Fix) -> dict[str, Any]:
    changed = [{"label": label(path), "value": value} for path, value in one.overrides.items()]
    return {
        "set": one.overrides,
        "changes": changed,
        "bytes": one.expected,
        "verdict": one.verdict,
        "slowdown": one.slowdown,
    }


def _method(choice: MethodChoice, config: RunConfig) -> dict[str, Any]:
    return {
        "method": choice.method,
        "bytes": choice.expected,
        "verdict": choice.verdict,
        "best": choice.recommended,
        "now": choice.method == config.method,
        "message": translated(choice.message),
    }
