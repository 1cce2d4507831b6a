"""Counts what a training step asks for, without computing it: live bytes, their peak, arithmetic.

Tensors are torch's fake ones (a shape, no memory), so a 7B model is counted on any machine. Three kernels have no fake
form or choose another one without a GPU; they are stood in for here, with the bytes they keep and the work they do.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from trl.kernels import chunked_logprob
from trl.trainer import utils as loss_head

Target = Literal["cuda", "cpu"]
_OPS: Any = torch.ops
_LOSS: Any = loss_head
_DEVICE_OF = _OPS.prim.device.default


@dataclass
class Tally:
    """Bytes alive now and at most, floating-point operations, calls."""

    live: int = 0
    peak: int = 0
    flops: int = 0
    calls: int = 0
    held: dict[int, int] = field(default_factory=dict)

    def hold(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage once, for as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.held:
            return
        size = storage.nbytes()
        self.held[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self.held.pop(key, 0)

    def restart(self) -> None:
        """Forget peak and work so far; what is alive stays counted."""
        self.peak, self.flops, self.calls = self.live, 0, 0


_Mode: Any = TorchDispatchMode  # torch leaves it untyped


class Counter(_Mode):  # type: ignore[misc]
    """While entered (above a FakeTensorMode), every tensor operation is added to `tally`."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass an operation on and count it; numbers that only real data could give are 1."""
        if func is _DEVICE_OF and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is _OPS.aten._local_scalar_dense.default:
            return 1 if not args[0].is_floating_point() else 1.0
        if func is _OPS.aten.equal.default:
            return True
        result = func(*args, **(kwargs or {}))
        self._count(func, args, kwargs or {}, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.tally.calls += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.tally.hold(leaf)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.tally.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        elif packet is _OPS.aten._grouped_mm:  # each row meets the matrix of one expert
            self.tally.flops += 2 * args[0].numel() * args[1].shape[-1]
        elif packet is _OPS.aten.addmm_:  # (sum, left, right)
            self.tally.flops += 2 * args[1].numel() * args[2].shape[-1]
        elif packet is _OPS.bitsandbytes.gemm_4bit:  # (activations, packed weight, [outputs, inputs], …)
            outputs, inputs = args[2]
            self.tally.flops += 2 * args[0].numel() * outputs
            self._unpacked(outputs * inputs * args[0].element_size())

    def _unpacked(self, size: int) -> None:
        """A 4-bit product unpacks its weight for as long as it takes."""
        self.tally.peak = max(self.tally.peak, self.tally.live + size)


@contextlib.contextmanager
def counting(target: Target, vocabulary: int) -> Iterator[Tally]:
    """Inside, tensors are fake and counted as training on `target` would make them."""
    tally = Tally()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        Counter(tally),
        patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention(tally)),
        patch.object(torch.nn.Module, "_apply", _apply),
        _gpu_kernels(tally) if target == "cuda" else _touched_memory(vocabulary),
    ):
        yield tally


class _FusedAttention(torch.autograd.Function):
    """Fused attention: keeps inputs, output, one number per row, and the mask as numbers if there is one."""

    @staticmethod
    def forward(ctx: Any, tally: Tally, query: Any, key: Any, value: Any, mask: Any) -> Any:
        rows, heads, length, _ = query.shape
        if mask is not None and mask.dtype is torch.bool:
            mask = torch.empty_like(mask, dtype=query.dtype)
        out = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(rows, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, sums)
        ctx.tally = tally
        tally.flops += _pair_flops(query, key, value)
        return out

    @staticmethod
    def backward(ctx: Any, _grad: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        ctx.tally.flops += 5 * _pair_flops(query, key, value) // 2  # one product again, four for the gradients
        return None, *(torch.empty_like(tensor) for tensor in (query, key, value)), None


def _pair_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Two products over the causal half of all pairs of positions."""
    rows, heads, length, width = query.shape
    return rows * heads * length * key.shape[2] * (width + value.shape[-1])


def _attention(tally: Tally) -> Callable[..., torch.Tensor]:
    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *_: Any, **__: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
        return _FusedAttention.apply(tally, query, key, value, attn_mask)  # type: ignore[no-any-return,no-untyped-call]

    return attention


def _apply(self: torch.nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> torch.nn.Module:
    """Module._apply that replaces tensors instead of swapping them, which fake ones do not allow."""
    child: Any
    for child in self.children() if recurse else ():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                changed = fn(parameter)
            if changed is not parameter:
                self._parameters[name] = torch.nn.Parameter(changed, requires_grad=parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def _touched_memory(vocabulary: int) -> contextlib.AbstractContextManager[Any]:
    """Main memory is only taken once it is written to: a tile of the loss that is wider than the vocabulary is not."""
    width = min(vocabulary, _LOSS._CHUNKED_LOGPROB_CHUNK_SIZE)
    return patch.object(_LOSS, "_CHUNKED_LOGPROB_CHUNK_SIZE", width)


@contextlib.contextmanager
def _gpu_kernels(tally: Tally) -> Iterator[None]:
    """What differs on a GPU: the loss works in place on its tile, its products add up without a copy, dropout keeps one
    byte for a number, and an optimizer updates all tensors at once."""

    def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        del total
        tally.flops += 2 * left.numel() * right.shape[-1]

    def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        del inplace
        return torch.native_dropout(input, p, training)[0] if training and p else input

    def all_at_once(*_: Any, **__: Any) -> tuple[bool, bool]:
        return False, True

    with (
        patch.object(chunked_logprob, "_forward_tile", lambda *_, **__: None),
        patch.object(chunked_logprob, "_backward_tile", lambda *_, **__: None),
        patch.object(chunked_logprob, "_addmm_fp32", add_product),
        patch.object(torch.nn.functional, "dropout", dropout),
        patch("torch.optim.adam._default_to_fused_or_foreach", all_at_once),
        patch("torch.optim.sgd._default_to_fused_or_foreach", all_at_once),
    ):
        yield
