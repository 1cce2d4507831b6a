"""Packs a model's weights in 4 or 8 bits with bitsandbytes and saves it so; the proof reads it back.

What is read back must answer as what was packed: it holds the very same numbers. How far packing itself moves the
answers is measured and told too: that is the price of the format, not a fault.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import torch

from studio import __version__
from studio.engine.dialogue import Turn
from studio.engine.export_plan import Plan
from studio.engine.journal import Journal
from studio.engine.loading import Holding, choose_holding, load_base, load_tokenizer, quiet, read_template
from studio.engine.questions import BUILT_IN, Trace, ask, compare
from studio.presets import ModelRef

SAME = 1e-4  # share of the largest logit: rounding between two loads of the same packed numbers
QUESTIONS = 6
KEPT = ("generation_config.json", "chat_template.jinja")


def export(plan: Plan, source: Path, journal: Journal) -> dict[str, Any]:
    """Fill `plan.work`/result with the packed model; returns the report with its proof."""
    quiet()
    result = plan.work / "result"
    prompts: list[tuple[Turn, ...]] = [(Turn("user", text),) for text in BUILT_IN[:QUESTIONS]]
    tokenizer = load_tokenizer(str(source), field="model")
    plain = load_base(_ref(source), choose_holding(16, _ref(source)), "model", device="cpu")
    before = ask(plain, tokenizer, prompts, journal, "as it was")
    del plain
    gc.collect()
    packed = load_base(_ref(source), _packing(plan.config.bits), "model", device="cpu")
    traces = ask(packed, tokenizer, prompts, journal, "packed")
    price = compare(packed, before)
    layers = _packed_layers(packed)
    packed.save_pretrained(result, max_shard_size=plan.config.max_shard_size)
    tokenizer.save_pretrained(result)
    for name in KEPT:  # as they were, byte for byte
        if (source / name).is_file():
            shutil.copyfile(source / name, result / name)
    _write_card(plan, source, result)
    del packed
    gc.collect()
    journal.phase("proof", f"{len(traces)} questions")
    return {
        "bits": plan.config.bits,
        "shards": len(list(result.glob("*.safetensors"))),
        "proof": _prove(result, source, traces, layers, journal),
        "price": _told(before, traces, price),
    }


def _write_card(plan: Plan, source: Path, result: Path) -> None:
    """README.md: that of the model, if it has one, and what was done to it."""
    own = source / "README.md"
    text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else f"# {plan.out.name}\n"
    packed = f"Packed in {plan.config.bits} bits by bitsandbytes (Crucible {__version__})."
    (result / "README.md").write_text(f"{text.rstrip()}\n\n{packed}\n", encoding="utf-8")


def _ref(folder: Path) -> ModelRef:
    return ModelRef(str(folder), str(folder), local=True)


def _packing(bits: int) -> Holding:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return Holding(bits, dtype)


def _packed_layers(model: torch.nn.Module) -> int:
    """How many layers hold packed weights."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    return sum(isinstance(module, Linear4bit | Linear8bitLt) for module in model.modules())


def _prove(result: Path, source: Path, traces: list[Trace], layers: int, journal: Journal) -> dict[str, Any]:
    """Read the packed model back and ask it the same."""
    again = load_base(_ref(result), Holding(16, _packing(4).dtype), "out", device="cpu")
    answers = ask(again, load_tokenizer(str(result), field="out"), [t.turns for t in traces], journal, "read back")
    difference, largest = compare(again, traces)
    proof: dict[str, Any] = {
        "max_logit_difference": difference,
        "largest_logit": largest,
        "tolerance": SAME * largest,
        "answers_equal": sum(a.answer_ids == b.answer_ids for a, b in zip(traces, answers, strict=True)),
        "prompts": len(traces),
        "layers": layers,
        "layers_packed": _packed_layers(again),
        "template_identical": read_template(source) == read_template(result),
    }
    proof["reason"], proof["checked_with"] = _reason(proof), "transformers"
    return proof | {"passed": not proof["reason"]}


def _reason(proof: dict[str, Any]) -> str:
    """Why the proof fails, or nothing."""
    if not proof["prompts"]:
        return "none of the questions could be asked"
    if not proof["layers"] or proof["layers_packed"] != proof["layers"]:
        return f"{proof['layers_packed']} of {proof['layers']} layers are packed in what was read back"
    if not proof["max_logit_difference"] <= proof["tolerance"]:
        return f"read back, its logits differ by up to {proof['max_logit_difference']:.3g} from what was packed"
    return "" if proof["template_identical"] else "its chat template is not the one of the model"


def _told(before: list[Trace], after: list[Trace], price: tuple[float, float]) -> dict[str, Any]:
    """What packing changed: the largest difference of the logits, and the answers before and after."""
    pairs = list(zip(before, after, strict=True))
    return {
        "max_logit_difference": price[0],
        "largest_logit": price[1],
        "answers_equal": sum(a.answer_ids == b.answer_ids for a, b in pairs),
        "prompts": len(pairs),
        "rows": [{"prompt": a.prompt, "before": a.answer, "packed": b.answer} for a, b in pairs],
    }
