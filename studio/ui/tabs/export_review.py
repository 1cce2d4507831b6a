"""What the Export tab says before anything starts: the chosen model, the goals, and what an export will do."""

import shlex
from pathlib import Path, PurePath
from typing import Any

from studio import presets, resources
from studio.config import ConvertConfig, ExportConfig, MergeConfig
from studio.estimate import Advice
from studio.export_targets import advice, free_bytes, needed_bytes
from studio.layout_configs import Refused as LayoutRefused
from studio.layouts import read_layout
from studio.model_choices import ModelChoice
from studio.outputs import OutputConfig
from studio.presets import ModelError, resolve_model
from studio.records import DataError
from studio.schema import ConfigError, FieldError, walk
from studio.ui.context import Refused
from studio.ui.i18n import current_request, field_label, language_of
from studio.ui.run_lines import summary
from studio.ui.sentences import translated
from studio.ui.tabs.export_goals import FORMATS, NUMBER_FORMAT, Wish, config_of, specs
from studio.ui.tabs.export_import import with_paths
from studio.ui.widgets.form import error_text
from studio.workspace import Workspace

VERBS = {"adapter": "convert", "safetensors": "merge", "import": "convert"}


# ---- what is chosen --------------------------------------------------------------------------------------------------


def about(choice: ModelChoice | None) -> dict[str, Any] | None:
    """Facts about the chosen model for the page; None when nothing is chosen."""
    if choice is None:
        return None
    line = summary(choice.run, language_of(current_request())) if choice.run else {}
    return {
        "what": choice.what,
        "name": choice.name,
        "base": PurePath(choice.base).name if choice.adapter else "",
        "folder": "" if choice.adapter or choice.what == "base" else choice.base,
        "method": line.get("method") or "",
        "state": line.get("state") or "",
        "passed": line.get("verdict_passed"),
        "step": choice.step,
        "best": choice.best and choice.step is not None,
        "bytes": _folder_bytes(choice),
    }


def _folder_bytes(choice: ModelChoice) -> int:
    return needed_bytes(choice, "adapter", "") if choice.adapter else 0


def goals(choice: ModelChoice | None, goal: str) -> dict[str, Any]:
    """The cards of the goals with what each does not support, and which options apply to the chosen model."""
    cards = [{"id": name, **_card(choice, name)} for name in FORMATS]
    return {
        "chosen": goal,
        "cards": cards,
        "fourbit": in_four_bits(choice),
        "adapter": bool(choice and choice.adapter),
        "layout": bool(choice and _converted(choice)),
        "gpu": bool(resources.cards()),
    }


def in_four_bits(choice: ModelChoice | None) -> bool:
    """Whether it is an adapter that was trained on 4-bit weights, so that there are two bases to merge it into."""
    trained = choice.trained() if choice and choice.adapter else None
    return bool(trained and trained.method == "qlora")


def _card(choice: ModelChoice | None, goal: Any) -> dict[str, Any]:
    if choice is None:
        return {"level": "", "said": ""}
    first = next((item for item in advice(choice, goal) if item.level != "info"), None)
    return {"level": first.level, "said": _said(first)} if first else {"level": "", "said": ""}


def _said(item: Advice) -> str:
    message, fix = _sentence(item.message), translated(item.fix)
    return f"{message}{'; ' if message.isascii() else '；'}{fix}" if fix else message


def _sentence(message: str) -> str:
    told = translated(message)
    return told[:1].upper() + told[1:]


def _converted(choice: ModelChoice) -> bool:
    """Whether the base is kept in a layout of its own, which a merge can write again."""
    try:
        ref = resolve_model(choice.base)
        return ref.local and read_layout(Path(ref.path_or_id)) is not None
    except (ModelError, LayoutRefused):
        return False


# ---- what will happen ------------------------------------------------------------------------------------------------


def review(workspace: Workspace, wish: Wish) -> dict[str, Any]:
    """What the export will do, take and be called, the line for a terminal, and everything that stands in the way."""
    issues = advised(wish)
    config: OutputConfig | None = None
    try:
        config = config_of(workspace, with_paths(workspace, wish))
    except (ConfigError, DataError, Refused) as error:
        issues += problems(error)
    needed, free = disk(workspace, wish)
    return {
        "goal": wish.goal,
        "ok": config is not None and not any(issue["level"] == "error" for issue in issues),
        "issues": issues,
        "merges": bool(wish.choice and wish.choice.adapter and wish.goal not in ("adapter", "safetensors", "hub")),
        "adapter": bool(wish.choice and wish.choice.adapter),
        "fourbit": wish.goal == "safetensors" and in_four_bits(wish.choice),
        "out": str(config.out) if config else "",
        "name": config.name if config else "",
        "needed": needed,
        "free": free,
        "command": command(config, workspace) if config else "",
        "hub": str(wish.options.get("hub") or ""),
        "repo": str(wish.options.get("repo_id") or ""),
    }


def advised(wish: Wish) -> list[dict[str, Any]]:
    """What the goal does not support or needs, as the page shows it."""
    if wish.choice is None or wish.goal not in FORMATS:
        return []
    goal: Any = wish.goal
    hub: Any = "modelscope" if wish.options.get("hub") == "modelscope" else "huggingface"
    found = advice(wish.choice, goal, hub=hub)
    return [
        {"level": item.level, "field": "", "label": "", "message": _sentence(item.message), "fix": translated(item.fix)}
        for item in found
    ]


def problems(error: Exception) -> list[dict[str, Any]]:
    """Why there is no configuration yet: one entry for each wrong field, as the page shows it."""
    if isinstance(error, ConfigError):
        return [_issue(owner(item), _wrong(item)) for item in error.errors]
    if isinstance(error, DataError):
        return [_issue(error.field or "", _sentence(error.message))]
    return [_issue("", str(error))]


def _wrong(error: FieldError) -> str:
    named = f"{owner(error)}: "
    return _sentence(error_text(error).removeprefix(named).removeprefix(named.capitalize()))


def _issue(name: str, message: str) -> dict[str, Any]:
    return {"level": "error", "field": name, "label": field_label(name) if name else "", "message": message, "fix": ""}


def owner(error: FieldError) -> str:
    """The control an error belongs to; a rule between fields names one at the start of its sentence."""
    known = specs()
    name = error.path or error.message.partition(":")[0]
    return name if name in known else ""


def disk(workspace: Workspace, wish: Wish) -> tuple[int, int]:
    """(bytes the export takes about, bytes that are free); the first is 0 where it cannot be told."""
    free = free_bytes(workspace.exports)
    if wish.choice is None or wish.goal not in FORMATS:
        return 0, free
    goal: Any = wish.goal
    return needed_bytes(wish.choice, goal, str(wish.options.get(NUMBER_FORMAT.get(goal, "")) or "")), free


# ---- the same in a terminal ------------------------------------------------------------------------------------------


def command(config: OutputConfig, workspace: Workspace) -> str:
    """The line that does the same in a terminal, in this workspace."""
    elsewhere = workspace.path.resolve() != (presets.ROOT / "workspace").resolve()
    place = ["--workspace", str(workspace.path)] if elsewhere else []
    return shlex.join(["studio", *_words(config), *_flags(config), *place])


def _words(config: OutputConfig) -> list[str]:
    if isinstance(config, MergeConfig):
        return ["merge", config.base, config.adapter, config.out]
    if isinstance(config, ConvertConfig):
        return ["convert", config.source, config.out]
    assert isinstance(config, ExportConfig)
    adapter = ["--adapter", config.adapter] if config.adapter else []
    return ["export", config.format, config.model, config.out, *adapter]


def _flags(config: OutputConfig) -> list[str]:
    """Options of the command line for what is not as usual."""
    written = {"base", "adapter", "source", "model", "format", "out", "name", "kind", "schema_version", *config_lists()}
    if isinstance(config, ConvertConfig):
        written -= {"base"}
    found: list[str] = []
    for spec in walk(type(config)):
        value = getattr(config, spec.path, None)
        if spec.path in written or value in (None, spec.default):
            continue
        name = "--" + RENAMED.get(spec.path, spec.path).replace("_", "-")
        found += [name] if value is True else [f"--no-{name[2:]}"] if value is False else [name, str(value)]
    for one in config.more_adapters if isinstance(config, MergeConfig) else ():
        found += ["--adapter", f"{one.path}:{one.weight:g}"]
    return found


RENAMED = {"gguf_type": "type", "settings": "config", "repo_id": "repo"}
"""Options of the command line that are called otherwise than their field."""


def config_lists() -> set[str]:
    """Fields that a command line repeats rather than writes once."""
    return {"more_adapters"}
