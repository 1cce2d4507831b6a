"""A model in an original layout, made ready to be loaded: converted once, kept in the workspace, used from there.

The converted folder is named by what it was made from, filled beside its place and moved there when it is whole, so
that nobody ever sees half of one; two processes that want it at once make it once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from studio.engine.failure import EngineError, model_failure
from studio.events import ErrorKind, RunError
from studio.layout_configs import Refused
from studio.layouts import Layout, read_layout
from studio.presets import ModelError, ModelRef, resolve_model
from studio.records import DataError
from studio.records.original_tokenizer import OriginalTokenizer, read_original
from studio.remote_code import NO_CODE, allowed

MODEL_FIELD = "model.model_name_or_path"
MARK = "layout.json"  # written last: a folder without it is not whole
VERSION = 1  # of the conversion; another one converts everything again
SPARE_BYTES = 64 * 2**20
_FETCHED = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "LICENSE*"]
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
_SETTINGS = (
    "bos_token_id",
    "pad_token_id",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "max_new_tokens",
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Original:
    """A model folder in an original layout."""

    folder: Path
    layout: Layout


def find_original(ref: ModelRef, field: str = MODEL_FIELD) -> Original | None:
    """The folder behind a reference if it is in an original layout (fetched from the hub if need be), else None.

    Raises EngineError of kind model for a model that needs code of its own.
    """
    try:
        if ref.local:
            layout = read_layout(Path(ref.path_or_id))
            return Original(Path(ref.path_or_id), layout) if layout else None
        return _from_hub(ref.path_or_id)
    except Refused as error:
        if allowed():
            return None
        raise model_failure(f"{field}: {Path(ref.ref).name}: {error}.", f"{NO_CODE}.", field) from error


def layout_note(reference: str) -> str:
    """For the card of what was trained: which form of its base it fits; empty where there is only one."""
    with contextlib.suppress(ModelError, EngineError):
        ref = resolve_model(reference)
        original = find_original(ref) if ref.local else None
        if original:
            family = original.layout.family
            return f"Layout: {family.becomes}, converted from the layout of {family.title}"
    return ""


def _from_hub(name: str) -> Original | None:
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        folder = Path(hf_hub_download(name, "config.json")).parent
        layout = read_layout(folder)
        if layout is None:
            return None
        return Original(Path(snapshot_download(name, allow_patterns=_FETCHED)), layout)
    except Refused:
        raise
    except Exception:  # no network, no such model: said where the model is loaded, as for every other model
        return None


def ready(ref: ModelRef, workspace: Path, progress: Progress | None = None, field: str = MODEL_FIELD) -> ModelRef:
    """The reference to load: itself, or the converted folder if it is in an original layout.

    Raises:
        EngineError: kind model, naming `field` (weights that do not fit the layout, a tokenizer that cannot be read, a
            model that needs its own code), or kind disk.
    """
    original = find_original(ref, field)
    if original is None:
        return ref
    cache = workspace / "cache" / "converted"
    target = cache / _key(original)
    with _faults_named(original, field, cache):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{target.name}.lock"):
            if not (target / MARK).is_file():
                _make(original, target, progress)
    return ModelRef(ref.ref, str(target), local=True)


def _key(original: Original) -> str:
    """What the converted folder depends on, as a name: configuration, tokenizer files, size and age of the weights."""
    digest = hashlib.sha256(f"{VERSION}:{original.folder}".encode())
    for file in sorted(original.folder.iterdir()):
        if file.is_file():
            state = file.stat()
            digest.update(f"\0{file.name}:{state.st_size}:{state.st_mtime_ns}".encode())
    return f"{original.layout.family.key}-{digest.hexdigest()[:20]}"


def _make(original: Original, target: Path, progress: Progress | None) -> None:
    from studio.engine.layouts import convert_weights  # torch: seconds to import

    _forget_older(original, target)
    _check_disk(original, target.parent)
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        tokenizer = read_original(original.folder)
        config = original.layout.converted_config()
        _write_json(part / "config.json", config)
        if tokenizer:
            tokenizer.write(part)
            _write_json(part / "generation_config.json", _generation(original.folder, config, tokenizer))
        convert_weights(original.folder, part, original.layout, progress)
        family = original.layout.family
        _write_json(part / MARK, {"family": family.key, "becomes": family.becomes, "source": str(original.folder)})
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _forget_older(original: Original, target: Path) -> None:
    """Remove what was converted from an earlier state of the same folder, and a torn one in this place."""
    for folder in target.parent.glob(f"{original.layout.family.key}-*"):
        if folder.is_dir() and folder.suffix != ".part":
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if json.loads((folder / MARK).read_text(encoding="utf-8"))["source"] == str(original.folder):
                    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)


def _check_disk(original: Original, cache: Path) -> None:
    needed = sum(file.stat().st_size for file in original.folder.glob("*.safetensors")) + SPARE_BYTES
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise _failure(
            "disk",
            "workspace",
            f"workspace: converting {original.folder.name} needs {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free.",
            "Free some space, or use a workspace on another disk.",
        )


def _generation(folder: Path, config: dict[str, Any], tokenizer: OriginalTokenizer) -> dict[str, Any]:
    """generation_config.json: what the original says of ordinary settings, and every token that ends an answer."""
    from tokenizers import Tokenizer

    try:
        given = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        given = {}
    given = given if isinstance(given, dict) else {}
    settings = {name: given[name] for name in _SETTINGS if given.get(name) is not None}
    backend = Tokenizer.from_str(tokenizer.backend)
    named = [given.get("eos_token_id"), config.get("eos_token_id")]
    ends = [
        number for item in named for number in (item if isinstance(item, list) else [item]) if isinstance(number, int)
    ]
    texts = [*tokenizer.stop_words, tokenizer.config.get("eos_token")]
    ends += [number for text in texts if text and (number := backend.token_to_id(text)) is not None]
    return settings | ({"eos_token_id": sorted(set(ends))} if ends else {})


def write_back(original: Original, merged: Path) -> None:
    """Rewrite a merged model folder in the layout of the base it came from, its other files included.

    Raises EngineError: something was trained that the original layout cannot hold (field layout).
    """
    from studio.engine.layouts import LayoutError, restore_weights

    inside = merged / "original"
    inside.mkdir()
    try:
        restore_weights(merged, original.folder, inside, original.layout)
    except LayoutError as error:
        raise _failure(
            "config", "layout", f"layout: the original layout cannot be written ({error}).", "Choose converted."
        ) from error
    dtype = json.loads((merged / "config.json").read_text(encoding="utf-8")).get("dtype")
    for file in sorted(original.folder.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, inside / file.name)
    _write_json(inside / "config.json", original.layout.config | {"torch_dtype": dtype})
    for name in ("README.md", "chat_template.jinja"):
        if (merged / name).is_file():
            shutil.copyfile(merged / name, inside / name)
    for path in [path for path in merged.iterdir() if path != inside]:
        path.unlink()
    for path in list(inside.iterdir()):
        path.chmod(0o644)
        path.rename(merged / path.name)
    inside.rmdir()


@contextlib.contextmanager
def _faults_named(original: Original, field: str, cache: Path) -> Iterator[None]:
    name = original.folder.name
    try:
        yield
    except DataError as error:
        raise model_failure(f"{field}: {error.message}", "Copy the model again.", field) from error
    except OSError as error:
        reason = error.strerror or error
        sentence = f"workspace: {name} cannot be converted into {cache} ({reason})."
        raise _failure("disk", "workspace", sentence, "Free some space, or use another workspace.") from error
    except ValueError as error:  # LayoutError, without importing torch for its name
        sentence = f"{field}: {name} cannot be converted from the layout of {original.layout.family.title}: {error}."
        raise model_failure(sentence, "Copy the model again, with all its files.", field) from error


def _failure(kind: ErrorKind, field: str, message: str, hint: str) -> EngineError:
    return EngineError(RunError(kind=kind, message=message, hint=hint, field=field))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
