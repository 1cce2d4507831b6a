"""One JSON value from a text; whatever is wrong with it becomes a clause with a position."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from studio.records.errors import shown
from studio.records.textfile import is_damaged

# What may stand between values; a byte order mark too, where files were joined.
BLANK = " \t\r\n\ufeff"
# A fault this near to the end of a part of a text may only be due to the cut.
MARGIN = 16
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class Fault(Exception):
    """A text is no JSON value: `reason` is a clause, `position` the character at fault, None for the whole.

    `torn`: it ends too early. `unsure`: more text might change the verdict.
    """

    def __init__(self, reason: str, position: int | None = None, *, torn: bool = False, unsure: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position
        self.torn = torn
        self.unsure = unsure


class JsonValues:
    """Parses JSON values and turns every fault into a clause."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._scan = json.JSONDecoder(parse_constant=self._constant).raw_decode

    def whole(self, text: str) -> Any:
        """The value of a text that holds nothing else. Raises Fault."""
        value, end = self.part(text, len(text) - len(text.lstrip(BLANK)))
        if end != len(text) and (more := text[end:].lstrip(BLANK)):
            raise Fault("not valid JSON: there is more behind the end of the row", len(text) - len(more))
        return value

    def part(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start` and where it ends. Raises Fault."""
        try:
            value, end = self._scan(text, start)
        except json.JSONDecodeError as error:
            raise _fault(error, text) from None
        except RecursionError:
            raise Fault("the row is nested too deeply") from None
        except ValueError as error:
            raise Fault(f"the row holds a number that cannot be read: {shown(str(error), 60)}") from None
        if is_damaged(text, start, end):
            raise Fault("the row holds bytes that are not valid in the encoding of the file; save it as UTF-8")
        if text.find("\\u", start, end) >= 0 and _HALF.search(text, start, end) and _is_half(value):
            raise Fault("the row holds half of a Unicode surrogate pair (a broken character)")
        return value, end

    def _constant(self, name: str) -> None:
        self._note(f"The file contains {name.lstrip('-')}, which is no JSON; it was read as null (no value).")


def _fault(error: json.JSONDecodeError, text: str) -> Fault:
    unended = error.msg.startswith("Unterminated string")
    unsure = unended or error.pos + MARGIN > len(text)
    torn = unended or (unsure and error.pos >= len(text.rstrip(BLANK)))
    return Fault(f"not valid JSON ({error.msg.removesuffix(' at')})", error.pos, torn=torn, unsure=unsure)


def _is_half(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
