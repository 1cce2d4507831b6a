"""What a file really is, by its name and its first bytes, and the sentence for one that cannot be read."""

from __future__ import annotations

from pathlib import Path

from studio.records.errors import DataError

# Suffix: how it is read.
READERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".md": "text",
}
_PACKED = (".json.gz", ".jsonl.gz", ".ndjson.gz", ".csv.gz", ".tsv.gz", ".txt.gz")
SUFFIXES: tuple[str, ...] = (*READERS, *_PACKED)
# Suffixes people try that are not read: what to do instead.
_REMEDIES = {
    ".xls": "is in the old Excel format. Open it in Excel or LibreOffice and save it as .xlsx",
    ".ods": "is an OpenDocument table. Save it as .xlsx or .csv",
    ".numbers": "is an Apple Numbers table. Export it as .xlsx or .csv",
    ".doc": "is a Word document. Save it as plain text (.txt)",
    ".docx": "is a Word document. Save it as plain text (.txt)",
    ".odt": "is a text document with layout. Save it as plain text (.txt)",
    ".rtf": "is a text document with layout. Save it as plain text (.txt)",
    ".pdf": "is a PDF. Copy its text into a .txt file",
    ".epub": "is an e-book. Convert it to plain text (.txt)",
    ".html": "is a web page. Save its text as .txt",
    ".htm": "is a web page. Save its text as .txt",
    ".xml": "is XML. Convert it to JSON Lines",
    ".yaml": "is YAML. Convert it to JSON Lines",
    ".yml": "is YAML. Convert it to JSON Lines",
    ".zip": "is a packed archive. Unpack it and choose a file inside",
    ".tar": "is a packed archive. Unpack it and choose a file inside",
    ".tgz": "is a packed archive. Unpack it and choose a file inside",
    ".rar": "is a packed archive. Unpack it and choose a file inside",
    ".7z": "is a packed archive. Unpack it and choose a file inside",
    ".gz": "is packed. Unpack it and choose the file inside",
    ".bz2": "is packed. Unpack it and choose the file inside",
    ".xz": "is packed. Unpack it and choose the file inside",
    ".zst": "is packed. Unpack it and choose the file inside",
    ".pkl": "is a Python pickle, which can run programs when it is opened. Save the rows as JSON Lines",
    ".pt": "is a PyTorch file, not a table of texts. Save the rows as JSON Lines",
    ".npy": "is a NumPy array, not a table of texts. Save the rows as JSON Lines",
    ".db": "is a database. Export the table as .csv",
    ".sqlite": "is a database. Export the table as .csv",
}
# First bytes: what such a file is, and the suffix it should have (empty: it cannot be read at all).
_SIGNATURES = (
    (b"PAR1", "a Parquet file", ".parquet"),
    (b"ARROW1", "an Arrow file", ".arrow"),
    (b"FEA1", "a Feather file of the first version", ""),
    (b"PK\x03\x04", "a zip archive", ""),
    (b"PK\x05\x06", "an empty zip archive", ""),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or password-protected Office file", ""),
    (b"\x1f\x8b", "a file packed with gzip", ".gz"),
    (b"BZh", "a file packed with bzip2", ""),
    (b"\xfd7zXZ", "a file packed with xz", ""),
    (b"\x28\xb5\x2f\xfd", "a file packed with Zstandard", ""),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", ""),
    (b"Rar!", "a RAR archive", ""),
    (b"%PDF-", "a PDF", ""),
    (b"\x89PNG", "a picture", ""),
    (b"\xff\xd8\xff", "a picture", ""),
    (b"GIF8", "a picture", ""),
    (b"SQLite format 3", "a database", ""),
    (b"\x7fELF", "a program", ""),
    (b"\x80\x02", "a Python pickle", ""),
    (b"\x80\x03", "a Python pickle", ""),
    (b"\x80\x04", "a Python pickle", ""),
    (b"\x80\x05", "a Python pickle", ""),
)
_STARTS = {"xlsx": (b"PK\x03\x04",), "parquet": (b"PAR1",), "arrow": (b"ARROW1", b"\xff\xff\xff\xff")}
_WANTED = {"xlsx": "an Excel workbook", "parquet": "a Parquet file", "arrow": "an Arrow file"}
_WEB = (b"<!doctype html", b"<html", b"<?xml")
_POINTER = b"version https://git-lfs.github.com"
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\f\r\x1b")
_MOST_CONTROLS = 0.05
_LISTED = ".json, .jsonl, .csv, .tsv, .xlsx, .parquet, .arrow, .txt or .md"


def reader_of(path: Path, name: str) -> str:
    """How a file with this name is read ("json", "csv", "xlsx", ...). Raises DataError for a suffix nobody reads."""
    lower = path.name.lower()
    suffix = path.suffix.lower()
    if lower.endswith(_PACKED):
        return READERS[Path(lower).with_suffix("").suffix]
    if suffix in READERS:
        return READERS[suffix]
    if suffix in _REMEDIES:
        raise DataError(f"{name} {_REMEDIES[suffix]} and try again.")
    said = "has no suffix that tells what it is" if not suffix else "is of a kind that is not read"
    raise DataError(f"{name} {said}. Choose a {_LISTED} file.")


def check_content(path: Path, name: str, reader: str) -> None:
    """Compares the first bytes with what the suffix promises. Raises DataError that says what the file really is."""
    with path.open("rb") as file:
        head = file.read(4096)
    found = next(((kind, suffix) for start, kind, suffix in _SIGNATURES if head.startswith(start)), None)
    if head.startswith(b"PK\x03\x04"):
        found = _zipped(head)
    if head.startswith(_POINTER):
        raise DataError(f"{name} is only a Git LFS pointer, not the data. Fetch the file with 'git lfs pull'.")
    if reader in _STARTS:
        _check_binary(head, name, reader, found)
    elif path.suffix.lower() == ".gz":
        if not head.startswith(b"\x1f\x8b"):
            raise DataError(f"{name} is not packed with gzip. Remove .gz from its name and try again.")
    else:
        _check_text(path, head, name, found)


def _check_binary(head: bytes, name: str, reader: str, found: tuple[str, str] | None) -> None:
    if head.startswith(_STARTS[reader]):
        return
    if reader == "xlsx" and head.startswith(b"\xd0\xcf\x11\xe0"):
        raise DataError(
            f"{name} is protected with a password or in the old Excel format. Save it without a password as .xlsx."
        )
    kind, suffix = found or _textual(head)
    raise DataError(f"{name} is not {_WANTED[reader]}, but {kind}. {_advice(suffix)}")


def _check_text(path: Path, head: bytes, name: str, found: tuple[str, str] | None) -> None:
    if found:
        raise DataError(f"{name} is not text, but {found[0]}. {_advice(found[1])}")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_WEB) and path.suffix.lower() != ".md":
        raise DataError(f"{name} is a web page, not data. Download the file itself and try again.")


def _zipped(head: bytes) -> tuple[str, str]:
    """What a zip archive is by the names of its first parts."""
    for part, kind, suffix in (
        (b"xl/", "an Excel workbook", ".xlsx"),
        (b"word/", "a Word document", ""),
        (b"ppt/", "a presentation", ""),
        (b"opendocument", "an OpenDocument file", ""),
    ):
        if part in head:
            return kind, suffix
    return ("an Office file", ".xlsx") if b"[Content_Types].xml" in head else ("a zip archive", "")


def _textual(head: bytes) -> tuple[str, str]:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start in (b"{", b"["):
        return "JSON", ".json"
    if len(head) - len(head.translate(None, _CONTROLS)) > _MOST_CONTROLS * len(head) or not head.strip():
        return "something else or damaged", ""
    return ("text", ".csv") if b"," in head or b"\t" in head else ("text", ".txt")


def _advice(suffix: str) -> str:
    if suffix == ".gz":
        return "Unpack it and try again."
    if suffix:
        return f"Rename it so that it ends in {suffix} and try again."
    return f"Choose a {_LISTED} file."
