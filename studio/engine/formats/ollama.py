"""A folder for Ollama: the model file with a Modelfile that speaks as the model was trained to."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write(source: Path, folder: Path, model_file: str, system: str | None) -> dict[str, Any]:
    """Write `folder`/Modelfile for the GGUF file called `model_file` in it, made of the model in `source`.

    `system` is its system prompt. Returns the proof: `passed`, `reason`, what was compared.

    Raises:
        EngineError: kind model, for a chat template that Ollama's language cannot say.
    """
    raise NotImplementedError
