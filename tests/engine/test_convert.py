"""Imports: what XTuner, DeepSpeed and PEFT wrote becomes a complete adapter, tried on its base; nothing is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import COMPLETE, save_adapter
from originals import Reference, load_original, save_original
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import events_of
from transformers import AutoModelForCausalLM
from xtuner_files import STAGES, as_xtuner, config_text, save_pth

from studio.config import ConvertConfig
from studio.engine import convert
from studio.engine.foreign import sources
from studio.model_choices import find_choice
from studio.records.template_names import named_template
from studio.rundir import RunDir
from studio.schema import build
from studio.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.tensor([[7, 40, 41, 99, 12, 3]])
Start = Callable[..., tuple[int, RunDir]]
SENTENCES = json.loads((ROOT / "assets" / "i18n" / "sentences.zh.json").read_text(encoding="utf-8"))
CHINESE = [re.compile(pattern, re.DOTALL | re.IGNORECASE) for pattern, _ in SENTENCES]


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny Llama. Do not write to it."""
    return save_adapter(tiny_llama, tmp_path_factory.mktemp("adapters") / "adapter", strength=0.2)


@pytest.fixture(scope="module")
def tensors(adapter: Path) -> dict[str, torch.Tensor]:
    """Its tensors under PEFT's names."""
    return load_file(adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def shards(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with zero2/ and zero3/, written by two processes of DeepSpeed. Do not write to it."""
    out = tmp_path_factory.mktemp("shards")
    port = str(20000 + os.getpid() % 20000)
    env = os.environ | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    argv = [sys.executable, str(Path(__file__).with_name("xtuner_files.py")), str(tiny_llama), str(out)]
    engines = []
    for rank in ("0", "1"):
        with (out / f"rank-{rank}.log").open("wb") as log:
            own = env | {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
            engines.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=own))
    for rank, engine in enumerate(engines):
        assert engine.wait() == 0, (out / f"rank-{rank}.log").read_text(encoding="utf-8")
    return out


@pytest.fixture
def out(workspace: Workspace) -> Path:
    """Where the adapter goes."""
    return workspace.exports / "imported adapter"


@pytest.fixture
def start(workspace: Workspace, out: Path) -> Start:
    """start(source, **changes) -> (exit code, run): one import, in this process."""

    def convert_now(source: Path | str, **changes: Any) -> tuple[int, RunDir]:
        run = workspace.create_run(build(ConvertConfig, {"source": str(source), "out": str(out)} | changes))
        return convert.main(str(run.path)), run

    return convert_now


def error_of(run: RunDir) -> Any:
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    assert "\n" not in status.error.message
    for said in (status.error.message, status.error.hint):
        assert any(pattern.search(re.sub(r"^[a-z_]+: ", "", said)) for pattern in CHINESE), f"no Chinese: {said}"
    return status.error


def report_of(run: RunDir) -> dict[str, Any]:
    report = run.read_report()
    assert report is not None
    return report


def lora_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return found


@torch.no_grad()
def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped: Any = PeftModel.from_pretrained(model, adapter) if adapter else model
    return wrapped.eval()(input_ids=IDS).logits.float()  # type: ignore[no-any-return]


def assert_refused(outcome: tuple[int, RunDir], out: Path, field: str, words: str) -> None:
    """Bad input: one sentence that names the field, and nothing is left."""
    code, run = outcome
    error = error_of(run)
    assert code == 4, error
    assert error.field == field, error
    assert words in error.message, error
    assert not out.exists()
    assert list(out.parent.iterdir()) == []


# ---- XTuner's single file ----


def test_a_pth_file_becomes_the_adapter_it_was(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path, adapter: Path, tensors: dict[str, torch.Tensor]
) -> None:
    pth = save_pth(tmp_path / "work_dirs" / "demo_qlora" / "iter_10.pth", as_xtuner(tensors))
    (pth.parent / "demo_qlora.py").write_text(config_text(tiny_llama), encoding="utf-8")
    code, run = start(pth)
    assert code == 0, error_of(run)
    assert {path.name for path in out.iterdir()} == COMPLETE
    assert {oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {"0o644"}
    written = load_file(out / "adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert torch.equal(logits(tiny_llama, out), logits(tiny_llama, adapter))

    settings = lora_config(out)
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    assert set(settings["target_modules"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert settings["base_model_name_or_path"] == str(tiny_llama)
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == named_template("internlm2_chat").source
    proof = report_of(run)["proof"]
    assert proof["passed"]
    assert proof["max_logit_difference"] > 0.01
    assert proof["rows"][0]["prompt"] == "请给我介绍五个上海的景点"
    assert report_of(run)["settings"] == "demo_qlora.py"
    assert events_of(run, "saved")[0].path == str(out)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "iter_10.pth" in card
    assert "rank 4, alpha 8" in card
    assert str(tiny_llama.parent) not in card


def test_the_configuration_inside_the_file_is_read_and_foreign_objects_do_nothing(
    start: Start, tmp_path: Path, tiny_llama: Path, tensors: dict[str, torch.Tensor], monkeypatch: Any
) -> None:
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.losses = torch.ones(2).numpy()

        def __setstate__(self, state: Any) -> None:
            raise AssertionError("an object of the file came to life")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    hub = {"log_scalars": OrderedDict(loss=HistoryBuffer())}
    seeing = {"projector.model.0.weight": torch.ones(2, 2)} | as_xtuner(
        dict(list(tensors.items())[:2]), "visual_encoder."
    )
    state = OrderedDict(as_xtuner(tensors) | seeing)
    pth = save_pth(tmp_path / "alone" / "iter_10.pth", state, config_text(tiny_llama), message_hub=hub)
    code, run = start(pth)
    assert code == 0, error_of(run)
    assert "3 tensors that are not the language model's were left out" in events_of(run, "warning")[0].message
    assert report_of(run)["tensors"] == 28
    assert report_of(run)["settings"] == "the checkpoint itself"
    assert report_of(run)["lora"]["lora_alpha"] == 8


def test_a_named_configuration_goes_before_the_one_inside(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path, tensors: dict[str, torch.Tensor]
) -> None:
    pth = save_pth(tmp_path / "iter_10.pth", as_xtuner(tensors), config_text(tiny_llama, alpha=8))
    named = tmp_path / "elsewhere" / "mine.py"
    named.parent.mkdir()
    named.write_text(config_text("/nowhere/model", alpha=32), encoding="utf-8")
    code, run = start(pth, settings=str(named), base=str(tiny_llama), prompt_template="chatml")
    assert code == 0, error_of(run)
    assert lora_config(out)["lora_alpha"] == 32
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == named_template("chatml").source


def test_a_preset_may_be_named_as_the_configuration(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path, adapter: Path, tensors: dict[str, torch.Tensor]
) -> None:
    wide = save_adapter(tiny_llama, tmp_path / "wide", r=64, lora_alpha=16, strength=0.1)
    pth = save_pth(tmp_path / "iter_10.pth", as_xtuner(load_file(wide / "adapter_model.safetensors")))
    code, run = start(pth, settings="internlm2_chat_1_8b_qlora_alpaca_e3", base=str(tiny_llama))
    assert code == 0, error_of(run)
    assert lora_config(out)["lora_alpha"] == 16
    assert torch.equal(logits(tiny_llama, out), logits(tiny_llama, wide))


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"rank_pattern": {"model.layers.0.mlp.up_proj": 2}},
        {"modules_to_save": ["model.norm", "lm_head"], "target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["embed_tokens", "down_proj"]},
        {"target_modules": ["model.layers.1.mlp.down_proj"]},
    ],
    ids=["dora", "ranks", "whole layers", "embedding", "one layer"],
)
def test_every_kind_of_adapter_computes_what_it_did(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path, lora: dict[str, Any]
) -> None:
    made = save_adapter(tiny_llama, tmp_path / "made", strength=0.2, **lora)
    given = load_file(made / "adapter_model.safetensors")
    for name in given:
        if ".lora_" not in name:  # a layer trained as a whole is not what it was
            given[name] = given[name] + 0.01
    if "modules_to_save" not in lora:  # PEFT saves the whole embedding beside an adapter on it
        given = {name: tensor for name, tensor in given.items() if ".lora_" in name}
    save_file(given, made / "adapter_model.safetensors", metadata={"format": "pt"})
    code, run = start(save_pth(tmp_path / "iter_10.pth", as_xtuner(given), config_text(tiny_llama)))
    assert code == 0, error_of(run)
    assert torch.allclose(logits(tiny_llama, out), logits(tiny_llama, made), atol=1e-6)
    assert not torch.allclose(logits(tiny_llama, out), logits(tiny_llama), atol=1e-3)


def test_rslora_keeps_its_scale(start: Start, out: Path, tmp_path: Path, tiny_llama: Path) -> None:
    made = save_adapter(tiny_llama, tmp_path / "made", strength=0.2, use_rslora=True)
    text = config_text(tiny_llama).replace("r=4,", "r=4, use_rslora=True,")
    pth = save_pth(tmp_path / "iter_10.pth", as_xtuner(load_file(made / "adapter_model.safetensors")), text)
    assert start(pth)[0] == 0
    assert torch.equal(logits(tiny_llama, out), logits(tiny_llama, made))


def test_the_base_is_found_by_its_last_name(
    start: Start, out: Path, tmp_path: Path, workspace: Workspace, tiny_llama: Path, tensors: dict[str, torch.Tensor]
) -> None:
    there = shutil.copytree(tiny_llama, workspace.exports / "nova-7b")
    pth = save_pth(tmp_path / "iter_10.pth", as_xtuner(tensors), config_text("/other/machine/Nova-7B"))
    code, run = start(pth)
    assert code == 0, error_of(run)
    assert lora_config(out)["base_model_name_or_path"] == str(there)
    assert "taken for it" in events_of(run, "warning")[0].message


FUSED = ("internlm2", "qwen", "deepseek")


@pytest.mark.parametrize("kind", FUSED)
def test_an_adapter_of_an_original_layout_computes_the_same_on_the_converted_model(
    start: Start, out: Path, tmp_path: Path, kind: str
) -> None:
    base = save_original(tmp_path / kind, kind, context=256)
    weights = load_original(base)
    adapted = [
        n for n, w in weights.items() if w.dim() == 2 and not any(k in n for k in ("emb", "wte", "head", "output"))
    ]
    adapted = [n for n in adapted if not n.endswith(("mlp.gate.weight",)) and ".experts." not in n]
    generator = torch.Generator().manual_seed(3)
    state: dict[str, torch.Tensor] = {}
    for name in adapted:
        rows, columns = weights[name].shape
        one, two = torch.randn(4, columns, generator=generator) * 0.1, torch.randn(rows, 4, generator=generator) * 0.1
        path = f"base_model.model.{name.removesuffix('.weight')}"
        state |= {f"{path}.lora_A.weight": one, f"{path}.lora_B.weight": two}
        weights[name] = weights[name] + 2 * two @ one
    trained = shutil.copytree(base, tmp_path / "trained")
    save_file(weights, trained / "a.safetensors", metadata={"format": "pt"})
    (trained / "b.safetensors").unlink()
    ids = [1, 7, 300, 42, 9]
    expected, before = Reference(trained).logits(ids), Reference(base).logits(ids)

    code, run = start(save_pth(tmp_path / "iter_10.pth", as_xtuner(state), config_text(base)))
    assert code == 0, error_of(run)
    assert lora_config(out)["base_model_name_or_path"] == str(base)
    converted_base = next((run.path.parent.parent / "cache" / "converted").glob("*/config.json")).parent
    model: Any = AutoModelForCausalLM.from_pretrained(converted_base, dtype=torch.float32)
    wrapped: Any = PeftModel.from_pretrained(model, out)
    with torch.no_grad():
        found = wrapped.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    scale = float(expected.abs().max())
    assert (found - expected).abs().max() <= 2e-5 * scale
    assert (before - expected).abs().max() > 1e-2 * scale


# ---- Trainings of every weight ----


@torch.no_grad()
def changed_weights(base: Path) -> dict[str, torch.Tensor]:
    """The weights of a model, each a little different."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    return {n: w + 0.02 * torch.randn(w.shape, generator=generator) for n, w in model.state_dict().items()}


def test_a_training_of_every_weight_becomes_a_model(
    start: Start, out: Path, tmp_path: Path, workspace: Workspace, tiny_llama: Path
) -> None:
    weights = changed_weights(tiny_llama)
    state = {f"llm.{name}": weight for name, weight in weights.items()}
    state["llm.model.rotary_emb.inv_freq"] = torch.ones(8)
    text = re.sub(r"\n    lora=dict\(.*?\),", "", config_text(tiny_llama), flags=re.DOTALL)
    code, run = start(save_pth(tmp_path / "iter_1.pth", state, text))  # type: ignore[arg-type]
    assert code == 0, error_of(run)
    left = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in out.iterdir()} == left | {"generation_config.json", "README.md"}
    written = load_file(out / "model.safetensors")
    assert written.keys() == load_file(tiny_llama / "model.safetensors").keys()
    assert all(torch.equal(written[name], weights[name]) for name in written)
    assert report_of(run)["proof"]["answers_changed"] > 0
    assert "Method: full" in (out / "README.md").read_text(encoding="utf-8")
    assert find_choice(workspace, run.id).what == "model"


@pytest.mark.parametrize("kind", ["internlm2"])
def test_every_weight_of_an_original_layout_is_converted(start: Start, out: Path, tmp_path: Path, kind: str) -> None:
    base = save_original(tmp_path / kind, kind, context=256)
    weights = {name: weight * 1.1 for name, weight in load_original(base).items()}
    trained = shutil.copytree(base, tmp_path / "trained")
    save_file(weights, trained / "a.safetensors", metadata={"format": "pt"})
    (trained / "b.safetensors").unlink()
    ids = [1, 7, 300, 42, 9]
    expected = Reference(trained).logits(ids)
    state = {f"llm.{name}": weight for name, weight in weights.items()}
    code, run = start(save_pth(tmp_path / "iter_1.pth", state), base=str(base))  # type: ignore[arg-type]
    assert code == 0, error_of(run)
    model: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        found = model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    assert (found - expected).abs().max() <= 2e-5 * float(expected.abs().max())


def test_shards_of_every_weight_become_a_model(start: Start, out: Path, shards: Path, tiny_llama: Path) -> None:
    code, run = start(shards / "full3" / "iter_1.pth")
    assert code == 0, error_of(run)
    expected, written = load_file(shards / "full3" / "expected.safetensors"), load_file(out / "model.safetensors")
    assert {f"llm.{name}" for name in written} == expected.keys()
    assert all(torch.equal(written[name], expected[f"llm.{name}"]) for name in written)


def test_a_whole_model_that_is_not_of_the_base_is_one_sentence(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    weights = changed_weights(tiny_llama)
    first = "model.layers.1.mlp.up_proj.weight"
    blown = weights | {first: torch.full_like(weights[first], float("nan"))}
    for state, field, words in (
        ({k: v for k, v in weights.items() if k != first}, "source", f"the base model has {first}, and it has not"),
        (weights | {first: torch.ones(4, 4)}, "base", f"its {first} is 4 x 4, and the base model's is 128 x 64"),
        (
            weights | {"model.layers.9.mlp.up_proj.weight": torch.ones(4)},
            "base",
            "the base model has none of that name",
        ),
        (blown, "source", "values that are not numbers"),
    ):
        pth = save_pth(tmp_path / "iter_1.pth", state)  # type: ignore[arg-type]
        assert_refused(start(pth, base=str(tiny_llama)), out, field, words)
    code, run = start(
        save_pth(tmp_path / "iter_1.pth", load_file(tiny_llama / "model.safetensors")), base=str(tiny_llama)
    )  # type: ignore[arg-type]
    assert code == 1
    assert "the trained weights change nothing in the answers" in error_of(run).message


# ---- DeepSpeed's shards ----


@pytest.mark.parametrize("stage", STAGES)
def test_shards_of_two_processes_are_put_together(
    start: Start, out: Path, shards: Path, tiny_llama: Path, stage: int
) -> None:
    code, run = start(shards / f"zero{stage}" / "iter_1.pth")
    assert code == 0, error_of(run)
    expected = load_file(shards / f"zero{stage}" / "expected.safetensors")
    written = load_file(out / "adapter_model.safetensors")
    assert len(written) == len(expected) == 28
    for name, tensor in expected.items():
        assert torch.equal(written[name.removeprefix("llm.").replace(".default", "")], tensor), name
    assert {path.name for path in out.iterdir()} == COMPLETE
    assert report_of(run)["settings"] == "the checkpoint itself"
    assert not torch.allclose(logits(tiny_llama, out), logits(tiny_llama), atol=1e-3)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_shard_is_named(start: Start, out: Path, shards: Path, tmp_path: Path, stage: int, rank: int) -> None:
    folder = shutil.copytree(shards / f"zero{stage}" / "iter_1.pth", tmp_path / "iter_1.pth")
    name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    (folder / name).unlink()
    assert_refused(start(folder), out, "source", f"holds no {name}")


def test_a_missing_part_of_the_model_is_named(start: Start, out: Path, shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards / "zero3" / "iter_1.pth", tmp_path / "iter_1.pth")
    (folder / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    assert_refused(start(folder), out, "source", "zero_pp_rank_1_mp_rank_00_model_states.pt")
    shutil.rmtree(folder)
    folder = shutil.copytree(shards / "zero2" / "iter_1.pth", tmp_path / "iter_1.pth")
    (folder / "mp_rank_00_model_states.pt").unlink()
    assert_refused(start(folder), out, "source", "mp_rank_00_model_states.pt")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("pattern", ["*rank_1*optim_states.pt", "*model_states.pt"])
def test_a_damaged_shard_is_named(
    start: Start, out: Path, shards: Path, tmp_path: Path, stage: int, pattern: str
) -> None:
    folder = shutil.copytree(shards / f"zero{stage}" / "iter_1.pth", tmp_path / "iter_1.pth")
    path = sorted(folder.glob(pattern))[0]
    path.write_bytes(path.read_bytes()[:-400])
    assert_refused(start(folder), out, "source", f"{path.name} is damaged")


def test_without_the_optimizer_the_weights_of_zero2_are_taken(
    start: Start, out: Path, shards: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shards / "zero2" / "iter_1.pth", tmp_path / "iter_1.pth")
    for path in folder.glob("*optim_states.pt"):
        path.unlink()
    code, run = start(folder)
    assert code == 0, error_of(run)
    assert "The optimizer's shards are not there" in events_of(run, "warning")[0].message
    expected = load_file(shards / "zero2" / "expected.safetensors")
    written = load_file(out / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A"
    assert torch.equal(written[f"{name}.weight"], expected[f"llm.{name}.default.weight"])


# ---- PEFT's folders ----


def test_a_bin_adapter_is_read_without_running_it(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path, adapter: Path, tensors: dict[str, torch.Tensor]
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "old adapter")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin", _use_new_zipfile_serialization=False)
    code, run = start(folder)
    assert code == 0, error_of(run)
    assert not list(out.glob("*.bin"))
    assert torch.equal(logits(tiny_llama, out), logits(tiny_llama, adapter))
    assert (out / "chat_template.jinja").read_bytes() == (adapter / "chat_template.jinja").read_bytes()


def test_everything_in_a_folder_comes_along(start: Start, out: Path, tmp_path: Path, tiny_llama: Path) -> None:
    """PEFT saves the embedding beside an adapter on it."""
    made = save_adapter(tiny_llama, tmp_path / "made", target_modules=["embed_tokens", "q_proj"])
    given = load_file(made / "adapter_model.safetensors")
    assert "base_layer.weight" in {".".join(name.split(".")[-2:]) for name in given}
    code, run = start(made)
    assert code == 0, error_of(run)
    written = load_file(out / "adapter_model.safetensors")
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], given[name]) for name in given)
    assert torch.equal(logits(tiny_llama, out), logits(tiny_llama, made))


def test_biases_of_the_matrices_come_along_from_a_pth_file(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    made = save_adapter(tiny_llama, tmp_path / "made", target_modules=["q_proj"], lora_bias=True)
    given = {name: tensor + 0.1 for name, tensor in load_file(made / "adapter_model.safetensors").items()}
    save_file(given, made / "adapter_model.safetensors", metadata={"format": "pt"})
    state = {
        f"llm.{name.replace('lora_A', 'lora_A.default').replace('lora_B', 'lora_B.default')}": t
        for name, t in given.items()
    }
    code, run = start(save_pth(tmp_path / "iter_1.pth", state, config_text(tiny_llama)))  # type: ignore[arg-type]
    assert code == 0, error_of(run)
    assert torch.equal(logits(tiny_llama, out), logits(tiny_llama, made))


def test_what_xtuner_itself_converted_keeps_its_template(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path, adapter: Path, tensors: dict[str, torch.Tensor]
) -> None:
    folder = tmp_path / "iter_500_hf"
    folder.mkdir()
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, folder / "adapter_model.bin")
    shutil.copyfile(adapter / "adapter_config.json", folder / "adapter_config.json")
    (folder / "xtuner_config.py").write_text(config_text("/gone/model"), encoding="utf-8")
    code, run = start(folder)
    assert code == 0, error_of(run)
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == named_template("internlm2_chat").source
    assert load_file(out / "adapter_model.safetensors").popitem()[1].dtype is torch.float16


def test_another_base_than_the_adapter_names_is_said(
    start: Start, tmp_path: Path, tiny_llama: Path, adapter: Path
) -> None:
    other = shutil.copytree(tiny_llama, tmp_path / "other-llama")
    code, run = start(adapter, base=str(other))
    assert code == 0, error_of(run)
    [warning] = events_of(run, "warning")
    assert warning.message == f"The adapter was trained on {tiny_llama}; it is tried on {other}, as was asked for."


def test_wrong_settings_of_a_folder_are_one_sentence(
    start: Start, out: Path, tmp_path: Path, adapter: Path, tiny_llama: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "damaged")
    known = lora_config(folder)
    cases: tuple[tuple[Any, str, str], ...] = (
        ("{oops", "source", "adapter_config.json is damaged"),
        ([], "source", "adapter_config.json is damaged"),
        (known | {"lora_alpha": "much"}, "settings", "says lora_alpha 'much', which is no number"),
        (known | {"r": 16}, "settings", "says rank 16, and the adapter's tensors have rank 4"),
        (known | {"peft_type": "IA3"}, "source", "is of type IA3"),
        (known | {"init_lora_weights": "pissa"}, "source", "as pissa changed them"),
        (known | {"bias": "all"}, "source", "bias=all"),
    )
    for content, field, words in cases:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
        assert_refused(start(folder), out, field, words)
    (folder / "adapter_config.json").unlink()
    assert_refused(start(folder, base=str(tiny_llama)), out, "lora_alpha", "nothing says with which alpha")
    code, run = start(folder, base=str(tiny_llama), lora_alpha=8)
    assert code == 0, error_of(run)


class Bomb:
    """Unpickled by an ordinary loader, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class SystemBomb(Bomb):
    """The same by a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


class FormatBomb(SystemBomb):
    """The same in a file as torch wrote them before 1.6."""


@pytest.mark.parametrize("bomb", [Bomb, SystemBomb, FormatBomb], ids=["method", "command", "old format"])
@pytest.mark.parametrize("name", ["adapter_model.bin", "iter_10.pth", "mp_rank_00_model_states.pt"])
def test_a_hostile_file_is_refused_and_nothing_of_it_runs(
    start: Start, out: Path, tmp_path: Path, adapter: Path, bomb: Any, name: str
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "hostile")
    (folder / "adapter_model.safetensors").unlink()
    mark, tensors = tmp_path / "ran", load_file(adapter / "adapter_model.safetensors")
    content = {"module": tensors, "state_dict": tensors, "bomb": bomb(mark)}
    torch.save(content, folder / name, _use_new_zipfile_serialization=bomb is not FormatBomb)
    code, run = start(folder / name if name.endswith(".pth") else folder)
    assert not mark.exists(), "it has run"
    assert code == 4
    assert error_of(run).field == "source"
    assert not out.exists()


def test_another_base_is_named_with_its_shape(
    start: Start, out: Path, tmp_path: Path, adapter: Path, tensors: dict[str, torch.Tensor]
) -> None:
    assert_refused(start(adapter, base="crucible/ember"), out, "base", "the adapter was trained on another base model")
    wide = {
        name: torch.cat([tensor, tensor], dim=-1) if "lora_A" in name else tensor for name, tensor in tensors.items()
    }
    outcome = start(
        save_pth(tmp_path / "iter_1.pth", as_xtuner(wide)),
        base=lora_config(adapter)["base_model_name_or_path"],
        lora_alpha=8,
    )
    assert_refused(outcome, out, "base", "is 4 x 256, but layer")


def test_what_nobody_says_is_asked_for(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path, tensors: dict[str, torch.Tensor]
) -> None:
    pth = save_pth(tmp_path / "alone" / "iter_1.pth", as_xtuner(tensors))
    assert_refused(start(pth, base=str(tiny_llama)), out, "lora_alpha", "nothing says with which alpha")
    assert_refused(start(pth, lora_alpha=8), out, "base", "nothing says on which base model")
    (tmp_path / "alone" / "train.py").write_text("import os\n" * 3, encoding="utf-8")  # somebody's program
    (tmp_path / "alone" / "broken.py").write_bytes(b"\xff\xfe lora")
    other = tmp_path / "alone" / "other.py"
    other.write_text(config_text(tiny_llama, r=64, alpha=16), encoding="utf-8")
    assert_refused(start(pth), out, "settings", "says rank 64, and the adapter's tensors have rank 4")
    other.write_text(config_text(tiny_llama).replace("bias='none'", "bias='all'"), encoding="utf-8")
    assert_refused(start(pth), out, "source", "trained with biases of the base model")
    other.write_text(config_text("/gone/nova-7b"), encoding="utf-8")
    assert_refused(start(pth), out, "base", "trained on /gone/nova-7b, which is not on this machine")
    other.write_text(config_text("someone/nova-7b"), encoding="utf-8")
    assert_refused(start(pth), out, "base", "someone/nova-7b is not on this machine")
    (tmp_path / "alone" / "second.py").write_text(config_text(tiny_llama), encoding="utf-8")
    assert_refused(start(pth), out, "settings", "2 configurations lie in alone")
    assert_refused(start(pth, settings=str(tmp_path / "no.py")), out, "settings", "no.py cannot be used")
    outcome = start(pth, settings=str(other), base=str(tiny_llama), prompt_template="internlm2_cat")
    assert_refused(outcome, out, "prompt_template", "internlm2_chat")


def _whole(tensors: dict[str, Any]) -> dict[str, Any]:
    return {"llm.model.embed_tokens.weight": torch.ones(4, 4), "llm.lm_head.weight": torch.ones(4, 4)}


def _one_sided(tensors: dict[str, Any]) -> dict[str, Any]:
    return dict(list(as_xtuner(tensors).items())[:-1])


def _blown_up(tensors: dict[str, Any]) -> dict[str, Any]:
    found = as_xtuner(tensors)
    name = next(iter(found))
    return found | {name: torch.full_like(found[name], float("nan"))}


def _two(tensors: dict[str, Any]) -> dict[str, Any]:
    return {n.replace("default", which): t for which in ("one", "two") for n, t in as_xtuner(tensors).items()}


def _no_matrix(tensors: dict[str, Any]) -> dict[str, Any]:
    found = as_xtuner(tensors)
    return found | {next(iter(found)): torch.tensor(1.0)}


def _two_ranks(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: t[:2] if "lora_A" in name else t for name, t in as_xtuner(tensors).items()}


STATES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "every weight": (_whole, "every weight was trained"),
    "half a pair": (_one_sided, "is incomplete or damaged: it has"),
    "no numbers": (_blown_up, "values that are not numbers"),
    "projector": (lambda _: {"projector.model.0.weight": torch.ones(4, 4)}, "only the projector"),
    "picture side": (lambda tensors: as_xtuner(tensors, "visual_encoder."), "another part than the language model"),
    "two adapters": (_two, "2 adapters (one, two)"),
    "no matrix": (_no_matrix, "is no matrix"),
    "two ranks": (_two_ranks, "and its partner differ"),
    "nothing": (lambda _: {}, "holds no weights"),
}


@pytest.mark.parametrize("state", STATES)
def test_a_checkpoint_that_is_no_adapter_is_one_sentence(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path, tensors: dict[str, torch.Tensor], state: str
) -> None:
    change, words = STATES[state]
    pth = save_pth(tmp_path / "iter_1.pth", change(tensors), config_text(tiny_llama))  # type: ignore[arg-type]
    assert_refused(start(pth), out, "source", words)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all" * 40, "cut", "list"])
def test_a_damaged_file_is_one_sentence(
    start: Start, out: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], content: Any
) -> None:
    pth = save_pth(tmp_path / "iter_1.pth", as_xtuner(tensors))
    if content == "list":
        torch.save([1, 2], pth)
    else:
        pth.write_bytes(pth.read_bytes()[:-200] if content == "cut" else content)
    assert_refused(start(pth, lora_alpha=8), out, "source", "iter_1.pth is damaged")


def test_what_is_no_source_is_one_sentence(start: Start, out: Path, tmp_path: Path, tiny_llama: Path) -> None:
    assert_refused(start(tmp_path / "nowhere"), out, "source", "no file, no folder and no run")
    assert_refused(start(tiny_llama), out, "source", "is a whole model")
    (tmp_path / "empty").mkdir()
    assert_refused(start(tmp_path / "empty"), out, "source", "no adapter and no checkpoint")
    for name in ("iter_1.pth", "iter_2.pth"):
        save_pth(tmp_path / "work" / name, {})  # type: ignore[arg-type]
    assert_refused(start(tmp_path / "work"), out, "source", "holds 2 checkpoints (iter_1.pth, iter_2.pth)")


def test_a_work_folder_means_its_last_checkpoint(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path, tensors: dict[str, torch.Tensor]
) -> None:
    for name in ("iter_1.pth", "iter_2.pth"):
        save_pth(tmp_path / "work" / name, as_xtuner(tensors), config_text(tiny_llama))
    (tmp_path / "work" / "last_checkpoint").write_text("/other/machine/work/iter_2.pth", encoding="utf-8")
    code, run = start(tmp_path / "work")
    assert code == 0, error_of(run)
    assert "iter_2.pth" in (out / "README.md").read_text(encoding="utf-8")


def test_an_adapter_that_changes_nothing_fails_the_proof(
    start: Start, out: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    idle = save_adapter(tiny_llama, tmp_path / "idle", strength=0.0)
    code, run = start(idle)
    assert code == 1
    assert "changes nothing" in error_of(run).message
    assert not out.exists()
    assert out.with_name("imported adapter.unproven").is_dir()


def test_an_adapter_that_is_hardly_felt_is_warned_of(
    start: Start, tmp_path: Path, tiny_llama: Path, adapter: Path
) -> None:
    code, run = start(adapter, lora_alpha=0.001)
    assert code == 0, error_of(run)
    proof = report_of(run)["proof"]
    assert proof["answers_changed"] == 0
    assert proof["max_logit_difference"] > 0
    assert "None of 8 answers is another" in events_of(run, "warning")[0].message


def test_never_overwrites_and_a_stop_leaves_nothing(
    start: Start, out: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.mkdir()
    code, run = start(adapter)
    assert code == 4
    assert error_of(run).field == "out"
    assert list(out.iterdir()) == []
    out.rmdir()
    honest = sources.read

    def stopped(*given: Any) -> Any:
        os.kill(os.getpid(), 15)
        return honest(*given)

    monkeypatch.setattr(sources, "read", stopped)
    assert start(adapter)[0] == 3
    assert list(out.parent.iterdir()) == []
