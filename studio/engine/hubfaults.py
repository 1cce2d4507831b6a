"""What the hubs' libraries raise, as one sentence. Their exceptions are known by name: none has to be imported."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Iterator

from studio.fetchdir import ID_FIELDS, FetchJob
from studio.records.errors import DataError, shown

HUBS = {"huggingface": "Hugging Face", "modelscope": "ModelScope", "folder": "this folder"}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_NOT_THERE = {"DatasetNotFoundError", "RepositoryNotFoundError", "NotExistError", "HFValidationError"}
_NO_FILES = {"EmptyDatasetError", "DataFilesNotFoundError"}
UNREACHED = {
    "ConnectionError", "ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "RemoteProtocolError",
    "ProxyError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "NetworkError", "TimeoutException",
    "NewConnectionError", "MaxRetryError", "gaierror", "TransportError",
}  # fmt: skip
_UNREADABLE = {
    "DatasetGenerationError", "DatasetGenerationCastError", "DatasetBuildError", "FileFormatError", "CastError",
    "ArrowInvalid", "SplitsVerificationError", "NonMatchingSplitsSizesError", "ChecksumVerificationError",
}  # fmt: skip


@contextlib.contextmanager
def explained(job: FetchJob) -> Iterator[None]:
    """Inside, what a library raises about what `job` fetches becomes a DataError; a full disk stays what it is."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        traceback.print_exc()  # the whole story, for the log
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        raise DataError(_sentence(error, job), field=ID_FIELDS[job.what]) from None


def names_of(error: Exception) -> set[str]:
    """The names of the classes of an error and of everything that caused it."""
    return {kind.__name__ for item in _chain(error) for kind in type(item).__mro__}


def said_by(error: Exception) -> str:
    """What an error and everything that caused it say, on one line."""
    return " ".join(" ".join(str(item) for item in _chain(error)).split())


def _chain(error: Exception) -> list[Exception]:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and isinstance(cause, Exception):
        chain.append(cause)
    return chain


def _sentence(error: Exception, job: FetchJob) -> str:
    names, said = names_of(error), said_by(error)
    name = shown(job.id if job.hub != "folder" else job.name, 100)
    hub = HUBS[job.hub]
    if "RevisionNotFoundError" in names:
        return f"{name} has no revision {shown(job.revision or 'main', 100)}. Its page lists its branches and tags."
    # The order matters: a missing dataset is said with a failed request among its causes.
    if "GatedRepoError" in names or "is a gated dataset" in said:
        return (
            f"{name} is given to people its owner has let in. Ask for access on its page, then start the studio with "
            "your token in the environment variable HF_TOKEN."
        )
    if "saved using `save_to_disk`" in said:
        return f"{name} was written by save_to_disk. Import the folder as a file instead."
    if names & _NOT_THERE:
        return (
            f"There is no {job.what} {name} on {hub}, or it is private. Check its id; for a private one start the "
            "studio with your token in the environment variable HF_TOKEN."
        )
    if names & _NO_FILES or type(error).__name__ == "FileNotFoundError":
        files = "data files" if job.what == "dataset" else "files"
        return f"{name} holds no {files} that can be read. Choose another {job.what}."
    known = _about_content(names, said, name) or _about_network(names, said, job)
    return known or f"{name} cannot be loaded: {shown(str(error) or type(error).__name__, 200)}"


def _about_content(names: set[str], said: str, name: str) -> str | None:
    if "scripts are no longer supported" in said or "trust_remote_code" in said:
        return (
            f"{name} can only be loaded by a program of its own, which is never run here. Look for a version of it in "
            "JSON or Parquet."
        )
    if names & _UNREADABLE:
        return f"The files of {name} cannot be read as one table: {shown(said, 200)}. Choose another subset or split."
    return None


def _about_network(names: set[str], said: str, job: FetchJob) -> str | None:
    hub = job.endpoint or HUBS[job.hub]
    if names & UNREACHED:
        mirror = ", or name a mirror in the environment variable HF_ENDPOINT" if job.hub == "huggingface" else ""
        elsewhere = "import them" if job.what == "dataset" else "give their folder"
        return (
            f"{hub} cannot be reached from this machine. Check the network{mirror}; or download the files elsewhere "
            f"and {elsewhere}."
        )
    if "HTTPError" in names:
        return f"{hub} answers with an error: {shown(said, 160)}. Try again later."
    return None
