"""A model whose parameters are divided among the processes (ZeRO 3): its sizes, and its weights whole for a moment.

A divided parameter is empty where it stands; what it was is written beside it (`ds_shape`, `ds_numel`). Everything here
also takes a model that is whole, and then costs nothing. What gathers must be called by all processes together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch


def is_divided(model: torch.nn.Module) -> bool:
    """Whether some parameter of the model is divided."""
    return any(hasattr(weight, "ds_id") for weight in model.parameters())


def shape_of(weight: torch.Tensor) -> tuple[int, ...]:
    """The shape of a parameter, whole."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def count(model: torch.nn.Module) -> int:
    """Numbers in all parameters of a model."""
    return sum(int(getattr(weight, "ds_numel", weight.numel())) for weight in model.parameters())


@contextlib.contextmanager
def whole(weights: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters are whole in every process, to be read only."""
    divided = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not divided:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(divided):
        yield


@contextlib.contextmanager
def usable(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model can be asked although its parameters are divided: each layer is whole while it computes.

    DeepSpeed does that itself, and ahead of time, once the training has begun; before, nobody does.
    """
    if hasattr(model, "ds_inflight_param_registry") or not is_divided(model):
        yield
        return
    hooks, open_ones = list[Any](), list[contextlib.ExitStack]()

    def gather(module: torch.nn.Module, _: Any) -> None:
        stack = contextlib.ExitStack()
        stack.enter_context(whole(module.parameters(recurse=False)))
        open_ones.append(stack)

    def divide(*_: Any) -> None:
        open_ones.pop().close()

    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(gather))
            hooks.append(module.register_forward_hook(divide, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def whole_weights(model: torch.nn.Module, dtype: torch.dtype, *, keep: bool) -> dict[str, torch.Tensor]:
    """All weights by name, floating ones as `dtype`; nothing where `keep` is false: such a process helps to gather.

    Divided ones, also FSDP2's, are copied to main memory, one at a time. Names of one parameter share one tensor.
    """
    known = dict[int, torch.Tensor]()
    names: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    for value in {id(value): value for value in names.values()}.values():
        exact = value.full_tensor() if hasattr(value, "full_tensor") else _in_32_bits(value)
        part = value if exact is None else exact
        with whole([value] if exact is None else []):
            if keep:
                wanted = dtype if value.is_floating_point() else value.dtype
                divided = hasattr(value, "ds_id") or part is not value
                known[id(value)] = part.detach().to("cpu" if divided else value.device, wanted, copy=divided)
    return {name: known[id(value)] for name, value in names.items()} if keep else {}


def trained_in_32_bits(model: torch.nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """The trained weights by name as ZeRO's optimizer keeps them, where the model itself has 16 bits; else nothing.

    Nothing either where `keep` is false: such a process helps to gather.
    """
    found = dict[str, torch.Tensor]()
    for name, weight in model.named_parameters():
        exact = _in_32_bits(weight)
        if exact is not None and keep:
            found[name] = exact.detach().cpu()
    return found


def _in_32_bits(weight: torch.Tensor) -> torch.Tensor | None:
    """The whole float32 numbers the optimizer steps on, of a weight of 16 bits; None for any other."""
    if not weight.requires_grad or weight.dtype not in (torch.bfloat16, torch.float16):
        return None
    if not (hasattr(weight, "_hp_mapping") or hasattr(weight, "_z3_optimizer")):
        return None
    from deepspeed.utils import safe_get_full_fp32_param

    exact: torch.Tensor = safe_get_full_fp32_param(weight)
    return exact.reshape(shape_of(weight))
