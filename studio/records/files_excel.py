"""Rows of an Excel sheet; cells become the text a person sees in them."""

from __future__ import annotations

import datetime
import itertools
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.records.errors import DataError, Skipped, nearest, shown
from studio.records.rowstream import Entry, RowStream, fault_of
from studio.records.table_header import Header, trimmed

if TYPE_CHECKING:
    from openpyxl import Workbook

# A workbook is a zip archive. Its texts stand in memory while it is read, so their unpacked size is limited; a file
# that grows by more than the factor is made to hurt.
MOST_UNPACKED = 512 * 1024 * 1024
MOST_GROWTH = 300
_SMALL = 16 * 1024 * 1024
_PARTS = 20_000
_AT_ONCE = 256
_MOST_ROWS = 2**20  # what Excel itself can hold
_ERRORS = frozenset(("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A", "#GETTING_DATA", "#SPILL!"))
_DAMAGED = "Open it in Excel or LibreOffice, save it again as .xlsx and try again."


class SheetRows(RowStream):
    """Rows of one sheet as `{column: text}`; row numbers are those of the sheet, `total` and `done` count them."""

    def __init__(self, path: Path, name: str, sheet: str | None = None) -> None:
        """Opens the first sheet or the named one. Raises DataError for a trap, a damaged file or a useless header."""
        super().__init__(name, "xlsx", 0)
        self._path = path
        _check_archive(path, name)
        with self._book() as book:
            self._sheet = self._chosen(book, sheet)
            self.total = book[self._sheet].max_row or 0
            filled = ((number, cells) for number, cells in self._cells(book) if trimmed(cells))
            top = list(itertools.islice(filled, 2))
        if not top:
            raise DataError(f"The sheet '{shown(self._sheet)}' of {name} is empty. Choose another sheet or file.")
        self._header_row = top[0][0]
        self._header = Header(top[0][1], top[-1][1], name, self.note)
        self.columns = self._header.columns

    def nothing(self) -> str:
        return f"The sheet '{shown(self._sheet)}' of {self.name} has no rows under its header. Add at least one row."

    def _entries(self) -> Iterator[Entry]:
        with self._book() as book:
            for number, cells in self._cells(book):
                filled = trimmed(cells)
                if number <= self._header_row or not filled:
                    continue
                width = max(len(filled), self._header.width)
                entry = self._header.row(number, [*filled, *[""] * (width - len(filled))])
                wrong = next((cell for cell in filled if cell in _ERRORS), None)
                yield Skipped(number, f"row {number} has a cell with the Excel error {wrong}") if wrong else entry
                self.done = min(number, self.total)

    def _chosen(self, book: Workbook, sheet: str | None) -> str:
        names = [str(found.title) for found in book.worksheets]
        if not names:
            raise DataError(f"{self.name} has no sheet with cells. Choose another file.")
        if sheet is not None and sheet not in names:
            listed = ", ".join(f"'{shown(found, 40)}'" for found in names[:12])
            hint = nearest(sheet, names)
            raise DataError(f"{self.name} has no sheet '{shown(sheet, 40)}'. It has {listed}.{hint}")
        chosen = names[0] if sheet is None else sheet
        others = [f"'{shown(found, 40)}'" for found in names if found != chosen]
        if others:
            self.note(f"Only the sheet '{shown(chosen, 40)}' of {self.name} is read, not {', '.join(others[:12])}.")
        return chosen

    def _cells(self, book: Workbook) -> Iterator[tuple[int, list[str]]]:
        """(row number, texts) of every row of the sheet. Raises OSError for a sheet that cannot be read further."""
        sheet = book[self._sheet]
        sheet.reset_dimensions()  # what the file says about its size is often wrong
        rows = enumerate(sheet.iter_rows(values_only=True), 1)
        while True:
            try:
                with _no_warnings():
                    block = list(itertools.islice(rows, _AT_ONCE))
            except Exception as error:  # a broken sheet can fail anywhere inside openpyxl
                raise OSError(None, f"the sheet is damaged ({fault_of(error)})") from None
            if not block:
                return
            for number, values in block:
                if number > _MOST_ROWS:
                    raise OSError(None, f"the sheet claims to have more than {_MOST_ROWS} rows")
                yield number, [_cell(value) for value in values]

    @contextmanager
    def _book(self) -> Iterator[Workbook]:
        from openpyxl import load_workbook

        with self._path.open("rb") as file:
            try:
                with _no_warnings():
                    book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
            except Exception as error:  # openpyxl raises whatever its parsers meet
                raise DataError(f"{self.name} is damaged ({fault_of(error)}). {_DAMAGED}") from None
            try:
                yield book
            finally:
                book.close()


def _check_archive(path: Path, name: str) -> None:
    """Looks at the sizes the archive names, before anything is unpacked. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{name} is damaged or cut short ({fault_of(error)}). Copy the file again.") from None
    unpacked = sum(part.file_size for part in parts)
    packed = max(1, path.stat().st_size)
    if unpacked > MOST_UNPACKED or len(parts) > _PARTS or (unpacked > _SMALL and unpacked > MOST_GROWTH * packed):
        raise DataError(
            f"{name} has {packed / 1024**2:.1f} MB but unpacks to {unpacked / 1024**2:.0f} MB, which is too much. "
            "Save the sheet as .csv and try again."
        )
    names = {part.filename for part in parts}
    if "[Content_Types].xml" not in names or not any(part.startswith("xl/") for part in names):
        raise DataError(f"{name} is a zip archive, but not an Excel workbook. {_DAMAGED}")


@contextmanager
def _no_warnings() -> Iterator[None]:
    """openpyxl warns about styles and odd dates, which are no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _cell(value: Any) -> str:
    """A cell as text: 3.0 is "3", a date without a time is a date only, an empty cell is ""."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("_x000D_", "")
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        # 15 digits are what a sheet shows: 0.1 + 0.2 is 0.3.
        return f"{value:.15g}"
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ", "seconds")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
