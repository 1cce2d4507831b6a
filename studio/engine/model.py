"""Loads the base model and its tokenizer, in 16/32 or 4 bits, and puts the adapter on it.

Two things happen here that a plain `from_pretrained` does not do: whatever is wrong with the model folder becomes one
sentence, and the 4-bit layers are kept from repacking their weights on the CPU (see `keep_weights_unpacked`).
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from studio.config import CHANGES_BASE, LoraSection, QuantizationSection, RunConfig
from studio.engine import ranks, zero, zero3
from studio.engine.activity import during
from studio.engine.failure import EngineError, explain, model_failure
from studio.events import ExitCode, RunError
from studio.presets import ModelRef
from studio.remote_code import NO_CODE, allowed

if TYPE_CHECKING:
    from peft import PeftModel

SMALL_WEIGHTS = 60 * 2**20  # bytes; below, 16-bit arithmetic gains nothing on a CPU


@dataclass(frozen=True)
class Precision:
    """Where and in which number format is computed."""

    device: str
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context every forward pass runs in; nothing for float32."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.dtype)


@dataclass(frozen=True)
class Loaded:
    """A model ready to be trained: `model` is a PeftModel unless every weight is trained."""

    ref: ModelRef
    model: Any  # PreTrainedModel or PeftModel, which share no type
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    saved_dtype: torch.dtype
    start: dict[str, torch.Tensor] | None = None
    """The adapter before the first step, where the base weights were changed to make room for it (PiSSA, OLoRA)."""

    @property
    def vocabulary(self) -> int:
        """How many token ids the model has an embedding for."""
        return zero3.shape_of(self.model.get_input_embeddings().weight)[0]


def load(config: RunConfig, ref: ModelRef) -> Loaded:
    """The base model of `config`, with a new adapter unless it goes on from one (`studio.engine.continuing`).

    Raises:
        EngineError: kind model (folder, architecture, weights, tokenizer, template) or config (dtype, LoRA targets).
    """
    precision = choose_precision(config.model.dtype, ref)
    with _faults_named(ref):
        found = AutoConfig.from_pretrained(ref.path_or_id, local_files_only=ref.local, trust_remote_code=allowed())
        _check_causal(found, ref)
        tokenizer = AutoTokenizer.from_pretrained(
            ref.path_or_id, local_files_only=ref.local, trust_remote_code=allowed()
        )
        with during("load"):
            model = _load_weights(config, ref, precision)
    keep_weights_unpacked(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    saved_dtype = getattr(found, "dtype", None) or torch.float32
    if config.method == "full" or config.model.adapter:
        return Loaded(ref, model, tokenizer, precision, saved_dtype)
    adapted = add_adapter(model, config.lora, config.train.seed)
    return Loaded(ref, adapted, tokenizer, precision, saved_dtype, _start(adapted, config.lora))


def choose_precision(wanted: str, ref: ModelRef) -> Precision:
    """The device, and the number format for `model.dtype`. Raises EngineError for float16 without a GPU."""
    if torch.cuda.is_available():
        best = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return Precision("cuda", best if wanted == "auto" else getattr(torch, wanted))
    if wanted == "float16":
        raise EngineError(
            RunError(
                kind="config",
                message="model.dtype: float16 training needs a GPU, and this machine has none.",
                hint="Choose auto, bfloat16 or float32.",
                field="model.dtype",
            )
        )
    if wanted == "auto":
        return Precision("cpu", torch.bfloat16 if _cpu_has_bf16() and not is_small(ref) else torch.float32)
    return Precision("cpu", getattr(torch, wanted))


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def is_small(ref: ModelRef) -> bool:
    """True for weights so small that 16-bit numbers and a second thread cost more than they gain on a CPU."""
    if not ref.local:
        return False
    return sum(file.stat().st_size for file in Path(ref.path_or_id).glob("*.safetensors")) < SMALL_WEIGHTS


@contextlib.contextmanager
def _faults_named(ref: ModelRef) -> Iterator[None]:
    """Whatever transformers raises while loading becomes an EngineError of kind model; memory and disk stay theirs."""
    try:
        yield
    except Exception as error:
        known, code = explain(error)
        if known.kind != "internal" or code is ExitCode.OUT_OF_MEMORY:
            raise
        raise _loading_failure(ref, error) from error


def _loading_failure(ref: ModelRef, error: Exception) -> EngineError:
    text = str(error)
    name = Path(ref.ref).name or ref.ref
    if "trust_remote_code" in text or "custom code" in text:
        return model_failure(
            f"model.model_name_or_path: {name} needs Python code of its own, which is not run.",
            f"{NO_CODE}.",
        )
    if isinstance(error, ImportError):
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        return model_failure(
            f"model.attn_implementation: {name} cannot be loaded this way ({first[:200]}).",
            "Set attention to auto, or install the missing package.",
            "model.attn_implementation",
        )
    if not ref.local and isinstance(error, OSError):
        return model_failure(
            f"model.model_name_or_path: {ref.ref} cannot be fetched from the hub and is not on this machine.",
            "Check the name and the network, or give the folder of a model on this machine.",
        )
    first = " ".join(text.split())[:240] or type(error).__name__
    return model_failure(
        f"model.model_name_or_path: {name} cannot be loaded ({first}).",
        "A file is damaged or does not belong to this model; copy the model again.",
    )


def _check_causal(found: Any, ref: ModelRef) -> None:
    own = allowed() and "AutoModelForCausalLM" in (getattr(found, "auto_map", None) or {})
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own:
        raise model_failure(
            f"model.model_name_or_path: {Path(ref.ref).name} is no text-generating language model "
            f"(its type is {found.model_type}).",
            "Choose a causal language model, such as a Qwen, Llama or Mistral model.",
        )


def _load_weights(config: RunConfig, ref: ModelRef, precision: Precision) -> PreTrainedModel:
    loader: Any = AutoModelForCausalLM
    arguments: dict[str, Any] = {"local_files_only": ref.local, "output_loading_info": True}
    arguments["trust_remote_code"] = allowed()
    # Every weight trained: float32 master weights under autocast. Frozen weights need no more than 16 bits.
    arguments["dtype"] = torch.float32 if config.method == "full" else precision.dtype
    if config.model.attn_implementation != "auto":
        arguments["attn_implementation"] = config.model.attn_implementation
    if config.method == "qlora":
        arguments["quantization_config"] = quantization(config.quantization, precision)
        if not zero.divides_weights(config):  # where they are divided, transformers chooses this process's place
            arguments["device_map"] = {"": ranks.local_rank() if precision.device == "cuda" else "cpu"}
    model, info = loader.from_pretrained(ref.path_or_id, **arguments)
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if lacking:  # transformers would go on with random numbers
        raise model_failure(
            f"model.model_name_or_path: the weights of {Path(ref.ref).name} are incomplete "
            f"({len(lacking)} tensors, first {lacking[0]}).",
            "Copy the model again, with all its files.",
        )
    return model  # type: ignore[no-any-return]


def quantization(section: QuantizationSection, precision: Precision) -> BitsAndBytesConfig:
    """The 4-bit settings; a compute type of auto follows the precision."""
    values = section.model_dump()
    if section.bnb_4bit_compute_dtype == "auto":
        values["bnb_4bit_compute_dtype"] = precision.dtype
    return BitsAndBytesConfig(load_in_4bit=True, **values)  # type: ignore[no-untyped-call]


def keep_weights_unpacked(model: torch.nn.Module) -> None:
    """Keep 4-bit layers from repacking their weights on the CPU.

    On CPUs with AVX512-BF16 bitsandbytes repacks a 4-bit weight at the first pass without gradients (a sample is
    enough) and then uses a kernel that has no derivative: every later gradient is wrong, without an error. Switched
    off before anything runs; should the kernel be reached all the same, its warning becomes an error.
    """
    from bitsandbytes.nn.modules import Linear4bit  # seconds to import: only where 4-bit layers can be

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    warnings.filterwarnings("error", message=".*an autograd kernel was not registered.*")


def add_adapter(model: PreTrainedModel, section: LoraSection, seed: int) -> PeftModel:
    """Freeze the model and put LoRA matrices beside its layers. Raises EngineError for unknown layer names."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    values = section.model_dump() | {
        "target_modules": target_modules(section.target_modules),
        "modules_to_save": _whole_layers(model, section.modules_to_save) or None,
        "init_lora_weights": True if section.init_lora_weights == "default" else section.init_lora_weights,
    }
    set_seed(seed)
    try:
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **values))
    except ValueError as error:
        if "lora_dropout" in str(error):
            reason = "experts that share one weight cannot have an adapter with dropout"
            raise _lora_failure(reason, "lora.lora_dropout", "Set it to 0.") from error
        raise _lora_failure(" ".join(str(error).split())[:300]) from error
    if isinstance(wrapped.get_output_embeddings(), BaseTunerLayer):
        raise _lora_failure("an adapter on the output layer (lm_head) is not supported")
    return wrapped


def _whole_layers(model: PreTrainedModel, names: list[str]) -> list[str]:
    """The full names of the layers meant: PEFT takes a name for any ending, passes over one that no layer has, and
    trips over layers packed in 4 bits."""
    chosen: list[str] = []
    for name in names:
        found = {path: layer for path, layer in model.named_modules() if f".{path}".endswith(f".{name}")}
        packed = any(not weight.is_floating_point() for layer in found.values() for weight in layer.parameters())
        if packed or not found:
            reason = f"{name} is packed in 4 bits and cannot be trained" if packed else f"the model has no layer {name}"
            hint = "Name layers such as embed_tokens, lm_head or a norm, or choose the method lora."
            raise _lora_failure(reason, "lora.modules_to_save", hint)
        chosen += found
    return chosen


def _start(model: PeftModel, section: LoraSection) -> dict[str, torch.Tensor] | None:
    if section.init_lora_weights not in CHANGES_BASE:
        return None
    from peft import get_peft_model_state_dict

    return {name: value.detach().cpu().clone() for name, value in get_peft_model_state_dict(model).items()}


def target_modules(value: str | list[str]) -> str | list[str]:
    """`all-linear` stays; any other text is a list of layer names divided by commas or spaces."""
    if isinstance(value, list) or value == "all-linear":
        return value
    return [name for name in re.split(r"[,\s]+", value) if name]


_TARGETS = "Use all-linear, or names of layers this model has, such as q_proj, v_proj."


def _lora_failure(reason: str, field: str = "lora.target_modules", hint: str = _TARGETS) -> EngineError:
    return EngineError(RunError(kind="config", message=f"{field}: {reason}.", hint=hint, field=field))
