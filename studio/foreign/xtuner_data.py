"""The datasets of an XTuner configuration: `process_hf_dataset`, `ConcatDataset` and their kin as our sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from studio.foreign.syntax import Symbol, Val
from studio.records.mappings import named_mapping

_PLACEHOLDERS = ("/path/to/", "path/to/your")
_HUGE = 10**9


@dataclass(frozen=True)
class Sources:
    """What is read from: the whole file, and how to take a value from it or list it as left out."""

    root: Val
    plain: Callable[[Val, str], Any]
    leave: Callable[[Val | None, str, str], None]

    def take(self, node: Val, path: str) -> Any:
        """The plain value at a path below `node`, or None."""
        found = node.get(path)
        return None if found is None else self.plain(found, path)


def read_sources(sources: Sources) -> dict[str, Any]:
    """Dotted RunConfig paths -> values: the first dataset, further ones, length, packing and template."""
    dataset = sources.root.get("train_dataloader.dataset") or sources.root.get("train_dataset")
    if dataset is None:
        sources.leave(None, "train_dataloader.dataset", "is not there: choose a dataset")
        return {}
    parts = list(_parts(sources, dataset))
    entries = [entry for part in parts for entry in _entries(sources, part)]
    settings: dict[str, Any] = {}
    if entries:
        first, *more = entries
        settings |= {f"data.{key}": value for key, value in first.items()}
        settings["data.sources"] = more or None
    for part in parts[:1]:
        settings["data.max_length"] = _number(sources.take(part, "max_length"))
        packed = sources.take(part, "pack_to_max_length")
        settings["data.packing"] = packed if isinstance(packed, bool) else False
        settings["model.chat_template"] = _template(sources, part)
    return settings


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else None


def _parts(sources: Sources, dataset: Val) -> Iterator[Val]:
    """The single datasets of one that may be a list of them."""
    for key in ("datasets", "datasets_cfg"):
        many = dataset.get(key)
        if many and isinstance(many.value, list):
            yield from many.value
            return
        if many and isinstance(many.value, dict):
            yield from many.value.values()
            return
    if isinstance(dataset.value, dict):
        yield dataset
    else:
        sources.leave(dataset, "train_dataloader.dataset", "is computed when the file is run; choose a dataset")


def _entries(sources: Sources, part: Val) -> list[dict[str, Any]]:
    """One source for each file or hub id of a dataset."""
    kind = part.get("type")
    name = kind.value.last if kind and isinstance(kind.value, Symbol) else "a dataset"
    if name == "MOSSSFTDataset":
        return [_without_none({"dataset": sources.take(part, "data_file"), "mapping": "moss"})]
    if name not in ("process_hf_dataset", "process_ms_dataset"):
        sources.leave(part, name, "its rows are not read here; save them as JSONL with messages")
        return []
    limit = sources.take(part, "max_dataset_length")
    common = {"mapping": _mapping(sources, part), "max_samples": limit if _is_limit(limit) else None}
    shuffled = part.get("shuffle_before_pack")
    if shuffled and shuffled.value is False:
        sources.leave(shuffled, "shuffle_before_pack", "rows are always shuffled before they are packed")
    return [_without_none({**place, **common}) for place in _places(sources, part.get("dataset"))]


def _is_limit(value: Any) -> bool:
    return isinstance(value, int) and 0 < value < _HUGE


def _without_none(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def _places(sources: Sources, loaded: Val | None) -> list[dict[str, Any]]:
    """Where the rows lie: `load_dataset(path, name, split, data_files)`, `MsDataset.load(dataset_name)`."""
    if loaded is None or not isinstance(loaded.value, dict):
        sources.leave(loaded, "dataset", "is computed when the file is run; choose a dataset")
        return [{}]
    folder = loaded.get("data_dir")
    if folder and folder.value:
        sources.leave(folder, "data_dir", "folders inside a hub dataset are not chosen here")
    path = sources.take(loaded, "path") or sources.take(loaded, "dataset_name") or sources.take(loaded, "dataset_path")
    files = _files(sources, loaded.get("data_files"))
    if path in ("json", "parquet", "csv", "text") or (path is None and files):
        kept = [file for file in files if not file.startswith(_PLACEHOLDERS)]
        if len(kept) < len(files):
            sources.leave(loaded.get("data_files"), "data_files", "is a placeholder; choose your dataset")
        return [{"dataset": file} for file in kept] or [{}]
    subset, split = sources.take(loaded, "name"), sources.take(loaded, "split")
    text = path if isinstance(path, str) and not path.startswith(_PLACEHOLDERS) else None
    return [_without_none({"dataset": text, "subset": _text(subset), "split": _text(split)})]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _files(sources: Sources, found: Val | None) -> list[str]:
    """`data_files`: a text, a list of them, or those under "train"."""
    if found is None:
        return []
    if isinstance(found.value, dict):
        return _files(sources, found.get("train"))
    value = sources.plain(found, "data_files")
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _mapping(sources: Sources, part: Val) -> str | None:
    """`alpaca_map_fn` -> alpaca; without a function the rows are in XTuner's own multi-turn format."""
    found = part.get("dataset_map_fn")
    value = sources.plain(found, "dataset_map_fn") if found else None
    if value is None:
        return None if found and not _is_none(found) else "conversation"
    mapping = named_mapping(value.last) if isinstance(value, Symbol) else None
    if mapping is None:
        sources.leave(found, "dataset_map_fn", "is a function of its own; name the columns in data.mapping")
        return None
    return str(value.last).removesuffix("_map_fn")


def _is_none(found: Val) -> bool:
    return found.value is None


def _template(sources: Sources, part: Val) -> str | None:
    """The chat template by name: `PROMPT_TEMPLATE.internlm2_chat`, a text, or the one written at the top."""
    for found in (part.get("template_map_fn.template"), sources.root.get("prompt_template")):
        value = sources.plain(found, "prompt_template") if found else None
        if isinstance(value, Symbol):
            return value.last
        if isinstance(value, str):
            return value
    return None
