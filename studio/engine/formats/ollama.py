"""A folder for Ollama: the model file with a Modelfile that speaks as the model was trained to."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from studio.engine.failure import model_failure
from studio.engine.formats.gguf_model import read_config
from studio.engine.formats.gguf_tokens import Words, read_words
from studio.engine.stopping import SETTINGS
from studio.gguf_support import context_length
from studio.ollama_template import Unsayable, difference, modelfile_template
from studio.records.template import ChatTemplate

NAME = "Modelfile"
OLLAMA_CONTEXT = 4096  # tokens Ollama gives a model that does not say
_QUOTES = '"""'
# Setting of transformers -> parameter of a Modelfile
_PARAMETERS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}


def write(source: Path, folder: Path, model_file: str, system: str | None) -> dict[str, Any]:
    """Write `folder`/Modelfile for the GGUF file called `model_file` in it, made of the model in `source`.

    `system` is its system prompt. Returns the proof: `passed`, `reason`, what was compared.

    Raises:
        EngineError: kind model, for a chat template that Ollama's language cannot say.
    """
    words = read_words(source)
    template = _template(words)
    lines = [f"FROM ./{model_file}"]
    report: dict[str, Any] = {"file": NAME, "conversations": 0, "reason": "", "notes": []}
    if template is not None:
        said, report["notes"] = _said(words, template)
        report["conversations"], other = difference(template, said, drop_begin=words.adds_bos)
        report["reason"] = f"its template writes this conversation otherwise: {other[:200]}" if other else ""
        lines.append(f"TEMPLATE {_QUOTES}{said}{_QUOTES}")
    if system:
        lines.append(f"SYSTEM {_QUOTES}{_quotable(system)}{_QUOTES}")
    stops = _stops(words)
    lines += [f'PARAMETER stop "{text}"' for text in stops]
    settings = _settings(source)
    lines += [f"PARAMETER {name} {value}" for name, value in settings.items()]
    (folder / NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return report | {"stops": stops, "parameters": settings, "passed": not report["reason"]}


def _template(words: Words) -> ChatTemplate | None:
    """The template trained with; None for a model that never had one."""
    source = words.tokenizer.chat_template
    if not isinstance(source, str):
        return None
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    tokens = {name: str(text) for name in names if (text := getattr(words.tokenizer, name))}
    return ChatTemplate(source, tokens)


def _said(words: Words, template: ChatTemplate) -> tuple[str, list[str]]:
    try:
        return modelfile_template(template, drop_begin=words.adds_bos)
    except Unsayable as error:
        raise model_failure(
            f"model: its chat template cannot be written for Ollama: {error}.",
            "Export it as GGUF: the file holds the template itself, and llama.cpp reads it.",
            "model",
        ) from error


def _quotable(text: str) -> str:
    if _QUOTES in text or text.endswith('"'):
        raise model_failure(
            "system: the system prompt holds quotation marks that end a text in a Modelfile.",
            "Leave out three quotation marks in a row, and one at the very end.",
            "system",
        )
    return text


def _stops(words: Words) -> list[str]:
    """The texts that end an answer, as far as a line of a Modelfile can hold them."""
    tokens = [str(words.tokenizer.convert_ids_to_tokens(number)) for number in sorted(words.ends)]
    return [
        text for text in dict.fromkeys([*tokens, *words.endings.texts]) if text.strip() and not {*text} & {'"', "\n"}
    ]


def _settings(source: Path) -> dict[str, float]:
    """Sampling as the model's own settings have it, and its context where Ollama would take a longer one."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        saved = json.loads((source / SETTINGS).read_text(encoding="utf-8"))
        found = {
            name: saved[key]
            for key, name in _PARAMETERS.items()
            if isinstance(saved.get(key), int | float) and not isinstance(saved[key], bool)
        }
    context = context_length(read_config(source).to_dict())
    return found | ({"num_ctx": context} if context < OLLAMA_CONTEXT else {})
