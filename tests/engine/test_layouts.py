"""Models in original layouts compute, once converted, what their published code computes; and the way back is exact."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import save_adapter
from originals import KINDS, Reference, config_of, load_original, save_original
from peft import PeftModel
from safetensors.torch import save_file
from tiny import Engine, MakeRun, losses
from transformers import AutoModelForCausalLM, AutoTokenizer

from studio.config import MergeConfig
from studio.engine import converted, merge
from studio.engine.converted import find_original, ready
from studio.engine.failure import EngineError
from studio.engine.layouts import LayoutError, convert_weights, restore_weights
from studio.layouts import read_layout
from studio.presets import ModelError, ModelRef, resolve_model
from studio.records.chat_tokenizer import ChatTokenizer
from studio.schema import build
from studio.workspace import Workspace

LARGEST_TENSOR = 320 * 64 * 4  # bytes of the embedding
TEXT = "the hen in the land 你好, 0!"
IDS = [1, 7, 300, 42, 9, 255, 4, 4, 99, 17, 3, 280]


def reference_to(folder: Path) -> ModelRef:
    return ModelRef(str(folder), str(folder), local=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Kind -> (original folder, converted folder). Do not write to them."""
    root = tmp_path_factory.mktemp("layouts")
    found = {}
    for kind in KINDS:
        folder = save_original(root / kind, kind)
        found[kind] = folder, Path(ready(reference_to(folder), root / "workspace").path_or_id)
    return found


def load(folder: Path, **settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).eval()


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_the_converted_model_computes_what_the_original_does(kind: str, made: dict[str, tuple[Path, Path]]) -> None:
    original, folder = made[kind]
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = Reference(original).logits(IDS)
    assert expected.std() > 0.1
    assert (logits(model.eval(), IDS) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["internlm2", "internlm"])
def test_positions_beyond_the_trained_length_are_stretched_alike(kind: str, made: dict[str, tuple[Path, Path]]) -> None:
    original, folder = made[kind]
    ids = [(17 * n) % 300 for n in range(80)]  # trained for 64
    expected = Reference(original).logits(ids)
    assert (logits(load(folder), ids) - expected).abs().max() <= 2e-5 * float(expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_back_is_exact_to_the_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    original = save_original(tmp_path / "original", kind, dtype=dtype)
    layout = read_layout(original)
    assert layout
    for name in ("there", "back"):
        (tmp_path / name).mkdir()
    convert_weights(original, tmp_path / "there", layout)
    assert restore_weights(tmp_path / "there", original, tmp_path / "back", layout) > 0
    before, after = load_original(original), load_original(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name


def test_many_small_shards_hold_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = save_original(tmp_path / "original", "internlm2")
    layout = read_layout(original)
    assert layout
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    convert_weights(original, whole, layout)
    monkeypatch.setattr("studio.engine.layouts.SHARD_BYTES", 40_000)
    convert_weights(original, parts, layout)
    assert len(list(parts.glob("*.safetensors"))) > 3
    assert max(file.stat().st_size for file in parts.glob("*.safetensors")) < 40_000 + LARGEST_TENSOR
    one, many = load_original(whole), load_original(parts)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("kind", ["internlm2", "qwen", "chatglm", "baichuan2", "minicpm"])
def test_preview_engine_and_converted_folder_tokenise_alike(kind: str, made: dict[str, tuple[Path, Path]]) -> None:
    original, folder = made[kind]
    preview, after = ChatTokenizer.from_folder(original), ChatTokenizer.from_folder(folder)
    assert preview.fingerprint == after.fingerprint
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    for text in (TEXT, f"<s>{TEXT}<eoh>x", "<|im_start|>user\nhe<|im_end|>", "  a\n\n b"):
        assert preview.encode_text(text) == loaded(text, add_special_tokens=False)["input_ids"]
    assert loaded.decode(loaded(TEXT, add_special_tokens=False)["input_ids"]) == TEXT
    assert preview.eos_id == loaded.eos_token_id is not None


def test_a_converted_folder_is_made_once_and_again_when_the_model_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, workspace = save_original(tmp_path / "m", "internlm2"), tmp_path / "w"
    calls = []
    make = converted._make
    monkeypatch.setattr(converted, "_make", lambda *given: (calls.append(1), make(*given)))
    first = ready(reference_to(original), workspace)
    assert ready(reference_to(original), workspace) == first
    assert len(calls) == 1
    assert first.ref == str(original)
    (Path(first.path_or_id) / converted.MARK).unlink()  # as if it had been torn
    assert ready(reference_to(original), workspace) == first
    assert len(calls) == 2
    config = config_of("internlm2") | {"rope_theta": 5000}
    (original / "config.json").write_text(json.dumps(config), encoding="utf-8")
    second = ready(reference_to(original), workspace)
    assert second != first
    assert not Path(first.path_or_id).exists()  # nobody needs it any more
    assert sorted(p.suffix for p in (workspace / "cache" / "converted").iterdir()) == ["", ".lock", ".lock"]


def test_nothing_is_left_of_a_conversion_that_breaks_off(tmp_path: Path) -> None:
    original, workspace = save_original(tmp_path / "m", "internlm2"), tmp_path / "w"

    def stop(done: int, total: int) -> None:
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ready(reference_to(original), workspace, stop)
    assert [p.suffix for p in (workspace / "cache" / "converted").iterdir()] == [".lock"]


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = save_original(tmp_path / "m", "internlm2")
    monkeypatch.setattr(converted, "SPARE_BYTES", 10**18)
    with pytest.raises(EngineError) as caught:
        ready(reference_to(original), tmp_path / "w")
    assert caught.value.error.kind == "disk"
    assert "converting m needs" in caught.value.error.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora.weight": torch.zeros(2, 2)}, "lora.weight is no part of the layout of InternLM2"),
        ({"model.layers.0.attention.wqkv.weight": torch.zeros(100, 64)}, "is 100 x 64, which does not fit config.json"),
    ],
)
def test_weights_that_do_not_fit_the_layout_are_one_sentence(change: Any, words: str, tmp_path: Path) -> None:
    original = save_original(tmp_path / "m", "internlm2")
    tensors = load_original(original) | change
    for file in (*original.glob("*.safetensors"), original / "model.safetensors.index.json"):
        file.unlink()
    save_file(tensors, original / "model.safetensors")
    with pytest.raises(EngineError) as caught:
        ready(reference_to(original), tmp_path / "w")
    assert words in caught.value.error.message
    assert caught.value.error.field == "model.model_name_or_path"


def test_a_damaged_tokenizer_or_weights_file_is_one_sentence(tmp_path: Path) -> None:
    original = save_original(tmp_path / "m", "internlm2")
    good = (original / "tokenizer.model").read_bytes()
    for name, data in (("tokenizer.model", good[:999]), ("a.safetensors", b"\xff" * 50)):
        kept = (original / name).read_bytes()
        (original / name).write_bytes(data)
        with pytest.raises(EngineError) as caught:
            ready(reference_to(original), tmp_path / "w")
        assert caught.value.error.kind == "model"
        (original / name).write_bytes(kept)


def test_what_the_original_cannot_hold_is_refused(tmp_path: Path) -> None:
    original = save_original(tmp_path / "m", "baichuan2")
    layout = read_layout(original)
    assert layout
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    back.mkdir()
    convert_weights(original, there, layout)
    tensors = load_original(there)
    tensors["lm_head.weight"][0, 0] += 0.5
    save_file(tensors, there / "model.safetensors")
    with pytest.raises(LayoutError, match=r"lm_head.weight was trained"):
        restore_weights(there, original, back, layout)
    save_file(tensors | {"model.layers.0.extra.weight": torch.ones(2)}, there / "model.safetensors")
    with pytest.raises(LayoutError):
        restore_weights(there, original, back, layout)


def test_a_model_that_needs_its_own_code_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = save_original(tmp_path / "big", "baichuan2")
    config = config_of("baichuan2") | {"num_attention_heads": 40, "model_max_length": 4096}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"ALiBi.*--trust-remote-code"):
        resolve_model(str(folder))
    with pytest.raises(EngineError, match="ALiBi"):
        find_original(reference_to(folder))


@pytest.mark.parametrize(("kind", "method"), [("internlm2", "lora"), ("qwen", "qlora"), ("deepseek", "lora")])
def test_training_starts_from_the_original_folder(
    kind: str, method: str, make_run: MakeRun, engine: Engine, tmp_path: Path
) -> None:
    original = save_original(tmp_path / kind, kind)
    changes = {"train.max_steps": 2, "model.chat_template": "chatml"}
    run = make_run(method, original, **changes)
    assert engine(run) == 0, run.log_file.read_text(encoding="utf-8") if run.log_file.exists() else run.read_status()
    assert all(loss > 0 for loss in losses(run).values())
    settings = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == str(original)
    assert "* Layout: " in (run.adapter / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["internlm2", "baichuan2", "deepseek"])
def test_4_bit_loading_takes_a_converted_folder(kind: str, made: dict[str, tuple[Path, Path]]) -> None:
    from studio.engine.loading import Holding, load_base

    original, folder = made[kind]
    model = load_base(reference_to(folder), Holding(4, torch.float32), device="cpu")
    expected = Reference(original).logits(IDS)
    found = logits(model, IDS)
    assert torch.isfinite(found).all()
    both = torch.stack([found.flatten(), expected.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.9


def test_chat_answers_from_an_original_folder(tmp_path: Path) -> None:
    from studio.engine.backend import open_backend
    from studio.engine.dialogue import Options, Piece, Request, Sampling, Turn

    original = save_original(tmp_path / "internlm2", "internlm2", context=512)
    options = Options(str(original), {}, "127.0.0.1", 0, 16, None, None, tmp_path / "w")
    talker = open_backend(options, lambda phase: None)
    pieces: list[Piece] = []
    ended = threading.Event()

    def take(piece: Piece) -> None:
        pieces.append(piece)
        if piece.last:
            ended.set()

    talker.begin(Request("base", (Turn("user", TEXT),), sampling=Sampling(temperature=0, max_tokens=4)), take)
    assert ended.wait(60)
    assert pieces[-1].error is None
    assert pieces[-1].completion_tokens > 0


@pytest.mark.parametrize("kind", ["internlm2", "deepseek"])
def test_a_merge_can_be_written_in_the_original_layout(kind: str, workspace: Workspace, tmp_path: Path) -> None:
    original = save_original(tmp_path / kind, kind, context=512)
    base = Path(ready(reference_to(original), workspace.path).path_or_id)
    adapter = save_adapter(base, tmp_path / "adapter", strength=0.2, target_modules=["q_proj", "v_proj", "o_proj"])
    settings = {"base": str(original), "adapter": str(adapter), "dtype": "float32"}
    out = tmp_path / "merged"
    run = workspace.create_run(build(MergeConfig, settings | {"out": str(out), "layout": "original"}))
    assert merge.main(str(run.path)) == 0, run.read_status()
    assert "the original layout of" in (out / "README.md").read_text(encoding="utf-8")
    assert "the original layout of" in run.read_report()["layout"]
    assert {"config.json", "modeling_own.py", "tokenizer.model", "README.md"} <= {path.name for path in out.iterdir()}
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["model_type"] == kind
    assert load_original(out).keys() == load_original(original).keys()
    expected = logits(PeftModel.from_pretrained(load(base), adapter), IDS)
    assert (Reference(out).logits(IDS) - expected).abs().max() <= 1e-4
    assert (Reference(original).logits(IDS) - expected).abs().max() > 1e-2  # the adapter is in it


def test_a_merge_into_a_standard_model_has_no_other_layout(
    workspace: Workspace, tiny_llama: Path, tmp_path: Path
) -> None:
    settings = {"base": str(tiny_llama), "adapter": str(tmp_path), "out": str(tmp_path / "out"), "layout": "original"}
    run = workspace.create_run(build(MergeConfig, settings))
    assert merge.main(str(run.path)) == 4
    assert "layout: tiny-llama is in the standard layout already" in run.read_status().error.message
