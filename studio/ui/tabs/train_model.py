"""The base model of the Train tab: whether it is here, and fetching it from a hub by a process of its own."""

from typing import Any

from studio.config import RunConfig
from studio.fetchdir import FetchDir, fetches, model_job
from studio.fetching import start_fetch, stop_fetch
from studio.model_cache import offline
from studio.presets import ModelError, model_named, resolve_model
from studio.records import DataError
from studio.ui.context import refuse
from studio.ui.sentences import translated
from studio.workspace import Workspace

SHOWN = 8
_BITS16 = 2


def model_state(config: RunConfig) -> dict[str, Any] | None:
    """A hub id that is not on this machine, as the page shows it; None for everything else."""
    reference = config.model.model_name_or_path
    try:
        found = resolve_model(reference)
    except ModelError:
        return None
    if found.local:
        return None
    preset = model_named(reference)
    return {
        "id": reference,
        "offline": offline(),
        "size": round(preset.parameters * 1e9 * _BITS16) if preset and preset.parameters else 0,
        "code": bool(preset and preset.loading == "remote_code"),
    }


def start(workspace: Workspace, wanted: dict[str, Any]) -> None:
    """Start the download a script asks for; one that is at work already goes on. Raises DataError or Refused."""
    if offline():
        raise refuse("train.error.offline")
    text = {name: str(wanted.get(name) or "").strip() for name in ("id", "hub", "revision", "endpoint")}
    job = model_job(
        text["id"],
        "modelscope" if text["hub"] == "modelscope" else None,
        revision=text["revision"] or None,
        endpoint=text["endpoint"] or None,
    )
    if not any(line["live"] and line["model"] == job.id for line in downloads(workspace, "en")):
        start_fetch(workspace, job)


def stop(workspace: Workspace, fetch_id: str) -> None:
    """Stop a download; what is there already is kept for the next try. Raises Refused."""
    found = next((fetch for fetch in fetches(workspace, "model") if fetch.id == fetch_id), None)
    if found is None:
        raise refuse("train.error.no_download")
    stop_fetch(found)


def downloads(workspace: Workspace, language: str) -> list[dict[str, Any]]:
    """The newest downloads of models, one for each model."""
    found: dict[str, dict[str, Any]] = {}
    for fetch in fetches(workspace, "model")[:SHOWN]:
        try:
            line = _line(fetch, language)
        except (DataError, OSError):  # damaged, or removed while it was read
            continue
        found.setdefault(line["model"], line)
    return list(found.values())


def _line(fetch: FetchDir, language: str) -> dict[str, Any]:
    job, status = fetch.job(), fetch.status()
    error = status.error
    return {
        "id": fetch.id,
        "model": job.id,
        "state": status.state.value,
        "live": status.state.live or status.state.value == "queued",
        "done": status.done,
        "total": status.total,
        "path": status.path,
        "plain": job.hub == "huggingface" and not job.revision,
        "error": translated(error.message, language) if error else "",
        "hint": translated(error.hint, language) if error else "",
    }
