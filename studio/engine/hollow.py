"""A model without its weights: they stay in their files, and a layer has them only while it is at work.

So a model larger than the memory can be merged layer by layer and can answer, slowly. A weight that is away is not a
number: whatever is computed with it by mistake shows. Only models whose files name every tensor as the modules do are
fit for this; of some architectures transformers joins and renames tensors while it loads them.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from studio.engine.layouts import LayoutError, Weights
from studio.engine.loading import blaming
from studio.presets import ModelRef
from studio.remote_code import allowed

_M_MMAP_THRESHOLD = -3  # malloc.h
_MODELS: Any = AutoModelForCausalLM  # the libraries' own types are too loose to be checked against


class Unsuited(Exception):  # noqa: N818 - no mistake of anybody
    """A model that has to be loaded as a whole; the text says why, as a part of a sentence."""


@dataclass(frozen=True)
class Unit:
    """A part of a model that is filled and emptied as one.

    `wrapped` is True for a layer of the base with an adapter around it.
    """

    module: torch.nn.Module
    wrapped: bool


class Hollow:
    """One model. `model` is to be wrapped in place by PEFT; `packing` makes the weights those of a 4-bit model.

    Raises:
        Unsuited: it cannot be taken apart.
        EngineError: kind model, naming `field`.
    """

    def __init__(
        self, ref: ModelRef, device: str = "cpu", packing: BitsAndBytesConfig | None = None, field: str = "base"
    ) -> None:
        _give_back_at_once()
        if not ref.local:
            raise Unsuited("it is not on this machine")
        self.folder, self.device = Path(ref.path_or_id), device
        with blaming(field):
            self.config: Any = AutoConfig.from_pretrained(
                ref.path_or_id, local_files_only=True, trust_remote_code=allowed()
            )
        if allowed() and getattr(self.config, "auto_map", None):
            raise Unsuited("it brings Python code of its own")
        with blaming(field):
            self.model: Any = _skeleton(self.config)
        self._weights = _open(self.folder)
        self.tied: dict[str, str] = dict(getattr(self.model, "all_tied_weights_keys", None) or {})
        """Weights that are another one's: name -> the name they are saved under."""
        self._names = {id(module): name for name, module in self.model.named_modules()}
        self._check(self.model)
        self._packing = packing
        self._packed = _packed_names(self.config, packing) if packing else set()
        self._away: dict[int, str] = {}
        self._hollow_out()
        self.buffers = self._load_buffers()
        """Tensors of the files that are no weights, by name."""

    def shapes(self) -> dict[str, torch.Tensor]:
        """Stand-ins for every tensor of the model, in its order; tied ones are among them."""
        state: dict[str, torch.Tensor] = _skeleton(self.config).state_dict()
        return {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A weight of the base by name, on the device."""
        name = self.tied.get(name, name)
        if name not in self._packed:
            return self._weights.read(name, dtype, self.device)
        return self._through_4_bits(self._weights.read(name, torch.float32, self.device)).to(dtype)

    def _through_4_bits(self, weight: torch.Tensor) -> torch.Tensor:
        """Packed and unpacked again, as a 4-bit layer does it."""
        from bitsandbytes.nn.modules import Params4bit
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        settings: Any = self._packing
        packing: Any = Params4bit
        packed = packing(
            weight,
            requires_grad=False,
            quant_type=settings.bnb_4bit_quant_type,
            compress_statistics=settings.bnb_4bit_use_double_quant,
        ).to(self.device)
        unpacked: torch.Tensor = dequantize_bnb_weight(packed)
        return unpacked

    def units(self, model: torch.nn.Module) -> Iterator[Unit]:
        """Everything in `model` (this one, with or without adapters) that holds weights of the base, in order."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        if isinstance(model, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield Unit(model, wrapped=True)
            return
        if id(model) in self._names and any(True for _ in model.parameters(recurse=False)):
            yield Unit(model, wrapped=False)
        for child in model.children():
            yield from self.units(child)

    def named(self, unit: Unit) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The parameters the base has in a unit, and their names in the files."""
        plain = _plain(unit.module)
        for name, parameter in plain.named_parameters(recurse=unit.wrapped):
            yield _joined(self._names[id(plain)], name), parameter

    def is_away(self, parameter: torch.nn.Parameter) -> bool:
        """True for a weight of the base that is still in its file."""
        return id(parameter) in self._away

    def fill(self, unit: Unit) -> None:
        """Read the weights of a unit, in float32, and move the rest of it to the same place."""
        for parameter in unit.module.parameters(recurse=unit.wrapped):
            away = self._away.get(id(parameter))
            parameter.data = self.read(away) if away else parameter.data.to(self.device, torch.float32)

    def empty(self, unit: Unit) -> None:
        """Forget them again."""
        for parameter in self._hollow_of(unit):
            parameter.data = _nothing(parameter)

    def _hollow_of(self, unit: Unit) -> list[torch.nn.Parameter]:
        return [one for one in unit.module.parameters(recurse=unit.wrapped) if id(one) in self._away]

    @contextlib.contextmanager
    def breathing(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside, `model` can be called: each unit is filled when it is reached and emptied when it is done."""
        hooks = []
        for buffer in model.buffers():
            buffer.data = buffer.data.to(self.device)
        for unit in self.units(model):
            hooks.append(unit.module.register_forward_pre_hook(partial(self._before, unit)))
            hooks.append(unit.module.register_forward_hook(partial(self._after, unit), always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, unit: Unit, *_: object) -> None:
        self.fill(unit)

    def _after(self, unit: Unit, *_: object) -> None:
        self.empty(unit)

    def _check(self, model: Any) -> None:
        """Raises Unsuited unless the files hold every tensor under its own name."""
        if any(isinstance(one, WeightConverter) for one in get_model_conversion_mapping(model)):
            raise Unsuited("its tensors are joined while they are loaded")
        for name, tensor in model.state_dict().items():
            if name not in self.tied and self._weights.shapes.get(name) != tuple(tensor.shape):
                raise Unsuited(f"its files hold no tensor {name} of its size")

    def _hollow_out(self) -> None:
        """Put nothing in the place of every weight: one number that seems to be as many as the weight has."""
        self._kept = list(self.model.parameters())  # an id means something only while its object lives
        stand_ins: dict[int, torch.nn.Parameter] = {}
        for module in self.model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) not in stand_ins:
                    stand_in = torch.nn.Parameter(_nothing(parameter), requires_grad=False)
                    stand_ins[id(parameter)] = stand_in
                    self._away[id(stand_in)] = _joined(self._names[id(module)], name)
                setattr(module, name, stand_ins[id(parameter)])
        self._kept += stand_ins.values()

    def _load_buffers(self) -> dict[str, torch.Tensor]:
        saved = self.model.state_dict().keys()
        found = {name: buffer for name, buffer in self.model.named_buffers() if name in saved}
        for name, buffer in found.items():
            buffer.copy_(self._weights[name])
        return found


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _plain(module: Any) -> torch.nn.Module:
    """The layer of the base in what PEFT put around it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    found: torch.nn.Module = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
    return found


def _give_back_at_once() -> None:
    """Have the C library return large blocks to the system when they are freed.

    Else it keeps blocks of up to 32 MB for later, in pieces that soon fit nothing: twice a model's layers and more.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def _nothing(like: torch.Tensor) -> torch.Tensor:
    number = torch.full((1,), float("nan"), dtype=torch.float32)
    return number.expand(like.shape) if like.dim() else number.reshape(())


def _skeleton(config: Any) -> Any:
    with init_empty_weights(include_buffers=False):
        model = _MODELS.from_config(config, dtype=torch.float32)
    with contextlib.suppress(OSError, ValueError):
        model.generation_config = GenerationConfig.from_pretrained(config.name_or_path, local_files_only=True)
    return model.eval()


def _open(folder: Path) -> Weights:
    try:
        return Weights(folder)
    except LayoutError as error:
        raise Unsuited(str(error)) from error


def _packed_names(config: Any, packing: BitsAndBytesConfig) -> set[str]:
    """The weights a 4-bit model packs, by the rule transformers has for it."""
    from bitsandbytes.nn.modules import Linear4bit
    from transformers.quantizers.auto import AutoHfQuantizer

    model = _skeleton(config)
    quantizer: Any = AutoHfQuantizer
    quantizer.from_config(packing, pre_quantized=False).preprocess_model(model=model, device_map={"": "cpu"})
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear4bit)}
