"""The proof of a merge: the model read back from disk answers what base + adapter answered.

Both are asked the same questions. Base + adapter writes its likeliest answer; then the logits of both models are
compared at every position of that answer. What may differ is rounding: merged weights are saved in fewer digits than
the sum was computed in.

The tolerance is a share of the largest logit and depends on the format saved in. Measured on the built-in model
(largest logit 25): float32 9e-6, float16 0.008, bfloat16 0.04 when computed in float32 and 0.13 in bfloat16. One
single layer left out of the merge gives 0.8 and more. The shares below leave room for deeper models and still catch
that.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from studio.engine.dialogue import Turn
from studio.engine.journal import Journal
from studio.engine.loading import Holding, load_base, load_tokenizer, read_template
from studio.engine.mergeplan import Plan
from studio.engine.questions import BUILT_IN, Trace, ask, compare
from studio.presets import ModelRef
from studio.prompts import texts

TOLERANCE = {"float32": 2e-4, "float16": 4e-3, "bfloat16": 2e-2}
MOST_PROMPTS = 8
OWN_PROMPTS = 4
SAMPLED = 65536


@dataclass(frozen=True)
class Merged:
    """A merged model on disk, and what base + adapter answered before: the two sides of the proof.

    `samples` holds some numbers of every adapted layer before the merge, in the format they would be saved in.
    """

    traces: list[Trace]
    samples: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerBase
    compute: torch.dtype
    shards: int
    size_bytes: int


def probe_prompts(plan: Plan) -> list[tuple[Turn, ...]]:
    """About eight conversations: the run's own evaluation inputs first, under its system prompt, then built-in ones."""
    trained = plan.adapter.trained
    own = texts(trained.samples.evaluation_inputs)[:OWN_PROMPTS] if trained else []
    asked = list(dict.fromkeys([*own, *BUILT_IN]))[:MOST_PROMPTS]
    system = (Turn("system", trained.data.system),) if trained and trained.data.system else ()
    return [(*system, Turn("user", text)) for text in asked]


def probe_weights(model: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Some numbers of every adapted layer's own weights, by layer name, rounded as they will be saved."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, Any] = {n: module for n, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    return {
        name.removeprefix("base_model.model."): _sample(layer.get_base_layer().weight).to(dtype)
        for name, layer in layers.items()
    }


def _sample(weight: torch.Tensor) -> torch.Tensor:
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)].clone().cpu()


def prove(plan: Plan, merged: Merged, journal: Journal) -> dict[str, Any]:
    """Read the saved model back, ask it the same, compare. Returns the report; `passed` says how it went."""
    gc.collect()
    journal.phase("proof", f"{len(merged.traces)} questions")
    ref = ModelRef(str(plan.work), str(plan.work), local=True)
    model = load_base(ref, Holding(16, merged.compute), "out", device="cpu")
    tokenizer = load_tokenizer(str(plan.work), field="out")
    answers = ask(model, tokenizer, [trace.turns for trace in merged.traces], journal, "merged")
    difference, largest = compare(model, merged.traces)
    changed = _changed(model, merged.samples)
    same_template = _same_template(plan, merged.tokenizer, merged.traces, answers)
    proof: dict[str, Any] = {
        "max_logit_difference": difference,
        "largest_logit": largest,
        "tolerance": TOLERANCE[plan.config.dtype] * largest,
        "answers_equal": sum(a.answer_ids == b.answer_ids for a, b in zip(merged.traces, answers, strict=True)),
        "prompts": len(merged.traces),
        "weights_differ_from_base": changed > 0,
        "layers_changed": changed,
        "layers": len(merged.samples),
        "template_identical": same_template,
        "rows": [
            {"prompt": a.prompt, "adapter": a.answer, "merged": b.answer}
            for a, b in zip(merged.traces, answers, strict=True)
        ],
    }
    proof["reason"] = _reason(proof)
    proof["passed"] = not proof["reason"]
    return {
        "proof": proof,
        "out": plan.config.out,
        "size_bytes": merged.size_bytes,
        "shards": merged.shards,
        "base": plan.config.base,
        "merge_base": plan.config.merge_base,
        "dtype": plan.config.dtype,
    }


def _changed(model: Any, samples: dict[str, torch.Tensor]) -> int:
    """How many adapted layers hold other numbers than before the merge."""
    count = 0
    for name, before in samples.items():
        after = _sample(model.get_submodule(name).weight).to(before.dtype)
        count += not torch.equal(before, after)
    return count


def _same_template(plan: Plan, tokenizer: PreTrainedTokenizerBase, asked: list[Trace], answered: list[Trace]) -> bool:
    """The saved template is the one trained with, byte for byte, and gives the same token ids."""
    template = tokenizer.chat_template
    if isinstance(template, str) and read_template(plan.work) != template:
        return False
    return [trace.prompt_ids for trace in asked] == [trace.prompt_ids for trace in answered]


def _reason(proof: dict[str, Any]) -> str:
    """Why the proof fails, or nothing."""
    if not proof["prompts"]:
        return "none of the questions could be asked"
    if not proof["max_logit_difference"] <= proof["tolerance"]:
        return (
            f"its logits differ by up to {proof['max_logit_difference']:.3g} from base + adapter, "
            f"and {proof['tolerance']:.3g} is allowed for {proof['prompts']} questions"
        )
    if not proof["weights_differ_from_base"]:
        return "its weights are those of the base model; the adapter changes nothing"
    return "" if proof["template_identical"] else "its chat template is not the one the adapter was trained with"
