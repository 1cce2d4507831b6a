"""What the Export tab says before anything starts: the chosen model, the goals, and what an export will do."""

from pathlib import Path, PurePath
from typing import Any

from studio import resources
from studio.estimate import Advice
from studio.export_targets import advice, free_bytes, needed_bytes
from studio.layout_configs import Refused as LayoutRefused
from studio.layouts import read_layout
from studio.model_choices import ModelChoice
from studio.outputs import OutputConfig
from studio.presets import ModelError, resolve_model
from studio.records import DataError
from studio.schema import ConfigError, FieldError
from studio.ui.context import Refused
from studio.ui.i18n import current_request, field_label, language_of, tr
from studio.ui.run_lines import summary
from studio.ui.sentences import translated
from studio.ui.tabs.export_command import command
from studio.ui.tabs.export_goals import FORMATS, NUMBER_FORMAT, Wish, config_of, specs
from studio.ui.tabs.export_import import with_paths
from studio.ui.widgets.form import error_text
from studio.workspace import Workspace

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
    if first is None:
        return {"level": "", "said": ""}
    return {"level": first.level, "said": as_sentence(first.message, keep=choice.name)}


def _said(item: Advice, choice: ModelChoice) -> str:
    """Both sentences of an advice in the visitor's language."""
    sentences = [as_sentence(text, keep=choice.name) for text in (item.message, item.fix) if text]
    return "".join(sentences) if sentences[0].endswith("。") else " ".join(sentences)


def as_sentence(text: str, language: str | None = None, keep: str = "") -> str:
    """A sentence of a lower layer in a language, by default the visitor's, with a capital and a stop.

    `keep`: a name that is not written with a capital of its own.
    """
    told = translated(text.removesuffix("."), language)
    stop = "" if told.endswith((".", "。", "!", "?", "？")) else "." if told == text.removesuffix(".") else "。"
    return (told if keep and told.startswith(keep) else told[:1].upper() + told[1:]) + stop


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
        stopped = any(issue["level"] == "error" for issue in issues)  # then what follows from it needs no word
        issues += [issue for issue in problems(error) if issue["field"] or not stopped]
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
    return [{"level": item.level, "field": "", "label": "", "message": _said(item, wish.choice)} for item in found]


def problems(error: Exception) -> list[dict[str, Any]]:
    """Why there is no configuration yet: one entry for each wrong field, as the page shows it."""
    if isinstance(error, ConfigError):
        return [_issue(owner(item), _wrong(item)) for item in error.errors]
    if isinstance(error, DataError):
        return [_issue(error.field or "", as_sentence(error.message))]
    return [_issue("", str(error))]


def _wrong(error: FieldError) -> str:
    named = f"{owner(error)}: "
    return as_sentence(error_text(error).removeprefix(named).removeprefix(named.capitalize()))


def _issue(name: str, message: str) -> dict[str, Any]:
    label = tr("export.name") if name == "name" else field_label(name) if name else ""
    return {"level": "error", "field": name, "label": label, "message": message}


def owner(error: FieldError) -> str:
    """The control an error belongs to; a rule between fields names one at the start of its sentence."""
    known = {"name", *specs()}
    name = error.path or error.message.partition(":")[0]
    return name if name in known else ""


def disk(workspace: Workspace, wish: Wish) -> tuple[int, int]:
    """(bytes the export takes about, bytes that are free); the first is 0 where it cannot be told."""
    free = free_bytes(workspace.exports)
    if wish.choice is None or wish.goal not in FORMATS:
        return 0, free
    goal: Any = wish.goal
    return needed_bytes(wish.choice, goal, str(wish.options.get(NUMBER_FORMAT.get(goal, "")) or "")), free
