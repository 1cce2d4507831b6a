"""Fetches a model from Hugging Face or ModelScope into the cache of their own client, file by file, going on where an
earlier try ended.

Only what a model is loaded from is fetched: safetensors, configuration, tokenizer. Never pickles, never code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

from studio import hardware
from studio.engine import hubfaults, modelscope
from studio.events import ExitCode, RunState
from studio.fetchdir import ID_FIELDS, FetchDir, FetchJob, FetchStatus
from studio.model_cache import MAIN, offline
from studio.model_files import faults
from studio.records.errors import DataError

FIELD = ID_FIELDS["model"]
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "README.md", "LICENSE*")
UNWANTED = ("*/*", "consolidated*", "*.bin.index.json")
"""Folders hold other formats; `consolidated` is the same weights a second time."""
WRITE_EVERY_S = 0.3
HUB_TIMEOUT_S = 15.0
AT_ONCE = 4
SPARE_BYTES = 2**28


class _Broken(Exception):
    """Another file could not be fetched: this one is given up too."""


class Meter:
    """Bytes that have come, told to by every thread that fetches."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self.broken = False
        self._lock = threading.Lock()

    def add(self, amount: float) -> None:
        """So many bytes more, fewer if a file has to be begun again. Raises once another thread has failed."""
        with self._lock:
            self.done += int(amount)
        if self.broken:
            raise _Broken


class _Bar:
    """Stands in for tqdm's bar of one file, of which `there` bytes had come before."""

    meter: Meter
    there: int

    def __init__(self, *_: Any, initial: float = 0, **__: Any) -> None:
        if initial < self.there:  # a server that cannot go on from the middle sends the file whole
            self.update(initial - self.there)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def update(self, amount: float = 1) -> None:
        self.meter.add(amount)


def fetch(place: FetchDir, job: FetchJob, status: FetchStatus) -> None:
    """Fetches the model of a job; `status` tells how far it is and, at the end, where the model lies.

    Raises DataError (one sentence) and OSError (the disk). A stop ends the process at once: there is nothing to undo.
    """
    meter = Meter()
    status.phase = "look"
    place.write_status(status)
    with _told(place, status, meter), hubfaults.explained(job):
        folder = _from_modelscope(job, status, meter) if job.hub == "modelscope" else _huggingface(job, status, meter)
    wrong = next(faults(folder), None)
    if wrong:
        raise DataError(f"The files came, but {wrong.message}. Its owner may have left something out.", field=FIELD)
    status.path, status.done = str(folder), meter.total or meter.done
    status.total = status.done


@contextlib.contextmanager
def _told(place: FetchDir, status: FetchStatus, meter: Meter) -> Iterator[None]:
    """Meanwhile the status is written now and then, and a stop is obeyed."""
    ended = threading.Event()

    def leave(*_: object) -> None:
        status.state, status.phase = RunState.STOPPED, "end"
        with contextlib.suppress(OSError):
            place.write_status(status)
        os._exit(ExitCode.STOPPED)  # threads that wait for the network would be waited for

    def tell() -> None:
        while not ended.wait(WRITE_EVERY_S):
            if place.stop_requested():
                leave()
            status.done, status.total = meter.done, meter.total
            with contextlib.suppress(OSError):
                place.write_status(status)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, leave)
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def chosen(names: Sequence[str], model: str) -> list[str]:
    """The files of a repository to fetch. Raises DataError when it has no weights that can be loaded safely."""
    found = [name for name in names if _matches(name, WANTED) and not _matches(name, UNWANTED)]
    if any(name.endswith(".safetensors") for name in found):
        return found
    raise DataError(
        f"{model} has no weights in safetensors format; other formats can run code and are never loaded. Choose a "
        "version of it in safetensors format.",
        field=FIELD,
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def _huggingface(job: FetchJob, status: FetchStatus, meter: Meter) -> Path:
    # Plain HTTP leaves a beginning that can be gone on from; Xet's client keeps nothing of a file that was cut off.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if offline():
        raise DataError(
            "The hub is switched off (environment variable HF_HUB_OFFLINE). Start the studio without it.",
            field=FIELD,
        )
    disable_progress_bars()
    access = _access(job)
    api = HfApi(endpoint=job.endpoint, token=access)
    facts = api.model_info(job.id, revision=job.revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
    files = {file.rfilename: file for file in facts.siblings or ()}
    names = chosen(list(files), job.id)
    status.phase, meter.total = "download", sum(files[name].size or 0 for name in names)
    cache = _Cache(job, str(facts.sha), access)
    large = [files[name] for name in names if files[name].lfs]
    _check_room(cache, meter.total)
    _all_at_once(cache, large, meter)
    meter.done = sum(file.size or 0 for file in large)
    found = snapshot_download(
        job.id,
        revision=job.revision or MAIN,
        allow_patterns=names,
        endpoint=job.endpoint,
        token=access,
        max_workers=AT_ONCE,
    )
    return Path(found)


def _access(job: FetchJob) -> str | bool:
    """The token of the environment, for the hub the environment names; an address from a form is told none."""
    return False if job.endpoint else os.environ.get("HF_TOKEN", "").strip() or False


class _Cache:
    """Where the client keeps the files of one model, and how a large one gets there."""

    def __init__(self, job: FetchJob, commit: str, access: str | bool) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        self.job, self.commit, self.access = job, commit, access
        self.root = Path(constants.HF_HUB_CACHE)
        folder = repo_folder_name(repo_id=job.id, repo_type="model")
        self.blobs, self.locks = self.root / folder / "blobs", self.root / ".locks" / folder

    def bring(self, file: Any, meter: Meter) -> None:
        """Fetches one file, going on from what is there of it. Raises DataError when it is not what was promised."""
        from filelock import FileLock
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get

        digest, size = str(file.lfs.sha256), int(file.size or 0)
        blob, part = self.blobs / digest, self.blobs / f"{digest}.incomplete"
        with FileLock(self.locks / f"{digest}.lock"):
            if blob.exists():
                return meter.add(size)
            with part.open("r+b" if part.exists() else "wb") as opened:
                there = opened.seek(0, os.SEEK_END)
                if there > size:
                    there = opened.truncate(opened.seek(0))
                meter.add(there)
                url = hf_hub_url(self.job.id, file.rfilename, revision=self.commit, endpoint=self.job.endpoint)
                headers = import_module("huggingface_hub.utils").build_hf_headers(token=self.access)
                bar: Any = type("Bar", (_Bar,), {"meter": meter, "there": there})
                http_get(url, opened, resume_size=there, headers=headers, expected_size=size, tqdm_class=bar)
            if _sha256(part) != digest:
                part.unlink()
                raise DataError(
                    f"{file.rfilename} of {self.job.id} is not what its hub promised. Start again.", field=FIELD
                )
            part.replace(blob)
        return None


def _check_room(cache: _Cache, wanted: int) -> None:
    """Raises DataError when the disk cannot hold what is still to come."""
    cache.blobs.mkdir(parents=True, exist_ok=True)
    cache.locks.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for file in cache.blobs.iterdir())
    free = hardware.disk_free_bytes(cache.root)
    if wanted - there + SPARE_BYTES > free:
        raise DataError(
            f"{cache.job.id} takes {(wanted - there) / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free in "
            f"{cache.root}. Free some space, or name another disk in the environment variable HF_HOME.",
            field="workspace",
        )


def _all_at_once(cache: _Cache, files: Sequence[Any], meter: Meter) -> None:
    """Fetches files side by side. The first failure ends the others too, and is raised."""

    def bring(file: Any) -> None:
        try:
            cache.bring(file, meter)
        except BaseException:
            meter.broken = True
            raise

    with ThreadPoolExecutor(AT_ONCE) as pool:
        tries = [pool.submit(bring, file) for file in files]
    errors = [error for item in tries if (error := item.exception())]
    first = next((error for error in errors if not isinstance(error, _Broken)), None)
    if first:
        raise first


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# ---- ModelScope ------------------------------------------------------------------------------------------------------


def _from_modelscope(job: FetchJob, status: FetchStatus, meter: Meter) -> Path:
    client = modelscope.client()
    status.phase = "download"

    class Progress:
        """Made for each file by the client."""

        def __init__(self, filename: str, file_size: int) -> None:
            meter.total += max(file_size, 0)

        def update(self, size: int) -> None:
            meter.add(size)

        def end(self) -> None:
            """Nothing to close."""

    access = {} if job.endpoint else {"token": os.environ.get("MODELSCOPE_API_TOKEN") or None}
    found = client.snapshot_download(
        job.id,
        revision=job.revision,
        allow_patterns=list(WANTED),
        ignore_patterns=list(UNWANTED),
        endpoint=job.endpoint,
        progress_callbacks=[Progress],
        **access,
    )
    return Path(str(found))
