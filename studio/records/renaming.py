"""A ready set for another name: old names written anew, `{{name}}` and `{{author}}` filled, in a stream of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import BaseModel, ConfigDict, Field

from studio.records.conversation import Conversation, PlainText, Record
from studio.records.errors import DataError, Skipped
from studio.records.formats import RecordStream
from studio.records.placeholders import fill, leftover, named_placeholder
from studio.records.replacement import Replacement, checked_label

_LISTED = 20
Entry = tuple[int, Record]
Writer = Callable[[str], str]


class Names(BaseModel):
    """What to write in place of names: each old text of `pairs` becomes the new one; the values of the placeholders."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: tuple[tuple[str, str], ...] = ()
    name: str = Field(default="", max_length=400)
    author: str = Field(default="", max_length=400)

    def problem(self) -> str | None:
        """A sentence about a name that cannot be used; None if all can."""
        try:
            self.writer()
        except DataError as error:
            return error.message
        return None

    def writer(self) -> Writer:
        """Writes the names into a text. Raises DataError for one that cannot be used."""
        given = {key: value for key in ("name", "author") if (value := getattr(self, key)).strip()}
        values = {key: checked_label(key, value) for key, value in given.items()}
        replaced: Writer = Replacement(self.pairs) if self.pairs else str
        return lambda text: fill(replaced(text), values) if values and "{{" in text else replaced(text)


class Unfilled:
    """Remembers the rows that pass by with something still to be filled in.

    `{{name}}` and `{{author}}` must be filled; of other marks such as `[NAME]` nobody can be sure.
    """

    def __init__(self) -> None:
        self._named, self._maybe = _Rows(), _Rows()

    def look(self, number: int, record: Record) -> None:
        """One record."""
        texts = [text for text in _texts(record) if any(bracket in text for bracket in "{<[【")]
        if mark := next((mark for text in texts if (mark := named_placeholder(text))), None):
            self._named.add(number, mark)
        elif mark := next((mark for text in texts if (mark := leftover(text))), None):
            self._maybe.add(number, mark)

    @property
    def problem(self) -> str | None:
        """The sentence about rows that cannot stay as they are."""
        said = self._named.sentence()
        return f"{said}. Type the name and the author it stands for." if said else None

    @property
    def doubt(self) -> str | None:
        """The sentence about rows somebody should look at."""
        said = self._maybe.sentence()
        return f"{said}. If that is something to fill in, replace it before you save." if said else None


class _Rows:
    """Row numbers with the first mark that was found, for a sentence."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.count = 0
        self.mark = ""

    def add(self, number: int, mark: str) -> None:
        self.count += 1
        self.mark = self.mark or mark
        self.first += [number] if len(self.first) < _LISTED else []

    def sentence(self) -> str | None:
        if not self.count:
            return None
        if self.count == 1:
            return f"Row {self.first[0]} still contains {self.mark}"
        more = f" and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        return f"Rows {', '.join(map(str, self.first))}{more} still contain {self.mark}"


class Renamed(RecordStream):
    """A stream of records with the names in place. Iterating raises DataError at its end when a placeholder is left."""

    def __init__(self, stream: RecordStream, names: Names) -> None:
        super().__init__(stream.rows, stream.mapping, stream.options)
        self._names = names

    def __iter__(self) -> Iterator[Entry | Skipped]:
        write, unfilled = self._names.writer(), Unfilled()
        for entry in super().__iter__():
            if isinstance(entry, Skipped):
                yield entry
                continue
            number, record = entry[0], written(entry[1], write)
            unfilled.look(number, record)
            yield number, record
        if unfilled.problem:
            raise DataError(unfilled.problem, field="name")


def written(record: Record, write: Writer) -> Record:
    """The record with every text of it written anew."""
    if isinstance(record, PlainText):
        return record.model_copy(update={"text": write(record.text)})
    messages, rejected = (
        tuple(message.model_copy(update={"content": write(message.content)}) for message in part)
        for part in (record.messages, record.rejected)
    )
    return record.model_copy(update={"messages": messages, "rejected": rejected})


def _texts(record: Record) -> Iterator[str]:
    if isinstance(record, Conversation):
        yield from (message.content for message in (*record.messages, *record.rejected))
    else:
        yield record.text
