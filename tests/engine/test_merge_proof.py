"""The proof of a merge on its weights, its room for rounding, and the files that are rewritten after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters import save_adapter
from originals import save_original
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from studio.config import MergeConfig
from studio.engine import merge, proof, proof_weights, questions, sides
from studio.engine.adapter import open_adapter
from studio.engine.converted import Original, ready
from studio.engine.mergeplan import Part
from studio.presets import ModelRef
from studio.schema import ConfigError, build
from studio.workspace import Workspace

LAYER = "model.layers.1.self_attn.k_proj"
NAME = f"{LAYER}.weight"
Tensors = dict[str, torch.Tensor]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "patterns": {"use_rslora": True, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"layers.1.self_attn.k_proj": 3}},
    "dora": {"use_dora": True},
    "embeddings": {"target_modules": ["embed_tokens", "k_proj"]},
}
FAINT = 1e-3  # how strong the adapter is: far too little for any answer


class Case:
    """A base, an adapter on it, and their sum by PEFT."""

    def __init__(self, base: Path, folder: Path, settings: dict[str, Any]) -> None:
        self.adapter = save_adapter(base, folder, strength=FAINT, **settings)
        self.base = load_file(base / "model.safetensors")
        wrapped: Any = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), self.adapter
        )
        self.merged = {name: tensor.clone() for name, tensor in wrapped.merge_and_unload().state_dict().items()}
        keys = load_file(self.adapter / "adapter_model.safetensors")
        downs = ("lora_A.weight", "lora_embedding_A")
        places = [key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in keys if key.endswith(downs)]
        self.names = sorted(f"{place}.weight" for place in places)

    def check(self, merged: Tensors, dtype: str, weight: float = 1.0, names: list[str] | None = None) -> Any:
        """What the proof says of these merged tensors, saved as `dtype`."""
        config = SimpleNamespace(dtype=dtype)
        plan: Any = SimpleNamespace(config=config, adapters=(Part(open_adapter(str(self.adapter)), weight),))
        kept = {n: proof_weights.before(self.base[n], None) for n in (self.names if names is None else names)}
        saved = {name: tensor.to(getattr(torch, dtype)) for name, tensor in merged.items()}
        return proof_weights.check_weights(plan, saved.__getitem__, kept, set(saved))


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One of each kind."""
    return Case(tiny_llama, tmp_path_factory.mktemp("case") / "adapter", KINDS[request.param])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_right_merge_passes_in_every_format(case: Case, dtype: str) -> None:
    found = case.check(case.merged, dtype)
    assert (found.wrong, found.right) == ("", found.layers)
    assert found.layers == len(case.names)


WRONG: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "left out": lambda base, sum_: base,
    "twice": lambda base, sum_: 2 * sum_ - base,
    "wrong sign": lambda base, sum_: 2 * base - sum_,
    "one number": lambda base, sum_: torch.cat([sum_[:-1], sum_[-1:] * 1.05]),
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_faint_layer_that_is_wrong_is_named(case: Case, how: str, dtype: str) -> None:
    found = case.check(case.merged | {NAME: WRONG[how](case.base[NAME], case.merged[NAME])}, dtype)
    assert (found.wrong, found.right) == (LAYER, found.layers - 1)


def test_a_layer_the_merge_never_came_to_is_missed(case: Case) -> None:
    found = case.check(case.merged, "float32", names=[name for name in case.names if name != NAME])
    assert (found.wrong, found.layers) == (LAYER, len(case.names))


def test_the_weight_of_an_adapter_is_part_of_the_sum(case: Case) -> None:
    if "lora_magnitude_vector" in str(load_file(case.adapter / "adapter_model.safetensors").keys()):
        pytest.skip("DoRA has no weight")
    assert case.check(case.merged, "float32", weight=0.5).right == 0
    half = {name: case.base[name] + 0.5 * (case.merged[name] - case.base[name]) for name in case.names}
    assert case.check(half, "float32", weight=0.5).wrong == ""


def test_many_numbers_of_many_columns_are_looked_at() -> None:
    where = proof_weights.places(4096 * 4096)
    assert proof_weights.SAMPLED / 1.1 <= len(where) < 2 * proof_weights.SAMPLED
    assert len(set((where % 4096).tolist())) == len(set((where // 4096).tolist())) == 4096
    numbers = torch.arange(1000 * 700).reshape(1000, 700)
    assert torch.equal(proof_weights.sample(numbers), proof_weights.places(numbers.numel()))


def test_a_deeper_model_has_more_room_for_rounding() -> None:
    assert proof.tolerance("bfloat16", 2) == proof.tolerance("bfloat16", 12) == 0.02
    assert proof.tolerance("bfloat16", 32) == pytest.approx(0.0533, abs=1e-4)


@pytest.mark.parametrize("settings", [{"weight": 0}, {"more_adapters": [{"path": "x", "weight": 0.0}]}])
def test_a_weight_of_nothing_is_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="with weight 0 nothing of the adapter is added"):
        build(MergeConfig, {"base": "a", "adapter": "b", "out": "c"} | settings)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in an original layout. Do not write to it."""
    return save_original(tmp_path_factory.mktemp("original") / "internlm2", "internlm2", context=512)


@pytest.mark.parametrize("damaged", [False, True])
def test_the_files_in_the_original_layout_are_the_proven_ones(
    original: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    monkeypatch.setattr(sides, "BUILT_IN", questions.BUILT_IN[:1])
    monkeypatch.setattr(questions, "ANSWER_TOKENS", 2)
    reference = ModelRef(str(original), str(original), local=True)
    base = Path(ready(reference, workspace.path).path_or_id)
    adapter = save_adapter(base, workspace.path / "adapter", strength=0.2, target_modules=["v_proj"])
    honest = merge.write_back

    def careless(source: Original, folder: Path) -> None:
        honest(source, folder)
        if damaged:
            path = folder / "model.safetensors"
            tensors = load_file(path)
            name = next(name for name in tensors if name.endswith("w2.weight"))
            tensors[name][0, 0] += 1e-6
            save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(merge, "write_back", careless)
    out = workspace.exports / "merged"
    settings = {"base": str(original), "adapter": str(adapter), "out": str(out), "dtype": "float32"}
    run = workspace.create_run(build(MergeConfig, settings | {"layout": "original"}))
    assert (merge.main(str(run.path)), out.exists()) == ((1, False) if damaged else (0, True))
    report = run.read_report() or {}
    assert report["proof"]["passed"] is not damaged
    if damaged:
        assert "the tensor model.layers.0.mlp.down_proj.weight is not the proven one" in report["proof"]["reason"]
