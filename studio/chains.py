"""Chains: what a run takes over from an earlier one that left an adapter or a model, read from the folders alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from studio.config import LoraSection
from studio.presets import ModelError, resolve_model

SHAPE = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "modules_to_save")
"""What an adapter's weights fix; the dropout is free to change."""


def adapter_settings(folder: str) -> dict[str, Any] | None:
    """adapter_config.json of an adapter's folder, or None when there is none that can be read."""
    try:
        found = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def lora_of(settings: Mapping[str, Any], section: LoraSection) -> LoraSection:
    """`section` with the rank, alpha and layers of an adapter; unchanged where those are beyond what a form can say."""
    taken = {name: settings[name] for name in SHAPE if settings.get(name) is not None}
    if isinstance(taken.get("target_modules"), list):
        taken["target_modules"] = sorted(taken["target_modules"])
    try:
        return LoraSection.model_validate(section.model_dump() | {"init_lora_weights": "default"} | taken)
    except ValidationError:
        return section


def other_base(settings: Mapping[str, Any], base: str) -> str:
    """The base model an adapter was trained on, if that is not `base`; "" if it is, or if the adapter does not say.

    Folders on this machine are compared as folders; anything else by its last name, for a model may have been copied.
    """
    trained = settings.get("base_model_name_or_path")
    if not isinstance(trained, str) or not trained or trained == base:
        return ""
    both = (_folder(trained), _folder(base))
    if all(both):
        return "" if both[0] == both[1] else trained
    return "" if Path(trained).name.lower() == Path(base).name.lower() else trained


def _folder(reference: str) -> str:
    try:
        found = resolve_model(reference)
    except ModelError:
        return ""
    return found.path_or_id if found.local else ""


def where_it_is_now(reference: str, runs: Path) -> str:
    """A folder some run left, found beside the other runs if the whole workspace was moved; anything else as it is."""
    try:
        path = Path(reference)
        if not path.is_absolute() or path.exists():
            return reference
        for place in range(len(path.parts) - 1, 0, -1):
            moved = runs.joinpath(*path.parts[place + 1 :])
            if path.parts[place] == "runs" and place + 1 < len(path.parts) and moved.exists():
                return str(moved)
    except (OSError, ValueError):
        pass
    return reference


def lineage(reference: str) -> str:
    """The run a folder was left by, as `id` or `id/checkpoint-4`; "" for anything that lies in no run."""
    path = Path(reference)
    for run in (path, path.parent, path.parent.parent):
        if path.is_absolute() and (run / "config.yaml").is_file():
            return "/".join((run.name, path.name)) if path.name.startswith("checkpoint-") else run.name
    return ""
