"""The clock: date and time, here or in another time zone."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from studio.tools.tool import Tool, ToolError

_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "timezone": {"type": "string", "description": "IANA name such as Asia/Shanghai; empty: that of this machine"}
    },
    "required": [],
}


def clock() -> Tool:
    """The tool."""
    return Tool("clock", "The date, the weekday and the time of day now.", _PARAMETERS, _tell)


def _tell(arguments: dict[str, Any]) -> str:
    name = str(arguments.get("timezone") or "").strip()
    try:
        now = datetime.now(ZoneInfo(name)) if name else datetime.now().astimezone()
    except (LookupError, ValueError, OSError):  # unknown, a path, a folder of the database
        raise ToolError(f"clock: there is no time zone {name[:60]!r}; write it like Asia/Shanghai") from None
    return now.strftime("%Y-%m-%d %H:%M:%S, %A, UTC%z")
