"""Uploads a folder to Hugging Face or ModelScope with their own clients.

The token comes from the environment (HF_TOKEN, MODELSCOPE_API_TOKEN) and goes nowhere else. Only files that belong to a
model are sent: no pickles, no optimizer states, nothing hidden.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
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
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
Told = Callable[[int, int], None]


def upload_run(config: ExportConfig, journal: Journal) -> RunState:
    """Upload what the configuration names; the report says where it lies. Raises EngineError, StopRequested."""
    hub, repository = config.hub, str(config.repo_id)
    check_access(hub, config.endpoint)
    folder = folder_to_send(config)
    files = chosen(folder)
    started = time.time()
    journal.phase("upload", f"{len(files)} files to {repository} on {TITLES[hub]}")
    total = sum(file.stat().st_size for file in files)

    def told(done: int, of: int) -> None:
        journal.progress(done // 2**20, max(1, of // 2**20), "MB sent")

    told(0, total)
    with explained(config):
        send = _to_modelscope if hub == "modelscope" else _to_huggingface
        address = send(config, folder, files, told)
    journal.interruptible = False
    proof = {"passed": True, "reason": "", "files": len(files)}
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


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def _to_huggingface(config: ExportConfig, folder: Path, files: list[Path], told: Told) -> str:
    """Large files one by one (those the hub has are skipped), then everything in one commit. Returns the address."""
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # plain HTTP: goes through every proxy, and tells its progress
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=config.endpoint, token=token("huggingface"))
    api.create_repo(str(config.repo_id), private=config.private, exist_ok=True, repo_type="model")
    operations, done, total = [], 0, sum(file.stat().st_size for file in files)
    for file in files:
        operation: Any = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file))
        api.preupload_lfs_files(str(config.repo_id), [operation], num_threads=1)
        operations.append(operation)
        done += file.stat().st_size
        told(done, total)
    api.create_commit(str(config.repo_id), operations, commit_message=f"Upload {folder.name}")
    return f"{api.endpoint}/{config.repo_id}"


# ---- ModelScope ------------------------------------------------------------------------------------------------------


def _to_modelscope(config: ExportConfig, folder: Path, files: list[Path], told: Told) -> str:
    hub_api = modelscope.hub_api()
    api = hub_api(endpoint=config.endpoint) if config.endpoint else hub_api()
    access = token("modelscope")
    api.create_repo(
        str(config.repo_id), token=access, visibility="private" if config.private else "public", exist_ok=True
    )
    done, total = 0, sum(file.stat().st_size for file in files)
    for file in files:  # one by one: the client tells no progress of a folder
        api.upload_file(
            path_or_fileobj=str(file),
            path_in_repo=file.name,
            repo_id=str(config.repo_id),
            token=access,
            commit_message=f"Upload {file.name}",
        )
        done += file.stat().st_size
        told(done, total)
    return f"{(config.endpoint or 'https://modelscope.cn').rstrip('/')}/models/{config.repo_id}"
