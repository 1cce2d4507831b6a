"""The proof of a merge: the model read back from disk answers what base + adapter answered, and holds their sum.

Both are asked the same questions. Base + adapter writes its likeliest answer; then the logits of both models are
compared at every position of that answer. What may differ is rounding: merged weights are saved in fewer digits than
the sum was computed in.

The tolerance is a share of the largest logit and depends on the format saved in. Measured on the built-in model
(largest logit 25): float32 9e-6, float16 0.008, bfloat16 0.04 when computed in float32 and 0.13 in bfloat16.

The rounding of the layers adds up, so it grows with their number beyond twelve. Measured in bfloat16 on random Llamas,
256 wide: 0.49 % of the largest logit at 6 layers, 0.45 % at 12, 0.74 % at 32; and on one of 32 layers in the shape of
a 7B model 3.5 %, where the same kind of model saved as float32 is 1e-6 apart.

So much room may hide one wrong layer among many. What each of them holds is proven by its numbers
(`proof_weights.py`).
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from studio.engine.converted import Original
from studio.engine.journal import Journal
from studio.engine.layouts import LayoutError, Weights, converted_tensors
from studio.engine.loading import load_tokenizer, read_template
from studio.engine.mergeplan import Plan
from studio.engine.proof_weights import Before, Found, check_weights
from studio.engine.questions import Trace
from studio.engine.sides import How, saved_model

Samples = dict[str, Before]
TOLERANCE = {"float32": 2e-4, "float16": 4e-3, "bfloat16": 2e-2}
TOLERANCE_LAYERS = 12  # as many have the tolerance as it stands


@dataclass(frozen=True)
class Merged:
    """A merged model on disk, and what base + adapter answered before: the two sides of the proof.

    `samples` holds some numbers of every adapted layer before the merge, by the name of its tensor. `bases`, of a
    4-bit run: what merging into either base changes.
    """

    traces: list[Trace]
    bases: dict[str, Any]
    samples: Samples
    tokenizer: PreTrainedTokenizerBase
    shards: int
    size_bytes: int


def prove(plan: Plan, how: How, merged: Merged, journal: Journal) -> dict[str, Any]:
    """Read the saved model back, ask it the same, compare. Returns the report; `passed` says how it went."""
    gc.collect()
    journal.phase("proof", f"{len(merged.traces)} questions")
    tokenizer = load_tokenizer(str(plan.work), field="out")
    with saved_model(plan, how, tokenizer, journal) as side:
        found = side.compared(merged.traces, "merged")
        held = _held(plan, side.model if how.whole else None, merged.samples)
        layers = int(getattr(side.model.config.get_text_config(), "num_hidden_layers", 0))
    proof: dict[str, Any] = {
        "max_logit_difference": found.difference,
        "largest_logit": found.largest,
        "tolerance": tolerance(plan.config.dtype, layers) * found.largest,
        "answers_equal": found.equal,
        "prompts": len(merged.traces),
        "weights_differ_from_base": held.changed > 0,
        "layers_changed": held.changed,
        "layers_right": held.right,
        "layers": held.layers,
        "template_identical": _same_template(plan, merged.tokenizer) and found.same_prompts,
        "rows": [
            {"prompt": trace.prompt, "adapter": trace.answer, "merged": answer}
            for trace, answer in zip(merged.traces, found.answers, strict=False)
        ],
    }
    proof["reason"] = _reason(proof, held.wrong)
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


def tolerance(dtype: str, layers: int) -> float:
    """The share of the largest logit by which a model of so many layers may differ."""
    return TOLERANCE[dtype] * max(1.0, layers / TOLERANCE_LAYERS)


def _held(plan: Plan, model: Any, samples: Samples) -> Found:
    """What the adapted layers hold: read from the files, or from `model` where those name them otherwise."""
    if model is None:
        weights = Weights(plan.work)
        return check_weights(plan, weights.__getitem__, samples, set(weights))
    return check_weights(plan, model.get_parameter, samples, {name for name, _ in model.named_parameters()})


def digests(tensors: Mapping[str, Callable[[], torch.Tensor]]) -> dict[str, str]:
    """What each tensor holds, to the bit: its format, its shape and a hash of its numbers. One is read at a time."""
    found = {}
    for name, read in tensors.items():
        tensor = read().contiguous()
        held = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
        found[name] = f"{tensor.dtype} {tuple(tensor.shape)} {held}"
    return found


def proven_tensors(folder: Path) -> dict[str, str]:
    """The digests of a model folder."""
    weights = Weights(folder)
    return digests({name: partial(weights.__getitem__, name) for name in weights})


def prove_rewritten(report: dict[str, Any], proven: dict[str, str], original: Original, folder: Path) -> None:
    """Read a model back that was rewritten in its original layout: every tensor must be the proven one.

    Writes into `report` that the proof failed, if one is not.
    """
    try:
        found = digests(converted_tensors(Weights(folder), original.layout))
    except LayoutError as error:
        different = str(error)
    else:
        tied = {name: proven.get("model.embed_tokens.weight", "") for name in ("lm_head.weight",) if name not in proven}
        names = [name for name in {**found, **proven} if found.get(name) != (tied | proven).get(name)]
        different = f"the tensor {min(names)} is not the proven one" if names else ""
    if different:
        reason = f"its files in the original layout are not what was proven: {different}"
        report["proof"] |= {"passed": False, "reason": reason}


def _same_template(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> bool:
    """The saved template is the one trained with, byte for byte."""
    template = tokenizer.chat_template
    return not isinstance(template, str) or read_template(plan.work) == template


def _reason(proof: dict[str, Any], wrong: str) -> str:
    """Why the proof fails, or nothing."""
    if not proof["prompts"]:
        return "none of the questions could be asked"
    if wrong:
        return (
            f"layer {wrong} is not base + adapter on disk "
            f"({proof['layers_right']} of {proof['layers']} adapted layers are)"
        )
    if not proof["max_logit_difference"] <= proof["tolerance"]:
        return (
            f"its logits differ by up to {proof['max_logit_difference']:.3g} from base + adapter, "
            f"and {proof['tolerance']:.3g} is allowed for {proof['prompts']} questions"
        )
    if not proof["weights_differ_from_base"]:
        return "its weights are those of the base model; the adapter changes nothing"
    return "" if proof["template_identical"] else "its chat template is not the one the adapter was trained with"
