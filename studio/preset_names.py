"""The grammar of preset names: `model[_method]_dataset[_length]_eN[_gpuN ...]`, read part by part, never by search.

Hundreds of thousands of names can be composed, so a name is split at what is known of its parts, and the names nearest
to a wrong one are composed from the parts nearest to its own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from studio.preset_files import DatasetPreset, Layer, Library, MethodPreset, ModelPreset
from studio.schema import ConfigError, FieldError

LONGEST = 200
_MARKS = {
    "epochs": re.compile(r"e(\d{1,6})"),
    "length": re.compile(r"(\d{2,7}|\d{1,4}k)"),
    "gpus": re.compile(r"gpu(\d{1,4})|(\d{1,4})gpus?"),
    "split": re.compile(r"sp(\d{1,4})"),
    "extra": re.compile(r"(varlen|hf|copy|v\d)"),
}
_EXTRA_NOTES = {
    "varlen": "varlen: packed rows never see each other here, so there is nothing to set",
    "hf": "",
    "copy": "",
}


@dataclass(frozen=True)
class PresetName:
    """A name taken apart. `key` is the name without `_copy`, as files of XTuner are called; `notes` are sentences."""

    key: str
    model: ModelPreset
    method: MethodPreset
    dataset: DatasetPreset
    epochs: int
    length: int | None = None
    gpus: int | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Tail:
    """What stands behind the dataset in a name."""

    dataset: str = ""
    epochs: int | None = None
    length: int | None = None
    gpus: int | None = None
    notes: list[str] = field(default_factory=list)


def read_name(name: str, parts: Library) -> PresetName:
    """Takes a preset name apart.

    Raises:
        ConfigError: no such name (names the nearest three), or a name of XTuner's that is known but cannot be had.
    """
    key = name.strip().removesuffix(".py").removesuffix("_copy")
    wanted = _resolved(key, parts.layers.values())
    _refuse(key, parts.layers.values())
    for model, rest in _heads(wanted, parts):
        for method, behind in _methods(rest, parts):
            tail = _tail(behind, parts)
            if tail and tail.epochs is not None:
                if wanted != key:
                    tail.notes.append(f"{key} is {wanted} here")
                return _named(key, model, method, tail, parts)
    raise unknown(name, parts)


def _named(key: str, model: ModelPreset, method: MethodPreset | None, tail: _Tail, parts: Library) -> PresetName:
    dataset = _datasets(parts)[tail.dataset]
    notes = list(tail.notes)
    if method is None:
        method = parts.methods[dataset.preset.method or "full"]
        notes.append(f"the name says no method: {method.name}")
    if dataset.preset.note:
        notes.append(dataset.preset.note)
    if tail.gpus and tail.gpus not in dataset.preset.gpus:
        notes.append(f"gpu{tail.gpus}: the batch size counts for each GPU; the name itself starts no more of them")
    return PresetName(key, model, method, dataset, tail.epochs or 0, tail.length, tail.gpus, tuple(notes))


def _resolved(name: str, layers: Iterable[Layer]) -> str:
    """The regular name an irregular one stands for. Raises ConfigError when the files go round in circles."""
    table = {old: new for layer in layers for old, new in layer.same_as.items()}
    seen = [name]
    while seen[-1] in table:
        seen.append(table[seen[-1]])
        if seen[-1] in seen[:-1]:
            message = f"the preset {name!r} goes round in circles: {' -> '.join(seen)}; correct presets/layers"
            raise ConfigError([FieldError("preset", message, "cycle")])
    return seen[-1]


def _refuse(name: str, layers: Iterable[Layer]) -> None:
    for layer in layers:
        for part, reason in layer.refused.items():
            if part in name:
                raise ConfigError([FieldError("preset", f"{name[:LONGEST]!r} cannot be had: {reason}", "refused")])


def _heads(name: str, parts: Library) -> Iterator[tuple[ModelPreset, str]]:
    """Every model a name can begin with, the longest first, and the rest of the name."""
    known = {spelling: model for model in parts.models.values() for spelling in (model.name, *model.aliases)}
    for spelling in sorted((s for s in known if name.startswith(f"{s}_")), key=len, reverse=True):
        yield known[spelling], name[len(spelling) + 1 :]


def _methods(rest: str, parts: Library) -> Iterator[tuple[MethodPreset | None, str]]:
    """The method a rest begins with; then none, for names that leave it out."""
    for method in parts.methods.values():
        for spelling in (method.name, *method.aliases):
            if rest.startswith(f"{spelling}_"):
                yield method, rest[len(spelling) + 1 :]
    yield None, rest


def _datasets(parts: Library) -> dict[str, DatasetPreset]:
    return {spelling: data for data in parts.datasets.values() for spelling in (data.name, *data.preset.aliases)}


def _tail(text: str, parts: Library) -> _Tail | None:
    """The dataset and its suffixes; None when a suffix stands twice or the dataset is unknown."""
    tail = _Tail()
    words = text.replace("sequence_parallel_", "sp").split("_")
    known = _datasets(parts)
    while words and "_".join(words) not in known:
        if not _mark(words.pop(), tail):
            return None
    tail.dataset = "_".join(words)
    return tail if tail.dataset else None


def _mark(word: str, tail: _Tail) -> bool:
    """Reads one suffix into `tail`; False when it is none, or is there already."""
    for kind, pattern in _MARKS.items():
        found = pattern.fullmatch(word)
        if not found:
            continue
        value = next(group for group in found.groups() if group)
        if kind == "split":
            tail.notes.append(f"sp{value}: sequences are not split over GPUs; one row has to fit on one card")
        elif kind == "extra":
            tail.notes += [_EXTRA_NOTES[value]] if _EXTRA_NOTES.get(value) else []
        elif getattr(tail, kind) is not None:
            return False
        else:
            setattr(tail, kind, int(value[:-1]) * 1024 if value.endswith("k") else int(value))
        return True
    return False


# ---- lists and near misses ----


def all_names(parts: Library) -> Iterator[str]:
    """Every composable name at the usual length and epochs of its dataset, then those with suffixes of their own."""
    special = dict.fromkeys(name for layer in parts.layers.values() for name in (*layer.names, *layer.same_as))
    for model in parts.models:
        for method in parts.methods:
            for name in _dataset_names(method, parts):
                special.pop(f"{model}_{method}_{name}", None)
                yield f"{model}_{method}_{name}"
    yield from special


def _dataset_names(method: str, parts: Library) -> Iterator[str]:
    """The part of a name behind the method: dataset, a length of its own, epochs."""
    for name, dataset in parts.datasets.items():
        if dataset.preset.method in (None, method):
            for length in ("", *(f"_{number}" for number in dataset.preset.lengths)):
                yield f"{name}{length}_e{dataset.preset.epochs}"


def unknown(name: str, parts: Library) -> ConfigError:
    """The error for a name that cannot be read; its sentence gives the nearest three."""
    near = nearest_names(name, parts)
    hint = f"did you mean {_listed(near)}?" if near else "`studio list-cfg` shows every name"
    shown = name if len(name) <= LONGEST else f"{name[:LONGEST]}…"
    message = f"there is no preset {shown!r}; {hint}"
    return ConfigError([FieldError("preset", message, "unknown", {"nearest": near[0] if near else ""})])


def _listed(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def nearest_names(name: str, parts: Library, count: int = 3) -> list[str]:
    """The composable names closest to a wrong one, best first; [] when nothing is close."""
    words = name[:LONGEST].lower().replace("sequence_parallel_", "sp").split("_")
    tail = _Tail()
    while len(words) > 1 and _mark(words[-1], tail):
        words.pop()
    scored: dict[str, float] = {}
    for left, method, right in _splits(words, parts):
        for model, model_score in _close(left, parts.models, 4):
            for dataset, dataset_score in _close(right, parts.datasets, 3) if right else _usual(parts):
                for other in parts.methods:
                    found = _compose_name(model, other, parts.datasets[dataset], tail)
                    score = 2 * model_score + dataset_score + (other == method)
                    scored[found] = max(score, scored.get(found, 0.0))
    return sorted(scored, key=lambda found: -scored[found])[:count]


def _splits(words: list[str], parts: Library) -> Iterator[tuple[str, str, str]]:
    """(model words, method, dataset words) for each word that may be the method; then for names without one."""
    for place, word in enumerate(words[1:], 1):
        for method, _ in _close(word, parts.methods, 1):
            yield "_".join(words[:place]), method, "_".join(words[place + 1 :])
    for place in range(1, len(words) + 1):
        yield "_".join(words[:place]), "", "_".join(words[place:])


def _compose_name(model: str, method: str, dataset: DatasetPreset, tail: _Tail) -> str:
    method = dataset.preset.method or method
    length = "" if tail.length is None else f"_{tail.length}"
    return f"{model}_{method}_{dataset.name}{length}_e{tail.epochs or dataset.preset.epochs}"


def _usual(parts: Library) -> list[tuple[str, float]]:
    """What to propose where no dataset is named: those that are not XTuner's, the user's own among them."""
    return [(name, 0.0) for name, dataset in parts.datasets.items() if not dataset.preset.layer]


def _close(text: str, known: Iterable[str], count: int) -> list[tuple[str, float]]:
    found = difflib.get_close_matches(text, list(known), n=count, cutoff=0.6)
    return [(name, difflib.SequenceMatcher(None, name, text).ratio()) for name in found]
