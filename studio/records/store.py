"""Datasets in the workspace: one folder each, of any size, written as a whole or not at all.

<datasets>/<name>/rows.jsonl     one record per line
                  heldout.jsonl  questions for the verdict, maybe none
                  dataset.json   DatasetInfo; written last, so a folder without it is half-written
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.records import rowfile, unfinished
from studio.records.conversation import Record
from studio.records.errors import DataError, nearest, shown
from studio.records.file_types import SUFFIXES
from studio.records.identity import IdentitySpec
from studio.records.naming import clean_title, is_name, slug
from studio.records.rowcheck import checked_rows, stored_row
from studio.records.rowfile import DamagedRow, Progress, Row, RowIndex

ROWS, HELDOUT, INFO = "rows.jsonl", "heldout.jsonl", "dataset.json"
Kind = Literal["identity", "upload", "text", "preference", "import", "derived"]
_READ_AGAIN = 3
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,95}", re.ASCII)


class DatasetInfo(BaseModel):
    """What is known about a dataset.

    `source` tells where it came from (a file name, a hub id, an operation), `format`, `encoding` and `skipped` how it
    was read, `self_replay` how many general rows the base model is to answer itself. The store fills in `name`, `rows`,
    `conversations`, `texts`, `sha256` and `created_at`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Kind
    title: str = ""
    source: str = ""
    format: str = ""
    encoding: str = ""
    skipped: int = 0
    languages: tuple[str, ...] = ()
    identity: IdentitySpec | None = None
    self_replay: int = 0
    name: str = ""
    rows: int = 0
    conversations: int = 0
    texts: int = 0
    sha256: str = ""
    created_at: str = ""


@dataclass(frozen=True)
class Dataset:
    """A loaded dataset: rows with their "origin", held-out questions `{"prompt", "kind", "lang", "expect"}`."""

    info: DatasetInfo
    rows: list[Row]
    heldout: list[Row]


@dataclass(frozen=True)
class Page:
    """Some rows of a dataset with their numbers (from 0), `total` being how many were chosen.

    `counts` are all rows per origin; `sha256` is what an edit of these rows must give back.
    """

    rows: list[tuple[int, Row]]
    total: int
    counts: dict[str, int]
    sha256: str


class DatasetStore:
    """The datasets of one workspace folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    # ---- writing whole datasets ----

    def save(
        self, title: str, rows: Iterable[Mapping[str, Any]], heldout: Sequence[Mapping[str, Any]], info: DatasetInfo
    ) -> DatasetInfo:
        """Checks rows and writes them as a new dataset under a free name made from `title`. Raises DataError."""
        return self.save_stream(title, checked_rows(rows), heldout, info)

    def save_stream(
        self,
        title: str,
        rows: Iterable[Record | Row],
        heldout: Sequence[Mapping[str, Any]],
        info: DatasetInfo | Callable[[], DatasetInfo],
        progress: Progress | None = None,
    ) -> DatasetInfo:
        """Writes records as they come, in bounded memory, as a new dataset. Raises DataError; then nothing is left.

        A row that is a dict is written as it is: it must come from a dataset or from `checked_rows`. An `info` that is
        a function is asked when all rows are written. `progress` hears the number of rows so far.
        """
        unfinished.clear(self.folder)
        with self._writing(self.folder), unfinished.half_folder(self.folder) as half:
            index = self._write(half / ROWS, _from_source(rows), progress)
            _write_text(half / HELDOUT, _lines_text(heldout))
            found = info if isinstance(info, DatasetInfo) else info()
            stamp = datetime.now(UTC).isoformat(timespec="seconds")
            draft = found.model_copy(update={"title": clean_title(title), "created_at": stamp, **_facts(index)})
            published = self._publish(half, draft)
            rowfile.remember(self.folder / published.name / ROWS, index)
            return published

    def rename(self, name: str, title: str) -> DatasetInfo:
        """Gives a dataset another title and the free name that follows from it. Raises DataError."""
        with self._changing(name) as folder:
            info = _read_info(folder).model_copy(update={"title": clean_title(title)})
            if slug(info.title) == name:
                _replace(folder / INFO, info.model_dump_json(indent=2))
                return info
            return self._publish(folder, info)

    def delete(self, name: str) -> None:
        """Removes a dataset: it disappears from the list at once. Raises DataError."""
        with self._changing(name) as folder:
            half = self.folder / unfinished.half_name()
            folder.rename(half)
            unfinished.remove(half)

    # ---- changing rows ----

    def replace_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> DatasetInfo:
        """Replaces all rows of a dataset; the fingerprint changes with them. Raises DataError."""
        with self._changing(name) as folder:
            return self._swap(folder, lambda target: self._write(target, checked_rows(rows)))

    def change_row(self, name: str, n: int, row: Mapping[str, Any], sha256: str) -> DatasetInfo:
        """Replaces row `n` (from 0) of the dataset whose fingerprint was `sha256`. Raises DataError."""
        (checked,) = checked_rows([row], first=n + 1)
        return self._edit(name, sha256, {n: checked}, ())

    def add_row(self, name: str, row: Mapping[str, Any], sha256: str) -> DatasetInfo:
        """Adds a row at the end. Raises DataError."""
        return self._edit(name, sha256, {}, list(checked_rows([row])))

    def delete_rows(self, name: str, numbers: Iterable[int], sha256: str) -> DatasetInfo:
        """Removes the rows with these numbers (from 0). Raises DataError, also when none would be left."""
        return self._edit(name, sha256, dict.fromkeys(numbers), ())

    def _edit(
        self, name: str, sha256: str, changes: Mapping[int, Mapping[str, Any] | None], added: Sequence[Row]
    ) -> DatasetInfo:
        with self._changing(name) as folder:
            index = rowfile.index_of(folder / ROWS)
            if index.sha256 != sha256:
                raise DataError(f"The dataset {name} has been changed meanwhile. Open it again and repeat the change.")
            wrong = next((n for n in changes if not 0 <= n < index.rows), None)
            if wrong is not None:
                raise DataError(f"The dataset {name} has no row {wrong + 1}; it has {index.rows}.")
            if not added and sum(row is None for row in changes.values()) == index.rows:
                raise DataError(f"The dataset {name} would have no rows left. Delete the whole dataset instead.")
            return self._swap(folder, lambda target: rowfile.rewrite(folder / ROWS, target, changes, added))

    def _swap(self, folder: Path, write: Callable[[Path], RowIndex]) -> DatasetInfo:
        """Puts the rows file that `write` makes in place of the old one, then the info that belongs to it."""
        for torn in folder.glob(f"*{unfinished.HALF}*"):  # a killed editor's; the lock says that it is nobody's now
            torn.unlink(missing_ok=True)
        target = folder / f"{ROWS}{unfinished.half_name()}"
        try:
            index = write(target)
            info = _read_info(folder).model_copy(update=_facts(index))
            target.replace(folder / ROWS)
        finally:
            target.unlink(missing_ok=True)
        rowfile.remember(folder / ROWS, index)
        _replace(folder / INFO, info.model_dump_json(indent=2))
        return info

    # ---- reading ----

    def load(self, name: str) -> Dataset:
        """A dataset in memory, its row count and fingerprint as the file is now. Raises DataError."""
        path = self._existing(name) / ROWS
        with _reading(path.parent):
            rows = list(rowfile.read_rows(path))
            return Dataset(info=self.info(name), rows=rows, heldout=read_heldout(path))

    def info(self, name: str) -> DatasetInfo:
        """What is known about a dataset, counts and fingerprint as the file is now. Raises DataError."""
        folder = self._existing(name)
        with _reading(folder):
            return _read_info(folder).model_copy(update=_facts(rowfile.index_of(folder / ROWS)))

    def rows(self, name: str, order: Iterable[int] | None = None) -> Iterator[Row]:
        """The rows one after the other, or those with the numbers in `order`, in bounded memory. Raises DataError."""
        path = self._existing(name) / ROWS
        with _reading(path.parent):
            yield from (
                rowfile.read_rows(path) if order is None else rowfile.rows_at(path, rowfile.index_of(path), order)
            )

    def heldout(self, name: str) -> list[Row]:
        """The held-out questions. Raises DataError."""
        return read_heldout(self._existing(name) / ROWS)

    def page(self, name: str, offset: int, limit: int, origin: str = "", query: str = "") -> Page:
        """`limit` rows from `offset` of those of an origin that contain the text `query`. Raises DataError."""
        path = self._existing(name) / ROWS
        with _reading(path.parent):
            for _ in range(_READ_AGAIN):
                index = rowfile.index_of(path)
                chosen = rowfile.matching(path, index, origin, query.strip())
                numbers = list(chosen[max(0, offset) : max(0, offset) + limit])
                with contextlib.suppress(DamagedRow):  # the file was replaced between two reads: look again
                    found = list(zip(numbers, rowfile.rows_at(path, index, numbers), strict=True))
                    return Page(found, len(chosen), index.counts, index.sha256)
            raise DamagedRow

    def list(self) -> Sequence[DatasetInfo]:
        """All complete datasets, newest first."""
        found = []
        for folder in self._folders():
            try:
                found.append(_read_info(folder))
            except DataError:
                continue
        return sorted(found, key=lambda info: (info.created_at, info.name), reverse=True)

    def problems(self) -> Sequence[str]:
        """One sentence for each folder that is half-written or damaged and therefore not listed."""
        found = []
        for folder in [*unfinished.left_behind(self.folder), *self._folders()]:
            try:
                _read_info(folder)
            except DataError as error:
                found.append(error.message)
        return found

    def resolve(self, ref: str) -> Path:
        """The rows.jsonl of the dataset called `ref`, else the file or folder at that path. Raises DataError.

        A folder must be written as a path (`./texts`): a bare word is the name of a dataset. `owner/name` of a hub is
        the newest dataset that was fetched from there.
        """
        text = ref.strip()
        if is_name(text) and (self.folder / text / ROWS).is_file():
            _read_info(self.folder / text)
            return self.folder / text / ROWS
        path = _existing_path(text)
        if path is None and _HUB_ID.fullmatch(text):
            fetched = next((info for info in self.list() if info.source.partition(" (")[0] == text), None)
            if fetched:
                return self.folder / fetched.name / ROWS
        if path is None or (path.is_dir() and is_name(text)):
            raise self._missing(text, folder=path is not None)
        return path / ROWS if (path / ROWS).is_file() and (path / INFO).is_file() else path

    # ---- inside ----

    def _write(self, path: Path, rows: Iterable[Row], progress: Progress | None = None) -> RowIndex:
        index = rowfile.write_rows(path, rows, progress)
        if not index.rows:
            raise DataError("The dataset has no rows. Add at least one conversation.")
        return index

    def _publish(self, folder: Path, draft: DatasetInfo) -> DatasetInfo:
        """Moves a folder to the first free name made from the title of `draft`, which becomes its info."""
        base = slug(draft.title)
        for number in range(1, 10_000):
            name = base if number == 1 else f"{base}-{number}"
            if (self.folder / name).exists():
                continue
            info = draft.model_copy(update={"name": name})
            _replace(folder / INFO, info.model_dump_json(indent=2))
            try:
                folder.rename(self.folder / name)
            except OSError:
                if not (self.folder / name).exists():
                    raise
                continue
            return info
        raise DataError(f"There are too many datasets called {base}. Choose another name.", field="name")

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[Path]:
        """The folder of a dataset, with this program as its only writer."""
        folder = self._existing(name)
        with self._writing(folder):
            try:
                lock = contextlib.ExitStack()
                lock.enter_context(unfinished.locked(folder))
            except FileNotFoundError:
                raise self._missing(name) from None
            with lock:
                yield folder

    @contextlib.contextmanager
    def _writing(self, folder: Path) -> Iterator[None]:
        """Failures of the disk as a sentence."""
        try:
            yield
        except DamagedRow as error:
            raise _damaged(folder, error) from None
        except OSError as error:
            raise _disk_error(folder, error) from None

    def _existing(self, name: str) -> Path:
        if not is_name(name) or not (self.folder / name / ROWS).is_file():
            raise self._missing(name)
        return self.folder / name

    def _missing(self, ref: str, *, folder: bool = False) -> DataError:
        names = [info.name for info in self.list()]
        known = f" Saved datasets: {', '.join(names[:8])}." if names else " No dataset is saved yet."
        hint = nearest(ref[:80], names)
        if folder:
            hint = f" For the folder of that name write ./{shown(ref, 100)}."
        if _HUB_ID.fullmatch(ref) and Path(ref).suffix.lower() not in SUFFIXES:
            hint = f" If it is a hub's, fetch it in the Data tab or with `studio data fetch {ref}`."
        return DataError(f"data.dataset: there is no dataset or file '{shown(ref, 100)}'.{hint}{known}")

    def _folders(self) -> Sequence[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        except OSError:
            return []


def read_heldout(rows_file: Path) -> list[Row]:
    """Held-out questions of the dataset whose rows.jsonl this is; none for any other file. Raises DataError."""
    path = rows_file.with_name(HELDOUT)
    if rows_file.name != ROWS or not path.is_file():
        return []
    with _reading(path.parent):
        return list(rowfile.read_rows(path))


def read_info(rows_file: Path) -> DatasetInfo | None:
    """The info of the dataset whose rows.jsonl this is; None for any other file. Raises DataError."""
    if rows_file.name != ROWS or not rows_file.with_name(INFO).is_file():
        return None
    return _read_info(rows_file.parent)


def _existing_path(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        if not text or not path.exists():
            return None
        # A link to a file keeps its name: download caches keep files under names without a suffix.
        return path.parent.resolve() / path.name if path.is_file() else path.resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, the home of nobody
        return None


def _from_source(rows: Iterable[Record | Row]) -> Iterator[Row]:
    """Stored rows; a failure to read their source must not look like one to write the dataset."""
    try:
        yield from map(stored_row, rows)
    except OSError as error:
        raise DataError(f"The rows cannot be read: {shown(error.strerror or str(error), 120)}. Try again.") from None


def _facts(index: RowIndex) -> dict[str, Any]:
    """The fields of DatasetInfo that follow from the rows."""
    return {
        "rows": index.rows,
        "texts": index.texts,
        "conversations": index.rows - index.texts,
        "sha256": index.sha256,
    }


def _lines_text(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read_info(folder: Path) -> DatasetInfo:
    try:
        info = DatasetInfo.model_validate_json((folder / INFO).read_bytes())
        if not (folder / ROWS).is_file():
            raise FileNotFoundError(ROWS)
    except FileNotFoundError:
        raise DataError(f"The dataset folder {folder.name} is half-written and is ignored. Delete it.") from None
    except (OSError, ValidationError) as error:
        raise _damaged(folder, error) from None
    return info.model_copy(update={"name": folder.name})


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}{unfinished.half_name()}")
    try:
        _write_text(temporary, text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Files that cannot be read as a sentence."""
    try:
        yield
    except (OSError, DamagedRow) as error:
        raise _damaged(folder, error) from None


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"The dataset {folder.name} is damaged ({type(error).__name__}). Delete it and save it again.")


def _disk_error(folder: Path, error: OSError) -> DataError:
    reason = error.strerror or type(error).__name__
    return DataError(
        f"The dataset cannot be written to {folder}: {reason}. Free some space or choose a folder you may write to.",
        field="workspace",
    )
