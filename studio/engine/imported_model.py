"""A checkpoint of a training of every weight, as a complete model folder, proven against the base it began with."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from studio.engine.convertplan import Base, Plan
from studio.engine.failure import model_failure
from studio.engine.foreign.peft_config import wrong_base
from studio.engine.foreign.sources import Found
from studio.engine.giveaway import foreign_card, write_beside
from studio.engine.import_proof import asked, compared
from studio.engine.journal import Journal
from studio.engine.layout_rules import Sizes, rules_for
from studio.engine.layouts import LayoutError, ShardWriter, Weights
from studio.engine.loading import choose_holding, load_base
from studio.engine.output_folder import check_disk
from studio.engine.questions import ask
from studio.engine.saving import CARD
from studio.presets import ModelRef
from studio.remote_code import allowed

SHARD_BYTES = 2 * 10**9
_COMPUTED = ("inv_freq", ".masked_bias", ".attn.bias")  # buffers some architectures save


def write_model(plan: Plan, found: Found, base: Base, journal: Journal) -> dict[str, Any]:
    """The model, its card and its proof in the working folder; returns the report.

    Raises EngineError: field base (a weight that has no place there), source (one is missing or no number) or out.
    """
    assert found.weights is not None
    journal.phase("convert", f"{found.place.name} → {plan.out.name}")
    shapes = _shapes(base)
    config: Any = AutoConfig.from_pretrained(base.ref.path_or_id, local_files_only=True, trust_remote_code=allowed())
    dtype = config.dtype or torch.bfloat16
    check_disk(plan.out, sum(t.numel() for t in found.weights.values()) * dtype.itemsize, "the model")
    writer, written = ShardWriter(plan.work, SHARD_BYTES), 0
    for name, tensor in _placed(found, shapes, tied=bool(config.tie_word_embeddings)):
        for target, part in _converted(name, tensor.to(dtype), base):
            writer.add(target, part.clone())
        written += 1
        journal.progress(written, len(shapes), "tensors")
    writer.close()
    shutil.copyfile(Path(base.ref.path_or_id) / "config.json", plan.work / "config.json")
    tokenizer = write_beside(plan, found, base, journal)
    journal.phase("proof", base.named)
    model: Any = load_base(base.ref, choose_holding(16, base.ref), "base")
    before = asked(model, tokenizer, plan, found.settings, journal)
    del model
    gc.collect()
    ref = ModelRef(str(plan.work), str(plan.work), local=True)
    model = load_base(ref, choose_holding(16, ref), "source")
    after = ask(model, tokenizer, [trace.turns for trace in before], journal, "imported")
    proof = compared(before, after, "the trained weights change")
    report = {
        "source": plan.config.source,
        "source_kind": found.place.kind,
        "base": base.named,
        "settings": found.settings.origin,
        "lora": None,
        "tensors": written,
        "notes": found.notes,
        "proof": proof,
    }
    (plan.work / CARD).write_text(foreign_card(plan, found, report), encoding="utf-8")
    return report


def _shapes(base: Base) -> dict[str, tuple[int, ...]]:
    """Shape by name in the files of the base, in the layout it came in: a training has its weights as those files."""
    try:
        return Weights(base.original.folder if base.original else Path(base.ref.path_or_id)).shapes
    except LayoutError as error:
        raise model_failure(f"base: {error}.", "Copy the base model again.", "base") from error


def _placed(found: Found, shapes: dict[str, tuple[int, ...]], *, tied: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that have their place in the base; every place gets one."""
    assert found.weights is not None
    left = dict(shapes)
    for name, tensor in found.weights.items():
        shared = tied and name in ("lm_head.weight", "output.weight")
        if name not in shapes and (shared or name.endswith(_COMPUTED)):
            continue
        if shapes.get(name) != tuple(tensor.shape):
            raise wrong_base(name, tuple(tensor.shape), shapes.get(name))
        if not bool(torch.isfinite(tensor).all()):
            raise model_failure(
                f"source: the tensor {name} in {found.place.name} holds values that are not numbers.",
                "The training has blown up; use an earlier checkpoint.",
                "source",
            )
        del left[name]
        yield name, tensor
    missing = [name for name in left if not name.endswith(_COMPUTED)]
    if missing:
        raise model_failure(
            f"source: {found.place.name} is incomplete: the base model has {missing[0]}, and it has not.",
            "Copy it again, with all its files.",
            "source",
        )


def _converted(name: str, tensor: torch.Tensor, base: Base) -> list[tuple[str, torch.Tensor]]:
    """The tensor, or in an original layout its parts in the converted model."""
    if base.original is None:
        return [(name, tensor)]
    layout = base.original.layout
    sizes = Sizes.of(layout.converted_config())
    for rule in rules_for(layout.family.key, layout.config):
        targets = rule.targets(name)
        if targets is not None:
            return list(zip(targets, rule.split(tensor, sizes), strict=True)) if targets else []
    return [(name, tensor)]
