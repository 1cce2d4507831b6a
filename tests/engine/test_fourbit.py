"""The 4-bit trap on CPUs: a sample before or during the training must not change a single gradient.

Where the CPU has no AVX512-BF16, bitsandbytes is told that it has: the flag under test is then on by default, too.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch

from studio.config import RunConfig
from studio.engine.answers import undisturbed
from studio.engine.model import Loaded, load
from studio.presets import resolve_model
from studio.schema import build


def load_four_bit(folder: Path, compute: str = "auto") -> Loaded:
    config = build(
        RunConfig,
        {
            "method": "qlora",
            "model": {"model_name_or_path": str(folder)},
            "data": {"dataset": "unused"},
            "lora": {"lora_dropout": 0.0},
            "quantization": {"bnb_4bit_compute_dtype": compute},
        },
    )
    return load(config, resolve_model(str(folder)))


def four_bit_layers(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]


def train_steps(loaded: Loaded, *, sample_first: bool) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    """Losses and gradients of four optimizer steps, with a sample before each or without."""
    model: Any = loaded.model
    torch.manual_seed(1)
    with torch.no_grad():  # a fresh adapter's B is zero and would hide gradients of A
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses, gradients = [], []
    ids = torch.randint(5, 250, (2, 24), generator=torch.Generator().manual_seed(3))
    model.train()
    for _ in range(4):
        if sample_first:
            with undisturbed(model):
                model.generate(input_ids=ids[:1, :8], max_new_tokens=4, do_sample=False)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        losses.append(float(loss))
        optimizer.step()
    return losses, gradients


@pytest.fixture(autouse=True)
def _a_cpu_with_avx512_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_qwen"])
def test_samples_leave_every_gradient_as_it_was(kind: str, compute: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    plain_losses, plain = train_steps(load_four_bit(folder, compute), sample_first=False)
    sampled_losses, sampled = train_steps(load_four_bit(folder, compute), sample_first=True)
    assert sampled_losses == plain_losses
    for before, after in zip(plain, sampled, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(value.abs().max() > 0 for value in before.values())


def test_every_four_bit_layer_is_kept_from_repacking(tiny_qwen: Path) -> None:
    loaded = load_four_bit(tiny_qwen)
    layers = four_bit_layers(loaded.model)
    assert len(layers) == 2 * 7
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    with undisturbed(loaded.model):
        loaded.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)


def test_weights_are_nf4_with_double_quantisation(tiny_llama: Path) -> None:
    for layer in four_bit_layers(load_four_bit(tiny_llama).model):
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested
        assert layer.weight.dtype == torch.uint8


def test_a_kernel_without_derivative_is_an_error(tiny_llama: Path) -> None:
    library = torch.library.Library("crucible_test", "DEF")
    library.define("no_gradient(Tensor x) -> Tensor")
    library.impl("no_gradient", lambda x: x.detach() * 2, "CPU")
    with warnings.catch_warnings():
        load_four_bit(tiny_llama)
        x = torch.ones(3, requires_grad=True)
        with pytest.raises(UserWarning, match="autograd kernel was not registered"):
            torch.ops.crucible_test.no_gradient(x).sum().backward()
