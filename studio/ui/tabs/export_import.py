"""Export, the way in: an adapter somebody else made, uploaded or by its path on this machine."""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from studio.model_choices import list_choices
from studio.records import DataError
from studio.records.importing import allowed_path
from studio.schema import ConfigError, FieldError
from studio.ui.i18n import tr
from studio.ui.tabs.export_goals import IMPORT, Wish, free_name
from studio.uploads import new_upload
from studio.workspace import Workspace

FILES = "files"
"""The option that holds uploaded files; all others are fields of the configuration."""
WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")
SETTINGS = (".py",)


def with_paths(workspace: Workspace, wish: Wish) -> Wish:
    """The wish with every path a visitor typed looked up among the folders that may be read here.

    Raises DataError with the field, ConfigError when an import has no source.
    """
    options = dict(wish.options)
    if wish.goal == IMPORT:
        files = uploaded(options)
        if files:
            options |= _source_and_settings(files, Path(files[0]).parent)
        for name in ("source", "settings"):
            if options.get(name) and not files:
                options[name] = str(_allowed(str(options[name]), workspace, name))
        if not options.get("source"):
            raise ConfigError([FieldError("source", tr("export.error.no_source"))])
    elif wish.goal == "safetensors":
        options["more_adapters"] = [_adapter(workspace, one) for one in _entries(options.get("more_adapters"))]
    return replace(wish, options=options)


def keep_uploads(workspace: Workspace, wish: Wish) -> Wish:
    """The wish with uploaded files copied into the workspace, where the engine finds them. Raises OSError."""
    files = uploaded(wish.options) if wish.goal == IMPORT else []
    if not files:
        return wish
    name = wish.name or free_name(workspace, wish)
    folder = new_upload(workspace, name)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    kept = [folder / file.name for file in files]
    return replace(wish, name=name, options={**wish.options, FILES: [], **_source_and_settings(kept, folder)})


def uploaded(options: Any) -> list[Path]:
    """The uploaded files of a wish; Gradio gives one as text and several as a list."""
    found = options.get(FILES) or []
    return [Path(file) for file in ([found] if isinstance(found, str) else found)]


def _source_and_settings(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """One file of weights is the source itself, several are a folder; a configuration beside them says how."""
    listed = list(files)
    weights = [file for file in listed if file.suffix.lower() in WEIGHTS]
    settings = [file for file in listed if file.suffix.lower() in SETTINGS]
    alone = len(weights) == 1 and not any(file.name == "adapter_config.json" for file in listed)
    found = {"source": str(weights[0] if alone else folder)}
    return found | ({"settings": str(settings[0])} if settings else {})


def _entries(shown: Any) -> list[dict[str, Any]]:
    listed = shown if isinstance(shown, list) else []
    return [entry for entry in listed if isinstance(entry, dict) and str(entry.get("path") or "").strip()]


def _adapter(workspace: Workspace, entry: dict[str, Any]) -> dict[str, Any]:
    """One more adapter: of a run or an import by its key, else a folder that may be read."""
    text = str(entry["path"]).strip()
    known = next((choice for choice in list_choices(workspace) if choice.adapter and choice.key == text), None)
    path = known.adapter if known else _allowed(text, workspace, "more_adapters")
    weight = str(entry.get("weight") or "").strip()
    return {"path": str(path)} | ({"weight": weight} if weight else {})


def _allowed(text: str, workspace: Workspace, field: str) -> Path:
    try:
        return allowed_path(text, workspace.path)
    except DataError as error:
        raise DataError(error.message, field=field) from error
