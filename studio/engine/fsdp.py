"""FSDP2 beneath the trainer: which settings it gets, when the weights are divided, and that they really are.

Every process keeps 1/n of the parameters, of the gradients and of the optimizer's states, and gathers one layer at a
time to compute with it; what a layer hands to the next (activations) is not divided. Accelerate makes one group of
each decoder layer, one of the embedding and one of the last norm with the head, and divides them.
"""

from __future__ import annotations

import json
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from studio.engine.failure import EngineError
from studio.events import RunError
from studio.presets import ROOT

if TYPE_CHECKING:
    from studio.config import RunConfig
    from studio.engine.model import Precision

PRESETS = ROOT / "presets" / "fsdp"


def settings(config: RunConfig) -> dict[str, Any] | None:
    """What `TrainingArguments.fsdp_config` gets: the preset's JSON, None without FSDP."""
    if config.parallel.fsdp == "none":
        return None
    found = json.loads((PRESETS / f"{config.parallel.fsdp}.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def accumulation(config: RunConfig) -> dict[str, Any] | None:
    """What `TrainingArguments.accelerator_config` gets: gradients are divided after every batch.

    Accelerate would divide them once an update; until then every process would hold all of them in 32 bits.
    """
    return None if config.parallel.fsdp == "none" else {"gradient_accumulation_kwargs": {"sync_each_batch": True}}


def admit(device: str) -> None:
    """Let accelerate take FSDP up on a CPU. Call it between the training arguments and the trainer.

    Accelerate takes it up for processes with GPUs of every make, and leaves it out without a word for those with none.
    torch itself divides tensors on a CPU as well, so the processes say they are of the first kind until it has chosen.
    """
    if device != "cpu":
        return
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def divide(accelerator: Any, model: Any, precision: Precision) -> None:
    """Divide the weights of `model`, in place; every process must come here with the same weights.

    Trained numbers stay float32: layers compute in the run's format, gradients are summed in float32. The trainer would
    divide them at its first step; the questions to the base model come before that.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import MixedPrecisionPolicy, register_fsdp_forward_method

    plugin = accelerator.state.fsdp_plugin
    if precision.dtype is not torch.float32:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=precision.dtype, reduce_dtype=torch.float32)
    fsdp2_prepare_model(accelerator, model)
    confirm(model)
    register_fsdp_forward_method(model, "generate")  # which then gathers what it begins with
    _gather_head(model)


def _gather_head(model: Any) -> None:
    """Have the head whole when a pass begins: the trainer's loss reads its weights without calling it.

    What nobody gathered would get a gradient of this process alone.
    """
    head = model.get_output_embeddings()

    def gather(*_: Any) -> None:
        head.unshard()

    if head is not None and is_divided(head) and any(weight.requires_grad for weight in head.parameters()):
        model.register_forward_pre_hook(gather)


def confirm(model: torch.nn.Module) -> None:
    """Raise EngineError unless every parameter is divided."""
    from torch.distributed.tensor import DTensor

    if any(not isinstance(weight, DTensor) for weight in model.parameters()):
        message = "parallel.fsdp: the trainer did not take FSDP2 up for all of this model's weights."
        hint = "Set parallel.deepspeed to zero3 and parallel.fsdp to none."
        raise EngineError(RunError(kind="config", message=message, hint=hint, field="parallel.fsdp"))


def begin(model: Any) -> None:
    """Before the training, which itself has `generate` gather weights: twice would be once too much."""
    vars(model).pop("generate", None)


def is_divided(model: torch.nn.Module) -> bool:
    """Whether FSDP2 divides this model's weights."""
    return hasattr(model, "reshard")


def rest(model: torch.nn.Module) -> None:
    """Have no weight whole: after a pass without gradients the last group would stay so."""
    for module in model.modules() if is_divided(model) else ():
        if isinstance(reshard := getattr(module, "reshard", None), MethodType):
            reshard()


def trained_weights(model: Any, *, keep: bool) -> dict[str, torch.Tensor]:
    """The trained weights by name, whole, in main memory; nothing where `keep` is false: such a process helps."""
    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            whole = weight.detach().full_tensor()
            if keep:
                found[name] = whole.cpu()
    return found
