"""Merging layer by layer: every kind of adapter, several at once, both bases of a 4-bit run, in bounded memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import save_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from studio.config import MergeConfig, RunConfig
from studio.engine import merge, questions, sides
from studio.engine.hollow import Hollow
from studio.engine.loading import Holding, load_base
from studio.engine.model import Precision, quantization
from studio.presets import ModelRef
from studio.rundir import RunDir
from studio.schema import build
from studio.sections import QuantizationSection
from studio.workspace import Workspace

IDS = torch.tensor([[7, 40, 41, 99, 12, 3]])
BENCH = Path(__file__).resolve().parents[1] / "bench"
Merge = Callable[..., RunDir]


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about the weights: what is asked of either side is a few words."""
    monkeypatch.setattr(sides, "BUILT_IN", questions.BUILT_IN[:1])
    monkeypatch.setattr(questions, "ANSWER_TOKENS", 2)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer shares the weights of its embeddings. Do not write to it."""
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tied", "llama")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    return folder


@pytest.fixture
def out(workspace: Workspace) -> Path:
    """Where the merged model goes."""
    return workspace.exports / "merged"


@pytest.fixture
def merge_now(workspace: Workspace, out: Path) -> Merge:
    """merge_now(base, adapter, **settings) -> the run of a merge in this process, whatever became of it."""

    def start(base: Path, adapter: Path, **settings: Any) -> RunDir:
        given = {"base": str(base), "adapter": str(adapter), "out": str(out), "dtype": "float32"} | settings
        run = workspace.create_run(build(MergeConfig, given))
        merge.main(str(run.path))
        return run

    return start


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sides of the proof do not fit into memory."""
    monkeypatch.setattr(sides, "_free_memory", lambda device: 0)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits.float()  # type: ignore[no-any-return]


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def error_of(run: RunDir) -> Any:
    status = run.read_status()
    assert status is not None
    assert status.error is not None, status
    return status.error


def report_of(run: RunDir) -> dict[str, Any]:
    report = run.read_report()
    assert report is not None, error_of(run)
    return report


def trained_otherwise(adapter: Path) -> Path:
    """The adapter with other numbers in what it holds as a whole: as made, that equals the base."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if "lora_" not in name and "base_layer" not in name:
            tensors[name] = tensors[name] + 0.05 * torch.randn(tensors[name].shape)
    save_file(tensors, path, metadata={"format": "pt"})
    return adapter


KINDS: dict[str, tuple[dict[str, Any], bool]] = {  # settings of PEFT, whether embeddings and output layer come apart
    "dora": ({"use_dora": True}, False),
    "patterns": ({"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, False),
    "whole layers": ({"modules_to_save": ["embed_tokens", "norm"]}, True),
    "embeddings": ({"target_modules": ["embed_tokens", "q_proj"]}, True),
    "output layer": ({"target_modules": ["lm_head", "q_proj"]}, True),
    "tokens": ({"trainable_token_indices": [5, 7]}, False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("no_room")
def test_every_kind_of_adapter(merge_now: Merge, out: Path, tied: Path, tmp_path: Path, kind: str) -> None:
    settings, apart = KINDS[kind]
    adapter = trained_otherwise(save_adapter(tied, tmp_path / "adapter", strength=0.2, **settings))
    expected = logits(PeftModel.from_pretrained(load(tied), adapter))
    report = report_of(merge_now(tied, adapter))
    assert report["streamed"]
    assert report["proof"]["passed"]
    assert torch.allclose(logits(load(out)), expected, atol=1e-5)
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is not apart
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) is apart


def test_files_are_the_same_however_it_was_held(
    merge_now: Merge, out: Path, tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tied, tmp_path / "adapter", strength=0.2)
    others = [out.with_name("in memory"), out.with_name("in one piece")]
    assert not report_of(merge_now(tied, adapter, out=str(others[0])))["streamed"]
    monkeypatch.setattr(merge.Plan, "in_one_piece", "a test says so")
    one_piece = merge_now(tied, adapter, out=str(others[1]))
    assert "because a test says so" in [e for e in one_piece.read_events()[0] if e.type == "warning"][0].message  # type: ignore[union-attr]
    monkeypatch.undo()
    monkeypatch.setattr(sides, "_free_memory", lambda device: 0)
    assert report_of(merge_now(tied, adapter))["streamed"]
    streamed = load_file(out / "model.safetensors")
    for other in others:
        found = load_file(other / "model.safetensors")
        assert found.keys() == streamed.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in streamed.items())
        configs = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (out, other)]
        assert configs[0] == configs[1]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel counts memory another way")
@pytest.mark.usefixtures("no_room")
def test_a_wrong_streamed_model_fails_the_proof_and_is_measured_all_the_same(
    workspace: Workspace, out: Path, tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.engine import merged_weights

    honest = merged_weights._add_layer

    def forgetful(name: str, layer: Any) -> Any:
        return layer.get_base_layer() if name.endswith("layers.1.self_attn.k_proj") else honest(name, layer)

    monkeypatch.setattr(merged_weights, "_add_layer", forgetful)
    bench: Any = module_from_spec(spec := spec_from_file_location("bench_merge", BENCH / "merge.py"))  # type: ignore[arg-type]
    spec.loader.exec_module(bench)  # type: ignore[union-attr]
    settings = {"base": str(tied), "adapter": str(save_adapter(tied, tmp_path / "adapter")), "out": str(out)}
    found = bench.peak_of_merge(settings, workspace.path)
    assert found["code"] == 1
    assert "layer model.layers.1.self_attn.k_proj is not base + adapter on disk" in found["error"]
    assert found["proof"]["layers_right"] == 13
    assert found["whole"] == found["largest_file"] > 1e5
    assert not out.exists()


def test_several_adapters_are_added_with_their_weights(merge_now: Merge, out: Path, tied: Path, tmp_path: Path) -> None:
    one = save_adapter(tied, tmp_path / "one", strength=0.2)
    two = save_adapter(tied, tmp_path / "two", strength=0.3, use_rslora=True, r=2, target_modules=["q_proj", "up_proj"])
    more = [{"path": str(two), "weight": -0.5}]
    report = report_of(merge_now(tied, one, weight=0.75, more_adapters=more))
    assert report["adapters"] == [{"name": "one", "weight": 0.75}, {"name": "two", "weight": -0.5}]
    base, found = load_file(tied / "model.safetensors"), load_file(out / "model.safetensors")
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.o_proj"):
        expected = base[f"{layer}.weight"].clone()
        for adapter, scale in ((one, 0.75 * 8 / 4), (two, -0.5 * 8 / 2**0.5)):
            tensors = load_file(adapter / "adapter_model.safetensors")
            down = tensors.get(f"base_model.model.{layer}.lora_A.weight")
            if down is not None:
                expected += scale * (tensors[f"base_model.model.{layer}.lora_B.weight"] @ down)
        assert torch.allclose(found[f"{layer}.weight"], expected, atol=1e-6), layer
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "2 LoRA adapters" in card
    assert "added with weight -0.5" in card


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "dora": ({"use_dora": True}, {"weight": 0.5}, "adapter", "has DoRA; it cannot be added"),
    "whole": ({"modules_to_save": ["norm"]}, {"more": True}, "adapter", "has layers trained as a whole; it cannot"),
    "bias": ({"lora_bias": True, "target_modules": ["q_proj"]}, {}, "adapter", "cannot be merged into layer model.l"),
    "missing": ({}, {"more_adapters": [{"path": "/no/such"}]}, "more_adapters", "does not exist"),
    "no gpu": ({}, {"device": "cuda"}, "device", "has no GPU"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_one_sentence(
    merge_now: Merge, out: Path, tied: Path, tmp_path: Path, case: str
) -> None:
    if case == "no gpu" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    lora, settings, field, words = REFUSED[case]
    adapter = save_adapter(tied, tmp_path / "adapter", **lora)
    if settings.pop("more", False):
        settings["more_adapters"] = [{"path": str(adapter)}]
    run = merge_now(tied, adapter, **settings)
    error = error_of(run)
    assert error.field == field
    assert error.message.startswith(f"{field}: ")
    assert words in error.message
    assert error.hint
    assert list(out.parent.iterdir()) == []


def test_nothing_is_merged_into_packed_weights(merge_now: Merge, tied: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tied, tmp_path / "adapter")
    base = Path(shutil.copytree(tied, tmp_path / "packed"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    error = error_of(merge_now(base, adapter))
    assert (error.kind, error.field) == ("model", "base")
    assert "packed weights" in error.message


@pytest.mark.parametrize("double", [True, False])
def test_unpacked_weights_are_those_of_the_4_bit_model(tiny_llama: Path, double: bool) -> None:
    section = QuantizationSection(bnb_4bit_use_double_quant=double)
    ref = ModelRef("tiny", str(tiny_llama), local=True)
    packed: Any = load_base(ref, Holding(4, torch.float32, section), device="cpu")
    expected = dict(packed.dequantize(dtype=torch.float32).named_parameters())
    hollow = Hollow(ref, packing=quantization(section, Precision("cpu", torch.float32)))
    changed = 0
    for name, parameter in expected.items():
        assert torch.equal(hollow.read(name), parameter), name
        changed += not torch.equal(Hollow(ref).read(name), parameter)
    assert changed == 14


@pytest.mark.parametrize(("streamed", "base"), [(False, "original"), (True, "dequantized")])
def test_both_bases_of_a_4_bit_run_are_measured(
    merge_now: Merge,
    workspace: Workspace,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    streamed: bool,
    base: str,
) -> None:
    if streamed:
        monkeypatch.setattr(sides, "_free_memory", lambda device: 0)
    settings = {"method": "qlora", "model": {"model_name_or_path": str(tiny_llama)}, "data": {"dataset": "x"}}
    trained = workspace.create_run(build(RunConfig, settings))
    save_adapter(tiny_llama, trained.adapter, strength=0.2)
    report = report_of(merge_now(tiny_llama, trained.path, merge_base=base))
    assert report["proof"]["passed"]
    bases = report["bases"]
    assert bases["dequantized"]["max_logit_difference"] < 1e-4 < bases["original"]["max_logit_difference"]
    assert bases["dequantized"]["answers_equal"] == bases["dequantized"]["prompts"] == report["proof"]["prompts"]


_PEAK = """
import sys
sys.path[:0] = [{bench!r}, {engine!r}]
import merge
from pathlib import Path
from studio.engine import questions, sides
sides.BUILT_IN, questions.ANSWER_TOKENS = sides.BUILT_IN[:1], 2
folder = Path({folder!r})
for shape in ("tiny", "test"):  # the first one loads the libraries
    base = merge.make_base(folder / shape, shape)
    adapter = merge.make_adapter(base, folder / (shape + " adapter"))
    settings = {{"base": str(base), "adapter": str(adapter), "out": str(folder / (shape + " merged"))}}
    found = merge.peak_of_merge(settings | {{"max_shard_size": "100MB"}}, folder / "workspace")
print(merge.json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel counts memory another way")
def test_memory_stays_under_one_and_a_half_files_and_the_adapter(tmp_path: Path) -> None:
    code = _PEAK.format(bench=str(BENCH), engine=str(BENCH.parent / "engine"), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0, found["error"]
    assert found["proof"]["passed"]
    bound = 1.5 * found["largest_file"] + found["adapter"]
    assert bound < 165e6
    assert 2 * found["whole"] > 1.5 * bound, "the model, in float32 as it computes, must not fit into the bound"
    assert found["peak"] - found["before"] < bound
