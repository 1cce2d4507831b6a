"""Datasets in the workspace: one folder each, written as a whole or not at all.

<datasets>/<name>/rows.jsonl     one record per line
                  heldout.jsonl  questions for the verdict, maybe none
                  dataset.json   DatasetInfo; written last, so a folder without it is half-written
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.records.conversation import Conversation
from studio.records.errors import DataError, nearest, shown
from studio.records.formats import RowError, refuse_placeholders, to_conversation
from studio.records.identity import IdentitySpec
from studio.records.jsonrows import SUFFIXES
from studio.records.mappings import load_mappings
from studio.records.naming import is_name, slug

ROWS, HELDOUT, INFO = "rows.jsonl", "heldout.jsonl", "dataset.json"
_HALF = ".half-"


class DatasetInfo(BaseModel):
    """What is known about a dataset. `name`, `rows`, `sha256` and `created_at` are filled in by the store."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["identity", "upload"]
    title: str = ""
    languages: tuple[str, ...] = ()
    identity: IdentitySpec | None = None
    name: str = ""
    rows: int = 0
    sha256: str = ""
    created_at: str = ""


@dataclass(frozen=True)
class Dataset:
    """A loaded dataset: rows `{"messages", "origin"}`, held-out `{"prompt", "kind", "lang", "expect"}`."""

    info: DatasetInfo
    rows: list[dict[str, Any]]
    heldout: list[dict[str, Any]]


class DatasetStore:
    """The datasets of one workspace folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def save(
        self, title: str, rows: Sequence[Mapping[str, Any]], heldout: Sequence[Mapping[str, Any]], info: DatasetInfo
    ) -> DatasetInfo:
        """Writes a new dataset under a free name made from `title`. Raises DataError; then nothing is left behind."""
        lines = _rows_text(rows)
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        draft = info.model_copy(
            update={"title": title.strip()[:200], "rows": len(rows), "sha256": _sha(lines), "created_at": stamp}
        )
        half = self.folder / f"{_HALF}{uuid.uuid4().hex[:12]}"
        try:
            half.mkdir(parents=True)
            _write(half / ROWS, lines)
            _write(half / HELDOUT, _lines_text(heldout))
            return self._publish(half, draft)
        except OSError as error:
            raise _disk_error(self.folder, error) from None
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def replace_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> DatasetInfo:
        """Replaces the rows of a dataset; the fingerprint changes with them. Raises DataError."""
        folder = self._existing(name)
        lines = _rows_text(rows)
        info = _read_info(folder).model_copy(update={"rows": len(rows), "sha256": _sha(lines)})
        try:
            _replace(folder / ROWS, lines)
            _replace(folder / INFO, info.model_dump_json(indent=2))
        except OSError as error:
            raise _disk_error(folder, error) from None
        return info

    def load(self, name: str) -> Dataset:
        """A dataset by name, its row count and fingerprint as the file is now. Raises DataError."""
        folder = self._existing(name)
        try:
            text = (folder / ROWS).read_text(encoding="utf-8")
            rows = _parse_lines(text)
        except (OSError, ValueError) as error:
            raise _damaged(folder, error) from None
        info = _read_info(folder).model_copy(update={"rows": len(rows), "sha256": _sha(text)})
        return Dataset(info=info, rows=rows, heldout=read_heldout(folder / ROWS))

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
        for folder in self._folders(hidden=True):
            try:
                _read_info(folder)
            except DataError as error:
                found.append(error.message)
        return found

    def resolve(self, ref: str) -> Path:
        """The rows.jsonl of the dataset called `ref`, else the .json/.jsonl file at that path. Raises DataError."""
        text = ref.strip()
        if is_name(text) and (self.folder / text / ROWS).is_file():
            _read_info(self.folder / text)
            return self.folder / text / ROWS
        path = _existing_file(text) if text.lower().endswith(SUFFIXES) else None
        if path is None:
            raise self._missing(text)
        return path

    def delete(self, name: str) -> None:
        """Removes a dataset: it disappears from the list at once. Raises DataError."""
        folder = self._existing(name)
        half = self.folder / f"{_HALF}{uuid.uuid4().hex[:12]}"
        try:
            folder.rename(half)
            shutil.rmtree(half)
        except OSError as error:
            raise _disk_error(folder, error) from None

    def _publish(self, half: Path, draft: DatasetInfo) -> DatasetInfo:
        base = slug(draft.title)
        for number in range(1, 10_000):
            name = base if number == 1 else f"{base}-{number}"
            if (self.folder / name).exists():
                continue
            info = draft.model_copy(update={"name": name})
            _write(half / INFO, info.model_dump_json(indent=2))
            try:
                half.rename(self.folder / name)
            except FileExistsError:
                continue
            except OSError:
                if not (self.folder / name).exists():
                    raise
                continue
            return info
        raise DataError(f"There are too many datasets called {base}. Choose another name.", field="name")

    def _existing(self, name: str) -> Path:
        if not is_name(name) or not (self.folder / name / ROWS).is_file():
            raise self._missing(name)
        return self.folder / name

    def _missing(self, ref: str) -> DataError:
        names = [info.name for info in self.list()]
        known = f" Saved datasets: {', '.join(names[:8])}." if names else " No dataset is saved yet."
        hint = nearest(ref[:80], names)
        return DataError(f"data.dataset: there is no dataset or .json/.jsonl file '{shown(ref, 100)}'.{hint}{known}")

    def _folders(self, *, hidden: bool = False) -> Sequence[Path]:
        try:
            entries = sorted(path for path in self.folder.iterdir() if path.is_dir())
        except OSError:
            return []
        return [path for path in entries if hidden or not path.name.startswith(".")]


def to_rows(conversations: Sequence[Conversation], origin: str = "upload") -> list[dict[str, Any]]:
    """Conversations as rows for `DatasetStore.save`; answers kept out of the loss are marked `"loss": false`."""
    rows = []
    for conversation in conversations:
        messages: list[dict[str, Any]] = [dict(message) for message in conversation.as_dicts()]
        for message, trained in zip(messages, conversation.trained, strict=True):
            if message["role"] == "assistant" and not trained:
                message["loss"] = False
        rows.append({"messages": messages, "origin": origin})
    return rows


def read_heldout(rows_file: Path) -> list[dict[str, Any]]:
    """Held-out questions of the dataset whose rows.jsonl this is; none for any other file. Raises DataError."""
    path = rows_file.with_name(HELDOUT)
    if rows_file.name != ROWS or not path.is_file():
        return []
    try:
        return _parse_lines(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path.parent, error) from None


def read_info(rows_file: Path) -> DatasetInfo | None:
    """The info of the dataset whose rows.jsonl this is; None for any other file. Raises DataError."""
    if rows_file.name != ROWS or not rows_file.with_name(INFO).is_file():
        return None
    return _read_info(rows_file.parent)


def _existing_file(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path.resolve() if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, the home of nobody
        return None


def _rows_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The lines of rows.jsonl. Raises DataError naming the first row that is no usable conversation."""
    if not rows:
        raise DataError("The dataset has no rows. Add at least one conversation.")
    mapping = next(mapping for mapping in load_mappings() if mapping.name == "messages")
    checked: list[tuple[int, Conversation]] = []
    for number, row in enumerate(rows, 1):
        try:
            checked.append((number, to_conversation(dict(row), mapping)))
        except RowError as error:
            raise DataError(f"Row {number} cannot be saved: {error}. Correct or delete it.") from None
    refuse_placeholders(checked)
    return _lines_text(
        [
            {**to_rows([conversation])[0], "origin": str(row.get("origin", "upload"))}
            for row, (_, conversation) in zip(rows, checked, strict=True)
        ]
    )


def _lines_text(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _parse_lines(text: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not an object")
    return rows


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


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


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}{_HALF}{uuid.uuid4().hex[:8]}")
    try:
        _write(temporary, text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"The dataset {folder.name} is damaged ({type(error).__name__}). Delete it and save it again.")


def _disk_error(folder: Path, error: OSError) -> DataError:
    reason = error.strerror or type(error).__name__
    return DataError(
        f"The dataset cannot be written to {folder}: {reason}. Free some space or choose a folder you may write to.",
        field="workspace",
    )
