"""What the machines of a run tell each other before any of them trains, and what is made of a difference.

Machine 0 compares what each of the others says with what it says itself: a run that half of the machines train with
another learning rate, other rows or another torch would end in a hang or, worse, in numbers nobody can explain. Paths
and names may differ; what lies there may not. Everything is looked up before torch is loaded, in seconds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studio import __version__, hardware, resources
from studio.config import RunConfig
from studio.engine.data import find_source
from studio.presets import ModelRef, resolve_model
from studio.rundir import RunDir
from studio.schema import flatten
from studio.wire import PROTOCOL

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "deepspeed")
CLOCK_TOLERANCE_S = 5.0
SAMPLES_A_FILE = 16
SAMPLE_BYTES = 64 * 1024
WHOLE_BYTES = 32 * 1024 * 1024
SHOWN = 60
# Where things are is each machine's own business; machine 0 alone reports to services and chooses names.
_OWN = frozenset({
    "name", "model.model_name_or_path", "model.adapter", "data.dataset", "data.validation_dataset",
    "parallel.machine_rank", "parallel.main_process_ip", "parallel.deepspeed_config", "train.report_to",
})  # fmt: skip
_MODEL_FILES = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt", ".bin", ".py"})


def facts(run: RunDir, config: RunConfig, *, resumes: bool) -> dict[str, Any]:
    """What this machine says of itself. Raises ModelError or DataError: model or data are not here."""
    model = resolve_model(config.model.model_name_or_path)
    return {
        "kind": "hello",
        "protocol": PROTOCOL,
        "machine": config.parallel.machine_rank,
        "host": socket.gethostname(),
        "time": time.time(),
        "resumes": resumes,
        "device": "GPU" if hardware.torch_has_cuda() and resources.cards() else "CPU",
        "versions": versions(config),
        "config": settings(config, run),
        "model": fingerprint(model),
        "adapter": _folder(Path(config.model.adapter)) if config.model.adapter else {},
        "data": [digest for _, digest in find_source(config, run.path.parent.parent).sha256],
    }


def versions(config: RunConfig) -> dict[str, str]:
    """Versions of everything that takes part in the arithmetic."""
    found = {"crucible": __version__, "python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        if name == "deepspeed" and config.parallel.deepspeed == "none" and not config.parallel.deepspeed_config:
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def settings(config: RunConfig, run: RunDir) -> dict[str, str]:
    """Every field that must be equal: path -> its value as a short text, or as a digest."""
    plain = config.model_dump(mode="json")
    for source in plain["data"]["sources"]:
        source.pop("dataset", None)
    found = {path: _short(value) for path, value in flatten(RunConfig, plain).items() if path not in _OWN}
    own = run.deepspeed_file if run.deepspeed_file.is_file() else Path(config.parallel.deepspeed_config or "")
    if config.parallel.deepspeed_config and own.is_file():
        found["parallel.deepspeed_config"] = hashlib.sha256(own.read_bytes()).hexdigest()[:16]
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= SHOWN else f"text {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def fingerprint(model: ModelRef) -> dict[str, str]:
    """File name -> size and digest of the parts of a model; of large files samples are read, so it takes a moment."""
    return _folder(Path(model.path_or_id)) if model.local else {"": model.path_or_id}


def _folder(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix in _MODEL_FILES and path.is_file()]
    return {path.name: f"{path.stat().st_size} {_digest(path)}" for path in files}


def _digest(path: Path) -> str:
    """A digest of a file, or of samples spread over a large one."""
    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        for place in range(SAMPLES_A_FILE):
            file.seek(place * (size - SAMPLE_BYTES) // (SAMPLES_A_FILE - 1))
            found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()[:16]


# ---- comparing -------------------------------------------------------------------------------------------------------


def difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first thing that must not differ between machine 0 and another, as a sentence; None when all is well."""
    return next(_differences(own, other, f"machine {other.get('machine')}"), None)


def _differences(own: Mapping[str, Any], other: Mapping[str, Any], name: str) -> Iterator[str]:
    if other.get("problem"):
        yield f"{_text(other['problem'])} (on {name})"
        return
    if other.get("protocol") != own["protocol"]:
        yield f"versions: {name} has a Crucible of another version; install the same on all machines"
        return
    here, there = _table(own, "versions"), _table(other, "versions")
    for package in here:
        if there.get(package) != here[package]:
            yield (
                f"versions: {package} is {there.get(package, 'missing')} on {name} and {here[package]} on machine 0; "
                "install the same version on all machines"
            )
    if other.get("device") != own["device"]:
        devices = f"{name} trains on the {_text(other.get('device'))}, machine 0 on the {own['device']}"
        yield f"device: {devices}; use machines of one kind"
    yield from _settings_differ(_table(own, "config"), _table(other, "config"), name)
    yield from _files_differ(own, other, name)
    if other.get("resumes") and not own["resumes"]:
        yield f"resume: {name} resumes a run and machine 0 begins one; resume both, or start both anew"


def _settings_differ(here: Mapping[str, str], there: Mapping[str, str], name: str) -> Iterator[str]:
    for path in sorted({*here, *there}):
        if here.get(path) != there.get(path):
            values = (_value(there.get(path)), _value(here.get(path)))
            said = "differs" if None in values else f"is {values[0]} on {name} and {values[1]} on machine 0"
            where = f" between machine 0 and {name}" if None in values else ""
            yield f"{path}: {said}{where}; start every machine with the same configuration"


def _value(text: str | None) -> str | None:
    return None if text is None or text.startswith("text ") else text


def _files_differ(own: Mapping[str, Any], other: Mapping[str, Any], name: str) -> Iterator[str]:
    for what, field in (("model", "model.model_name_or_path"), ("adapter", "model.adapter")):
        here, there = _table(own, what), _table(other, what)
        different = [file for file in sorted({*here, *there}) if here.get(file) != there.get(file)]
        if different:
            which = different[0] or "its id"
            yield f"{field}: the {what} on {name} is not that of machine 0 ({which} differs); copy it from there"
    if other.get("data") != own["data"]:
        yield f"data.dataset: the rows on {name} are not those of machine 0; copy the dataset from there"


def _table(facts: Mapping[str, Any], name: str) -> Mapping[str, str]:
    """What came over the network is a mapping only if it is one."""
    found = facts.get(name)
    return {str(key): _text(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return str(value)[:500]


def clock_warning(told: float, name: str, now: float | None = None) -> str | None:
    """A sentence when another machine's clock is far from this one's; `told` is what it said a moment ago."""
    ahead = told - (time.time() if now is None else now)
    if abs(ahead) <= CLOCK_TOLERANCE_S:
        return None
    way = "ahead of" if ahead > 0 else "behind"
    return (
        f"The clock of {name} is {abs(ahead):.0f} s {way} this one's. The training does not depend on it, but times in "
        "logs cannot be compared; set the clocks by the network (NTP)."
    )
