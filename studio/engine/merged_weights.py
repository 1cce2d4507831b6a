"""The sums of a merge: base weights plus what the adapters add, computed in float32, saved in the wanted format.

Layer by layer where the base can be taken apart (`hollow.py`), else in memory as a whole. The sum itself is PEFT's.
"""

from __future__ import annotations

import hashlib
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from studio import __version__
from studio.engine.failure import EngineError, model_failure
from studio.engine.hollow import Hollow, Unit
from studio.engine.journal import Journal
from studio.engine.loading import adapter_tokenizer
from studio.engine.mergeplan import Part, Plan
from studio.engine.proof import Merged, Samples
from studio.engine.proof_weights import before as kept_of
from studio.engine.shards import Shards
from studio.engine.sides import How, base_and_adapters, before, packing, unpack, with_adapters
from studio.engine.stopping import add_to_saved, saved_endings

_SETTINGS: Any = GenerationConfig


def build(plan: Plan, how: How, journal: Journal) -> Merged:
    """Ask base + adapter, merge, save. Raises EngineError when base and adapter do not fit."""
    traces, bases = before(plan, how, journal)
    journal.phase("merge", f"{plan.config.merge_base} base, {plan.config.dtype}")
    samples, shards = whole(plan, how, journal) if how.whole else layer_by_layer(plan, how, journal)
    journal.phase("save", plan.name)
    tokenizer = adapter_tokenizer(plan.base, plan.adapter.folder)
    save(plan, tokenizer)
    size = sum(file.stat().st_size for file in plan.work.rglob("*") if file.is_file())
    return Merged(traces, bases, samples, tokenizer, shards, size)


def layer_by_layer(plan: Plan, how: How, journal: Journal) -> tuple[Samples, int]:
    """Merge and write one layer after the other; never more than one of them is in memory, in float32.

    Returns numbers of every adapted layer as they were, and how many files were written.
    """
    dtype: torch.dtype = getattr(torch, plan.config.dtype)
    hollow = Hollow(plan.base, how.device, packing(plan) if plan.config.merge_base == "dequantized" else None)
    model = with_adapters(plan, hollow.model, hollow=True)
    wanted = {name: _cast(tensor, dtype) for name, tensor in hollow.shapes().items()}
    if _stays_tied(hollow, model, dtype):
        wanted = {name: tensor for name, tensor in wanted.items() if name not in hollow.tied}
    else:
        _untie(hollow.config)
    shards = Shards(plan.work, wanted, plan.config.shard_bytes)
    for name, buffer in hollow.buffers.items():
        shards.write(name, _cast(buffer, dtype))
    samples: Samples = {}
    for unit in hollow.units(model):
        for name, tensor in _merged(hollow, unit, dtype, samples):
            if name in shards.missing:
                shards.write(name, tensor)
                journal.progress(len(wanted) - len(shards.missing), len(wanted), "tensors")
    shards.finish()
    hollow.config.dtype, hollow.config.architectures = dtype, [type(hollow.model).__name__]
    hollow.config.save_pretrained(plan.work)
    _copy_generation_config(plan, hollow.model.generation_config)
    return {name: numbers for name, numbers in samples.items() if name in wanted}, len(shards.files)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _untie(config: Any) -> None:
    """Say that the output layer has weights of its own."""
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False


def _merged(
    hollow: Hollow, unit: Unit, dtype: torch.dtype, samples: Samples | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a unit as they are saved. `samples` gets some numbers of what they were before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not unit.wrapped:
        for name, parameter in hollow.named(unit):
            yield name, hollow.read(name, dtype) if hollow.is_away(parameter) else parameter.detach().to(dtype)
        return
    hollow.fill(unit)
    brought = {one: one.data for one in unit.module.parameters() if not hollow.is_away(one)}
    names = [name for name, _ in hollow.named(unit)]
    if samples is not None:
        plain = unit.module.get_base_layer() if isinstance(unit.module, BaseTunerLayer) else unit.module
        samples |= {name: kept_of(parameter, plain) for name, parameter in hollow.named(unit)}
    changed = _add_layer(names[0].rpartition(".")[0], unit.module)
    for name, parameter in zip(names, changed.parameters(), strict=True):
        yield name, parameter.detach().to(dtype)
    hollow.empty(unit)
    for one, value in brought.items():
        one.data = value
    for part in unit.module.modules():
        if isinstance(part, BaseTunerLayer):
            part.merged_adapters.clear()  # the weight it was merged into is gone


def _add_layer(name: str, layer: Any) -> torch.nn.Module:
    """Add what the adapters of a layer change, in float32; returns the layer of the base with the sum in it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        if not isinstance(layer, BaseTunerLayer):
            found: torch.nn.Module = layer.unload_and_optionally_merge_module(True, True, None)
            return found
        layer.merge(safe_merge=True)
    except ValueError as error:
        raise model_failure(
            f"adapter: its change to layer {name} is not a number.",
            "The training has blown up; use an earlier checkpoint or train again with a lower learning rate.",
            "adapter",
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        if "memory" in str(error):
            raise
        raise model_failure(
            f"adapter: it cannot be merged into layer {name} ({' '.join(str(error).split())[:200]}).",
            "Use the adapter beside its base model instead.",
            "adapter",
        ) from error
    return layer.get_base_layer()


def _stays_tied(hollow: Hollow, model: torch.nn.Module, dtype: torch.dtype) -> bool:
    """False when an adapter makes weights differ that the base has only once (embeddings and output layer)."""
    units = {name: unit for unit in hollow.units(model) for name, _ in hollow.named(unit)}
    for name, source in hollow.tied.items():
        pair = (units[name], name), (units[source], source)
        if any(unit.wrapped for unit, _ in pair) and len({_digest(hollow, *one, dtype) for one in pair}) > 1:
            return False
    return True


def _digest(hollow: Hollow, unit: Unit, wanted: str, dtype: torch.dtype) -> bytes:
    """Of a merged tensor: two large ones need not be in memory together to be compared."""
    found = hashlib.sha256()
    for name, tensor in _merged(hollow, unit, dtype):
        if name == wanted:
            found.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.digest()


def whole(plan: Plan, how: How, journal: Journal) -> tuple[Samples, int]:
    """The same with the whole model in memory, for bases that cannot be taken apart."""
    packed = plan.config.merge_base == "dequantized"
    dtype: torch.dtype = getattr(torch, plan.config.dtype)
    with base_and_adapters(plan, how, 4 if packed else 16, journal) as side:
        model, side.model = (unpack(plan, side.model, how) if packed else side.model), None
    samples, model = _add_all(model, journal)
    if any(not torch.equal(model.get_parameter(name), model.get_parameter(one)) for name, one in _ties(model)):
        _untie(model.config)
    settings, model.generation_config = model.generation_config, _SETTINGS()
    try:
        model.to(dtype).save_pretrained(plan.work, max_shard_size=plan.config.max_shard_size)
    except ValueError as error:
        raise _bad_shard_size(plan, error) from error
    _copy_generation_config(plan, settings)
    return samples, len(list(plan.work.glob("*.safetensors")))


def _ties(model: Any) -> list[tuple[str, str]]:
    return list((getattr(model, "all_tied_weights_keys", None) or {}).items())


def _add_all(model: Any, journal: Journal) -> tuple[Samples, Any]:
    """Every adapted layer in turn, in float32; returns numbers of them as they were, and the plain model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    samples: Samples = {}
    _give_each_its_own(model, [layer for _, layer in layers])
    for done, (name, layer) in enumerate(layers, start=1):
        weight, own = _weight_of(layer)
        place = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".token_adapter", "")
        samples[f"{place}.{own}"] = kept_of(weight, layer.get_base_layer())
        kept, weight.data = weight.dtype, weight.data.float()
        _add_layer(place, layer)
        weight, _ = _weight_of(layer)
        weight.data = weight.data.to(kept)
        journal.progress(done, len(layers), "layers")
    with warnings.catch_warnings():  # it finds every layer merged already, and says so each time
        warnings.simplefilter("ignore")
        return samples, model.merge_and_unload()


def _give_each_its_own(model: Any, layers: list[Any]) -> None:
    """What is added to a weight that two layers share must not reach the other one."""
    holders = Counter(id(one) for module in model.modules() for one in module.parameters(recurse=False))
    for layer in layers:
        weight, own = _weight_of(layer)
        if holders[id(weight)] > 1 and own == "weight":
            layer.get_base_layer().weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)


def _weight_of(layer: Any) -> tuple[torch.nn.Parameter, str]:
    """The weight an adapter changes, and its name in its layer (experts of one model share a layer)."""
    own = str(getattr(layer, "parameter_name", "weight"))
    return getattr(layer.get_base_layer(), own), own


def save(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """What a model folder needs beside weights and configuration, into the working folder."""
    template = tokenizer.chat_template
    tokenizer.save_pretrained(plan.work)
    if isinstance(template, str):  # written as it was, byte for byte
        (plan.work / "chat_template.jinja").write_bytes(template.encode("utf-8"))
    (plan.work / "README.md").write_text(model_card(plan), encoding="utf-8")
    for file in plan.work.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # transformers writes files nobody else can read


def _bad_shard_size(plan: Plan, error: ValueError) -> EngineError:
    return model_failure(
        f"max_shard_size: the model cannot be saved in files of {plan.config.max_shard_size} ({str(error)[:160]}).",
        "Choose another size, like 2GB.",
        "max_shard_size",
    )


def _copy_generation_config(plan: Plan, settings: GenerationConfig | None) -> None:
    """The base's own file: transformers refuses to write some that it reads without complaint.

    Added is what ended the answers the adapter was trained on.
    """
    source = cached_file(
        plan.base.path_or_id,
        "generation_config.json",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if source:
        shutil.copyfile(source, plan.work / "generation_config.json")
    elif settings is not None:
        settings.save_pretrained(plan.work)
    add_to_saved(plan.work, saved_endings(plan.adapter.folder))


def model_card(plan: Plan) -> str:
    """README.md of the merged model: what it is made of. No path of this machine goes into it."""
    base = plan.base.ref if not Path(plan.base.ref).is_absolute() else Path(plan.base.ref).name
    made_from = {"original": "the original weights", "dequantized": "the 4-bit weights, unpacked"}
    lines = [
        "---",
        *([f"base_model: {base}"] if not plan.base.local else []),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [crucible, merged]",
        "---",
        "",
        f"# {plan.name}",
        "",
        f"`{base}` with {_said(plan)} merged into it by Crucible {__version__} on {time.strftime('%Y-%m-%d')}.",
        "",
        f"* Merged into {made_from[plan.config.merge_base]}, saved as {plan.config.dtype}.",
        *([f"* Layout: {plan.layout}."] if plan.layout else []),
        *(_about(part) for part in plan.adapters),
        "",
        "The licence and the limits of the base model apply.",
        "",
    ]
    return "\n".join(lines)


def _said(plan: Plan) -> str:
    return "a LoRA adapter" if len(plan.adapters) == 1 else f"{len(plan.adapters)} LoRA adapters"


def _about(part: Part) -> str:
    """An adapter in one line of the card."""
    settings, trained = part.files.config, part.files.trained
    said = [f"rank {settings.get('r')}", f"alpha {settings.get('lora_alpha')}"]
    if part.weight != 1:
        said.append(f"added with weight {part.weight:g}")
    if trained:
        said.append(f"trained with {trained.method} on `{Path(trained.data.dataset).name}`")
    return f"* Adapter: {', '.join(said)}."
