"""References to models as others may read them: no folder of this machine leaves it."""

from __future__ import annotations

from pathlib import Path


def public_name(reference: str) -> str:
    """A reference as it may be read by others: of a path on this machine only the last name."""
    path = Path(reference)
    return path.name if path.is_absolute() or reference.startswith("~") else reference
