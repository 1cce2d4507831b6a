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

from studio.engine.journal import Journal
from studio.engine.layouts import Weights
from studio.engine.loading import load_tokenizer, read_template
from studio.engine.mergeplan import Plan
from studio.engine.questions import Trace
from studio.engine.sides import How, saved_model

Samples = dict[str, torch.Tensor]
TOLERANCE = {"float32": 2e-4, "float16": 4e-3, "bfloat16": 2e-2}
SAMPLED = 65536


@dataclass(frozen=True)
class Merged:
    """A merged model on disk, and what base + adapter answered before: the two sides of the proof.

    `samples` holds some numbers of every adapted layer before the merge, by the name of its tensor, in the format they
    would be saved in. `bases`, of a 4-bit run: what merging into either base changes.
    """

    traces: list[Trace]
    bases: dict[str, Any]
    samples: Samples
    tokenizer: PreTrainedTokenizerBase
    shards: int
    size_bytes: int


def sample(weight: torch.Tensor) -> torch.Tensor:
    """Some numbers of a weight, evenly chosen."""
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)].clone().cpu()


def prove(plan: Plan, how: How, merged: Merged, journal: Journal) -> dict[str, Any]:
    """Read the saved model back, ask it the same, compare. Returns the report; `passed` says how it went."""
    gc.collect()
    journal.phase("proof", f"{len(merged.traces)} questions")
    tokenizer = load_tokenizer(str(plan.work), field="out")
    with saved_model(plan, how, tokenizer, journal) as side:
        found = side.compared(merged.traces, "merged")
        changed = _changed(plan, None if not how.whole else side.model, merged.samples)
    proof: dict[str, Any] = {
        "max_logit_difference": found.difference,
        "largest_logit": found.largest,
        "tolerance": TOLERANCE[plan.config.dtype] * found.largest,
        "answers_equal": found.equal,
        "prompts": len(merged.traces),
        "weights_differ_from_base": changed > 0,
        "layers_changed": changed,
        "layers": len(merged.samples),
        "template_identical": _same_template(plan, merged.tokenizer) and found.same_prompts,
        "rows": [
            {"prompt": trace.prompt, "adapter": trace.answer, "merged": answer}
            for trace, answer in zip(merged.traces, found.answers, strict=False)
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
        "adapters": [{"name": part.files.folder.name, "weight": part.weight} for part in plan.adapters],
        "merge_base": plan.config.merge_base,
        "dtype": plan.config.dtype,
        "device": how.device,
        "streamed": how.streamed,
    } | ({"bases": merged.bases} if merged.bases else {})


def _changed(plan: Plan, model: Any, samples: Samples) -> int:
    """How many adapted layers hold other numbers than before the merge.

    They are read from the files, or from `model` where those name them otherwise.
    """
    count, weights = 0, None if model is not None else Weights(plan.work)
    for name, before in samples.items():
        after = sample(weights[name] if weights else model.get_parameter(name)).to(before.dtype)
        count += not torch.equal(before, after)
    return count


def _same_template(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> bool:
    """The saved template is the one trained with, byte for byte."""
    template = tokenizer.chat_template
    return not isinstance(template, str) or read_template(plan.work) == template


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
