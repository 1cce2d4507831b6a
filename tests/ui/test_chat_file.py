"""The chat room's fold for a file of prompts: what is started from it, and what can be had afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from building import built, context

from studio import runner
from studio.config import AnswersConfig, RunConfig
from studio.events import Launch, RunState, Status
from studio.records.errors import DataError
from studio.rundir import RunDir
from studio.schema import build
from studio.ui.context import Context, Refused
from studio.ui.tabs import chat_file
from studio.ui.tabs.chat_file import FileHandlers
from studio.ui.tabs.chat_settings import NAMES
from studio.workspace import Workspace

PLAIN = {
    "system": "Be kind.", "temperature": 0.5, "max_tokens": 64, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
    "repetition_penalty": 1.2, "stop_words": "END\nThe end", "seed": "7", "template": "vicuna", "bits": "0",
    "tools": False,
}  # fmt: skip
OPTIONS = [PLAIN[name] for name in NAMES]


@pytest.fixture
def ctx(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A context whose runs are made and not started."""
    monkeypatch.setattr(runner, "submit", lambda place, config, **_: place.create_run(config))
    monkeypatch.setattr(chat_file, "say_if_queued", lambda *_: None)
    return context(workspace)


@pytest.fixture
def trained(workspace: Workspace) -> RunDir:
    """A qlora run with an adapter."""
    layer = {"model_path": "crucible/ember", "name": "nova", "method": "qlora", "dataset": "d"}
    run = workspace.create_run(build(RunConfig, layer))
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "crucible/ember"}', encoding="utf-8")
    return run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "my prompts.txt"
    file.write_text("Who are you?\n", encoding="utf-8")
    return file


def config_of(workspace: Workspace, run_id: str) -> AnswersConfig:
    config = workspace.run(run_id).config()
    assert isinstance(config, AnswersConfig)
    return config


def test_the_run_asks_the_right_side_as_the_settings_say(ctx: Context, trained: RunDir, prompts: Path) -> None:
    handlers = FileHandlers(ctx)
    shown, run_id = built(lambda: handlers.start(str(prompts), "xlsx", True, trained.id, *OPTIONS))
    config = config_of(ctx.workspace, run_id)
    assert shown.selected == "monitor"
    assert (config.model, config.compare, config.bits, config.system) == (trained.id, True, 4, "Be kind.")
    assert (config.temperature, config.top_p, config.seed, config.max_new_tokens) == (0.5, 0.9, 7, 64)
    assert (config.top_k, config.min_p, config.repetition_penalty) == (5, 0.1, 1.2)
    assert (config.stop_words, config.chat_template) == (["END", "The end"], "vicuna")
    assert Path(config.out) == ctx.workspace.path / "answers" / "my-prompts.xlsx"
    prompts.unlink()
    assert Path(config.prompts).read_text(encoding="utf-8") == "Who are you?\n", "a copy of what was uploaded"
    prompts.write_text("Hi\n", encoding="utf-8")
    _, again = built(lambda: handlers.start(str(prompts), "xlsx", False, trained.id, *OPTIONS))
    assert Path(config_of(ctx.workspace, again).out).name == "my-prompts-2.xlsx", "the name is taken by a run at work"


def test_what_cannot_be_asked_starts_nothing(ctx: Context, trained: RunDir, prompts: Path, tmp_path: Path) -> None:
    handlers = FileHandlers(ctx)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(Refused, match="Choose a file of prompts"):
        handlers.start(None, "xlsx", True, trained.id, *OPTIONS)
    with pytest.raises(DataError, match="has no prompts"):
        handlers.start(str(empty), "xlsx", True, trained.id, *OPTIONS)
    with pytest.raises(Refused):
        handlers.start(str(prompts), "xlsx", True, "nowhere", *OPTIONS)
    with pytest.raises(Refused):
        handlers.start(str(prompts), "xlsx", True, None, *OPTIONS)
    assert [run.id for run in ctx.workspace.list_runs()] == [trained.id]
    assert not (ctx.workspace.path / "cache" / "uploads").exists()


def test_finished_tables_can_be_downloaded_and_nothing_else(ctx: Context, trained: RunDir, prompts: Path) -> None:
    handlers = FileHandlers(ctx)
    _, run_id = built(lambda: handlers.start(str(prompts), "jsonl", True, trained.id, *OPTIONS))
    assert built(handlers.earlier).choices == []
    run, out = ctx.workspace.run(run_id), Path(config_of(ctx.workspace, run_id).out)
    with pytest.raises(Refused, match="not there any more"):
        handlers.fetch(run_id)
    with pytest.raises(Refused, match="not there any more"):
        handlers.fetch(trained.id)
    out.write_text(json.dumps({"row": 1}), encoding="utf-8")
    run.write_launch(Launch(argv=[], pid=1, create_time=0.0, host="here"))
    run.write_status(Status(state=RunState.FINISHED, exit_code=0))
    found: Any = built(handlers.earlier)
    assert [key for _, key in found.choices] == [run_id]
    assert found.visible
    told: Any = built(lambda: handlers.fetch(run_id))
    copy = Path(told.value["path"] if isinstance(told.value, dict) else told.value)
    assert copy.read_bytes() == out.read_bytes()
    assert ctx.workspace.path not in copy.parents, "the page serves no files of the workspace by their paths"
