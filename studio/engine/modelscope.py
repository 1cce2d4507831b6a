"""ModelScope's own package, which not everybody needs."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from studio.records.errors import DataError

PIN = "modelscope==1.40.2"  # the `hub` extra in pyproject.toml


def hub_api() -> Any:
    """The class whose objects create repositories and upload to them. Raises DataError where it is not installed."""
    client()
    return importlib.import_module("modelscope.hub.api").HubApi


def client() -> Any:
    """The package. Raises DataError where it is not installed."""
    try:
        return importlib.import_module("modelscope")
    except ImportError:
        raise DataError(
            f"ModelScope's own package is not installed. Install it with: {sys.executable} -m pip install {PIN}",
            field="hub",
        ) from None
