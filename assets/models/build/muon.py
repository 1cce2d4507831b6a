"""Muon in single precision: momentum whose matrices are orthogonalised before the step.

PyTorch's own Muon casts to bfloat16, which is a hundred times slower on CPUs without bfloat16
instructions. Matrices of one shape are orthogonalised together.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on a stack (n, rows, columns); singular values end near 1."""
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if stack.shape[1] <= stack.shape[2] else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; only for two-dimensional hidden weights."""

    def __init__(self, matrices: Iterable[Tensor], rate: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(matrices, {"lr": rate, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for same in shapes.values():
                self._update(same, group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        directions = []
        for matrix in matrices:
            state = self.state[matrix]
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(matrix)
            velocity, gradient = state["velocity"], matrix.grad
            velocity.lerp_(gradient, 1 - group["momentum"])
            directions.append(gradient.lerp(velocity, group["momentum"]))
        rows, columns = matrices[0].shape
        scale = max(1.0, rows / columns) ** 0.5
        for matrix, update in zip(matrices, orthogonalise(torch.stack(directions)), strict=True):
            matrix.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * scale)
