"""Fetches from Hugging Face or ModelScope with their own libraries: a dataset becomes one of the workspace.

    look    which subsets and splits there are; the right one is chosen, or all are named
    read    its rows, one by one, in the format found or asked for, to the store

Models are fetched by `studio.engine.hub_model`. Nothing of a repository is ever run. A token comes from the
environment (HF_TOKEN) only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from studio.engine import hub_model, hubfaults, modelscope
from studio.engine.failure import explain
from studio.events import ExitCode, RunError, RunState
from studio.fetchdir import FetchDir, FetchJob, FetchStatus
from studio.records.errors import DataError, shown
from studio.records.formats import ReadOptions, RecordStream, detect, open_records, parse_mapping
from studio.records.importing import import_stream
from studio.records.renaming import Renamed
from studio.records.rowstream import RowStream
from studio.records.store import DatasetStore

WRITE_EVERY_S = 0.3
HUB_TIMEOUT_S = 15.0
_MEDIA = ("Image", "Audio", "Video", "Pdf", "Nifti", "Mesh")
_SHOWN_NAMES = 12
Report = Callable[[str], None]


class Stopped(BaseException):
    """Somebody asked for a stop. No Exception: the libraries catch those and go on in another way."""


def main(job_dir: str) -> int:
    """Fetch what the job in `job_dir` says; returns the exit code (`studio.events.ExitCode`)."""
    fetch = FetchDir(Path(job_dir).absolute())
    status = FetchStatus(state=RunState.RUNNING)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        fetch.write_status(status)
        _fetch(fetch, status)
    except Stopped:
        status.state = RunState.STOPPED
        code = ExitCode.STOPPED
    except BaseException as error:
        status.state = RunState.FAILED
        status.error, code = _failure(error)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - the log
    else:
        status.state, code = RunState.FINISHED, ExitCode.FINISHED
    status.phase = "end"
    with contextlib.suppress(OSError):
        fetch.write_status(status)
    return int(code)


def _stop(number: int, frame: object) -> NoReturn:
    raise Stopped


def _failure(error: BaseException) -> tuple[RunError, ExitCode]:
    if isinstance(error, DataError):
        kind, code = ("disk", ExitCode.INTERNAL) if error.field == "workspace" else ("data", ExitCode.BAD_INPUT)
        return RunError(kind=kind, message=error.message, field=error.field), code
    return explain(error)


def _fetch(fetch: FetchDir, status: FetchStatus) -> None:
    """What the job says; `status` tells how far it is and what came of it."""
    job = fetch.job()
    if job.what == "model":
        hub_model.fetch(fetch, job, status)
    else:
        _fetch_dataset(fetch, job, status)


def _fetch_dataset(fetch: FetchDir, job: FetchJob, status: FetchStatus) -> None:
    def report(phase: Any) -> None:
        status.phase = phase
        fetch.write_status(status)

    report("look")
    stream = _of_file(job) if job.hub == "file" else _of_hub(job, report)
    report("read")
    found = import_stream(
        DatasetStore(fetch.datasets), stream, job.title or job.name, stream.rows.name, _progress(fetch, status, stream)
    )
    status.skipped = found.info.skipped
    status.skips(found.skipped)
    status.notes = [*found.notes]
    status.dataset, status.done = found.info.name, found.info.rows + found.info.skipped


def _of_file(job: FetchJob) -> RecordStream:
    options = ReadOptions(job.mapping, job.split, strict=job.strict, allow_placeholders=True, limit=job.rows)
    return Renamed(open_records(Path(job.id), options), job.names)


def _of_hub(job: FetchJob, report: Report) -> RecordStream:
    with hubfaults.explained(job):
        if job.hub == "huggingface":
            _reach(job)
        place = _downloaded(job, report) if job.hub == "modelscope" else job.id
        rows = HubRows(job, place, report)
    return _records(rows, job)


def _progress(fetch: FetchDir, status: FetchStatus, stream: RecordStream) -> Callable[[int, int], None]:
    """Writes the status now and then, and ends the fetch when somebody asked for it."""
    written = 0.0

    def heard(done: int, total: int) -> None:
        nonlocal written
        now = time.monotonic()
        if now - written < WRITE_EVERY_S:
            return
        written = now
        if fetch.stop_requested():
            raise Stopped
        status.done, status.total = done, total
        fetch.write_status(status)

    return heard


def _records(rows: HubRows, job: FetchJob) -> RecordStream:
    """The rows as records: in the format the job names, else in the one the first rows have."""
    if job.mapping:
        mapping = parse_mapping(job.mapping)
    else:
        mapping = detect((entry[1] for entry in rows if isinstance(entry, tuple)), rows.name)
    return RecordStream(rows, mapping, ReadOptions(strict=job.strict, limit=job.rows))


def token() -> str | bool:
    """The token of the environment; False when there is none, so that no stored one is sent either."""
    return os.environ.get("HF_TOKEN", "").strip() or False


def _reach(job: FetchJob) -> None:
    """Asks the hub for the dataset once, without the minutes of repeated tries of a download. Raises what it says."""
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        HfApi().dataset_info(job.id, timeout=HUB_TIMEOUT_S, token=token())


def _downloaded(job: FetchJob, report: Report) -> str:
    """The folder of a ModelScope dataset, downloaded. Raises DataError without ModelScope's package."""
    client = modelscope.client()
    report("download")
    return str(client.dataset_snapshot_download(job.id))


# ---- rows ------------------------------------------------------------------------------------------------------------


class HubRows(RowStream):
    """The rows of one split of a dataset repository. A fault half-way ends the fetch: half a dataset helps nobody."""

    def __init__(self, job: FetchJob, place: str, report: Report) -> None:
        import datasets

        datasets.disable_progress_bars()
        access = {"token": token()} if job.hub == "huggingface" else {}
        subset = choose_subset(datasets.get_dataset_config_names(place, **access), job)
        # A path such as data/train.jsonl makes one split each: their names are asked for before anything is loaded.
        split = choose_split(datasets.get_dataset_split_names(place, subset, **access), job)
        streaming = job.rows is not None
        report("read" if streaming else "download")
        self._rows = _without_media(datasets.load_dataset(place, subset, split=split, streaming=streaming, **access))
        parts = [part for part in (subset if subset != "default" else "", split) if part]
        super().__init__(shown(f"{job.name if job.hub == 'folder' else job.id} ({', '.join(parts)})", 200), "hub", 0)
        self.columns = tuple(self._rows.column_names or ())
        self.total = self._count(job.rows)
        self._job = job

    def _count(self, limit: int | None) -> int:
        """Rows there will be; 0 when the hub does not say."""
        known = getattr(self._rows, "num_rows", None)
        if known is None:
            splits = self._rows.info.splits or {}
            found = splits.get(str(self._rows.split))
            known = found.num_examples if found else 0
        return min(known, limit) if limit and known else int(known or limit or 0)

    def _entries(self) -> Iterator[tuple[int, Any]]:
        with hubfaults.explained(self._job):
            for number, row in enumerate(islice(self._rows, self._job.rows), 1):
                self.done = number
                yield number, row


def _without_media(rows: Any) -> Any:
    """The rows without columns of pictures and sounds, which would be decoded and cannot be trained on as text."""
    media = [name for name, kind in (rows.features or {}).items() if type(kind).__name__ in _MEDIA]
    if not media:
        return rows
    undecoded = rows.decode(False) if hasattr(rows, "decode") else rows  # a stream decodes before it leaves out
    return undecoded.remove_columns(media)


def choose_subset(names: Sequence[str], job: FetchJob) -> str:
    """The subset (configuration) to load. Raises DataError naming those there are."""
    if job.subset:
        if job.subset in names:
            return job.subset
        raise DataError(
            f"{_called(job)} has no subset '{shown(job.subset)}'. It has {_listed(names)}.", field="data.subset"
        )
    if len(names) == 1 or "default" in names:
        return "default" if "default" in names else names[0]
    raise DataError(f"{_called(job)} comes in several subsets: {_listed(names)}. Choose one.", field="data.subset")


def choose_split(names: Sequence[str], job: FetchJob) -> str:
    """The split to load: the one asked for (maybe a slice such as train[:10%]), else train, else the only one.

    Raises DataError naming those there are.
    """
    if job.split:
        wanted = [part.split("[")[0].strip() for part in job.split.split("+")]
        if all(part in (*names, "all") for part in wanted):
            return job.split
        raise DataError(
            f"{_called(job)} has no split '{shown(job.split)}'. It has {_listed(names)}.", field="data.split"
        )
    if "train" in names or len(names) == 1:
        return "train" if "train" in names else names[0]
    raise DataError(f"{_called(job)} comes in several splits: {_listed(names)}. Choose one.", field="data.split")


def _called(job: FetchJob) -> str:
    return shown(job.name if job.hub == "folder" else job.id, 100)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(shown(name, 40) for name in names[:_SHOWN_NAMES]) + more
