"""A base model and its adapters, loaded to answer: for chat, for a merge and for the proof of a merge."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as SPEAKING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as SEEING

from studio.config import QuantizationSection
from studio.engine.adapter import AdapterFiles
from studio.engine.failure import EngineError, explain, model_failure
from studio.engine.model import Precision, keep_weights_unpacked, quantization
from studio.events import ExitCode, RunError
from studio.memory_room import tightest
from studio.presets import ModelError, ModelRef
from studio.remote_code import allowed

SMALL_PARAMETERS = 1_000_000_000  # below, float32 is the fastest on a CPU and fits everywhere
_MODELS: Any = AutoModelForCausalLM  # the libraries' own types are too loose to be checked against
_SEEING: Any = AutoModelForImageTextToText
_PROCESSORS: Any = AutoProcessor
_EIGHT_BITS: Any = transformers.BitsAndBytesConfig
_LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?:embedding_)?(?P<side>A|B)(?:\.weight)?")


@dataclass(frozen=True)
class Holding:
    """How weights are held: `bits` 4, 8, 16 or 32 per weight, `dtype` of what is not quantised."""

    bits: int
    dtype: torch.dtype
    quantization: QuantizationSection = field(default_factory=QuantizationSection)


def quiet() -> None:
    """Keep the libraries' progress bars and advice out of the log: what a person must know is told by us."""
    messages: Any = transformers.logging
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(peft|bitsandbytes|transformers)\b.*")


@contextlib.contextmanager
def blaming(field: str) -> Iterator[None]:
    """Whatever goes wrong with a model inside is reported for `field`; memory, disk and our own errors stay theirs."""
    try:
        yield
    except ModelError as error:
        raise model_failure(f"{field}: {_without_field(error.message)}", error.hint, field) from error
    except EngineError:
        raise
    except Exception as error:
        if explain(error)[0].kind != "internal":
            raise
        raise model_failure(
            f"{field}: it cannot be loaded ({' '.join(str(error).split())[:240] or type(error).__name__}).",
            "A file is damaged, or of an architecture that is not supported; copy the model again or choose another.",
            field,
        ) from error


def _without_field(message: str) -> str:
    return re.sub(r"^[\w.]+: ", "", message)


def count_parameters(ref: ModelRef) -> int:
    """Parameters of a model, from its configuration alone (shared ones once)."""
    config = AutoConfig.from_pretrained(ref.path_or_id, local_files_only=ref.local, trust_remote_code=allowed())
    with torch.device("meta"):
        model = _loader(config).from_config(config, trust_remote_code=allowed())
    return sum(parameter.numel() for parameter in model.parameters())


def choose_holding(bits: int, ref: ModelRef) -> Holding:
    """How to hold the weights for answering, on this machine, when `bits` per weight are wanted."""
    if bits == 32:
        return Holding(32, torch.float32)
    if torch.cuda.is_available():
        return Holding(bits, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    with blaming("base"):
        small = count_parameters(ref) < SMALL_PARAMETERS
    if small:
        return Holding(32 if bits == 16 else bits, torch.float32)
    return Holding(bits, torch.bfloat16)


def check_room(ref: ModelRef, holding: Holding) -> None:
    """Before a model is loaded into main memory: whether there is room, as the system would end the process later.

    Raises EngineError of kind memory, field bits. A GPU refuses by itself.
    """
    if torch.cuda.is_available():
        return
    with blaming("base"):
        needed = count_parameters(ref) * holding.bits // 8
    room = tightest()
    if needed > room.free:
        sizes = f"about {needed / 1e9:.1f} GB in {holding.bits} bits, and {room.free / 1e9:.1f} GB are free"
        raise EngineError(
            RunError(
                kind="memory",
                message=f"bits: the model does not fit into memory: it needs {sizes}.",
                hint="Load it in fewer bits, choose a smaller model, or close other programs.",
                field="bits",
            ),
            ExitCode.OUT_OF_MEMORY,
        )


def load_base(ref: ModelRef, holding: Holding, field: str = "base", device: str | None = None) -> PreTrainedModel:
    """The base model, ready to answer.

    `device` None: the GPU if there is one. Raises EngineError of kind model, naming `field`, for weights that are
    missing, damaged or of another shape than the configuration says.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    arguments: dict[str, Any] = {"dtype": holding.dtype, "local_files_only": ref.local, "output_loading_info": True}
    arguments["trust_remote_code"] = allowed()
    if place == "cuda":
        arguments["device_map"] = "auto"
    elif holding.bits in (4, 8):
        arguments["device_map"] = {"": "cpu"}
    if holding.bits == 4:
        arguments["quantization_config"] = quantization(holding.quantization, Precision(place, holding.dtype))
    elif holding.bits == 8:
        arguments["quantization_config"] = _EIGHT_BITS(load_in_8bit=True)
    with blaming(field):
        config = AutoConfig.from_pretrained(ref.path_or_id, local_files_only=ref.local, trust_remote_code=allowed())
        model, info = _loader(config).from_pretrained(ref.path_or_id, **arguments)
        _check_complete(info, field)
    if holding.bits == 4 or getattr(model, "is_loaded_in_4bit", False):  # a folder may hold packed weights
        keep_weights_unpacked(model)
    return model.eval()  # type: ignore[no-any-return]


def _check_complete(info: Mapping[str, Any], field: str) -> None:
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if lacking:  # transformers would fill them with random numbers
        raise model_failure(
            f"{field}: the weights of the model are incomplete ({len(lacking)} tensors, first {lacking[0]}).",
            "Copy the model again, with all its files.",
            field,
        )


def _loader(config: Any) -> Any:
    """The family of classes a model is loaded with; those that see pictures have their own."""
    seeing = config.model_type in SEEING and config.model_type not in SPEAKING
    return _SEEING if seeing else _MODELS


def load_processor(ref: ModelRef, model: PreTrainedModel) -> Any:
    """What prepares pictures for a model; None for one that sees none, or without the settings of its pictures."""
    if model.config.model_type not in SEEING:
        return None
    try:
        found = _PROCESSORS.from_pretrained(ref.path_or_id, local_files_only=ref.local, trust_remote_code=allowed())
    except Exception as error:  # settings that are missing, or a library that reads them
        print(f"warning: the model is served without its pictures ({str(error)[:200]})", file=sys.stderr)  # noqa: T201
        return None
    return found if hasattr(found, "image_processor") else None


def load_tokenizer(folder: str, *, local: bool = True, field: str = "base") -> PreTrainedTokenizerBase:
    """A tokenizer that neither pads nor cuts, whatever state it was saved in."""
    with blaming(field):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=local, trust_remote_code=allowed())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    return tokenizer


def attach(model: PreTrainedModel, adapters: Mapping[str, AdapterFiles], *, hollow: bool = False) -> PreTrainedModel:
    """Put adapters on a base model; the first one is active. `hollow`: its weights are still in their files.

    Raises EngineError of kind model, naming the tensor, when an adapter was trained on another base.
    """
    from peft import PeftModel

    wrapped: Any = model
    for number, (name, files) in enumerate(adapters.items()):
        check_fits(model if number == 0 else wrapped.get_base_model(), files)
        with blaming("adapter"):
            if number == 0:
                wrapped = PeftModel.from_pretrained(
                    model, str(files.folder), adapter_name=name, low_cpu_mem_usage=hollow
                )
            else:
                wrapped.load_adapter(str(files.folder), adapter_name=name, low_cpu_mem_usage=hollow)
        check_all_layers(wrapped, name, files)
    return wrapped.eval()  # type: ignore[no-any-return]


def tensor_shapes(files: AdapterFiles) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an adapter. Raises EngineError when the file is damaged."""
    path = files.folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # SafetensorError is no class one can name, and the file may be anything
        raise model_failure(
            f"adapter: {path.name} in {files.folder.name} is damaged ({' '.join(str(error).split())[:160]}).",
            "Copy the adapter again, or use an earlier checkpoint of the run.",
            "adapter",
        ) from error
    if not shapes:
        raise model_failure(f"adapter: {path.name} holds no tensors.", "Copy the adapter again.", "adapter")
    return shapes


def check_fits(model: torch.nn.Module, files: AdapterFiles) -> None:
    """Raises EngineError, naming the first tensor that has no place or the wrong size in `model`."""
    modules = {_plain(name): module for name, module in model.named_modules()}
    for key, shape in tensor_shapes(files).items():
        match = _LORA_KEY.fullmatch(key)
        if not match:
            continue
        module = modules.get(match["module"])
        if module is None:
            raise _misfit(f"it has a tensor {key}, but the base model has no layer {match['module']}")
        sizes = _sizes(module)
        side = match["side"]
        if sizes and shape[1 if side == "A" else 0] != sizes[0 if side == "A" else 1]:
            raise _misfit(
                f"its tensor {key} is {shape[0]} x {shape[1]}, but layer {match['module']} of the base model "
                f"goes from {sizes[0]} to {sizes[1]}"
            )


def _plain(name: str) -> str:
    return name.removesuffix(".base_layer")


def _sizes(module: torch.nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a layer, also when its weights are packed; None when they cannot be known."""
    for first, second in (("in_features", "out_features"), ("nx", "nf"), ("num_embeddings", "embedding_dim")):
        if hasattr(module, first) and hasattr(module, second):
            return int(getattr(module, first)), int(getattr(module, second))
    return None


def check_all_layers(model: torch.nn.Module, name: str, files: AdapterFiles) -> None:
    """PEFT leaves a layer without tensors untrained, in silence. Raises EngineError of kind model."""
    given = {match["module"] for key in tensor_shapes(files) if (match := _LORA_KEY.fullmatch(key))}
    for full_name, module in model.named_modules():
        sides = getattr(module, "lora_A", {})
        place = full_name.removeprefix("base_model.model.")
        if name in sides and place not in given:
            raise _misfit(f"the base model has a layer {place}, but the adapter has no tensor for it")


def _misfit(reason: str) -> EngineError:
    return EngineError(
        RunError(
            kind="model",
            message=f"adapter: it was trained on another base model: {reason}.",
            hint="Choose the base model the adapter was trained on.",
            field="adapter",
        )
    )


def read_template(folder: Path) -> str | None:
    """The chat template saved in a folder, byte for byte, or None."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / "chat_template.jinja").read_bytes().decode("utf-8")
    with contextlib.suppress(OSError, ValueError):
        template = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        return template if isinstance(template, str) else None
    return None


def adapter_tokenizer(ref: ModelRef, adapter: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer an adapter was trained with: the one in its folder if there is one, else the base's.

    The template in the adapter's folder wins over the base's.
    """
    own = adapter is not None and any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    if own:
        tokenizer = load_tokenizer(str(adapter), field="adapter")
    else:
        tokenizer = load_tokenizer(ref.path_or_id, local=ref.local)
    template = read_template(adapter) if adapter else None
    if template is not None:
        tokenizer.chat_template = template
    elif own and not tokenizer.chat_template:
        tokenizer.chat_template = load_tokenizer(ref.path_or_id, local=ref.local).chat_template
    return tokenizer
