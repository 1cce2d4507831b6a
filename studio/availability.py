"""Which choices of a configuration this machine cannot offer and why, and the defaults that suit it.

Form and preflight read the same table, so that what is greyed out and what is refused are the same. Packages are
looked up, never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from studio import hardware
from studio.config import RunConfig
from studio.hardware import Gpu, Hardware
from studio.schema import FieldSpec, walk

TENSOR_CORES = (8, 0)
"""Compute capability from which a GPU computes bfloat16 itself and FlashAttention runs."""
OPTIM, DTYPE, COMPUTE, ATTENTION = (
    "train.optim",
    "model.dtype",
    "quantization.bnb_4bit_compute_dtype",
    "model.attn_implementation",
)
_BITSANDBYTES = ("paged_", "lion", "ademamix", "rmsprop_bnb")


@dataclass(frozen=True)
class Reason:
    """Why a choice is not to be had: an `error` fails at once, a `warning` works far too slowly."""

    text: str
    fix: str
    level: Literal["error", "warning"] = "error"


@dataclass(frozen=True)
class Machine:
    """What choices depend on: the GPUs torch can use, and which packages there are."""

    gpus: tuple[Gpu, ...]
    has: Callable[[str], bool]

    @property
    def gpu(self) -> Gpu | None:
        """The one a run is trained on."""
        return self.gpus[0] if self.gpus else None

    @property
    def old_gpu(self) -> Gpu | None:
        """The GPU when it is one from before bfloat16."""
        gpu = self.gpu
        return gpu if gpu and gpu.capability and gpu.capability < TENSOR_CORES else None


def installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # ValueError: switched off in sys.modules
        return False


def usable(machine: Hardware) -> Machine:
    """A machine as an engine sees it: hidden GPUs, and all of them under a CPU build of torch, do not count."""
    gpus = hardware.visible_gpus(machine.gpus) if machine.gpus and hardware.torch_has_cuda() else ()
    return Machine(gpus, installed)


def options(machine: Machine) -> dict[str, dict[str, Reason]]:
    """{field: {value: why it cannot be chosen here}}; fields and values without a reason are left out."""
    found = {
        spec.path: {value: reason for value in spec.choices if (reason := _RULES[spec.path](value, machine))}
        for spec in _choice_fields()
        if spec.choices
    }
    return {path: reasons for path, reasons in found.items() if reasons}


def defaults_for(machine: Machine) -> dict[str, Any]:
    """Overrides {dotted path: value} that make the defaults of a configuration suit this machine.

    No GPU: what works on a CPU, the number format chosen by its size. A GPU from before bfloat16: float16.
    """
    found: dict[str, Any] = {} if machine.has("bitsandbytes") else {"method": "lora"}
    if machine.gpu is None:
        return found | {DTYPE: "auto", COMPUTE: "auto", ATTENTION: "auto", OPTIM: "adamw_torch"}
    number = "float16" if machine.old_gpu else "bfloat16"
    return found | {DTYPE: number, COMPUTE: number, ATTENTION: "auto", OPTIM: "adamw_torch_fused"}


def _choice_fields() -> list[FieldSpec]:
    return [spec for spec in walk(RunConfig) if spec.path in _RULES]


def _method(value: str, machine: Machine) -> Reason | None:
    if value == "qlora" and not machine.has("bitsandbytes"):
        return _missing("qlora", "bitsandbytes", "choose lora")
    return None


def _optimizer(value: str, machine: Machine) -> Reason | None:
    packed = "8bit" in value or value.startswith(_BITSANDBYTES)
    if packed and not machine.has("bitsandbytes"):
        return _missing(value, "bitsandbytes", "choose adamw_torch")
    return None


def _attention(value: str, machine: Machine) -> Reason | None:
    if value != "flash_attention_2":
        return None
    if machine.gpu is None:
        return _needs_gpu(value)
    if machine.old_gpu:
        return Reason(f"{value} needs compute capability 8.0, and {_named(machine.old_gpu)}", "choose auto")
    if not (machine.has("flash_attn") or machine.has("kernels")):
        return _missing(value, "flash_attn", "choose auto")
    return None


def _dtype(value: str, machine: Machine) -> Reason | None:
    if value == "float16" and machine.gpu is None:
        return _needs_gpu(value)
    return _compute_dtype(value, machine)


def _compute_dtype(value: str, machine: Machine) -> Reason | None:
    if value == "bfloat16" and machine.old_gpu:
        text = f"bfloat16 is many times slower here: {_named(machine.old_gpu)} and only imitates it"
        return Reason(text, "choose float16", "warning")
    return None


def _needs_gpu(value: str) -> Reason:
    return Reason(f"{value} needs a GPU and this machine has none", "choose auto")


def _missing(value: str, package: str, instead: str) -> Reason:
    return Reason(f"{value} needs the package {package}, which is not installed", f"install {package}, or {instead}")


def _named(gpu: Gpu) -> str:
    capability = ".".join(map(str, gpu.capability or ()))
    return f"{gpu.name} has {capability}"


_RULES: Mapping[str, Callable[[str, Machine], Reason | None]] = {
    "method": _method,
    OPTIM: _optimizer,
    ATTENTION: _attention,
    DTYPE: _dtype,
    COMPUTE: _compute_dtype,
}
