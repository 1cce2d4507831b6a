"""Data, third way in: a dataset of a hub, fetched by a process of its own; and all imports at work."""

import os
import shutil
from typing import Any

from studio.fetchdir import FOLDER, FetchDir, job_for
from studio.fetching import start_fetch, stop_fetch
from studio.records import DataError
from studio.ui.context import refuse
from studio.ui.i18n import tr
from studio.workspace import Workspace

FIELDS = ("id", "hub", "subset", "split", "mapping", "rows", "strict", "title")
"""Controls of the form in this order."""
HUBS = ("huggingface", "modelscope")


class HubWay:
    """The handlers of the form, over one workspace. Nothing here asks the network: the process that fetches does."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def start(self, *values: Any) -> dict[str, Any]:
        """Starts a fetch; its id is what the page follows. Raises DataError, Refused."""
        found = {name: str(value or "").strip() for name, value in zip(FIELDS, values, strict=True)}
        if not found["id"]:
            raise refuse("data.error.no_id")
        hub: Any = found["hub"] if found["hub"] in HUBS else "huggingface"
        job = job_for(
            found["id"],
            hub,
            subset=found["subset"] or None,
            split=found["split"] or None,
            mapping=found["mapping"] or None,
            rows=_rows(found["rows"]),
            strict=bool(values[FIELDS.index("strict")]),
            title=found["title"],
        )
        return {"follow": start_fetch(self.workspace, job).id}

    def stop(self, name: str) -> None:
        """Stops an import that is at work. Raises Refused."""
        stop_fetch(self._fetch(name))

    def forget(self, name: str) -> None:
        """Removes an ended import from the list. Raises Refused."""
        fetch = self._fetch(name)
        if fetch.status().state.live:
            raise refuse("data.error.import_live")
        shutil.rmtree(fetch.path, ignore_errors=True)

    def _fetch(self, name: str) -> FetchDir:
        folder = self.workspace.path / FOLDER
        known = [path for path in folder.iterdir() if path.name == name] if folder.is_dir() else []
        if not known:
            raise refuse("data.error.no_import")
        return FetchDir(known[0])


def check(*values: Any) -> list[str]:
    """What is wrong with each control of the form, or ""."""
    found = dict.fromkeys(FIELDS, "")
    shown = dict(zip(FIELDS, values, strict=True))
    if not str(shown["id"] or "").strip():
        found["id"] = tr("data.error.no_id")
    try:
        _rows(str(shown["rows"] or "").strip())
    except DataError as error:
        found["rows"] = error.message
    return [found[name] for name in FIELDS]


def _rows(text: str) -> int | None:
    digits = text.replace(",", "").replace(" ", "")
    if not digits:
        return None
    if not digits.isascii() or not digits.isdigit() or not 0 < int(digits[:19]) < 10**15:
        raise DataError(tr("data.error.rows"), field="rows")
    return int(digits)


def offline() -> bool:
    """Whether the studio was started with the hubs switched off; no look-up is made."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "on", "yes", "true")
