"""That an imported adapter belongs to its base: every tensor has its place there, and the answers change."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from studio.engine.adapter import AdapterFiles, check_supported
from studio.engine.convertplan import Base, Plan
from studio.engine.dialogue import Turn
from studio.engine.failure import EngineError, model_failure
from studio.engine.foreign.peft_config import check_whole, layer_names, lora_config, peft_settings
from studio.engine.foreign.settings import Settings
from studio.engine.foreign.sources import SAFE, Found
from studio.engine.foreign.tensor_names import Named, converted
from studio.engine.journal import Journal
from studio.engine.loading import attach, blaming, check_fits, choose_holding, load_base
from studio.engine.output_folder import check_disk
from studio.engine.questions import BUILT_IN, Trace, ask
from studio.presets import ModelRef
from studio.prompts import texts
from studio.remote_code import allowed

MOST_PROMPTS = 8
OWN_PROMPTS = 4
_MODELS: Any = AutoModelForCausalLM  # the libraries' own types are too loose to be checked against


def fit(plan: Plan, found: Found, base: Base) -> AdapterFiles:
    """Write the adapter's weights and settings into the working folder, under the names of the base model.

    Raises:
        EngineError: field base (a tensor without its place there, named with its shape), source, settings, lora_alpha.
    """
    adapter = converted(found.named, base.original.layout) if base.original else found.named
    renamed = adapter is not found.named
    check_supported(found.place.name, {"peft_type": "LORA"} | dict(found.settings.lora), "source")
    layers = skeleton(base.ref)
    check_whole(adapter, layers)
    values = peft_settings(adapter, found.settings, plan.config.lora_alpha, renamed=renamed)
    if renamed or not (found.settings.peft and values.get("target_modules") is not None):
        values["target_modules"] = layer_names(adapter, layers)
    values["base_model_name_or_path"] = base.named
    settings = lora_config(values, found.settings)
    check_disk(plan.out, sum(t.numel() * t.element_size() for t in adapter.tensors.values()), "the adapter")
    settings.save_pretrained(str(plan.work))
    _write(adapter, plan)
    files = AdapterFiles(plan.work, settings.to_dict(), None)
    with _said_of_base():
        check_fits(layers, files)
    return files


def skeleton(ref: ModelRef) -> nn.Module:
    """The base model without its weights: names and shapes."""
    with blaming("base"), torch.device("meta"):
        config = AutoConfig.from_pretrained(ref.path_or_id, local_files_only=True, trust_remote_code=allowed())
        model: nn.Module = _MODELS.from_config(config, trust_remote_code=allowed())
    return model


def _write(adapter: Named, plan: Plan) -> None:
    # Copies: parts of a divided matrix share their memory, and a file must not.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in sorted(adapter.tensors.items())}
    save_file(tensors, plan.work / SAFE, metadata={"format": "pt"})


@contextlib.contextmanager
def _said_of_base() -> Iterator[None]:
    """What does not fit is here said of the field base."""
    try:
        yield
    except EngineError as error:
        if error.error.field != "adapter":
            raise
        said = error.error.message.removeprefix("adapter: ")
        message = f"base: {said.replace('it was trained', 'the adapter was trained', 1)}"
        raise model_failure(message, error.error.hint, "base") from error


def prove(
    plan: Plan, base: Base, tokenizer: PreTrainedTokenizerBase, settings: Settings, journal: Journal
) -> dict[str, Any]:
    """Load the written folder on the base as anybody would, ask the same with and without it.

    `passed` says whether the answers' logits differ, `reason` why not. Raises EngineError, field base, when it does
    not fit.
    """
    files = AdapterFiles(plan.work, {}, None)
    model: Any = load_base(base.ref, choose_holding(16, base.ref), "base")
    with _said_of_base():
        model = attach(model, {"default": files})
    with model.disable_adapter():
        before = asked(model, tokenizer, plan, settings, journal)
    after = ask(model, tokenizer, [trace.turns for trace in before], journal, "base + adapter")
    proof = compared(before, after)
    if proof["passed"] and not proof["answers_changed"]:
        told = (
            f"None of {len(before)} answers is another than the base model's: the adapter is weak, or its alpha wrong."
        )
        journal.warn(told, "lora_alpha")
    return proof


def asked(
    model: Any, tokenizer: PreTrainedTokenizerBase, plan: Plan, settings: Settings, journal: Journal
) -> list[Trace]:
    """What the base answers; without the system prompt where its template has no place for one, or its context."""
    found = ask(model, tokenizer, conversations(plan, settings), journal, "base")
    return found or ask(model, tokenizer, conversations(plan, settings, bare=True), journal, "base")


def compared(before: list[Trace], after: list[Trace], what: str = "the adapter changes") -> dict[str, Any]:
    """The proof: what the base answers, what the import (`what`) does, and whether their logits differ."""
    difference = _difference(before, after)
    reason = _why_not(before, difference, what)
    pairs = list(zip(before, after, strict=True))
    return {
        "prompts": len(before),
        "answers_changed": sum(a.answer_ids != b.answer_ids for a, b in pairs),
        "max_logit_difference": difference,
        "rows": [{"prompt": a.prompt, "base": a.answer, "adapter": b.answer} for a, b in pairs],
        "reason": reason,
        "passed": not reason,
    }


def _why_not(asked: list[Trace], difference: float | None, what: str) -> str:
    """Why the proof fails, or nothing."""
    if not asked:
        return "none of the questions could be asked"
    if difference is None:
        return "its answers are not numbers"
    return "" if difference > 0 else f"{what} nothing in the answers"


def conversations(plan: Plan, settings: Settings, *, bare: bool = False) -> list[tuple[Turn, ...]]:
    """The training's own questions first, under its system prompt (unless `bare`), then built-in ones."""
    trained = plan.trained.trained() if plan.trained else None
    own = texts(trained.samples.evaluation_inputs) if trained else list(settings.questions)
    said = trained.data.system if trained else settings.system
    system = (Turn("system", said),) if said and not bare else ()
    asked = list(dict.fromkeys([*own[:OWN_PROMPTS], *BUILT_IN]))[:MOST_PROMPTS]
    return [(*system, Turn("user", text)) for text in asked]


def _difference(before: list[Trace], after: list[Trace]) -> float | None:
    """The largest difference of the logits for the first word of an answer, whose words before are the same.

    None when they are not numbers.
    """
    gaps = [(a.logits[0] - b.logits[0]).abs().max().item() for a, b in zip(before, after, strict=True)]
    return max(gaps, default=0.0) if all(math.isfinite(gap) for gap in gaps) else None
