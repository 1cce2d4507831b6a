"""How an adapter was trained, as far as it is written down: its scale, its base model, its chat template.

Read from an XTuner configuration (by its syntax, never run), from another program's YAML, or from PEFT's own
adapter_config.json: the one that is named, else the one inside the checkpoint, else the one beside it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studio.engine.failure import EngineError
from studio.engine.output_folder import refused
from studio.foreign.files import read_foreign, read_foreign_text
from studio.foreign.imported import Imported
from studio.presets import compose
from studio.schema import ConfigError

_NO_SETTINGS = {"zero_to_fp32.py", "zero_to_torch.py"}  # DeepSpeed writes them beside its checkpoints
_SIGN = re.compile(r"lora|pretrained_model_name_or_path", re.IGNORECASE)
_LONGEST = 1 << 20  # bytes
_LORA = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save", "target_modules", "bias")


@dataclass(frozen=True)
class Settings:
    """What is known of the training. `lora` has PEFT's names; `peft` says that it is a whole adapter_config.json."""

    lora: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    template: str | None = None
    system: str = ""
    questions: tuple[str, ...] = ()
    origin: str = ""
    peft: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)


def find_settings(named: str | None, inside: str | None, beside: Sequence[Path]) -> Settings:
    """The first of them that is there.

    Raises EngineError of kind config, field settings: the named file cannot be read, or several lie beside.
    """
    if named:
        return _read(Path(named).expanduser())
    if inside:
        try:
            return _of_import(read_foreign_text(inside, "config.py"), "the checkpoint itself")
        except ConfigError:
            pass  # what was written into it is no configuration; there may be one beside it
    for folder in beside:
        found = _beside(folder)
        if found:
            return _read(found)
    return Settings()


def _beside(folder: Path) -> Path | None:
    """The configuration in a folder: the one called as the folder is, as XTuner does, or the only one."""
    scripts = [path for path in sorted(folder.glob("*.py")) if path.name not in _NO_SETTINGS and _says_lora(path)]
    own = [path for path in scripts if path.stem in (folder.name, "xtuner_config")]
    if len(own) == 1 or len(scripts) == 1:
        return (own or scripts)[0]
    if len(scripts) > 1:
        sentence = (
            f"settings: {len(scripts)} configurations lie in {folder.name} ({', '.join(p.name for p in scripts)})."
        )
        raise refused("config", "settings", sentence[:300], "Name the one it was trained with.")
    return None


def _says_lora(path: Path) -> bool:
    """Whether a Python file may be such a configuration, and not somebody's program."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.stat().st_size < _LONGEST and _SIGN.search(path.read_text(encoding="utf-8")) is not None
    return False


def _read(path: Path) -> Settings:
    try:
        if path.is_dir():
            path = path / "adapter_config.json"
        if path.suffix.lower() == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and "peft_type" in found:
                return of_peft(found, path.name)
        if not path.exists() and not path.suffix:  # the notes name a configuration of the program as often as a file
            return _of_program(compose(path.name.removesuffix("_copy")), path.name)
        return _of_import(read_foreign(path), path.name)
    except (OSError, ValueError, RuntimeError) as error:  # ConfigError is a ValueError
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> EngineError:
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    elif isinstance(error, ConfigError):
        reason = error.errors[0].message if error.errors else str(error)
    else:
        reason = str(error)
    return refused(
        "config",
        "settings",
        f"settings: {path.name} cannot be used ({' '.join(reason.split())[:200]}).",
        "Name the configuration the adapter was trained with: XTuner's .py file, or an adapter_config.json.",
    )


def of_peft(found: Mapping[str, Any], origin: str) -> Settings:
    """What an adapter_config.json says."""
    base = found.get("base_model_name_or_path")
    return Settings(lora=dict(found), base=base if isinstance(base, str) and base else None, origin=origin, peft=True)


def _of_import(found: Imported, origin: str) -> Settings:
    """What a file of another program says; biases that were trained have no field of ours, and must be known of."""
    settings = _of_program(found.settings, origin)
    trained = any(left.name.endswith("lora.bias") for left in found.left_out)
    return replace(settings, lora={**settings.lora, "bias": "trained"}) if trained else settings


def _of_program(found: Mapping[str, Any], origin: str) -> Settings:
    """What another program's configuration says, already under the names of ours."""
    model, data, samples = (_section(found, name) for name in ("model", "data", "samples"))
    lora = {name: value for name, value in _section(found, "lora").items() if name in _LORA}
    questions = samples.get("evaluation_inputs")
    return Settings(
        lora=lora,
        base=_text(model.get("model_name_or_path")),
        template=_text(model.get("chat_template")),
        system=str(data.get("system") or ""),
        questions=tuple(q for q in questions if isinstance(q, str)) if isinstance(questions, list) else (),
        origin=origin,
        training=found,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _section(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = found.get(name)
    return section if isinstance(section, Mapping) else {}
