"""Whether a model's own Python code may run: an option of the start, never a form's field or a client's parameter."""

from __future__ import annotations

import os

VARIABLE = "CRUCIBLE_TRUST_REMOTE_CODE"
OPTION = "--trust-remote-code"
NO_CODE = (
    f"Its code runs only if the studio was started with {OPTION}: do that if you trust it, or choose another model"
)


def allowed() -> bool:
    """True if whoever started this process trusts the code that comes with models. Engines inherit it."""
    return os.environ.get(VARIABLE) == "1"


def allow() -> None:
    """Trust it, in this process and all it starts."""
    os.environ[VARIABLE] = "1"
