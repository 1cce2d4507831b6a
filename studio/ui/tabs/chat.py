"""Chat: a question, and beneath it the answers of two models side by side; of one copy of the weights where they share
a base model."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from studio import votes
from studio.records import DatasetStore
from studio.runner import StartRefused
from studio.ui.context import ACTION, EVENT, PREVIEW, READ, Context, Refused, refuse, safe
from studio.ui.i18n import T, tr
from studio.ui.sentences import translated
from studio.ui.tabs import chat_file
from studio.ui.tabs.chat_answers import answer_all
from studio.ui.tabs.chat_choices import (
    before_key,
    config_of,
    evaluation_inputs,
    first_pair,
    held_out,
    named,
    room_of,
)
from studio.ui.tabs.chat_keep import keep
from studio.ui.tabs.chat_order import Order, place, read_order
from studio.ui.tabs.chat_server import Loaded, Pair, Servers, pair_key, reason_of
from studio.ui.tabs.chat_settings import bits_of, notes, read_bits, read_options, settings, wishes_of
from studio.ui.widgets.bubbles import event_data, panel
from studio.ui.widgets.chatview import LEFT, RIGHT, SIDES, Answer, Thread, read_thread

POLL_S = 0.4
CHIPS = 5
# An answer is asked for once: what is sent while it comes would be a second one.
STREAM: dict[str, Any] = {**EVENT, "concurrency_limit": None, "trigger_mode": "once"}


class Handlers:
    """What the tab does; every method is an event handler."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.workspace = ctx.workspace
        self.servers = Servers(ctx.workspace)
        self.store = DatasetStore(ctx.workspace.datasets)

    # ---- who talks ----

    def opened(self, selected: str, left: str | None, right: str | None, value: Any) -> tuple[Any, ...]:
        """Fresh lists. What was chosen stays, unless another run was selected meanwhile."""
        room = room_of(self.workspace)
        thread = read_thread(value)
        stays = right in room.choices and thread.chosen_for == (selected or "")
        if not stays or (left and left not in room.choices):
            left, right = first_pair(self.workspace, room, selected or "")
            thread.chosen_for = selected or ""
        lists = [
            gr.update(choices=[(tr("chat.nobody"), ""), *room.labels], value=left or ""),
            gr.update(choices=room.labels, value=right),
        ]
        datasets = [info.title or info.name for info in self.store.list()]
        shown = room.trained or bool(thread.turns)
        return (
            *lists,
            thread.as_json(),
            gr.update(choices=datasets),
            gr.update(visible=shown),
            {"empty": not shown},
        )

    def base_alone(self) -> tuple[Any, ...]:
        """The room before anything was trained: the base model answers alone."""
        return gr.update(visible=True), {"empty": False}

    def paired(self, left: str | None, right: str | None) -> Any:
        """Another model on the right: a base model on the left follows, so that it is the one it was trained from."""
        room = room_of(self.workspace)
        before = before_key(room.pair("", right)[RIGHT])
        follows = left and left in room.choices and room.choices[left].what == "base" and before in room.choices
        return before if follows else gr.skip()

    def chosen(self, left: str | None, right: str | None, value: Any, *more: Any) -> tuple[Any, ...]:
        """A fresh conversation of a pair; of the same pair as before the conversation goes on."""
        pair = self._pair(left, right)
        thread, sides = read_thread(value), named(pair)
        if {side: who.key for side, who in thread.sides.items()} != {side: who.key for side, who in sides.items()}:
            asked = thread.questions or thread.earlier
            thread = Thread(earlier=asked, chosen_for=thread.chosen_for, blind=thread.blind)
            config = config_of(pair)
            system: Any = (config.data.system or "") if config else ""
        else:
            system = gr.skip()
        thread.sides = sides  # type: ignore[assignment]
        return self._chips(pair), system, thread.as_json(), self._notes(pair, *more), self._tally(pair)

    def _chips(self, pair: Pair) -> dict[str, Any]:
        asked = evaluation_inputs(pair)
        single = [messages[0]["content"] for messages in asked if len(messages) == 1]
        return {"chips": single[:CHIPS], "evaluation": len(asked), "held_out": len(held_out(pair, self.workspace))}

    def _notes(self, pair: Pair, template: Any, bits: Any) -> dict[str, Any]:
        return notes(pair, str(template or ""), read_bits(bits))

    def noted(self, left: str | None, right: str | None, template: Any, bits: Any) -> dict[str, Any]:
        """The notes beneath the settings."""
        return self._notes(self._pair(left, right), template, bits)

    def _pair(self, left: str | None, right: str | None) -> Pair:
        return room_of(self.workspace).pair(left, right)

    # ---- the servers ----

    async def connect(self, left: str | None, right: str | None, bits: Any) -> AsyncIterator[dict[str, Any]]:
        """Start what answers, if need be; yields what the status line shows until it is ready or has failed.

        A server that made room for a run stays away until the visitor asks for it.
        """
        gone = await asyncio.to_thread(self.status, left, right, bits)
        if gone["state"] == "released":
            yield gone
            return
        async for status in self.connect_again(left, right, bits):
            yield status

    async def connect_again(self, left: str | None, right: str | None, bits: Any) -> AsyncIterator[dict[str, Any]]:
        """The same when the visitor asks for it."""
        if not right:
            yield {"state": "none"}
            return
        try:
            loaded = await asyncio.to_thread(self._load, left, right, bits)
        except StartRefused as error:
            yield {"state": "failed", "message": str(error)}
            return
        while True:
            status = await asyncio.to_thread(self._status, loaded)
            yield status
            if status["state"] != "loading":
                return
            await asyncio.sleep(POLL_S)

    def _load(self, left: str | None, right: str | None, bits: Any) -> Loaded:
        pair = self._pair(left, right)
        return self.servers.ensure(pair, bits_of(pair, read_bits(bits)))

    def status(self, left: str | None, right: str | None, bits: Any) -> dict[str, Any]:
        """What the servers of a pair do now, as JSON for the status line."""
        try:
            pair = self._pair(left, right)
        except Refused:
            return {"state": "none"}
        loaded = self.servers.current(pair_key(pair, bits_of(pair, read_bits(bits))))
        return self._status(loaded) if loaded else {"state": "none"}

    def _status(self, loaded: Loaded) -> dict[str, Any]:
        if loaded is not self.servers.current(loaded.key):
            return {"state": "replaced"}
        health = loaded.health()
        started = min(server.started_at for server in loaded.servers())
        return {
            "state": str(health["state"]),
            "seconds": round(time.time() - started, 1),
            "message": reason_of(health),
            "copies": len(loaded.servers()),
            "bits": loaded.bits,
        }

    async def _ready(self, pair: Pair, bits: int) -> Loaded:
        """The loaded servers; waits while they load. Raises Refused when there is nothing that could answer.

        A question may come before the page has started them. Another page's pair is not pushed out by a question.
        """
        if self.servers.idle:
            await asyncio.to_thread(self.servers.ensure, pair, bits)
        while True:
            loaded = self.servers.current(pair_key(pair, bits))
            state = (await asyncio.to_thread(self._status, loaded))["state"] if loaded else "none"
            if loaded and state == "ready":
                return loaded
            if state != "loading":
                known = {"dead": "chat.error.gone", "released": "chat.error.released"}
                raise refuse(known.get(state, "chat.error.not_loaded"))
            await asyncio.sleep(POLL_S)

    # ---- questions and answers ----

    async def ask(
        self, event: gr.EventData, text: str, value: Any, left: str | None, right: str | None, *values: Any
    ) -> AsyncIterator[tuple[Any, Any, Any]]:
        """Everything that ends in new answers: a message, a retry, a changed question, a list of questions.

        Yields the box, the whole conversation (first and last) and the turn that grows in between.
        """
        order = read_order(event_data(event), text)
        pair, thread = await asyncio.to_thread(self._pair, left, right), read_thread(value)
        options = read_options(values)
        thread.sides = named(pair)  # type: ignore[assignment]
        sides = [side for side in SIDES if side in pair and order.side in ("", side)]
        numbers = place(thread, order, self._listed(order, pair, thread))
        self._prepare(thread, numbers, sides, options.seed, drawn=options.request["temperature"] > 0)
        typed = order.act == "send" and not event_data(event).get("text")
        yield ("" if typed else gr.skip()), thread.as_json(), {}
        try:
            loaded = await self._ready(pair, bits_of(pair, options.bits))
            wishes = await asyncio.to_thread(wishes_of, options, loaded, self.workspace)
            async with aclosing(answer_all(thread, numbers, sides, loaded, wishes)) as growing:
                async for number in growing:
                    yield gr.skip(), gr.skip(), thread.growing(number)
        except Exception as error:
            yield gr.skip(), _failed(thread, numbers, error), {}
            raise
        thread.busy = False
        yield gr.skip(), thread.as_json(), {}

    def _listed(self, order: Order, pair: Pair, thread: Thread) -> list[list[dict[str, Any]]]:
        """The conversations a list of questions asks."""
        if order.act == "again":
            return [[{"role": "user", "content": question}] for question in thread.earlier]
        if order.act == "evaluation":
            return evaluation_inputs(pair)
        return held_out(pair, self.workspace) if order.act == "held_out" else []

    @staticmethod
    def _prepare(
        thread: Thread, numbers: Sequence[int], sides: Sequence[str], seed: int | None, *, drawn: bool
    ) -> None:
        """Both sides get the same seed, and in a blind vote places nobody knows."""
        thread.busy, thread.stream, thread.earlier = True, secrets.token_hex(4), []
        for number in numbers:
            turn = thread.turns[number]
            turn.seed = seed if seed is not None else secrets.randbelow(2**31) if drawn else None
            if not turn.answers:
                turn.blind = thread.blind and len(thread.sides) > 1
                turn.swap = turn.blind and random.random() < 0.5  # noqa: S311 - a coin, not a secret
            elif turn.blind:
                turn.vote = ""
            for side in sides:
                turn.answers[side] = Answer()  # type: ignore[index]

    # ---- what is made of it ----

    def vote(self, event: gr.EventData, left: str | None, right: str | None) -> dict[str, Any]:
        """Count a blind vote, or begin the count again."""
        pair, choice = self._pair(left, right), str(event_data(event).get("vote", ""))
        if len(pair) < 2 or choice not in (*votes.CHOICES, "restart"):
            raise refuse("chat.error.vote")
        keys = pair[LEFT].key, pair[RIGHT].key
        if choice == "restart":
            votes.restart(self.workspace, *keys)
        else:
            votes.add_vote(self.workspace, *keys, choice)
        return self._tally(pair)

    def _tally(self, pair: Pair) -> dict[str, Any]:
        """The count of a pair, under the names of its models."""
        if len(pair) < 2:
            return {}
        counts = votes.tally(self.workspace, pair[LEFT].key, pair[RIGHT].key)
        names = {side: who.model_dump() for side, who in named(pair).items()}
        return {"counts": counts, "names": names}

    def save(self, value: Any, side: str, title: str | None, system: str | None) -> tuple[Any, Any]:
        """The conversation as rows of a dataset, which becomes the chosen one of the Data tab."""
        info, said = keep(self.store, value, str(side or ""), str(title or ""), str(system or ""))
        gr.Success(said, duration=8)
        return info.name, {"name": info.name, "said": said}


def _failed(thread: Thread, numbers: Sequence[int], error: Exception) -> dict[str, Any]:
    """The thread when nothing could answer: what has no answer says why."""
    known = isinstance(error, Refused | StartRefused)
    said = translated(str(error)) if known else tr("chat.error.broken", reason=type(error).__name__)
    for number in numbers:
        for answer in thread.turns[number].answers.values():
            if answer.state in ("waiting", "streaming"):
                answer.state, answer.error = "failed", said
    thread.busy = False
    return thread.as_json()


def _picker(side: str) -> gr.Dropdown:
    """The list of who answers on a side."""
    return gr.Dropdown(
        [],
        label=T(f"chat.{side}"),
        allow_custom_value=True,  # the list grows later; the handlers check what comes
        elem_id=f"chat-{side}",
        scale=3,
        min_width=200,
    )


def _composer() -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """Where a message is written, Send and Stop."""
    with gr.Row(elem_id="chat-input"):
        box = gr.Textbox(
            placeholder=T("chat.placeholder"),
            label=T("chat.message"),
            show_label=False,
            container=False,
            lines=1,
            max_lines=6,
            elem_id="chat-box",
            scale=8,
        )
        look: dict[str, Any] = {"scale": 0, "min_width": 84}
        send = gr.Button(
            T("chat.send"), variant="primary", elem_id="chat-send", elem_classes=["primary-action"], **look
        )
        stop = gr.Button(T("chat.stop"), elem_id="chat-stop", **look)
    return box, send, stop


def _keeper() -> tuple[gr.Radio, gr.Dropdown, gr.Button, gr.HTML]:
    """The fold that makes training rows of the conversation."""
    with gr.Accordion(T("chat.keep"), open=False, elem_id="chat-keep"):
        with gr.Group(elem_classes=["form-section"]):
            sides = [(T(f"chat.keep.{side}"), side) for side in (RIGHT, LEFT)]
            side = gr.Radio(sides, value=RIGHT, label=T("chat.keep.side"), info=T("chat.keep.side.help"))
            title = gr.Dropdown(
                [],
                label=T("chat.keep.title"),
                info=T("chat.keep.title.help"),
                allow_custom_value=True,
                elem_id="chat-keep-title",
            )
        with gr.Row(elem_id="chat-keep-row"):
            save = gr.Button(T("chat.keep.save"), elem_id="chat-keep-save", scale=0, min_width=160)
            kept = panel("chat_kept", "chat-kept", "chat")
    return side, title, save, kept


def build(ctx: Context) -> None:
    """Build the tab."""
    handlers = Handlers(ctx)
    ctx.heading("chat")
    nothing = panel("chat_empty", "chat-nothing", "chat")
    with gr.Column(visible=False, elem_id="chat-room") as room:
        with gr.Row(elem_id="chat-head"):
            pickers = [_picker(side) for side in SIDES]
            status = panel("chat_status", "chat-status", "chat", scale=1, min_width=150)
        thread = panel("chat_thread", "chat-pair", "chat")
        growing = panel("chat_growing", "chat-growing", "chat", visible="hidden")
        tally = panel("chat_tally", "chat-tally", "chat")
        chips = panel("chat_chips", "chat-chips", "chat")
        box, send, stop = _composer()
        options, noted = settings(ctx)
        keeper = _keeper()
        chat_file.fold(ctx, pickers[SIDES.index(RIGHT)], options)
    held = options[-2]
    shape = [options[-3], held]  # template and bits
    who = [*pickers, held]
    connect = safe(handlers.connect)
    fresh: dict[str, Any] = {
        "fn": safe(handlers.chosen),
        "inputs": [*pickers, thread, *shape],
        "outputs": [chips, options[0], thread, noted, tally],
    }
    opened = ctx.tab["chat"].select(
        safe(handlers.opened),
        [ctx.selected_run, *pickers, thread],
        [*pickers, thread, keeper[1], room, nothing],
        **READ,
    )
    alone = nothing.apply(safe(handlers.base_alone), None, [room, nothing], **READ)
    left, right = pickers
    followed = right.input(safe(handlers.paired), pickers, left, **READ)
    chosen = [event.success(**fresh, **READ) for event in (opened, alone, followed)]
    for begun in (*chosen, left.input(**fresh, **READ)):
        begun.success(connect, who, status, **READ)
    gr.on([control.change for control in shape], safe(handlers.noted), [*pickers, *shape], noted, **READ)
    # In two steps: what Gradio does again later is the whole event, and this one's also ends an answer (below).
    held.input(None, None, None, js="() => []", **EVENT).success(connect, who, status, **READ)
    status.apply(safe(handlers.connect_again), who, status, **READ)
    asked = gr.on(
        [box.submit, send.click, thread.apply, chips.select],
        safe(handlers.ask),
        [box, thread, *pickers, *options],
        [box, thread, growing],
        **STREAM,
    )
    for ended in (asked.success, asked.failure):
        ended(handlers.status, who, status, **READ)
    stop.click(None, None, None, cancels=[asked], **PREVIEW)  # the page marks what was under way as stopped
    # So does another model or precision: what is still to come belongs to models that are no longer there.
    gr.on([left.input, right.input, held.input], None, None, None, cancels=[asked], **PREVIEW)
    thread.select(safe(handlers.vote), pickers, tally, **ACTION)
    tally.select(safe(handlers.vote), pickers, tally, **ACTION)
    side, title, save, kept = keeper
    save.click(safe(handlers.save), [thread, side, title, options[0]], [ctx.selected_dataset, kept], **ACTION)
