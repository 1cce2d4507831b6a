"""What a model's weights take in memory when it is only asked, by the bits they are held in."""

from __future__ import annotations

from studio.model_shape import shape_named
from studio.states import DOUBLE_QUANT_BYTES

BITS = (4, 8, 16)
_LINEAR = {4: DOUBLE_QUANT_BYTES, 8: 1.0, 16: 2.0}
_REST = 2.0  # embeddings, norms and the output layer are never packed


def weight_bytes(reference: str, bits: int) -> int | None:
    """Bytes of the weights of a base model held in 4, 8 or 16 bits; None when its shape is not known."""
    shape = shape_named(reference)
    if shape is None:
        return None
    rest = shape.parameters - shape.linear_parameters
    return round(shape.linear_parameters * _LINEAR[bits] + rest * _REST)
