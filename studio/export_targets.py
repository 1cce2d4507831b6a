"""What each way of giving a model away needs, what it does not support, and how its result is used.

Nothing is loaded: folders and packages are looked up, so that a form can say it before anything is started.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio import gguf_support
from studio.availability import installed
from studio.estimate import Advice
from studio.model_cache import offline
from studio.model_choices import ModelChoice
from studio.model_files import CONFIG, Fault, facts, read_object
from studio.presets import ModelError, resolve_model
from studio.workspace import slug

Goal = Literal["adapter", "safetensors", "bitsandbytes", "gguf", "ollama", "hub"]
"""adapter: a folder to give away. safetensors: merged into its base. hub: an upload."""
Hub = Literal["huggingface", "modelscope"]
TOKENS: dict[Hub, str] = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}
"""The environment variable that holds the token of each hub."""
TITLES: dict[Hub, str] = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
MODELSCOPE_PIN = "modelscope==1.40.2"  # the `hub` extra in pyproject.toml
SPARE_BYTES = 64 * 2**20
_BITS = {
    "float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5,
    "4": 4.6, "8": 8.1,
}  # fmt: skip
"""Bits a weight takes in each format, what goes with it counted in."""


def advice(choice: ModelChoice, goal: Goal, *, hub: Hub = "huggingface") -> list[Advice]:
    """What would stop or spoil this export and can be known now; errors first."""
    found = [*_about_kind(choice, goal)]
    if goal == "hub":
        found += _about_hub(hub)
    elif not found:
        found += _about_model(choice, goal)
    return sorted(found, key=lambda one: ("error", "warning", "info").index(one.level))


def token(hub: Hub) -> str:
    """The token of the environment for a hub; "" without one."""
    return os.environ.get(TOKENS[hub], "").strip()


def needed_bytes(choice: ModelChoice, goal: Goal, number_format: str) -> int:
    """About what the export takes on the disk while it is made, in bytes; 0 when it cannot be told.

    `number_format`: of a merge its dtype, of GGUF its type, of bitsandbytes the bits. A merge that comes before the
    wanted format lies on the disk beside it until the end.
    """
    if goal == "hub":
        return 0
    if goal == "adapter":
        return _folder_bytes(choice.adapter) if choice.adapter else 0
    folder = _local_folder(choice.base)
    if folder is None:
        return 0
    known = facts(folder)
    stored = _BITS.get(known.dtype, 16.0)
    weights = known.weight_bytes * 8 / stored
    merged = weights * 2 if choice.adapter and goal != "safetensors" else 0
    return int(weights * _BITS.get(number_format, 16.0) / 8 + merged) + SPARE_BYTES


def free_bytes(out: Path) -> int:
    """Free bytes where `out` will lie."""
    place = next((folder for folder in (out, *out.parents) if folder.is_dir()), Path("/"))
    return shutil.disk_usage(place).free


# ---- what a target does not support ----------------------------------------------------------------------------------


def _about_kind(choice: ModelChoice, goal: Goal) -> Iterator[Advice]:
    if goal in ("adapter", "safetensors") and choice.adapter is None:
        what = "has no adapter" if choice.what == "base" else "is a whole model already"
        fix = (
            "choose a run or an adapter" if choice.what == "base" else f"its folder is ready to be used: {choice.base}"
        )
        yield Advice("error", "model", f"{choice.name} {what}", fix)


def _about_model(choice: ModelChoice, goal: Goal) -> Iterator[Advice]:
    try:
        ref = resolve_model(choice.base)
    except ModelError as error:
        yield Advice("error", "base", error.message, error.hint)
        return
    if not ref.local:
        yield Advice("info", "base", f"{ref.ref} is not on this machine yet; it is fetched first", "")
        return
    folder = Path(ref.path_or_id)
    packed = _packed(folder)
    if packed and goal != "adapter":
        fix = "choose the model its weights were packed from"
        yield Advice(
            "error", "base", f"{folder.name} is quantised already ({packed}), and packed weights stay as they are", fix
        )
        return
    if goal in ("gguf", "ollama"):
        reason = gguf_support.obstacle(folder)
        if goal == "ollama":
            reason = reason or gguf_support.modelfile_obstacle(folder, adapter=choice.adapter)
        if reason:
            yield Advice("error", "format", reason.removesuffix("."), "choose another format")
    if goal == "bitsandbytes":
        yield from _about_bitsandbytes()


def _packed(folder: Path) -> str:
    """By which method the weights of a folder are quantised; "" for plain numbers."""
    config = read_object(folder, CONFIG)
    section = {} if isinstance(config, Fault) else config.get("quantization_config")
    return str(section.get("quant_method", "something")) if isinstance(section, dict) else ""


def _about_bitsandbytes() -> Iterator[Advice]:
    if not installed("bitsandbytes"):
        yield Advice("error", "format", "the package bitsandbytes is not installed", "choose another format")
    yield Advice(
        "info", "format", "transformers and vLLM read it, llama.cpp and Ollama do not", "choose GGUF for those"
    )


def _about_hub(hub: Hub) -> Iterator[Advice]:
    name = TOKENS[hub]
    if hub == "huggingface" and offline():
        yield Advice("error", "hub", "the hub is switched off (HF_HUB_OFFLINE)", "start the studio without it")
    if hub == "modelscope" and not installed("modelscope"):
        yield Advice(
            "error", "hub", "ModelScope's own package is not installed", f"install it with pip install {MODELSCOPE_PIN}"
        )
    if not token(hub):
        yield Advice(
            "error", "hub", f"{TITLES[hub]} lets nobody upload without a token", f"start the studio with it in {name}"
        )


def _local_folder(reference: str) -> Path | None:
    try:
        ref = resolve_model(reference)
    except ModelError:
        return None
    return Path(ref.path_or_id) if ref.local else None


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


# ---- what to do with the result --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """One way to use a result: the program, and what to type."""

    program: str
    command: str


def uses(goal: Goal, out: Path, *, base: str = "", repo_id: str = "", hub: Hub = "huggingface") -> list[Use]:
    """What a person types to use the result in the folder `out`."""
    quoted = json.dumps(str(out), ensure_ascii=False)
    if goal == "adapter":
        peft = f"PeftModel.from_pretrained(model, {quoted})"
        named = json.dumps(base, ensure_ascii=False) if " " in base else base
        return [Use("Crucible", f"python launch.py chat {named} --adapter {quoted}"), Use("PEFT", peft)]
    if goal == "gguf":
        file = json.dumps(str(next(iter(sorted(out.glob("*.gguf"))), out / "model.gguf")), ensure_ascii=False)
        return [Use("llama.cpp", f"llama-cli -m {file}"), Use("llama.cpp", f"llama-server -m {file}")]
    if goal == "ollama":
        name = slug(out.name).lower()
        modelfile = json.dumps(str(out / "Modelfile"), ensure_ascii=False)
        return [Use("Ollama", f"ollama create {name} -f {modelfile}"), Use("Ollama", f"ollama run {name}")]
    if goal == "hub":
        client = "hf" if hub == "huggingface" else "modelscope"
        model = "" if hub == "huggingface" else "--model "
        return [Use(TITLES[hub], f"{client} download {model}{repo_id}")]
    model = f"AutoModelForCausalLM.from_pretrained({quoted})"
    return [
        Use("Crucible", f"python launch.py chat {quoted}"),
        Use("transformers", model),
        Use("vLLM", f"vllm serve {quoted}"),
    ]
