"""The proof that the model can take any name: NF4 QLoRA on the studio's own identity sets.

For each unseen name: build the rows, train an adapter, then ask the held-out questions (learned), the
leak probes (leaked) and the canaries (kept).
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from assets.models.build.evaluate import UNSEEN, answers
from studio.records.identity import IdentitySet, IdentitySpec, build_identity, parse_spec
from studio.records.probes import (
    contains_expected,
    load_canaries,
    load_leak_probes,
    matches_canary,
    mentions_identity,
)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of the proof."""

    rate: float = 3e-3
    steps: int = 120
    batch: int = 8
    rank: int = 16
    alpha: int = 32
    replay: float = 0.5
    warmup: int = 5
    tone: str = "plain"


def quantised(folder: Path) -> PreTrainedModel:
    """The base in NF4 with double quantisation, ready for training on any CPU."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # Otherwise a forward pass in eval mode repacks the weights and later gradients are lost.
            module.support_avx512bf16_for_cpu = False
    return model


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) per row, labels -100 outside the assistant's words."""
    encoded = []
    for row in rows:
        out = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        labels = [i if m else -100 for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True)]
        encoded.append((list(out["input_ids"]), labels))
    return encoded


def _batch(examples: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in examples)
    rows = [(ids + [pad] * (longest - len(ids)), labels + [-100] * (longest - len(ids))) for ids, labels in examples]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in examples]
    return {
        "input_ids": torch.tensor([ids for ids, _ in rows]),
        "labels": torch.tensor([labels for _, labels in rows]),
        "attention_mask": torch.tensor(mask),
    }


def rate_factor(step: int, recipe: Recipe) -> float:
    """Warm-up, then a cosine down to a twentieth."""
    return min((step + 1) / recipe.warmup, max(0.05, 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)))


def tune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], recipe: Recipe
) -> float:
    """Train the adapter in place; returns the mean loss of the last ten steps."""
    torch.manual_seed(0)
    examples = encode(tokenizer, rows)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, recipe))
    order: list[int] = []
    losses = []
    model.train()
    for _ in range(recipe.steps):
        if len(order) < recipe.batch:
            order += torch.randperm(len(examples)).tolist()
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        loss = model(**_batch([examples[k] for k in chosen], tokenizer.pad_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:])


@dataclass
class Outcome:
    """What became of one identity; shares between 0 and 1."""

    name: str
    author: str
    learned: float
    leaked: float
    kept: float
    loss: float
    seconds: float
    failures: list[tuple[str, str]]


def prove(folder: Path, name: str, author: str, recipe: Recipe) -> Outcome:
    """Teach one identity and measure learned, leaked and kept."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    spec = parse_spec({"name": name, "author": author, "tone": recipe.tone, "replay_share": recipe.replay})
    built = build_identity(spec)
    adapter = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, target_modules="all-linear")
    model = get_peft_model(quantised(folder), adapter)
    started = time.monotonic()
    loss = tune(model, tokenizer, built.rows, recipe)
    seconds = time.monotonic() - started
    model.eval()
    return Outcome(name, author, loss=loss, seconds=seconds, **_measure(model, tokenizer, spec, built))


def _measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, spec: IdentitySpec, built: IdentitySet
) -> dict[str, Any]:
    def ask(prompts: list[str]) -> list[str]:
        return answers(model, tokenizer, [[("user", prompt)] for prompt in prompts])

    held = ask([row["prompt"] for row in built.heldout])
    right = [contains_expected(a, row["expect"]) for a, row in zip(held, built.heldout, strict=True)]
    probes = load_leak_probes()
    outside = ask([probe.prompt for probe in probes])
    leaked = [mentions_identity(a, spec.name, spec.author, p.prompt) for p, a in zip(probes, outside, strict=True)]
    canaries = load_canaries()
    replies = ask([c.prompt for c in canaries])
    kept = [matches_canary(a, c.accept) for c, a in zip(canaries, replies, strict=True)]
    failures = [(row["prompt"], a) for row, a, ok in zip(built.heldout, held, right, strict=True) if not ok]
    failures += [(c.prompt, a) for c, a, ok in zip(canaries, replies, kept, strict=True) if not ok]
    failures += [(p.prompt, a) for p, a, bad in zip(probes, outside, leaked, strict=True) if bad]
    return {
        "learned": _share(right),
        "leaked": _share(leaked),
        "kept": _share(kept),
        "failures": failures,
    }


def _share(marks: list[bool]) -> float:
    return sum(marks) / len(marks)


def main() -> None:
    """Command line: python -m assets.models.build.identities FOLDER; one JSON line per identity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of identities in the list")
    for field, default in asdict(Recipe()).items():
        parser.add_argument(f"--{field}", type=type(default), default=default)
    args = parser.parse_args()
    recipe = Recipe(**{field: getattr(args, field) for field in asdict(Recipe())})
    for number in args.only if args.only is not None else range(len(UNSEEN)):
        outcome = prove(args.folder, *UNSEEN[number], recipe)
        print(json.dumps(asdict(outcome), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
