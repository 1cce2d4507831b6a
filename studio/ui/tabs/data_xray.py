"""X-ray of the Data tab: the first batches of the training token by token, and a row in two chat templates."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field

from studio.config import RunConfig
from studio.estimate import Plan, tokenizer_of
from studio.presets import ModelError
from studio.records import DataError, DatasetStore, xray
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.conversation import Conversation, Record
from studio.records.counts import Prepared
from studio.records.errors import Skipped
from studio.records.formats import open_records
from studio.records.sources import Recipe
from studio.records.template_names import named_template, template_names
from studio.records.token_table import TEXT
from studio.runner import StartRefused
from studio.schema import ConfigError
from studio.schema import build as build_config
from studio.ui.choices import dataset_choices, template_choices
from studio.ui.context import EVENT, READ_EACH, Context, safe
from studio.ui.counting import Waiting
from studio.ui.sentences import translated
from studio.ui.tabs import train_preview as tp
from studio.ui.widgets.bubbles import event_data, panel
from studio.ui.widgets.form import Form

MOST_BATCHES = 4
# Of a batch of thousands of rows only these are drawn.
ROWS_SHOWN = 16
# Of the rows something is said about only these are named.
ROWS_NAMED = 20
# Of a row in two templates so many tokens are drawn.
TOKENS_COMPARED = 600
COMPARED_WITH = ("chatml", "llama3_chat")
# What the settings of the first dataset are while another one is looked at.
UNSET = ("subset", "split", "mapping", "system", "max_samples", "weight", "sources", "validation_dataset")


class Ask(BaseModel):
    """What the page wants to see: a dataset, so many batches, a second template, one of the examples (from 0)."""

    model_config = ConfigDict(extra="ignore")

    dataset: str = Field(default="", max_length=1000)
    batches: int = Field(default=1, ge=1, le=MOST_BATCHES)
    template: str = Field(default="", max_length=200)
    example: int = Field(default=0, ge=0, le=100_000)


class Handlers:
    """What the panel does over one workspace."""

    def __init__(self, ctx: Context, form: Form) -> None:
        self.form = form
        self.store = DatasetStore(ctx.workspace.datasets)
        self.counting = ctx.counting

    def look(self, event: gr.EventData, chosen: str | None, *values: Any) -> dict[str, Any]:
        """The X-ray of a dataset with the settings of the Train form; `state` says why there is none."""
        ask = Ask()
        with contextlib.suppress(ValueError):
            ask = Ask.model_validate(event_data(event))
        datasets = dataset_choices(self.store)
        mapping = self.form.mapping(values)
        name = ask.dataset or chosen or mapping["data"]["dataset"] or (datasets[0][1] if datasets else "")
        # The time makes each answer another value: the page would not hear of an equal one.
        found = {"datasets": datasets, "dataset": name, "stale": False, "now": time.time()}
        return found | (self._seen(ask, mapping, name) if name else {"state": "none"})

    def _seen(self, ask: Ask, mapping: dict[str, Any], name: str) -> dict[str, Any]:
        try:
            config = build_config(RunConfig, with_dataset(mapping, name))
        except ConfigError as error:
            first = tp.issue_of(self.form, error.errors[0])
            return {"state": "form", "label": first["label"], "message": first["message"]}
        try:
            plan = self.counting.plan(config)
            if isinstance(plan, Plan):
                return {"state": "seen"} | view(plan, config, ask)
        except DataError as error:
            return {"state": "error", "message": tp.first_up(error.message, error.field)}
        except StartRefused as error:
            return {"state": "error", "message": translated(str(error))}
        except ModelError as error:
            return {"state": "error", "message": translated(error.message)}
        except OSError as error:
            return {"state": "error", "message": error.strerror or type(error).__name__}
        if isinstance(plan, Waiting):
            return {"state": "waiting", "waiting": [plan.done, plan.total]}
        return {"state": "no_tokenizer", "model": config.model.model_name_or_path}


def with_dataset(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    """The form's configuration trained on another dataset alone; unchanged for the dataset it has."""
    data = mapping["data"]
    if data["dataset"] == name:
        return mapping
    return mapping | {"data": {key: value for key, value in data.items() if key not in UNSET} | {"dataset": name}}


# ---- what is shown ---------------------------------------------------------------------------------------------------


def view(plan: Plan, config: RunConfig, ask: Ask) -> dict[str, Any]:
    """Batches, lengths, findings and the two templates as JSON."""
    batches = xray.batches_view(plan.prepared, plan.recipes, plan.chat, plan.numbers, ask.batches)
    examples = [example for batch in batches for row in batch["rows"] for example in row["examples"]]
    for batch in batches:
        batch["more"] = max(len(batch["rows"]) - ROWS_SHOWN, 0)
        batch["rows"] = batch["rows"][:ROWS_SHOWN]
    known = _special_ids(plan.chat)
    ids = {token[0] for example in examples for token in example["tokens"]}
    return {
        "model": config.model.model_name_or_path,
        "max_length": config.data.max_length,
        "batch_size": config.train.per_device_train_batch_size,
        "packed": plan.prepared.packing,
        "sources": len(plan.recipes),
        "more": ask.batches < MOST_BATCHES and len(batches) == ask.batches,
        "batches": batches,
        "special": sorted(ids & known),
        "counts": tp.counts_json(plan, config),
        "lengths": xray.histogram(plan.prepared, config.data.max_length),
        "findings": findings_view(plan),
        "templates": templates_view(plan, config, ask, examples),
    }


def findings_view(plan: Plan) -> list[dict[str, Any]]:
    """What stands out, each with the numbers of some of its rows."""
    shown = []
    for item in xray.findings(plan.prepared, plan.chat):
        rows = cut_rows(plan.prepared) if item.code == "truncated" else list(item.rows)
        shown.append({"code": item.code, "level": item.level, "count": item.count, "rows": rows})
    return shown


def cut_rows(prepared: Prepared) -> list[int]:
    """Numbers of the first conversations that are cut at max_length."""
    examples, found = prepared.examples, set[int]()
    for number, source in enumerate(prepared.sources):
        mine = examples.source == number
        index, length = examples.index[mine], examples.length[mine]
        cut = (source.table.lengths[index] > length) & ((source.table.flags[index] & TEXT) == 0)
        found.update(source.table.rows[index[cut]].tolist())
    return sorted(found)[:ROWS_NAMED]


def templates_view(plan: Plan, config: RunConfig, ask: Ask, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One of the shown rows as the training writes it, and beside it in a template of the visitor's choice."""
    number = min(ask.example, len(examples) - 1)
    example = examples[number]
    used = (config.model.chat_template or "").strip()
    other = ask.template if ask.template in template_names() else _unlike(plan.chat)
    record = _record(plan.recipes[example["source"]], example["row"])
    return {
        "number": number,
        "total": len(examples),
        "row": example["row"],
        "source": example["source"],
        "used": _named(used),
        "left": _written(record, plan.chat),
        "right": _written_in(record, config, other),
        "other": other,
        "choices": template_choices(),
    }


def _unlike(chat: ChatTokenizer) -> str:
    """A template whose marks are not those of the training's."""
    marks = {name: named_template(name).stop_words[0] for name in COMPARED_WITH}
    return next((name for name, mark in marks.items() if mark not in chat.template.source), COMPARED_WITH[0])


def _named(used: str) -> dict[str, str]:
    """What the template of the training is called: by name, "own" of the model, or "text"."""
    if not used:
        return {"kind": "own", "name": ""}
    if used in template_names():
        return {"kind": "name", "name": named_template(used).label}
    return {"kind": "text", "name": ""} if "{" in used else {"kind": "name", "name": used}


def _written_in(record: Record | None, config: RunConfig, template: str) -> dict[str, Any]:
    model = config.model.model_copy(update={"chat_template": template})
    chat = tokenizer_of(config.model_copy(update={"model": model}))
    return _written(record, chat) if chat else {"problem": ""}


def _written(record: Record | None, chat: ChatTokenizer) -> dict[str, Any]:
    """The tokens of a record as [id, text, state]; or the sentence why the template cannot write it."""
    if record is None:
        return {"problem": translated("The row is too far down in the file to be looked up.")}
    try:
        encoded = chat.encode(record)
    except DataError as error:
        return {"problem": translated(error.message)}
    ids, special = encoded.ids[:TOKENS_COMPARED], _special_ids(chat)
    marks = [xray.TRAINED if trained else xray.CONTEXT for trained in encoded.mask]
    return {
        "tokens": [[i, piece, mark] for i, piece, mark in zip(ids, chat.pieces(ids), marks, strict=False)],
        "length": len(encoded.ids),
        "hidden": len(encoded.ids) - len(ids),
        "trained": sum(encoded.mask),
        "special": sorted(special & set(ids)),
        "stop_words": list(chat.stop_words),
        "split": [word for word in chat.stop_words if chat.backend.token_to_id(word) is None],
    }


def _special_ids(chat: ChatTokenizer) -> set[int]:
    return {number for number, token in chat.backend.get_added_tokens_decoder().items() if token.special}


def _record(recipe: Recipe, row: int) -> Record | None:
    """The record of a row of the file as it is rendered; None when it is not among the first ones."""
    for number, item in enumerate(open_records(Path(recipe.path), recipe.options)):
        if number >= xray.SEARCHED_ROWS or (not isinstance(item, Skipped) and item[0] > row):
            return None
        if not isinstance(item, Skipped) and item[0] == row:
            record = item[1]
            return record.with_system(recipe.system) if isinstance(record, Conversation) else record
    return None


# ---- layout ----------------------------------------------------------------------------------------------------------


def build(ctx: Context) -> None:
    """Add the panel where the layout is open; the Train tab must be built."""
    form = cast(Form, ctx.form)
    handlers = Handlers(ctx, form)
    shown = panel("xray", "data-xray", "xray")
    shown.select(safe(handlers.look), [ctx.selected_dataset, *form.components], shown, **READ_EACH)
    # Its script asks anew when it is in view: nothing is computed for a page that nobody looks at.
    stale = "(now) => ({...(now || {}), stale: true, dataset: ''})"
    ctx.selected_dataset.change(None, shown, shown, js=stale, **EVENT)
    ctx.tab["data"].select(None, shown, shown, js=stale.replace(", dataset: ''", ""), **EVENT)
