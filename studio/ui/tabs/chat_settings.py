"""The folded controls of the chat room: how answers are drawn, the chat template, the bits, the tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio import hardware
from studio.records.template_names import named_template, template_names
from studio.serving_size import BITS, weight_bytes
from studio.tool_loop import Protocol, protocol_of, protocol_of_style, tool_style_at
from studio.tools import available
from studio.ui.context import READ, Context, refuse
from studio.ui.i18n import T, tr
from studio.ui.machine import machine
from studio.ui.tabs.chat_answers import Wishes
from studio.ui.tabs.chat_choices import template_name, trained_bits
from studio.ui.tabs.chat_server import Loaded, Pair, Seat
from studio.ui.tabs.chat_tools import fold
from studio.ui.widgets.bubbles import panel
from studio.ui.widgets.form import judged
from studio.workspace import Workspace

# Not enforced by the boxes: a browser cuts what is pasted, and says nothing.
MAX_MESSAGE = 100_000
MAX_SYSTEM = 20_000
MOST_STOPS = 14  # a request has 16, and the protocols of tools add up to two
NAMES = (
    "system", "temperature", "max_tokens", "top_p", "top_k", "min_p", "repetition_penalty", "stop_words", "seed",
    "template", "bits", "tools",
)  # fmt: skip
"""The controls in the order in which handlers get their values."""


@dataclass(frozen=True)
class Options:
    """What the controls say, checked."""

    system: str
    request: dict[str, Any]
    seed: int | None
    template: str
    bits: int
    tools: bool


def read_options(values: Sequence[Any]) -> Options:
    """The values of the controls in the order of NAMES. Raises Refused for what cannot be sent."""
    found = dict(zip(NAMES, values, strict=True))
    if seed_error(found["seed"]):
        raise refuse("chat.error.seed")
    if stop_error(found["stop_words"]):
        raise refuse("chat.error.stop", limit=MOST_STOPS)
    if len(str(found["system"] or "")) > MAX_SYSTEM:
        raise refuse("chat.error.system", limit=f"{MAX_SYSTEM:,}")
    template = str(found["template"] or "")
    if template and template not in template_names():
        raise refuse("chat.error.template")
    seed = str(found["seed"] or "").strip()
    request = {
        "temperature": float(found["temperature"]),
        "max_tokens": int(found["max_tokens"]),
        "top_p": _unless(float(found["top_p"]), 1.0),
        "top_k": _unless(int(found["top_k"]), 0),
        "min_p": _unless(float(found["min_p"]), 0.0),
        "repetition_penalty": _unless(float(found["repetition_penalty"]), 1.0),
        "stop": _stops(found["stop_words"]) or None,
        "chat_template": template or None,
        "truncation": "auto",
    }
    return Options(
        system=str(found["system"] or ""),
        request={name: value for name, value in request.items() if value is not None},
        seed=int(seed) if seed else None,
        template=template,
        bits=read_bits(found["bits"]),
        tools=bool(found["tools"]),
    )


def _unless(value: Any, idle: Any) -> Any:
    """None for a value that changes nothing, so that it is not sent."""
    return None if value == idle else value


def wishes_of(options: Options, loaded: Loaded, workspace: Workspace) -> Wishes:
    """What is sent with every question."""
    tools = tuple(available(workspace)) if options.tools else ()
    spoken = {side: _protocol(seat, options.template) for side, seat in loaded.sides.items()} if tools else {}
    return Wishes(options.system, options.request, tools, spoken)


def _protocol(seat: Seat, template: str) -> Protocol:
    """How a side speaks of tools: as the chosen template does, else as its model's own."""
    if template:
        return protocol_of(named_template(template).source)
    return protocol_of_style(tool_style_at(seat.server.base_url, seat.model))


def read_bits(value: Any) -> int:
    """The bits that were chosen; 0 for those of the training."""
    return next((bits for bits in BITS if str(value) == str(bits)), 0)


def bits_of(pair: Pair, chosen: int) -> int:
    """The bits a pair is loaded in."""
    return chosen or trained_bits(pair)


def seed_error(seed: Any) -> str:
    """Why a seed cannot be used; "" when it can."""
    text = str(seed or "").strip()
    return "" if not text or (text.isascii() and text.isdecimal() and len(text) < 19) else tr("chat.error.seed")


def _stops(text: Any) -> list[str]:
    return [line for line in str(text or "").splitlines() if line.strip()]


def stop_error(text: Any) -> str:
    """Why the stop words cannot be used; "" when they can."""
    return tr("chat.error.stop", limit=MOST_STOPS) if len(_stops(text)) > MOST_STOPS else ""


def notes(pair: Pair, template: str, chosen_bits: int) -> dict[str, Any]:
    """What the page says beneath the controls: a template that was not trained with, the memory of each precision."""
    trained = template_name(pair)
    warned = bool(template) and template != trained
    bases = sorted({choice.base for choice in pair.values()})
    sizes = {bits: [weight_bytes(base, bits) for base in bases] for bits in BITS}
    return {
        "warned": warned,
        "template": trained,
        "bits": bits_of(pair, chosen_bits),
        "bytes": {str(bits): sum(found) for bits, found in sizes.items() if all(found)},
        "copies": len(bases),
        "free": _free_bytes(),
        "gpu": bool(machine().gpus),
    }


def _free_bytes() -> int:
    gpus = machine().gpus
    return max(gpu.free_bytes for gpu in gpus) if gpus else hardware.memory_bytes()[1]


def settings(ctx: Context) -> tuple[list[Any], gr.HTML]:
    """The folds with the controls, in the order of NAMES, and the panel of notes beneath them."""

    def look(name: str) -> dict[str, Any]:
        return {"label": T(f"chat.{name}"), "info": T(f"chat.{name}.help"), "elem_id": f"chat-{name}"}

    with gr.Accordion(T("chat.settings"), open=False, elem_id="chat-settings"):
        with gr.Group(elem_classes=["form-section", "chat-wide"]):
            system = gr.Textbox(lines=2, max_lines=6, **look("system"))
        with gr.Group(elem_classes=["form-section"]):
            sliders = [
                gr.Slider(0, 2, value=0, step=0.05, buttons=[], **look("temperature")),
                gr.Slider(8, 4096, value=256, step=8, buttons=[], **look("max_tokens")),
                gr.Slider(0.05, 1, value=1, step=0.05, buttons=[], **look("top_p")),
                gr.Slider(0, 200, value=0, step=1, buttons=[], **look("top_k")),
                gr.Slider(0, 1, value=0, step=0.01, buttons=[], **look("min_p")),
                gr.Slider(0.8, 2, value=1, step=0.05, buttons=[], **look("repetition_penalty")),
            ]
            stop = gr.Textbox("", lines=1, max_lines=4, max_length=2000, **look("stop_words"))
            seed = gr.Textbox("", **look("seed"))
        with gr.Group(elem_classes=["form-section"]):
            names = [(T("chat.template.own"), ""), *((name, name) for name in template_names())]
            template = gr.Dropdown(names, value="", **look("template"))
            choices = [(T("chat.bits.own"), "0"), *((T(f"chat.bits.{bits}"), str(bits)) for bits in BITS)]
            held = gr.Radio(choices, value="0", **look("bits"))
        noted = panel("chat_notes", "chat-notes", "chat")
    tools = fold(ctx)
    seed.blur(lambda _: None, seed, None, validator=_check_seed, **READ)
    stop.blur(lambda _: None, stop, None, validator=_check_stop, **READ)
    return [system, *sliders, stop, seed, template, held, tools], noted


def _check_seed(seed: Any) -> dict[str, Any]:
    return judged(seed_error(seed))


def _check_stop(text: Any) -> dict[str, Any]:
    return judged(stop_error(text))
