"""Web search through serper.dev; off unless a key is in the environment."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx

from studio.tools.tool import Tool, ToolError
from studio.tools.web import ask

KEY = "SERPER_API_KEY"
SERVICE = "https://google.serper.dev/search"
RESULTS = 5
SECONDS = 20.0
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "what to look for, a few words"}},
    "required": ["query"],
}


def search() -> Tool:
    """The tool."""
    obstacle = None if os.environ.get(KEY) else f"search: it needs a key of serper.dev in the variable {KEY}"
    return Tool("search", "Searches the web and gives the first results.", _PARAMETERS, _search, obstacle)


def _search(arguments: dict[str, Any]) -> str:
    key = os.environ.get(KEY)
    if not key:
        raise ToolError(f"search: it needs a key of serper.dev in the variable {KEY}")
    body = {"q": str(arguments["query"])[:400], "num": RESULTS}
    with httpx.Client() as client:
        text = ask(client, "search", SECONDS, "POST", SERVICE, json=body, headers={"X-API-KEY": key})
    try:
        found = json.loads(text)
        return _told(found if isinstance(found, dict) else {})
    except (ValueError, RecursionError):
        raise ToolError("search: the service answers with something that cannot be read") from None


def _told(found: dict[str, Any]) -> str:
    """A direct answer if there is one, then titles, snippets and addresses."""
    lines = []
    box = found.get("answerBox")
    if isinstance(box, dict):
        lines += [str(box[name]) for name in ("answer", "snippet") if box.get(name)][:1]
    results = found.get("organic")
    for number, one in enumerate((results if isinstance(results, list) else [])[:RESULTS], 1):
        if isinstance(one, dict):
            parts = [str(one.get(name, "")).strip() for name in ("title", "snippet", "link")]
            lines.append(f"{number}. " + " — ".join(part for part in parts if part))
    return "\n".join(lines) or "nothing was found"
