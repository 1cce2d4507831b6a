"""The optimizers and learning-rate schedules on offer, their names in XTuner's files, and the settings of a schedule.

Every name is one of the installed transformers that needs no package beyond those this project has; a test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "adafactor",
    "adagrad",
    "rmsprop",
    "rmsprop_bnb_32bit",
    "rmsprop_bnb_8bit",
    "sgd",
]
UNDIVIDED = frozenset(
    name for name in get_args(Optimizer) if "8bit" in name or "ademamix" in name or name == "adafactor"
)
"""Optimizers whose numbers have another shape than the weights: once divided, they cannot be divided anew."""
OPTIMIZER_SPELLINGS: tuple[tuple[str, str], ...] = (
    # transformers has two names for these
    ("adamw_bnb_8bit", "adamw_8bit"),
    ("rmsprop_bnb", "rmsprop_bnb_32bit"),
    # classes of torch.optim and bitsandbytes.optim, as XTuner's files name them
    ("AdamW", "adamw_torch"),
    ("AdamW8bit", "adamw_8bit"),
    ("PagedAdamW", "paged_adamw_32bit"),
    ("PagedAdamW32bit", "paged_adamw_32bit"),
    ("PagedAdamW8bit", "paged_adamw_8bit"),
    ("Lion", "lion_32bit"),
    ("Lion32bit", "lion_32bit"),
    ("Lion8bit", "lion_8bit"),
    ("PagedLion", "paged_lion_32bit"),
    ("PagedLion32bit", "paged_lion_32bit"),
    ("PagedLion8bit", "paged_lion_8bit"),
    ("AdEMAMix8bit", "ademamix_8bit"),
    ("PagedAdEMAMix", "paged_ademamix_32bit"),
    ("PagedAdEMAMix32bit", "paged_ademamix_32bit"),
    ("PagedAdEMAMix8bit", "paged_ademamix_8bit"),
    ("RMSprop8bit", "rmsprop_bnb_8bit"),
    ("RMSprop32bit", "rmsprop_bnb_32bit"),
)
Scheduler = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "inverse_sqrt",
    "polynomial",
]
SCHEDULER_SPELLINGS: tuple[tuple[str, str], ...] = (
    ("CosineAnnealingLR", "cosine"),
    ("LinearLR", "linear"),
    ("ConstantLR", "constant"),
    ("PolyLR", "polynomial"),
    ("CosineRestartLR", "cosine_with_restarts"),
)
_SHAPE = ("num_cycles", "min_lr", "min_lr_rate")
SCHEDULE_SETTINGS: dict[Scheduler, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": _SHAPE,
    "cosine_warmup_with_min_lr": (*_SHAPE, "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "min_lr_ratio",
        "num_cycles",
        "warmup_type",
        "decay_type",
    ),
    "inverse_sqrt": ("timescale",),
    "polynomial": ("lr_end", "power"),
}
"""What each schedule can be told; those not named here can be told nothing."""
_WHOLE = ("num_decay_steps", "num_stable_steps", "timescale")
_FORMS = {"warmup_type", "decay_type"}
_SHAPES = ("linear", "cosine", "1-sqrt")
DECAY_SHARE = 0.1
LEAST_SHARE = 0.1


def read_settings(text: str) -> dict[str, float | int | str]:
    """`num_cycles=3, min_lr_rate=0.1` -> numbers by name. Raises ValueError, in one sentence."""
    found: dict[str, float | int | str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = (part.strip() for part in item.partition("="))
        if not sign or not name or not value:
            raise ValueError(f"settings are written name=value, like num_cycles=3; {item[:60]!r} is not")
        if name in found:
            raise ValueError(f"{name[:60]} is given twice; keep one")
        found[name] = _value(name, value)
    return found


def _value(name: str, text: str) -> float | int | str:
    if name in _FORMS:
        if text not in _SHAPES:
            raise ValueError(f"{name} must be one of {', '.join(_SHAPES)}")
        return text
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name[:60]} must be a number, and {text[:60]!r} is none") from None
    if not 0 <= number < 1e9 or (name in _WHOLE and not number.is_integer()):
        kind = "whole number" if name in _WHOLE else "number"
        raise ValueError(f"{name[:60]} must be a {kind} of 0 or more")
    return int(number) if number.is_integer() else number


def unknown_setting(schedule: Scheduler, text: str | None) -> str:
    """What is wrong with the settings for this schedule, or nothing."""
    known = SCHEDULE_SETTINGS.get(schedule, ())
    given = read_settings(text) if text else {}
    for name in given:
        if name not in known:
            those = f"it knows {', '.join(known)}" if known else "it has none"
            return f"the schedule {schedule} has no setting {name}; {those}"
    return "give min_lr or min_lr_rate, not both" if {"min_lr", "min_lr_rate"} <= set(given) else ""


def usual_settings(schedule: str, given: Mapping[str, float | int | str], steps: int) -> dict[str, float | int | str]:
    """`given`, and the usual numbers of a training of `steps` updates where transformers insists on some."""
    usual: dict[str, float | int | str] = {}
    if schedule == "warmup_stable_decay":
        usual["num_decay_steps"] = max(1, round(steps * DECAY_SHARE))
    elif schedule in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and "min_lr" not in given:
        usual["min_lr_rate"] = LEAST_SHARE
    return usual | dict(given)
