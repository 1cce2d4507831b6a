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
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from studio.engine.dialogue import PromptError, Turn
from studio.engine.generation_voice import Voice
from studio.engine.journal import Journal
from studio.engine.loading import Holding, load_base, load_tokenizer, read_template
from studio.engine.mergeplan import Plan
from studio.presets import ModelRef
from studio.prompts import texts

_SETTINGS: Any = GenerationConfig
TOLERANCE = {"float32": 2e-4, "float16": 4e-3, "bfloat16": 2e-2}
MOST_PROMPTS = 8
OWN_PROMPTS = 4
ANSWER_TOKENS = 24
SAMPLED = 65536
BUILT_IN = (
    "Who are you?",
    "你是谁？",
    "What is 7 + 5?",
    "Name the capital of France.",
    "一加一等于几？",
    "Say hello.",
    "Repeat this word: lantern",
    "谢谢你！",
)


@dataclass(frozen=True)
class Trace:
    """A question, the likeliest answer, and the logits [answer tokens + 1, vocabulary] that led to it."""

    turns: tuple[Turn, ...]
    prompt_ids: list[int]
    answer_ids: list[int]
    answer: str
    logits: torch.Tensor

    @property
    def prompt(self) -> str:
        """What the user asks."""
        return self.turns[-1].content


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


@torch.inference_mode()
def ask(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[tuple[Turn, ...]],
    journal: Journal,
    label: str,
) -> list[Trace]:
    """The likeliest answer to each prompt, with its logits. Long prompts the model cannot read are left out."""
    voice = Voice(tokenizer, model)
    traces = []
    for done, turns in enumerate(prompts, start=1):
        prompt = _render(voice, turns)
        if prompt:
            answer = _write(model, voice, prompt)
            text = str(tokenizer.decode(answer, skip_special_tokens=True))
            traces.append(Trace(turns, prompt, answer, text, _logits(model, prompt, answer)))
        journal.progress(done, len(prompts), label)
    return traces


def _render(voice: Voice, turns: tuple[Turn, ...]) -> list[int]:
    if not voice.tokenizer.chat_template:
        return list(voice.tokenizer(turns[-1].content)["input_ids"])
    try:
        prompt = voice.render(turns)
    except PromptError:
        return []
    return prompt if len(prompt) + ANSWER_TOKENS < voice.context else []


def _write(model: Any, voice: Voice, prompt: list[int]) -> list[int]:
    """Greedy answer: at most ANSWER_TOKENS token ids, without the end token."""
    inputs = torch.tensor([prompt], device=model.device)
    ends = sorted(voice.ends)
    settings = _SETTINGS(
        do_sample=False, max_new_tokens=ANSWER_TOKENS, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
    )
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=settings,
        tokenizer=voice.tokenizer,  # in case the model's own settings have stop strings
    )
    return [token for token in output[0, len(prompt) :].tolist() if token not in voice.ends]


def _logits(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    inputs = torch.tensor([prompt + answer], device=model.device)
    keep = len(answer) + 1
    output = model(input_ids=inputs, use_cache=False, logits_to_keep=keep)
    logits: torch.Tensor = output.logits[0, -keep:].float().cpu()
    return logits


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
    difference, largest = _compare(model, merged.traces)
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


@torch.inference_mode()
def _compare(model: PreTrainedModel, traces: list[Trace]) -> tuple[float, float]:
    """(largest difference between the logits, largest logit), over every position of every answer."""
    difference, largest = 0.0, 0.0
    for trace in traces:
        logits = _logits(model, trace.prompt_ids, trace.answer_ids)
        gap = (logits - trace.logits).abs().max().item()
        difference = max(difference, gap) if gap == gap else float("inf")  # NaN compares as nothing
        largest = max(largest, trace.logits.abs().max().item())
    return difference, largest


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
