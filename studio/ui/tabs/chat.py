"""Chat: the base model and the trained one answer the same message side by side, from one copy of the weights."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from studio.best_step import read_best
from studio.chat_client import ChatError, astream_chat
from studio.prompts import texts
from studio.rundir import RunDir
from studio.runner import StartRefused
from studio.ui.context import EVENT, PREVIEW, READ, Context, refuse, safe
from studio.ui.i18n import T, tr
from studio.ui.tabs.chat_server import BASE, TUNED, Loaded, Servers, finished_runs, run_config
from studio.ui.tabs.train_preview import display_name
from studio.ui.widgets.bubbles import event_data, panel
from studio.ui.widgets.chatview import Message, chatbot, flushed, plain, prompt, shown
from studio.ui.widgets.form import judged

POLL_S = 0.4
CHIPS = 6
MAX_MESSAGE = 20_000
SIDES = (BASE, TUNED)
STREAM: dict[str, Any] = {**EVENT, "concurrency_limit": None}


class Handlers:
    """What the tab does; every method is an event handler."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.servers = Servers(ctx.workspace)

    def opened(self, selected: str, current: str | None) -> tuple[Any, ...]:
        """Fresh list of runs; the shown run stays, else the selected one, else the newest with a result."""
        runs = finished_runs(self.ctx.workspace)
        ids = [run.id for run in runs]
        chosen = next((run_id for run_id in (selected, current, *ids) if run_id in ids), None)
        choices = [(f"{display_name(run)} · {run.id[:15]}{best_mark(run)}", run.id) for run in runs]
        return gr.update(choices=choices, value=chosen), gr.update(visible=bool(runs)), {"empty": not runs}

    def chosen(self, run_id: str | None) -> tuple[Any, ...]:
        """The chips and the system prompt of a run, and two fresh conversations."""
        run = self._run(run_id)
        config = run_config(run)
        if config is None:
            raise refuse("chat.error.run")
        chips = texts(config.samples.evaluation_inputs)[:CHIPS]
        return {"chips": chips}, config.data.system or "", [], []

    def _run(self, run_id: str | None) -> RunDir:
        if not run_id:
            raise refuse("chat.error.no_run")
        run = self.ctx.run(run_id)
        if run.id not in [found.id for found in finished_runs(self.ctx.workspace)]:
            raise refuse("chat.error.run")
        return run

    async def connect(self, run_id: str | None) -> AsyncIterator[dict[str, Any]]:
        """Start the run's chat server if need be; yields what the status line shows until it is ready or has failed.

        A server that made room for a run stays away until the visitor asks for it.
        """
        gone = await asyncio.to_thread(self.status, run_id)
        if gone["state"] == "released":
            yield gone
            return
        async for status in self.connect_again(run_id):
            yield status

    async def connect_again(self, run_id: str | None) -> AsyncIterator[dict[str, Any]]:
        """The same when the visitor asks for it."""
        if not run_id:
            yield {"state": "none"}
            return
        try:
            loaded = await asyncio.to_thread(self._load, run_id)
        except StartRefused as error:
            yield {"state": "failed", "message": str(error)}
            return
        while True:
            status = await asyncio.to_thread(self.status, run_id, loaded)
            yield status
            if status["state"] != "loading":
                return
            await asyncio.sleep(POLL_S)

    def _load(self, run_id: str) -> Loaded:
        run = self._run(run_id)
        config = run_config(run)
        assert config is not None
        return self.servers.ensure(run, config)

    def status(self, run_id: str | None, loaded: Loaded | None = None) -> dict[str, Any]:
        """What the chat server of a run does now, as JSON for the status line."""
        loaded = loaded or self.servers.current(run_id or "")
        if loaded is None:
            return {"state": "none"}
        if loaded is not self.servers.current(loaded.run_id):
            return {"state": "replaced"}
        health = loaded.health()
        started = min(server.started_at for server in loaded.servers())
        error = health.get("error") or health.get("message") or ""
        message = str(error.get("message", "")) if isinstance(error, dict) else str(error)
        return {"state": str(health["state"]), "seconds": round(time.time() - started, 1), "message": message}

    def send(self, text: str, *histories: list[Message]) -> tuple[Any, ...]:
        """Put the message into both conversations."""
        text = text.strip()
        if not text:
            raise refuse("chat.error.empty")
        if len(text) > MAX_MESSAGE:
            raise refuse("chat.error.long", limit=MAX_MESSAGE)
        asked = {"role": "user", "content": text}
        return "", *(shown([*plain(history), asked]) for history in histories)

    def send_chip(self, event: gr.EventData, *histories: list[Message]) -> tuple[Any, ...]:
        """Send one of the quick questions."""
        return self.send(str(event_data(event).get("text", "")), *histories)

    def answer(self, side: str) -> Callable[..., AsyncIterator[list[Message]]]:
        """The handler that streams one side's answer."""

        async def stream(history: list[Message], run_id: str | None, *options: Any) -> AsyncIterator[list[Message]]:
            loaded = await self._ready(run_id)
            system, wishes = str(options[0] or ""), sampling(*options[1:])
            where = loaded.sides[side]
            pieces = astream_chat(where.server.base_url, where.model, prompt(history, system), **wishes)
            try:
                async for grown in flushed(history, pieces):
                    yield grown
            except ChatError as error:
                if not all(server.alive for server in loaded.servers()):
                    raise refuse("chat.error.gone") from error
                raise refuse("chat.error.broken", reason=str(error).rstrip(".")) from error

        return stream

    async def _ready(self, run_id: str | None) -> Loaded:
        """The loaded servers; waits while they load. Raises Refused when there is nothing that could answer."""
        while True:
            loaded = self.servers.current(run_id or "")
            state = (await asyncio.to_thread(self.status, run_id, loaded))["state"] if loaded else "none"
            if loaded and state == "ready":
                return loaded
            if state != "loading":
                known = {"dead": "chat.error.gone", "released": "chat.error.released"}
                raise refuse(known.get(state, "chat.error.not_loaded"))
            await asyncio.sleep(POLL_S)


def best_mark(run: RunDir) -> str:
    """What the list says of a run whose best step is a checkpoint, not its last step."""
    best = read_best(run)
    return f" · {tr('chat.best', step=best.step)}" if best and best.checkpoint else ""


def sampling(temperature: float, max_tokens: float, seed: str) -> dict[str, Any]:
    """The wishes a server is sent. Raises Refused for a seed that is no number."""
    wishes: dict[str, Any] = {"temperature": float(temperature), "max_tokens": int(max_tokens)}
    seed = str(seed or "").strip()
    if seed:
        if seed_error(seed):
            raise refuse("chat.error.seed")
        wishes["seed"] = int(seed)
    return wishes


def seed_error(seed: Any) -> str:
    """Why a seed cannot be used; "" when it can."""
    text = str(seed or "").strip()
    return "" if not text or (text.isdecimal() and len(text) < 19) else tr("chat.error.seed")


def _check_seed(seed: Any) -> dict[str, Any]:
    return judged(seed_error(seed))


def _settings() -> list[Any]:
    """System prompt, temperature, longest answer, seed."""

    def look(name: str) -> dict[str, Any]:
        return {"label": T(f"chat.{name}"), "info": T(f"chat.{name}.help"), "elem_id": f"chat-{name}"}

    with gr.Accordion(T("chat.settings"), open=False, elem_id="chat-settings"), gr.Group(elem_classes=["form-section"]):
        system = gr.Textbox(lines=2, max_lines=6, max_length=MAX_MESSAGE, **look("system"))
        temperature = gr.Slider(0, 2, value=0, step=0.05, buttons=[], **look("temperature"))
        longest = gr.Slider(8, 2048, value=256, step=8, buttons=[], **look("max_tokens"))
        seed = gr.Textbox("", **look("seed"))
    seed.blur(lambda _: None, seed, None, validator=_check_seed, **READ)
    return [system, temperature, longest, seed]


def build(ctx: Context) -> None:
    """Build the tab."""
    handlers = Handlers(ctx)
    ctx.heading("chat")
    nothing = panel("chat_empty", "chat-nothing")
    with gr.Column(visible=False, elem_id="chat-room") as room:
        with gr.Row(elem_id="chat-head"):
            run = gr.Dropdown(
                [],
                show_label=False,
                label=T("chat.run"),
                container=False,
                allow_custom_value=True,  # the list grows later; the handlers check what comes
                elem_id="chat-run",
                scale=2,
            )
            status = panel("chat_status", "chat-status", scale=3)
        with gr.Row(elem_id="chat-pair"):
            chats = [chatbot(side) for side in SIDES]
        chips = panel("chips", "chat-chips")
        with gr.Row(elem_id="chat-input"):
            box = gr.Textbox(
                placeholder=T("chat.placeholder"),
                label=T("chat.message"),
                show_label=False,
                container=False,
                lines=1,
                max_lines=6,
                max_length=MAX_MESSAGE,
                elem_id="chat-box",
                scale=8,
            )
            look: dict[str, Any] = {"scale": 0, "min_width": 84}
            send = gr.Button(
                T("chat.send"), variant="primary", elem_id="chat-send", elem_classes=["primary-action"], **look
            )
            stop = gr.Button(T("chat.stop"), elem_id="chat-stop", **look)
            clear = gr.Button(T("chat.clear"), elem_id="chat-clear", **look)
        options = _settings()
    fresh = [chips, options[0], *chats]
    connect = safe(handlers.connect)
    ctx.tab["chat"].select(safe(handlers.opened), [ctx.selected_run, run], [run, room, nothing], **READ).success(
        connect, run, status, **STREAM
    )
    run.change(safe(handlers.chosen), run, fresh, **READ).success(connect, run, status, **STREAM)
    status.apply(safe(handlers.connect_again), run, status, **STREAM)
    answers = _wire_messages(handlers, (box, send, chips), chats, (run, status), options)
    stop.click(None, None, None, cancels=answers, **PREVIEW)
    clear.click(lambda: ([], []), None, chats, cancels=answers, **PREVIEW)


def _wire_messages(
    handlers: Handlers,
    senders: tuple[gr.Textbox, gr.Button, gr.HTML],
    chats: list[gr.Chatbot],
    place: tuple[gr.Dropdown, gr.HTML],
    options: list[Any],
) -> list[Any]:
    """Enter, the button and the chips send; both sides stream at once. Returns the streams, to be cancelled."""
    box, button, chips = senders
    run, status = place
    sent = gr.on([box.submit, button.click], safe(handlers.send), [box, *chats], [box, *chats], **PREVIEW)
    chip = chips.select(safe(handlers.send_chip), chats, [box, *chats], **PREVIEW)
    answers = []
    for first in (sent, chip):
        for side, chat in zip(SIDES, chats, strict=True):
            answer = first.success(safe(handlers.answer(side)), [chat, run, *options], chat, **STREAM)
            answer.failure(handlers.status, run, status, **READ)
            answers.append(answer)
    return answers
