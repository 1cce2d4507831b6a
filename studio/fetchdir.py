"""One fetch from a hub is one directory, of a dataset in <workspace>/imports, of a model in <workspace>/downloads.

This file owns every file name in it:

job.json      writer: starter, once       FetchJob: what is fetched
launch.json   writer: starter, once       the process that does it
status.json   writer: the engine          FetchStatus, replaced atomically
fetch.log     writer: the system          what the libraries print
stop          writer: browser or CLI      "please stop"
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.events import Launch, RunError, RunState
from studio.records.errors import DataError, Skipped, shown
from studio.records.renaming import Names
from studio.rundir import is_alive, write_atomic
from studio.workspace import Workspace, slug

Hub = Literal["huggingface", "modelscope", "folder", "file"]
What = Literal["dataset", "model"]
FOLDER = "imports"
FOLDERS: dict[What, str] = {"dataset": FOLDER, "model": "downloads"}
ID_FIELD = "data.dataset"
ID_FIELDS: dict[What, str] = {"dataset": ID_FIELD, "model": "model.model_name_or_path"}
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(huggingface\.co|hf\.co|modelscope\.cn|modelscope\.ai)/datasets/(.*)")
_MODEL_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(huggingface\.co|hf\.co|modelscope\.cn|modelscope\.ai)/(?:models/)?(?!datasets/)(.*)"
)
_ENDPOINT = re.compile(r"https?://[\w.-]+(:\d{1,5})?(/[\w./-]*)?", re.ASCII)
_SKIPPED_KEPT = 50


class FetchJob(BaseModel):
    """What to fetch: `id` is a hub's owner/name, or an absolute path; `rows` is a limit, `names` are written in.

    A "folder" is a downloaded dataset repository, a "file" whatever `open_records` reads, also a folder of texts.
    Of a model only `revision` and `endpoint` (the address of a mirror) are looked at; no token goes to such an address.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: What = "dataset"
    id: str = Field(min_length=1, max_length=1000)
    hub: Hub = "huggingface"
    subset: str | None = Field(default=None, max_length=200)
    split: str | None = Field(default=None, max_length=200)
    mapping: str | None = Field(default=None, max_length=2000)
    title: str = Field(default="", max_length=400)
    rows: int | None = Field(default=None, ge=1)
    strict: bool = False
    names: Names = Names()
    revision: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[\w][\w./-]*$")
    endpoint: str | None = Field(default=None, max_length=500)

    @property
    def name(self) -> str:
        """The last part of the id."""
        return Path(self.id).name


class FetchStatus(BaseModel):
    """How far a fetch is: `done` of `total` rows, of a model bytes (0: not known).

    At the end the name of the dataset or the folder of the model, or an error.
    """

    model_config = ConfigDict(extra="ignore")

    state: RunState = RunState.QUEUED
    phase: Literal["start", "look", "download", "read", "end"] = "start"
    done: int = 0
    total: int = 0
    skipped: int = 0
    first_skipped: list[tuple[int, str]] = []
    notes: list[str] = []
    dataset: str = ""
    path: str = ""
    error: RunError | None = None
    updated_at: float = Field(default_factory=time.time)

    def skips(self, skipped: list[Skipped]) -> None:
        """Keeps the first rows that were left out."""
        self.first_skipped = [(entry.row, entry.reason) for entry in skipped[:_SKIPPED_KEPT]]


def is_hub_id(text: str) -> bool:
    """Whether a text could be owner/name on a hub."""
    return bool(_ID.fullmatch(text)) and ".." not in text


def job_for(text: str, hub: Hub | None = None, **settings: object) -> FetchJob:
    """A job for what a person typed: an id, or the address of its page. Raises DataError for anything else."""
    name = text.strip()
    address = _ADDRESS.fullmatch(name)
    if address:
        hub = hub or ("modelscope" if "modelscope" in address.group(1) else "huggingface")
        name = "/".join(re.split(r"[?#]", address.group(2))[0].strip("/").split("/")[:2])
    if not is_hub_id(name):
        raise DataError(
            f"'{shown(text, 100)}' is no hub id. It looks like owner/name, as on the page of the dataset.",
            field=ID_FIELD,
        )
    return _job(id=name, hub=hub or "huggingface", **settings)


def model_job(text: str, hub: Hub | None = None, **settings: object) -> FetchJob:
    """A job for a model: its id, or the address of its page. Raises DataError for anything else."""
    name = text.strip()
    address = _MODEL_ADDRESS.fullmatch(name)
    if address:
        hub = hub or ("modelscope" if "modelscope" in address.group(1) else "huggingface")
        name = "/".join(re.split(r"[?#]", address.group(2))[0].strip("/").split("/")[:2])
    if not is_hub_id(name):
        raise DataError(
            f"'{shown(text, 100)}' is no hub id. It looks like owner/name, as on the page of the model.",
            field=ID_FIELDS["model"],
        )
    endpoint = settings.get("endpoint")
    if endpoint and not _ENDPOINT.fullmatch(str(endpoint)):
        raise DataError(
            f"'{shown(str(endpoint), 100)}' is no address of a hub. It looks like https://hf-mirror.com.",
            field="endpoint",
        )
    return _job(what="model", id=name, hub=hub or "huggingface", **settings)


def job_for_folder(folder: Path, **settings: object) -> FetchJob:
    """A job for a downloaded dataset repository. The caller has checked that the folder may be read."""
    return _job(id=str(folder.resolve()), hub="folder", **settings)


def _job(**settings: object) -> FetchJob:
    try:
        return FetchJob.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        section = "" if settings.get("what") == "model" else "data."
        raise DataError(f"{place}: {shown(first['msg'], 120)}.", field=f"{section}{place}") from None


class FetchDir:
    """The directory of one fetch: its file names, and how each is read and written."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.id = self.path.name
        self.job_file = self.path / "job.json"
        self.launch_file = self.path / "launch.json"
        self.status_file = self.path / "status.json"
        self.log_file = self.path / "fetch.log"
        self.stop_file = self.path / "stop"

    @property
    def datasets(self) -> Path:
        """The folder of the workspace's datasets."""
        return self.path.parent.parent / "datasets"

    def job(self) -> FetchJob:
        """What is fetched. Raises DataError when the file is missing or wrong."""
        try:
            return FetchJob.model_validate_json(self.job_file.read_bytes())
        except (OSError, ValidationError):
            raise DataError(f"The fetch {self.id} is damaged. Start it again.", field=ID_FIELD) from None

    def write_job(self, job: FetchJob) -> None:
        """Written once, before the start."""
        write_atomic(self.job_file, job.model_dump_json(indent=1))

    def write_launch(self, launch: Launch) -> None:
        """Record which process works here."""
        write_atomic(self.launch_file, launch.model_dump_json(indent=1))

    def write_status(self, status: FetchStatus) -> None:
        """Replace status.json."""
        status.updated_at = time.time()
        write_atomic(self.status_file, status.model_dump_json(indent=1))

    def request_stop(self) -> None:
        """Ask the engine to stop."""
        self.stop_file.touch()

    def stop_requested(self) -> bool:
        """True once somebody asked for a stop."""
        return self.stop_file.exists()

    def launch(self) -> Launch | None:
        """The process record, or None before the start."""
        try:
            return Launch.model_validate_json(self.launch_file.read_bytes())
        except (OSError, ValidationError):
            return None

    def status(self) -> FetchStatus:
        """How far it is now. A fetch whose process is gone without a last word is lost."""
        launch = self.launch()
        alive = is_alive(launch)  # looked up first: an engine that ends in between is seen by its last word
        try:
            found = FetchStatus.model_validate_json(self.status_file.read_bytes())
        except (OSError, ValidationError):
            found = FetchStatus(state=RunState.STARTING if launch else RunState.QUEUED)
        if launch and not alive and (found.state.live or found.state is RunState.QUEUED):
            found.state = RunState.LOST
        return found


def fetches(workspace: Workspace, what: What = "dataset") -> list[FetchDir]:
    """Every fetch of that kind in a workspace, newest first."""
    try:
        found = [path for path in (workspace.path / FOLDERS[what]).iterdir() if (path / "job.json").is_file()]
    except OSError:
        return []
    return [FetchDir(path) for path in sorted(found, reverse=True)]


def new_fetch(workspace: Workspace, job: FetchJob, now: float | None = None) -> FetchDir:
    """A directory for a fetch. Raises OSError."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    for attempt in range(1, 1000):
        path = (
            workspace.path / FOLDERS[job.what] / (f"{stamp}_{slug(job.name)}" + (f"-{attempt}" if attempt > 1 else ""))
        )
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        fetch = FetchDir(path)
        fetch.write_job(job)
        return fetch
    raise FileExistsError(path)
