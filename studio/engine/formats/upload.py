"""Uploads a folder to Hugging Face or ModelScope with their own clients.

The token comes from the environment (HF_TOKEN, MODELSCOPE_API_TOKEN) and goes nowhere else. Only files that belong to a
model are sent: no pickles, no optimizer states, nothing hidden.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from studio.config import ExportConfig
from studio.durable import write_atomic
from studio.engine import hubfaults, modelscope
from studio.engine.failure import EngineError
from studio.engine.journal import Journal
from studio.engine.output_folder import refused
from studio.engine.public_names import public_name
from studio.events import RunState, SavedEvent
from studio.export_targets import TITLES, TOKENS, Hub, token
from studio.model_cache import offline
from studio.presets import ModelError, resolve_model
from studio.records.errors import DataError

SENT = (
    "*.safetensors", "*.gguf", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.md", "Modelfile", "LICENSE*",
)  # fmt: skip
KEPT_BACK = (".*", "trainer_state.json", "files.json", "*.index.json.part")
"""What a checkpoint holds only to go on training."""
NAMES_A_MODEL = ("base_model_name_or_path", "_name_or_path", "name_or_path")
"""Settings that may hold the folder a model was loaded from."""
_SETTINGS = ("adapter_config.json", "config.json")
_TEXTS = ("*_config.json", "config.json", "*.md", "Modelfile")
MOST_TEXT = 2**20
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
Told = Callable[[int, int], None]


def upload_run(config: ExportConfig, journal: Journal) -> RunState:
    """Upload what the configuration names; the report says where it lies. Raises EngineError, StopRequested."""
    hub, repository = config.hub, str(config.repo_id)
    check_access(hub, config.endpoint)
    folder = folder_to_send(config)
    files = chosen(folder)
    sent = contents(files)
    started = time.time()
    journal.phase("upload", f"{len(files)} files to {repository} on {TITLES[hub]}")
    total = sum(file.stat().st_size for file in files)

    def told(done: int, of: int) -> None:
        journal.progress(done // 2**20, max(1, of // 2**20), "MB sent")

    told(0, total)
    with explained(config):
        send = _to_modelscope if hub == "modelscope" else _to_huggingface
        address, there = send(config, sent, told)
    check_there(config, sent, there)
    journal.interruptible = False
    proof = {"passed": True, "reason": "", "files": len(files), "bytes": total}
    report = {"format": "hub", "hub": hub, "repo_id": repository, "out": address, "size_bytes": total, "proof": proof}
    text = json.dumps(report | {"seconds": round(time.time() - started, 1)}, ensure_ascii=False, indent=1)
    write_atomic(journal.run.report_file, text)
    journal.emit(SavedEvent(path=address, what="export"))
    return RunState.FINISHED


def check_access(hub: Hub, endpoint: str | None) -> None:
    """Whether an upload can be tried at all. Raises EngineError of kind config, naming the field."""
    if hub == "huggingface" and offline():
        sentence = "hub: the hub is switched off (environment variable HF_HUB_OFFLINE)."
        raise refused("config", "hub", sentence, "Start the studio without it.")
    if hub == "modelscope":
        try:
            modelscope.client()
        except DataError as error:
            raise refused("config", "hub", f"hub: {error.message}", "Then start the upload again.") from None
    if not token(hub):
        sentence = f"hub: {TITLES[hub]} lets nobody upload without a token."
        raise refused("config", "hub", sentence, f"Start the studio with it in the environment variable {TOKENS[hub]}.")
    if endpoint and not _unread_by_others(endpoint):
        sentence = "endpoint: a token is not sent over a connection that others can read."
        raise refused("config", "endpoint", sentence, "Give an address that begins with https://.")


def _unread_by_others(endpoint: str) -> bool:
    """Whether what is sent there is encrypted or stays on this machine."""
    try:
        address = urlsplit(endpoint)
    except ValueError:
        return False
    return address.scheme == "https" or (address.scheme == "http" and address.hostname in _THIS_MACHINE)


def folder_to_send(config: ExportConfig) -> Path:
    """The adapter if one is named, else the model's folder (also one of GGUF files). Raises EngineError."""
    field, reference = ("adapter", config.adapter) if config.adapter else ("model", config.model)
    folder = Path(str(reference)).expanduser()
    if not folder.is_dir():
        try:
            ref = resolve_model(str(reference))
        except ModelError as error:
            raise refused("model", field, f"{field}: {error.message}", error.hint) from None
        folder = Path(ref.path_or_id)
        if not ref.local:
            sentence = f"{field}: {reference} lies on a hub already, not on this machine."
            raise refused("model", field, sentence, "Choose something that was made here.")
    return folder


def chosen(folder: Path) -> list[Path]:
    """The files of a folder to send, small ones first. Raises EngineError of kind model when there are no weights."""
    found = [
        file for file in folder.iterdir() if file.is_file() and _matches(file, SENT) and not _matches(file, KEPT_BACK)
    ]
    if not any(file.suffix in (".safetensors", ".gguf") for file in found):
        sentence = f"model: {folder.name} holds no weights in safetensors or GGUF format."
        raise refused("model", "model", sentence, "Choose an adapter, a merged model or an export.")
    return sorted(found, key=lambda file: (file.stat().st_size, file.name))


def _matches(file: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)


@contextlib.contextmanager
def explained(config: ExportConfig) -> Iterator[None]:
    """What a client raises becomes one sentence."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise _said(config, hubfaults.names_of(error), hubfaults.said_by(error)) from error


def _said(config: ExportConfig, names: set[str], said: str) -> EngineError:
    hub, name = TITLES[config.hub], TOKENS[config.hub]
    if "401" in said or "Unauthorized" in said or "Invalid user token" in said:
        return refused("config", "hub", f"hub: {hub} does not accept the token.", f"Put a valid one into {name}.")
    if "403" in said or "Forbidden" in said:
        sentence = f"repo_id: the token may not write to {config.repo_id}."
        return refused("config", "repo_id", sentence, "Use a token with write rights, or a repository of your own.")
    if names & hubfaults.UNREACHED:
        where = config.endpoint or hub
        sentence = f"hub: {where} cannot be reached from this machine."
        return refused("config", "hub", sentence, "Check the network and start again; what was sent is kept.")
    sentence = f"hub: {hub} refused the upload ({said[:200]})."
    return refused("config", "hub", sentence, "Start again: files that went through are not sent twice.")


def contents(files: list[Path]) -> dict[str, Path | bytes]:
    """What is sent, by name: the files, and of those that name a folder of this machine a text that does not."""
    private = {path for file in files if file.name in _SETTINGS for path in _paths_in(file)}
    return {file.name: _public(file, private) for file in files}


def _paths_in(file: Path) -> set[str]:
    """The folders of this machine that a file of settings names."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    named = [known.get(name) for name in NAMES_A_MODEL] if isinstance(known, dict) else []
    return {name for name in named if isinstance(name, str) and public_name(name) not in ("", name)}


def _public(file: Path, private: set[str]) -> Path | bytes:
    if not private or not _matches(file, _TEXTS) or file.stat().st_size > MOST_TEXT:
        return file
    text = before = file.read_bytes()
    for path in sorted(private, key=len, reverse=True):
        text = text.replace(path.encode(), public_name(path).encode())
    return file if text == before else text


def check_there(config: ExportConfig, sent: Mapping[str, Path | bytes], there: Mapping[str, int]) -> None:
    """The hub lists every file with the size it was sent with. Raises EngineError naming the first that it does not."""
    for name, known in sent.items():
        if there.get(name) != _size(known):
            found = f"has {there[name]} bytes instead of {_size(known)}" if name in there else "is not there"
            sentence = f"repo_id: after the upload {name} {found} in {config.repo_id}."
            raise refused("config", "repo_id", sentence, "Start the upload again: what went through is not sent twice.")


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def _to_huggingface(config: ExportConfig, files: Mapping[str, Path | bytes], told: Told) -> tuple[str, dict[str, int]]:
    """Large files one by one (those the hub has are skipped), then everything in one commit.

    Returns the address and what the hub lists afterwards.
    """
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # plain HTTP: goes through every proxy, and tells its progress
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    repository = str(config.repo_id)
    api = HfApi(endpoint=config.endpoint, token=token("huggingface"))
    api.create_repo(repository, private=config.private, exist_ok=True, repo_type="model")
    operations, done, total = [], 0, sum(map(_size, files.values()))
    for name, known in files.items():
        sent = known if isinstance(known, bytes) else str(known)
        operation: Any = CommitOperationAdd(path_in_repo=name, path_or_fileobj=sent)
        api.preupload_lfs_files(repository, [operation], num_threads=1)
        operations.append(operation)
        done += _size(known)
        told(done, total)
    api.create_commit(repository, operations, commit_message="Upload with Crucible")
    listed = api.model_info(repository, files_metadata=True).siblings or []
    return f"{api.endpoint}/{repository}", {file.rfilename: int(file.size or 0) for file in listed}


def _size(known: Path | bytes) -> int:
    return len(known) if isinstance(known, bytes) else known.stat().st_size


# ---- ModelScope ------------------------------------------------------------------------------------------------------


def _to_modelscope(config: ExportConfig, files: Mapping[str, Path | bytes], told: Told) -> tuple[str, dict[str, int]]:
    """The same; file by file, as the client tells no progress of a folder."""
    repository, access = str(config.repo_id), token("modelscope")
    where = {"endpoint": config.endpoint} if config.endpoint else {}
    api = modelscope.hub_api()(token=access, **where)
    api.create_repo(repository, token=access, visibility="private" if config.private else "public", exist_ok=True)
    done, total = 0, sum(map(_size, files.values()))
    for name, known in files.items():
        api.upload_file(
            path_or_fileobj=known if isinstance(known, bytes) else str(known),
            path_in_repo=name,
            repo_id=repository,
            token=access,
            commit_message=f"Upload {name}",
        )
        done += _size(known)
        told(done, total)
    listed = {str(file["Path"]): int(file["Size"]) for file in api.get_model_files(repository)}
    return f"{(config.endpoint or 'https://modelscope.cn').rstrip('/')}/models/{repository}", listed
