"""The fold of the chat room that asks a whole file of prompts: a run of its own, whose table can be had afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from studio.config import AnswersConfig
from studio.events import RunState
from studio.records.prompt_file import read_prompts
from studio.rundir import RunDir
from studio.schema import ConfigError, build
from studio.ui.context import ACTION, READ, Context, refuse, safe
from studio.ui.i18n import T
from studio.ui.tabs.chat_choices import room_of, trained_bits
from studio.ui.tabs.chat_settings import read_options
from studio.ui.tabs.starting import say_if_queued
from studio.ui.tabs.train_preview import display_name, launch
from studio.ui.widgets.chatview import RIGHT
from studio.uploads import new_upload
from studio.workspace import slug

KINDS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".xlsx", ".parquet")
TABLES = ("xlsx", "jsonl")
MOST_LISTED = 50
DRAWN = ("top_p", "top_k", "min_p", "repetition_penalty")
"""What both the chat and the file's run call by these names; what changes nothing is not sent."""


class FileHandlers:
    """What the fold does; every method is an event handler that checks what comes."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.workspace = ctx.workspace
        self._copies = ""

    def start(
        self, file: str | None, table: str | None, compare: bool, who: str | None, *options: Any
    ) -> Sequence[Any]:
        """Start the run that asks the right side, and its base model if wished; the Monitor tab shows it."""
        choice = room_of(self.workspace).pair(None, who)[RIGHT]
        wishes = read_options(options)
        if not file:
            raise refuse("batch.error.no_file")
        prompts = self._kept(Path(file))
        settings = {
            "prompts": str(prompts),
            "model": choice.key,
            "out": str(self._free(f"{slug(prompts.stem)}.{table if table in TABLES else TABLES[0]}")),
            "compare": bool(compare),
            "bits": wishes.bits or trained_bits({RIGHT: choice}),
            "system": wishes.system,
            "temperature": wishes.request.get("temperature", 0.0),
            **{name: wishes.request[name] for name in DRAWN if name in wishes.request},
            "stop_words": wishes.request.get("stop", []),
            "chat_template": wishes.template or None,
            "seed": wishes.seed or 0,
            "max_new_tokens": wishes.request["max_tokens"],
        }
        run = launch(self.workspace, build(AnswersConfig, settings))
        say_if_queued(self.workspace, run)
        return gr.Tabs(selected="monitor"), run.id

    def _kept(self, file: Path) -> Path:
        """The uploaded file in the workspace, where the engine finds it. Raises DataError when it has no prompts."""
        read_prompts(file)
        kept = new_upload(self.workspace, "prompts") / f"{slug(file.stem)}{file.suffix.lower()}"
        shutil.copyfile(file, kept)
        return kept

    def _free(self, name: str) -> Path:
        folder = self.workspace.path / "answers"
        folder.mkdir(exist_ok=True)
        stem, suffix = Path(name).stem, Path(name).suffix
        names = (name, *(f"{stem}-{number}{suffix}" for number in range(2, 10_000)))
        waiting = {config.out for _, config in self._runs()}  # named, and not written yet
        return next(path for one in names if not (path := folder / one).exists() and str(path) not in waiting)

    def earlier(self) -> Any:
        """The tables there are, newest first."""
        found = [
            (f"{display_name(run)} · {run.id[:15]}", run.id)
            for run, config in self._runs()
            if run.state() is RunState.FINISHED and Path(config.out).is_file()
        ]
        return gr.Dropdown(choices=found[:MOST_LISTED], value=None, visible=bool(found))

    def _runs(self) -> list[tuple[RunDir, AnswersConfig]]:
        found = []
        for run in self.workspace.list_runs():
            try:
                config = run.config()
            except ConfigError:
                continue
            if isinstance(config, AnswersConfig):
                found.append((run, config))
        return found

    def fetch(self, run_id: str | None) -> Any:
        """A table to download. The page is given a copy: it serves no files of the workspace by their paths."""
        run = self.ctx.run(run_id)
        config = run.config()
        if not isinstance(config, AnswersConfig) or not Path(config.out).is_file():
            raise refuse("batch.error.gone")
        self._copies = self._copies or tempfile.mkdtemp(prefix="crucible-answers-")
        copy = Path(self._copies) / run.id / Path(config.out).name
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(config.out, copy)
        return gr.File(value=str(copy), visible=True)


def fold(ctx: Context, who: gr.Dropdown, options: Sequence[Any]) -> None:
    """The fold; `who` is the right side's picker, `options` are the controls of the settings in their order."""
    handlers = FileHandlers(ctx)
    with gr.Accordion(T("batch.title"), open=False, elem_id="chat-batch") as folded:
        with gr.Group(elem_classes=["form-section", "chat-wide"]):
            file = gr.File(label=T("batch.file"), file_types=list(KINDS), height=160, elem_id="batch-file")
            look: dict[str, Any] = {"label": T("batch.table"), "info": T("batch.table.help")}
            table = gr.Radio([(T(f"batch.table.{kind}"), kind) for kind in TABLES], value=TABLES[0], **look)
            compare = gr.Checkbox(value=True, label=T("batch.compare"), info=T("batch.compare.help"))
        begin = gr.Button(T("batch.start"), elem_id="batch-start", scale=0, min_width=160)
        earlier = gr.Dropdown([], label=T("batch.earlier"), info=T("batch.earlier.help"), visible=False)
        ready = gr.File(label=T("batch.ready"), interactive=False, visible=False, height=110, elem_id="batch-ready")
    inputs = [file, table, compare, who, *options]
    begin.click(safe(handlers.start), inputs, [ctx.tabs, ctx.selected_run], **ACTION)
    folded.expand(safe(handlers.earlier), None, earlier, **READ)
    earlier.input(safe(handlers.fetch), earlier, ready, **READ)
