"""The exports that are GGUF files: for llama.cpp and its relatives, and with a Modelfile beside it for Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studio.engine.adapter import training_config
from studio.engine.export_plan import Plan
from studio.engine.formats import gguf, llama_cpp, ollama
from studio.engine.journal import Journal
from studio.workspace import slug


def export(plan: Plan, source: Path, journal: Journal) -> dict[str, Any]:
    """Fill `plan.work`/result with the file (and the Modelfile); returns the report with its proof."""
    result, config = plan.work / "result", plan.config
    file = result / f"{slug(plan.out.name)}-{config.gguf_type}.gguf"
    report = gguf.write(source, file, config.gguf_type, lambda done, of: journal.progress(done, of, "tensors"))
    about_ollama: dict[str, Any] = {}
    if config.format == "ollama":
        about_ollama = ollama.write(source, result, file.name, _system(plan))
    journal.phase("proof", file.name)
    if not llama_cpp.available():
        journal.warn(llama_cpp.NOT_ASKED, "format")
    proof = gguf.prove(source, file)
    if about_ollama and not about_ollama["passed"]:
        proof = proof | {"passed": False, "reason": about_ollama["reason"]}
    return report | {
        "gguf_type": config.gguf_type,
        "file": file.name,
        "proof": proof,
        **({"modelfile": about_ollama} if about_ollama else {}),
    }


def _system(plan: Plan) -> str | None:
    """The system prompt of the Modelfile: the one asked for, else the one the run was trained with."""
    if plan.config.system is not None:
        return plan.config.system or None
    trained = training_config(plan.choice.adapter) if plan.choice.adapter else None
    return (trained.data.system or None) if trained else None
