"""What of the form differs from the chosen preset, and where its settings come from: a preset, a file, a run."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from studio import presets
from studio.config import RunConfig
from studio.foreign.files import read_foreign_text
from studio.foreign.imported import Imported
from studio.foreign.llamafactory import SIGNS
from studio.schema import ConfigError, FieldSpec, flatten, parse_yaml
from studio.ui.context import refuse
from studio.ui.i18n import field_label as label
from studio.ui.sentences import translated
from studio.ui.tabs.train_preview import DATASET, METHOD, MODEL, OWN, recommended, suited
from studio.ui.widgets.form import Form, from_control, to_control
from studio.yaml_text import YamlFault, read_text

MAX_FILE_BYTES = 1_000_000
SUFFIXES = (".yaml", ".yml", ".json", ".py")


# ---- what differs ----------------------------------------------------------------------------------------------------


def baseline(form: Form, preset: str | None, shown: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset compared with ("": what is recommended for the model and method) and {path: control value} of it."""
    name = (preset or "").strip()
    settings = _composed(name)
    if settings is None:
        name, settings = "", recommended(str(shown[MODEL] or ""), str(shown[METHOD]))
    values = form.defaults() | {
        path: to_control(form.spec(path), value) for path, value in settings.items() if path not in OWN
    }
    return name, values if name else values | {path: shown[path] for path in (MODEL, METHOD)}


@lru_cache(maxsize=64)
def _composed(name: str) -> dict[str, Any] | None:
    """{path: value} of a preset over what suits this machine; None when there is none of that name."""
    try:
        return suited(presets.compose(name)) if name else None
    except ConfigError:
        return None


def changes(form: Form, values: Sequence[Any], preset: str | None) -> dict[str, Any]:
    """`preset`, and under `fields` every field that applies and differs from it, in order, as the page shows them."""
    shown = {spec.path: value for spec, value in zip(form.specs, values, strict=True)}
    name, base = baseline(form, preset, shown)
    applying = form.applying(shown)
    fields = [
        {
            "path": spec.path,
            "label": label(spec.path),
            "base": as_text(base[spec.path]),
            "now": as_text(shown[spec.path]),
        }
        for spec in form.specs
        if spec.path in applying and spec.path not in OWN and not _same(spec, shown[spec.path], base[spec.path])
    ]
    return {"preset": name, "fields": fields}


def _same(spec: FieldSpec, one: Any, other: Any) -> bool:
    """Whether two control values mean the same."""
    left, right = from_control(spec, one), from_control(spec, other)
    if left == right:
        return True
    try:
        return spec.kind in ("int", "float") and float(left) == float(right)
    except (TypeError, ValueError):
        return False


def as_text(value: Any) -> str:
    """A control value in one line of text; a list of datasets by their names."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(str(entry.get("dataset", "")) if isinstance(entry, dict) else str(entry) for entry in value)
    return "" if value is None else str(value)


def changed_to(form: Form, values: Sequence[Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """{path: control value} for what a script asks to change: `set` by value, `reset` to the preset. Not trusted."""
    known = {spec.path: spec for spec in form.specs}
    given, reset = wanted.get("set"), wanted.get("reset")
    found = {
        path: to_control(known[path], value)
        for path, value in (given.items() if isinstance(given, dict) else ())
        if path in known and not known[path].item and isinstance(value, str | int | float | bool)
    }
    if isinstance(reset, list):
        shown = {spec.path: value for spec, value in zip(form.specs, values, strict=True)}
        _, base = baseline(form, str(wanted.get("preset") or ""), shown)
        unseen = known.keys() - form.applying(shown)  # what nobody sees follows the preset as well
        found |= {
            path: base[path] for path in known if path not in OWN and (path in reset or (reset and path in unseen))
        }
    return found


# ---- where settings come from ----------------------------------------------------------------------------------------


def read_settings_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file of ours, of XTuner or of LLaMA-Factory: its settings, and what the page says of it.

    Raises ConfigError or Refused.
    """
    if path.stat().st_size > MAX_FILE_BYTES or path.suffix.lower() not in SUFFIXES:
        raise refuse("train.error.yaml")
    try:
        text = read_text(path)
    except YamlFault as error:
        raise refuse("train.error.yaml") from error
    if path.suffix.lower() == ".py" or SIGNS & set(map(str, parse_yaml(text))):
        found = read_foreign_text(text, path.name)
        return found.settings, _report(path.name, found)
    settings = parse_yaml(text)
    return settings, {"name": path.name, "origin": "studio", "fields": len(flatten(RunConfig, settings)), "left": []}


def _report(name: str, found: Imported) -> dict[str, Any]:
    left = [{"line": one.line, "name": one.name, "reason": translated(one.reason)} for one in found.left_out]
    return {"name": name, "origin": found.origin, "fields": len(flatten(RunConfig, found.settings)), "left": left}


def names_dataset(settings: Mapping[str, Any]) -> bool:
    """Whether settings say what to train on; else the visitor's choice stays."""
    return bool(flatten(RunConfig, settings).get(DATASET))


def preset_of(settings: Mapping[str, Any]) -> str | None:
    """The preset that settings are named after, if any."""
    name = str(flatten(RunConfig, settings).get("name") or "")
    return name if _composed(name) is not None else None
