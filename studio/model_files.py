"""What lies in a model folder: whether it is whole, of which kind and how large. Only beginnings of files are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from studio.layout_configs import Refused
from studio.layouts import detect
from studio.remote_code import NO_CODE, allowed

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "qwen.tiktoken")
COPY_AGAIN = "copy the model again"
LONGEST_HEADER = 100 * 2**20  # as the safetensors library itself allows
_POINTER = b"version https://git-lfs"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True)
class Fault:
    """One reason why a model folder cannot be used: what is wrong, naming the folder, and what to do."""

    message: str
    fix: str


@dataclass(frozen=True)
class Facts:
    """What a list of models shows of a folder: its architecture, number format and the bytes of its weights."""

    model_type: str
    dtype: str
    weight_bytes: int


def faults(folder: Path, *, seeing: bool = False) -> Iterator[Fault]:
    """Everything that keeps a model folder from being loaded, the most telling first; nothing for a whole one.

    `seeing`: models that read text and pictures will do too.
    """
    config = read_object(folder, CONFIG)
    if isinstance(config, Fault):
        yield config
    else:
        yield from _kind_faults(config, folder.name, seeing=seeing)
    yield from _weight_faults(folder)
    tokenizer = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not tokenizer:
        yield Fault(f"{folder.name} has no tokenizer", "copy tokenizer.json beside it")
    for file in tokenizer:
        if reason := _not_there(file):
            yield Fault(f"{file.name} in {folder.name} {reason}", "copy this file again")


def facts(folder: Path) -> Facts:
    """Kind, number format and size of whatever there is; empty texts for what cannot be told."""
    config = read_object(folder, CONFIG)
    config = {} if isinstance(config, Fault) else config
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else {}
    files = sorted(folder.glob("*.safetensors"))
    stored = next((kind for file in files if (kind := _stored_dtype(file))), "")
    said = next((str(part[key]) for part in (config, text) for key in ("dtype", "torch_dtype") if part.get(key)), "")
    return Facts(str(config.get("model_type", "")), stored or said, sum(_size(file) for file in files))


def read_object(folder: Path, name: str) -> dict[str, Any] | Fault:
    """A JSON file of a model folder that holds an object, or why it cannot be had."""
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Fault(f"{folder.name} has no {name}", "choose a folder in Hugging Face format")
    except (OSError, ValueError, RecursionError) as error:
        reason = "is a pointer of git-lfs" if _is_pointer(folder / name) else f"cannot be read ({str(error)[:120]})"
        return Fault(f"{name} in {folder.name} {reason}", COPY_AGAIN)
    return data if isinstance(data, dict) else Fault(f"{name} in {folder.name} is not an object", COPY_AGAIN)


# ---- architecture ----------------------------------------------------------------------------------------------------


def _kind_faults(config: Mapping[str, Any], name: str, *, seeing: bool) -> Iterator[Fault]:
    if "model_type" not in config and "auto_map" not in config:
        yield Fault(f"config.json in {name} does not say its model_type", COPY_AGAIN)
        return
    try:
        if detect(config) is not None:
            return
    except Refused as error:
        if not ("auto_map" in config and allowed()):
            yield Fault(f"{name}: {error}", NO_CODE)
        return
    kind = str(config.get("model_type", ""))[:60]
    native, known = known_architectures()
    if kind in native or not native:  # without transformers there are other things to say first
        return
    if seeing and kind in seeing_architectures():
        return
    if "auto_map" in config:
        if not allowed():
            yield Fault(f"{name} needs Python code of its own, which is not run", NO_CODE)
    elif kind in known:
        yield Fault(
            f"{name} is no text-generating language model (its type is {kind})",
            "choose a causal language model, such as a Qwen, Llama or Mistral model",
        )
    else:
        yield Fault(
            f"the architecture of {name}, {kind!r}, is not known to the installed transformers",
            "choose a model of a standard architecture, such as a Qwen, Llama or Mistral model",
        )


@cache
def known_architectures() -> tuple[frozenset[str], frozenset[str]]:
    """(types of text-generating models, all types) of the installed transformers, read from its source files.

    Importing transformers takes seconds and these lists are plain text in it. Both are empty where it is missing.
    """
    auto = _auto_models()
    if auto is None:
        return frozenset(), frozenset()
    causal = _names_in(auto / "modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    return causal, causal | _names_in(auto / "auto_mappings.py", "CONFIG_MAPPING_NAMES")


@cache
def seeing_architectures() -> frozenset[str]:
    """Types of models that read text and pictures and write text, of the installed transformers."""
    auto = _auto_models()
    table = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"
    return _names_in(auto / "modeling_auto.py", table) if auto else frozenset()


def _auto_models() -> Path | None:
    found = find_spec("transformers")
    return Path(found.origin).parent / "models" / "auto" if found and found.origin else None


def _names_in(file: Path, table: str) -> frozenset[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return frozenset()
    body = re.search(rf"^{table} = OrderedDict\((.*?)^\)", text, re.MULTILINE | re.DOTALL)
    return frozenset(re.findall(r'\(\s*"([\w.-]+)",', body.group(1))) if body else frozenset()


# ---- weights ---------------------------------------------------------------------------------------------------------


def _weight_faults(folder: Path) -> Iterator[Fault]:
    names = _shards(folder)
    if isinstance(names, Fault):
        yield names
        return
    gone = [name for name in names if not (folder / name).is_file()]
    if gone == [SINGLE]:
        yield _without_weights(folder)
    elif gone:
        more = f" and {len(gone) - 1} more files" if len(gone) > 1 else ""
        yield Fault(f"{folder.name} lacks {gone[0]}{more}", "copy the missing file again")
    for name in names:
        if name not in gone and (reason := damage(folder / name)):
            yield Fault(f"{name} in {folder.name} {reason}", "copy this file again")


def _without_weights(folder: Path) -> Fault:
    suffixes = {file.suffix for file in folder.iterdir()}
    if ".gguf" in suffixes:
        return Fault(
            f"{folder.name} lacks {SINGLE} and holds a GGUF file, which cannot be trained",
            "choose the original model in safetensors format",
        )
    if suffixes & set(_PICKLES):
        return Fault(
            f"{folder.name} lacks {SINGLE}; its weights are pickle files, which can run code and are never loaded",
            "choose a version of the model in safetensors format",
        )
    return Fault(f"{folder.name} lacks {SINGLE}", "copy the missing file again")


def _shards(folder: Path) -> list[str] | Fault:
    """The weight files a folder must have."""
    if not (folder / INDEX).exists():
        return [SINGLE]
    index = read_object(folder, INDEX)
    if isinstance(index, Fault):
        return index
    table = index.get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if not names or any(Path(name).name != name for name in names):
        return Fault(f"{INDEX} in {folder.name} names no files of this folder", COPY_AGAIN)
    return names


def damage(file: Path) -> str:
    """Why a safetensors file cannot be whole, or nothing: its beginning says how long it must be."""
    try:
        state = file.stat()
        return _damage(file, state.st_size, state.st_mtime_ns)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


@lru_cache(maxsize=512)  # a form asks again at every change
def _damage(file: Path, size: int, _changed: int) -> str:
    header = _header(file, size)
    if isinstance(header, str):
        return header
    ends = [entry["data_offsets"][1] for entry in header[1].values()]
    wanted = 8 + header[0] + max(ends, default=0)
    if size < wanted:
        return f"is cut off: {_said(size)} of {_said(wanted)}"
    return "" if size == wanted else f"is damaged: {_said(size - wanted)} too long"


def _header(file: Path, size: int) -> tuple[int, dict[str, Any]] | str:
    """(bytes of the header, its tensors by name), or what is wrong."""
    if reason := _not_there(file):
        return reason
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size, LONGEST_HEADER) - 8:
            return "is cut off or no safetensors file"
        try:
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            for entry in header.values():
                begin, end = entry["data_offsets"]
                if not (isinstance(entry["dtype"], str) and 0 <= begin <= end):
                    raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "is damaged: its header cannot be read"
    return length, header


def _stored_dtype(file: Path) -> str:
    """The number format most of the bytes of a safetensors file are in."""
    header = _header(file, _size(file)) if _size(file) else ""
    if isinstance(header, str):
        return ""
    sizes: dict[str, int] = {}
    for entry in header[1].values():
        begin, end = entry["data_offsets"]
        sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + end - begin
    most = max(sizes, key=lambda kind: sizes[kind], default="")
    return _DTYPES.get(most, most.lower())


def _not_there(file: Path) -> str:
    if _size(file) == 0:
        return "is empty"
    return "is a pointer of git-lfs and not the file itself (run git lfs pull)" if _is_pointer(file) else ""


def _is_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _said(amount: int) -> str:
    return f"{amount / 1e9:.2f} GB" if amount >= 1e8 else f"{amount} bytes"
