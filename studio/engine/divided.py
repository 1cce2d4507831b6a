"""The trained weights and the numbers an optimizer keeps for each of them, seen whole wherever their parts lie.

ZeRO and FSDP2 leave every process a part. Here each weight has its name, and what belongs to it can be got whole and
put back divided, so that a checkpoint knows neither how many processes wrote it nor how they divided their work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

WEIGHT = "weight"
"""The key of the weight itself, in float32; the other keys are the optimizer's own (`exp_avg` …)."""
_WRAPPING = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")

Scalars = dict[str, float]
"""What an optimizer knows besides numbers of a weight's shape: how many steps it has done."""


class Divided:
    """Weights that each process has whole, or as FSDP2's tensors, and an optimizer that works on them as they are."""

    def __init__(self, model: torch.nn.Module, optimizer: Any) -> None:
        named = ((_WRAPPING.sub("", name), weight) for name, weight in model.named_parameters())
        self.weights = {name: weight for name, weight in named if weight.requires_grad}
        self.optimizer = optimizer  # torch's or bitsandbytes', without what is wrapped around it

    @property
    def pieces(self) -> Sequence[torch.Tensor]:
        """What the optimizer steps on: the keys of its `state`."""
        return list(self.weights.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole weight."""
        return tuple(self.weights[name].shape)

    def get(self, name: str, key: str) -> torch.Tensor:
        """The whole numbers of a weight, float32, on the CPU. Every process must ask for the same at the same time."""
        weight = self.weights[name]
        held = weight.detach() if key == WEIGHT else self.optimizer.state[weight].get(key)
        if held is None:  # a weight that never had a gradient
            return torch.zeros(self.shape(name))
        whole = held.full_tensor() if isinstance(held, DTensor) else held
        return whole.detach().float().cpu()

    def put(self, name: str, key: str, value: torch.Tensor) -> None:
        """Keep this process's part of the whole `value`."""
        weight = self.weights[name]
        held = weight.data if key == WEIGHT else self.room(weight, key)
        value = value.to(held.device, held.dtype).reshape(held.shape)
        if isinstance(held, DTensor):  # every process has the whole value: nothing is sent
            value = distribute_tensor(value, held.device_mesh, held.placements, src_data_rank=None)
        held.copy_(value)

    def finish(self) -> None:
        """After the last `put` of weights: whatever else shows them is brought up to date."""

    def keys(self) -> list[str] | None:
        """The keys of the optimizer's numbers; None where they are no plain numbers of a weight's shape (8 bits)."""
        if getattr(getattr(self.optimizer, "args", None), "optim_bits", 32) == 8:  # small parts are in 32 bits
            return None
        found: dict[str, None] = {}
        for piece in self.pieces:
            for key, value in self.optimizer.state.get(piece, {}).items():
                if _has_shape_of(piece, value):
                    found[key] = None
                elif not (value is None or _is_number(value)):
                    return None
        return list(found)

    def scalars(self) -> Scalars:
        """The rest of what the optimizer knows, the same for all weights."""
        for piece in self.pieces:
            state = self.optimizer.state.get(piece)
            if state:
                plain = {key: value for key, value in state.items() if not _has_shape_of(piece, value)}
                return {key: float(value) for key, value in plain.items() if value is not None}
        return {}

    def prepare(self, keys: Sequence[str], scalars: Mapping[str, float]) -> None:
        """Make room for an optimizer's numbers before it did its first step."""
        for piece in self.pieces:
            for key in keys:
                self.room(piece, key)
            group = self._group_of(piece)
            for key, value in scalars.items():
                self.optimizer.state[piece][key] = self._scalar(group, piece, key, value)

    def room(self, piece: torch.Tensor, key: str) -> Any:
        """Where the optimizer keeps its numbers `key` for a piece."""
        state = self.optimizer.state[piece]
        if key not in state:
            paged = getattr(self.optimizer, "get_state_buffer", None)  # bitsandbytes': in paged memory if it is asked
            state[key] = paged(piece, dtype=piece.dtype) if paged else torch.zeros_like(piece, requires_grad=False)
        return state[key]

    def _group_of(self, piece: torch.Tensor) -> Mapping[str, Any]:
        groups = self.optimizer.param_groups
        return next((group for group in groups if any(one is piece for one in group["params"])), groups[0])

    def _scalar(self, group: Mapping[str, Any], piece: torch.Tensor, key: str, value: float) -> Any:
        """A number as this optimizer keeps it: torch's count their steps in tensors, others in whole numbers."""
        known = self.optimizer.state[piece].get(key)
        if not type(self.optimizer).__module__.startswith("torch.") or isinstance(known, int | float):
            return int(value) if value == int(value) else value
        on_device = group.get("fused") or group.get("capturable")
        return torch.tensor(value, dtype=torch.float32, device=piece.device if on_device else "cpu")


class ZeroFlat(Divided):
    """ZeRO 1 and 2: whole weights, and an optimizer that works on this process's part of all of them in a row."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine.module, engine.optimizer.optimizer)
        self.zero = engine.optimizer

    @property
    def pieces(self) -> Sequence[torch.Tensor]:
        """This process's part of each group of weights, in float32."""
        names = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition")
        return next(getattr(self.zero, name) for name in names if hasattr(self.zero, name))

    def get(self, name: str, key: str) -> torch.Tensor:
        """See `Divided.get`."""
        weight: Any = self.weights[name]
        whole = torch.zeros(weight.numel(), device=weight.device)
        part = self._part(weight, key)
        if part is not None:
            there = weight._hp_mapping.lp_fragment_address
            whole.narrow(0, there.start, there.numel).copy_(part)
        torch.distributed.all_reduce(whole, group=weight._dp_group)
        return whole.cpu().reshape(self.shape(name))

    def put(self, name: str, key: str, value: torch.Tensor) -> None:
        """See `Divided.put`."""
        weight: Any = self.weights[name]
        part = self._part(weight, key)
        if part is not None:
            there = weight._hp_mapping.lp_fragment_address
            part.copy_(value.reshape(-1).narrow(0, there.start, there.numel))

    def _part(self, weight: Any, key: str) -> torch.Tensor | None:
        """What of a weight's numbers lies here; None where nothing does."""
        mapping = getattr(weight, "_hp_mapping", None)
        if mapping is None:
            return None
        piece, here = self.pieces[mapping.param_group_index], mapping.hp_fragment_address
        held = piece.data if key == WEIGHT else self.room(piece, key)
        return held.narrow(0, here.start, here.numel)  # type: ignore[no-any-return]

    def finish(self) -> None:
        """The weights the model computes with follow those of the optimizer."""
        self.zero.update_lp_params()


class ZeroSharded(ZeroFlat):
    """ZeRO 3: of each weight, too, every process has a part."""

    def get(self, name: str, key: str) -> torch.Tensor:
        """See `Divided.get`."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weight = self.weights[name]
        whole = safe_get_full_fp32_param(weight) if key == WEIGHT else safe_get_full_optimizer_state(weight, key)
        return whole.detach().float().cpu().reshape(self.shape(name))  # type: ignore[no-any-return]

    @property
    def pieces(self) -> Sequence[torch.Tensor]:
        """The parts this process has, several weights in a row."""
        return self.zero.fp32_partitioned_groups_flat  # type: ignore[no-any-return]

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Divided.shape`."""
        weight: Any = self.weights[name]
        return tuple(weight.ds_shape)

    def put(self, name: str, key: str, value: torch.Tensor) -> None:
        """See `Divided.put`."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        weight: Any = self.weights[name]
        size = weight.ds_tensor.numel()
        start = size * torch.distributed.get_rank(group=weight.ds_process_group)
        flat = value.reshape(-1)[start : start + size]
        part = torch.nn.functional.pad(flat, (0, size - flat.numel()))  # the last parts may reach beyond the end
        if key == WEIGHT:
            safe_set_local_fp32_param(weight, part)
        else:
            safe_set_local_optimizer_state(weight, part, key)

    def finish(self) -> None:
        """The parts the model computes with follow those of the optimizer, whole ones are gathered again."""
        self.zero.checkpoint_event_prologue()
        for number in range(len(self.pieces)):
            self.zero._reassign_or_swap_out_partitioned_parameters(number)
        self.zero.checkpoint_event_epilogue()


def divided(model: Any, optimizer: Any) -> Divided:
    """The view of a prepared model (DeepSpeed's engine, or a module) and its optimizer (as accelerate wraps it)."""
    stage = getattr(model, "zero_optimization_stage", None)
    if stage is None:
        return Divided(model, getattr(optimizer, "optimizer", optimizer))
    return ZeroSharded(model) if stage() == 3 else ZeroFlat(model)


def swaps(model: Any) -> bool:
    """Whether DeepSpeed keeps the optimizer's numbers on a disk, where they cannot be looked at one by one."""
    return bool(getattr(getattr(model, "optimizer", None), "swap_optimizer", False))


def _has_shape_of(piece: torch.Tensor, value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    return value.dim() > 0 and value.shape == piece.shape


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
