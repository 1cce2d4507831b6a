"""Train, for several GPUs and machines: the fields as a group of their own, and the choice of cards beside Start."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.ui.context import READ
from studio.ui.i18n import T
from studio.ui.tabs.starting import ANY_CARD, together, together_choice
from studio.ui.widgets.bubbles import panel
from studio.ui.widgets.form import Form

SECTION = "parallel"
PROCESSES, MACHINES = f"{SECTION}.num_processes", f"{SECTION}.num_machines"
STAGE = f"{SECTION}.deepspeed"
SEVERAL = tuple(f"{SECTION}.{name}" for name in ("machine_rank", "main_process_ip", "main_process_port"))


def build(form: Form) -> None:
    """The fields behind a fold of their own: whoever has one GPU or none never opens it."""
    with gr.Accordion(T("train.parallel"), open=False, elem_id="train-parallel"):
        gr.HTML(f"<p>{T('train.parallel.lead')}</p>", elem_classes=["parallel-lead"], padding=False)
        with gr.Group(elem_classes=["form-section"]):
            form.place([PROCESSES, STAGE])
        panel("spread", "train-spread", "train")
        with gr.Group(elem_classes=["form-section"]):
            form.place(
                [spec.path for spec in form.specs if spec.section == SECTION and not _placed_elsewhere(spec.path)]
            )
        with gr.Group(elem_classes=["form-section"], elem_id="train-machines"):
            gr.HTML(f"<h3>{T('train.parallel.machines')}</h3>", elem_classes=["section-head"], padding=False)
            form.place([MACHINES, *SEVERAL])
        panel("machines", "train-lines", "train")


def _placed_elsewhere(path: str) -> bool:
    return path in (PROCESSES, STAGE, MACHINES, *SEVERAL)


# ---- the choice beside Start -----------------------------------------------------------------------------------------


def wire(form: Form, cards: gr.Dropdown, guard: Callable[..., Any]) -> None:
    """Keep the number of processes and the choice of cards in step."""
    processes, machines = form[PROCESSES], form[MACHINES]
    cards.input(guard(choose_cards), [cards, processes, machines], processes, **READ)
    gr.on([processes.change, machines.change], guard(follow), [cards, processes, machines], cards, **READ)


def choose_cards(choice: str | None, processes: str, machines: str) -> Any:
    """As many processes as cards were chosen, on every machine; one card of several trains alone."""
    wanted = (together(choice) or 1) * _count(machines)
    return gr.skip() if choice == ANY_CARD and not _several(processes) else str(wanted)


def follow(choice: str | None, processes: str, machines: str) -> Any:
    """The choice that says how many processes there are; one card stays chosen while there is one process."""
    each = _count(processes) // _count(machines)
    wanted = together_choice(each) or (ANY_CARD if together(choice) or each > 1 else choice)
    return gr.skip() if wanted == choice else wanted


def _several(processes: str) -> bool:
    return _count(processes) > 1


def _count(text: Any) -> int:
    """A number as far as the field holds one; what is none is said at the field."""
    return max(1, int(str(text)[:6])) if str(text or "").strip().isdecimal() else 1
