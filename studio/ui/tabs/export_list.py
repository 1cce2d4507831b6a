"""Earlier exports as read-only JSON for the Export tab: their list, and one with its proof and what to do next."""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from fastapi import APIRouter, HTTPException
from starlette.requests import Request
from starlette.responses import Response

from studio.chains import adapter_settings
from studio.config import ConvertConfig, ExportConfig
from studio.export_targets import uses
from studio.outputs import OutputConfig
from studio.rundir import RunDir
from studio.ui.answers import Answers
from studio.ui.queue_view import place_and_reason
from studio.ui.routes import chosen, language_of
from studio.ui.run_lines import status_of
from studio.ui.tabs.export_goals import IMPORT, output_of
from studio.ui.tabs.export_review import as_sentence
from studio.workspace import Workspace

SHOWN = 60


def goal_of(config: OutputConfig) -> str:
    """Which goal of the tab makes such a configuration."""
    if isinstance(config, ExportConfig):
        return config.format
    if isinstance(config, ConvertConfig):
        return "adapter" if _of_a_run(config.source) else IMPORT
    return "safetensors"


def _of_a_run(source: str) -> bool:
    places = [Path(source), *Path(source).parents[:2]]
    return any((place / "config.yaml").is_file() for place in places)


def subject_of(config: OutputConfig) -> str:
    """What it was made from, in a few words: the run or the adapter, else the model."""
    source = config.source if isinstance(config, ConvertConfig) else getattr(config, "adapter", None)
    if not source:
        return PurePath(config.subject).name
    path = PurePath(source)
    owner = next((parent for parent in (path, *path.parents[:2]) if (Path(parent) / "config.yaml").is_file()), None)
    if owner is None:
        return path.name
    place = "" if path.name in ("adapter", owner.name) else f" · {path.name}"
    return f"{owner.name[16:] or owner.name}{place}"


def line(run: RunDir, config: OutputConfig, language: str) -> dict[str, Any]:
    """One export in the list."""
    report = run.read_report() or {}
    out = str(report.get("out") or config.out)
    return {
        "id": run.id,
        "goal": goal_of(config),
        "name": config.name,
        "of": subject_of(config),
        "created_at": run.created_at,
        "size": int(report.get("size_bytes") or 0),
        "passed": (report.get("proof") or {}).get("passed"),
        "out": out,
        "there": goal_of(config) == "hub" or Path(out).exists(),
        **status_of(run, language),
    }


def listed(workspace: Workspace, language: str) -> list[dict[str, Any]]:
    """The newest exports, merges and imports."""
    found: list[dict[str, Any]] = []
    for run in workspace.list_runs():
        config = output_of(run)
        if config is not None and len(found) < SHOWN:
            found.append(line(run, config, language))
    return found


def shown(workspace: Workspace, run: RunDir, language: str) -> dict[str, Any]:
    """One export whole: its line, its report, why it waits, and how the result is used. HTTP 404 for another kind."""
    config = output_of(run)
    if config is None:
        raise HTTPException(404, "no such export")
    found, report = line(run, config, language), run.read_report()
    waiting = place_and_reason(workspace, run, language) if found["state"] == "queued" else None
    proof = (report or {}).get("proof")
    if isinstance(proof, dict) and proof.get("reason"):
        proof["reason"] = as_sentence(str(proof["reason"]), language)
    return {
        **found,
        "report": report,
        "notes": [as_sentence(str(note), language) for note in _notes(report or {})],
        "waiting": {"place": waiting[0], "why": waiting[1]} if waiting else None,
        "uses": used(config, found) if found["state"] == "finished" and found["there"] else [],
        "whole": made_of(config, found["out"]) in ("safetensors", "bitsandbytes"),
        "chat": found["state"] == "finished" and found["there"] and goal_of(config) not in ("gguf", "ollama", "hub"),
    }


def _notes(report: dict[str, Any]) -> list[str]:
    """What a report adds for people, with that of a Modelfile."""
    return [*(report.get("notes") or ()), *((report.get("modelfile") or {}).get("notes") or ())]


def made_of(config: OutputConfig, out: str) -> str:
    """The goal whose result it is; an import is an adapter or a whole model."""
    goal = goal_of(config)
    if goal != IMPORT:
        return goal
    return "adapter" if adapter_settings(out) is not None else "safetensors"


def used(config: OutputConfig, found: dict[str, Any]) -> list[dict[str, str]]:
    """How a finished result is used: (program, what to type)."""
    goal: Any = made_of(config, found["out"])
    base = getattr(config, "base", None) or _base_of(found["out"])
    hub: Any = getattr(config, "hub", "huggingface")
    how = uses(goal, Path(found["out"]), base=str(base), repo_id=str(getattr(config, "repo_id", "") or ""), hub=hub)
    return [asdict(one) for one in how]


def _base_of(folder: str) -> str:
    return str((adapter_settings(folder) or {}).get("base_model_name_or_path") or "")


def build(workspace: Workspace) -> APIRouter:
    """The routes over one workspace; an unknown run answers 404."""
    router = APIRouter(prefix="/api")
    answers = Answers()

    async def exports(request: Request) -> Response:
        language = language_of(request)
        stamp = int(time.monotonic()), request.query_params.get("at", "")[:20]
        return await answers.get(("exports", language), stamp, partial(listed, workspace, language))

    async def export(request: Request) -> Response:
        run, language = chosen(workspace, request), language_of(request)
        return await answers.get(
            ("export", run.id, language), int(time.monotonic()), partial(shown, workspace, run, language)
        )

    router.add_route("/api/exports", exports)
    router.add_route("/api/export", export)
    return router
