"""What people write on a run afterwards, a title and tags; kept beside the frozen configuration, never in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterable

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.run_queue import locked, workspace_of
from studio.rundir import RunDir, write_atomic
from studio.schema import ConfigError, FieldError

TITLE_LIMIT = 120
TAG_LIMIT = 40
TAGS_MOST = 12


class Labels(BaseModel):
    """`labels.json`. An empty title: the run goes by the name in its configuration."""

    model_config = ConfigDict(extra="ignore")

    title: str = ""
    tags: list[str] = []


def read_labels(run: RunDir) -> Labels:
    """The labels of a run; none when there is no file, or one that cannot be read."""
    try:
        return Labels.model_validate_json(run.labels_file.read_bytes())
    except (OSError, ValidationError, ValueError):
        return Labels()


def rename(run: RunDir, title: str) -> Labels:
    """Give a run another title; an empty one brings back the name of its configuration.

    Raises ConfigError, or StartRefused when another process holds the workspace.
    """
    title = clean(title, "title", TITLE_LIMIT) if title.strip() else ""
    with locked(workspace_of(run)):
        return _write(run, read_labels(run).model_copy(update={"title": title}))


def tag(run: RunDir, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Labels:
    """Add and remove tags; case makes no difference, the first spelling stays. Raises as `rename` does."""
    gone = {clean(text, "tag", TAG_LIMIT).casefold() for text in remove}
    added = [clean(text, "tag", TAG_LIMIT) for text in add]
    with locked(workspace_of(run)):  # two pages at once lose no tag
        labels = read_labels(run)
        return _write(run, labels.model_copy(update={"tags": _tags(labels.tags, added, gone)}))


def _tags(old: Iterable[str], added: Iterable[str], gone: Container[str]) -> list[str]:
    wanted = [*(text for text in old if text.casefold() not in gone), *added]
    kept: dict[str, str] = {}
    for text in wanted:
        kept.setdefault(text.casefold(), text)
    tags = list(kept.values())
    if len(tags) > TAGS_MOST:
        raise _wrong("tag", f"a run can have at most {TAGS_MOST} tags; remove one first")
    return tags


def clean(text: str, field: str, limit: int) -> str:
    """One printable line of at most `limit` characters, with single spaces. Raises ConfigError."""
    found = " ".join(text.split())
    if not any(unicodedata.category(char)[0] in "LNPS" for char in found):
        raise _wrong(field, "is empty; type at least one visible character")
    if len(found) > limit:
        raise _wrong(field, f"has {len(found)} characters; at most {limit} are allowed")
    # Surrogates cannot be written to a file, controls would reach a terminal, and bidi overrides reorder a whole line.
    if any(unicodedata.category(char) in ("Cc", "Cs") or char in "\u202a\u202b\u202c\u202d\u202e" for char in found):
        raise _wrong(field, "contains a control character; remove it")
    return found


def _wrong(field: str, message: str) -> ConfigError:
    return ConfigError([FieldError(field, message)])


def _write(run: RunDir, labels: Labels) -> Labels:
    write_atomic(run.labels_file, labels.model_dump_json(indent=1))
    return labels
