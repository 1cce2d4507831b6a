"""Which models several processes can share the conversations of: each computes attention for some of the heads."""

from __future__ import annotations

from studio.config import RunConfig
from studio.estimate import Advice
from studio.memory import shape_of

FIELD = "parallel.sequence_parallel_size"


def about_heads(config: RunConfig) -> list[Advice]:
    """What stands against sharing conversations, as far as the model's shape is known."""
    size = config.parallel.sequence_parallel_size
    shape = shape_of(config) if size > 1 else None
    problem = shape and heads_conflict(size, shape.num_attention_heads, shape.num_key_value_heads)
    return [Advice("error", FIELD, *problem)] if problem else []


def heads_conflict(size: int, heads: int, key_value_heads: int) -> tuple[str, str] | None:
    """(what cannot be, what to do) where `size` processes cannot divide a model's heads; None where they can.

    Key and value heads may also be fewer than processes: then several processes have a copy of the same one.
    """
    if _divides(size, heads, key_value_heads):
        return None
    nearest = max(count for count in range(1, size) if _divides(count, heads, key_value_heads))
    counted = f"{heads} attention heads and {key_value_heads} for keys and values"
    return f"{size} processes cannot divide this model's {counted} among them", f"choose {nearest}"


def _divides(size: int, heads: int, key_value_heads: int) -> bool:
    return heads % size == 0 and (key_value_heads % size == 0 or size % key_value_heads == 0)
