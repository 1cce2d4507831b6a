"""Merging: the result answers like base + adapter, is proven before it gets its name, and nothing is ever half-made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import save_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import EMBER, events_of, save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from studio import runner
from studio.cli import main as cli
from studio.config import MergeConfig, RunConfig
from studio.engine import merge, questions, sides
from studio.events import RunState
from studio.rundir import RunDir
from studio.schema import build
from studio.workspace import Workspace

IDS = torch.tensor([[7, 40, 41, 99, 12, 3]])
Start = Callable[..., tuple[int, RunDir]]
ALL_QUESTIONS, ANSWER_TOKENS = questions.BUILT_IN, questions.ANSWER_TOKENS


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these tests are about something else than the answers."""
    monkeypatch.setattr(sides, "BUILT_IN", ALL_QUESTIONS[:1])
    monkeypatch.setattr(questions, "ANSWER_TOKENS", 2)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny Llama. Do not write to it."""
    return save_adapter(tiny_llama, tmp_path_factory.mktemp("adapters") / "adapter", strength=0.2)


@pytest.fixture
def out(workspace: Workspace) -> Path:
    """Where the merged model goes."""
    return workspace.exports / "merged model"


@pytest.fixture
def start(workspace: Workspace, tiny_llama: Path, tiny_adapter: Path, out: Path) -> Start:
    """start(**changes) -> (exit code, run): one merge, in this process."""

    def merge_now(before: Callable[[RunDir], None] = lambda run: None, **changes: Any) -> tuple[int, RunDir]:
        settings = {"base": str(tiny_llama), "adapter": str(tiny_adapter), "out": str(out), "dtype": "float32"}
        run = workspace.create_run(build(MergeConfig, settings | changes))
        before(run)
        return merge.main(str(run.path)), run

    return merge_now


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits.float()


def proof_of(run: RunDir) -> dict[str, Any]:
    report = run.read_report()
    assert report is not None
    return report["proof"]  # type: ignore[return-value]


def assert_nothing_left(out: Path) -> None:
    assert not out.exists()
    assert list(out.parent.iterdir()) == []


def error_of(run: RunDir) -> Any:
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    return status.error


@pytest.fixture(scope="module")
def honest(tiny_llama: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Path]:
    """One whole merge with every question, and its folder, for all tests that only look at it."""
    workspace = Workspace(tmp_path_factory.mktemp("honest"))
    out = workspace.path / "exports" / "merged model"
    settings = {"base": str(tiny_llama), "adapter": str(tiny_adapter), "out": str(out), "dtype": "float32"}
    run = workspace.create_run(build(MergeConfig, settings | {"max_shard_size": "50KB"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sides, "BUILT_IN", ALL_QUESTIONS)
        patch.setattr(questions, "ANSWER_TOKENS", ANSWER_TOKENS)
        assert merge.main(str(run.path)) == 0, error_of(run)
    return run, out


def test_merged_model_is_base_plus_adapter(honest: tuple[RunDir, Path], tiny_llama: Path, tiny_adapter: Path) -> None:
    _, out = honest
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    before = logits(base)
    expected = logits(PeftModel.from_pretrained(base, tiny_adapter))
    found = logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2)


def test_the_run_tells_what_happened_and_what_was_proven(honest: tuple[RunDir, Path]) -> None:
    run, out = honest
    assert [event.name for event in events_of(run, "phase")] == ["load", "merge", "save", "proof"]
    assert events_of(run, "finished")[0].state is RunState.FINISHED
    assert events_of(run, "saved")[0].path == str(out)
    proof = proof_of(run)
    assert proof["passed"]
    assert proof["answers_equal"] == proof["prompts"] == len(proof["rows"]) == 8
    assert 0 < proof["max_logit_difference"] <= proof["tolerance"]
    assert proof["layers_changed"] == proof["layers_right"] == proof["layers"] == 14
    report = run.read_report() or {}
    assert report["shards"] == len(list(out.glob("*.safetensors"))) > 1
    assert report["size_bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert list(out.parent.iterdir()) == [out]


def test_the_folder_is_complete_and_readable_by_everybody(honest: tuple[RunDir, Path], tiny_llama: Path) -> None:
    _, out = honest
    names = {file.name for file in out.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "README.md"} <= names
    assert {oct(file.stat().st_mode & 0o777) for file in out.iterdir()} == {"0o644"}
    assert oct(out.stat().st_mode & 0o777) == "0o755"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert str(tiny_llama.parent) not in card
    assert "original weights" in card


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_passes_the_proof(start: Start, out: Path, dtype: str) -> None:
    code, run = start(dtype=dtype)
    assert code == 0, error_of(run)
    assert {str(t.dtype) for t in load_file(out / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert proof_of(run)["max_logit_difference"] > 1e-6


def test_dequantized_base_gives_what_the_4_bit_run_saw(start: Start, out: Path, tiny_llama: Path) -> None:
    code, run = start(merge_base="dequantized")
    assert code == 0, error_of(run)
    assert "quantization_config" not in json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert proof_of(run)["max_logit_difference"] < 1e-4
    merged, base = load_file(out / "model.safetensors"), load_file(tiny_llama / "model.safetensors")
    assert torch.equal(merged["lm_head.weight"], base["lm_head.weight"]), "the output layer is not packed"


def test_built_in_model_in_bfloat16(start: Start, tmp_path: Path) -> None:
    adapter = save_adapter(EMBER, tmp_path / "adapter", strength=0.05)
    code, run = start(base="crucible/ember", adapter=str(adapter), dtype="bfloat16")
    assert code == 0, error_of(run)
    assert proof_of(run)["template_identical"]


def test_the_adapters_template_comes_along_byte_for_byte_and_its_padding_does_not(
    start: Start, out: Path, tiny_llama: Path, tiny_adapter: Path
) -> None:
    adapter = Path(shutil.copytree(tiny_adapter, out.parent.parent / "own template, padded"))
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    template = tokenizer.chat_template.replace("assistant", "model").rstrip("\n") + "{# 丹炉 #}  "
    tokenizer.chat_template = template
    tokenizer(["a", "a long one"], padding=True, truncation=True, max_length=8)
    tokenizer.save_pretrained(adapter)
    saved = json.loads((adapter / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["padding"], "the trap this test is about is gone"
    assert start(adapter=str(adapter))[0] == 0
    assert (out / "chat_template.jinja").read_bytes() == (adapter / "chat_template.jinja").read_bytes()
    assert (out / "chat_template.jinja").read_bytes() == template.encode()
    merged = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    assert merged["padding"] is None
    assert merged["truncation"] is None


def test_a_layer_left_out_fails_the_proof(start: Start, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio.engine import merged_weights

    honest = merged_weights._add_layer

    def forgetful(name: str, layer: Any) -> Any:
        left_out = name.endswith("layers.1.self_attn.k_proj")
        return layer.get_base_layer() if left_out else honest(name, layer)

    monkeypatch.setattr(merged_weights, "_add_layer", forgetful)
    code, run = start(dtype="bfloat16")
    assert code == 1
    assert run.read_status().state is RunState.FAILED  # type: ignore[union-attr]
    assert not out.exists()
    kept = out.with_name("merged model.unproven")
    assert kept.is_dir()
    assert error_of(run).kind == "model"
    assert "layer model.layers.1.self_attn.k_proj is not base + adapter on disk" in error_of(run).message
    assert str(kept) in error_of(run).hint
    proof = proof_of(run)
    assert not proof["passed"]
    assert proof["layers_changed"] == proof["layers_right"] == 13


def test_weights_damaged_on_disk_fail_the_proof(start: Start, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio.engine import merged_weights

    honest = merged_weights.save

    def scratched(plan: Any, *rest: Any) -> None:
        honest(plan, *rest)
        path = plan.work / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.0.mlp.down_proj.weight"][:8] = 0
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(merged_weights, "save", scratched)
    code, run = start()
    assert (code, out.exists()) == (1, False)
    assert not proof_of(run)["passed"]


def test_an_adapter_that_changes_nothing_is_no_success(start: Start, tiny_llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "idle", strength=0.0)
    code, run = start(adapter=str(adapter))
    assert code == 1
    assert "changes nothing" in error_of(run).message


def test_a_template_changed_on_the_way_fails_the_proof(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio.engine import merged_weights

    honest = merged_weights.save

    def retouched(plan: Any, *rest: Any) -> None:
        honest(plan, *rest)
        path = plan.work / "chat_template.jinja"
        path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")

    monkeypatch.setattr(merged_weights, "save", retouched)
    code, run = start()
    assert code == 1
    assert "chat template" in error_of(run).message


def test_never_overwrites(start: Start, out: Path) -> None:
    out.mkdir()
    (out / "precious").write_text("mine", encoding="utf-8")
    (out.with_name("merged model-2")).mkdir()
    code, run = start()
    assert code == 4
    error = error_of(run)
    assert (error.kind, error.field) == ("config", "out")
    assert "merged model-3" in error.hint
    assert [file.name for file in out.iterdir()] == ["precious"]


def test_a_folder_that_appears_meanwhile_is_not_overwritten(start: Start, out: Path, monkeypatch: Any) -> None:
    from studio.engine import proof

    honest = proof.prove

    def late(*given: Any) -> Any:
        out.mkdir()
        return honest(*given)

    monkeypatch.setattr(proof, "prove", late)
    code, run = start()
    assert code == 4
    assert error_of(run).field == "out"
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("how", ["stop file", "SIGTERM"])
def test_cancelling_leaves_nothing(start: Start, out: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    from studio.engine import merged_weights

    honest = merged_weights.save
    runs: list[RunDir] = []

    def slow(*given: Any) -> None:
        honest(*given)
        if how == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        runs[0].request_stop()
        time.sleep(60)  # broken off by the stop
        raise AssertionError("the stop did not come")

    monkeypatch.setattr(merged_weights, "save", slow)
    code, run = start(before=runs.append)
    assert code == 3
    assert run.read_status().state is RunState.STOPPED  # type: ignore[union-attr]
    assert events_of(run, "finished")[0].exit_code == 3
    assert_nothing_left(out)


def test_what_a_killed_engine_left_is_cleared_away(start: Start, out: Path) -> None:
    def litter(run: RunDir) -> None:
        left = out.parent / f".{run.id}.part"
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"half")

    assert start(before=litter)[0] == 0
    assert list(out.parent.iterdir()) == [out]


def test_what_another_killed_engine_left_is_cleared_away_too(start: Start, out: Path) -> None:
    killed = start(adapter=str(out.parent / "none"))[1]
    (out.parent / f".{killed.id}.part").mkdir()
    assert start()[0] == 0
    assert list(out.parent.iterdir()) == [out]


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _not_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{oops", encoding="utf-8")


def _blown_up(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(tensor for name, tensor in tensors.items() if "lora_B" in name).fill_(float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})


def _extra_layer(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    deeper = {name.replace("layers.1.", "layers.7."): t.clone() for name, t in tensors.items() if "layers.1." in name}
    save_file(tensors | deeper, path, metadata={"format": "pt"})


def _missing_layer(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "layers.1." not in n}, path, metadata={"format": "pt"})


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (_without("adapter_config.json"), "adapter_config.json is missing"),
    "no weights": (_without("adapter_model.safetensors"), "adapter_model.safetensors is missing"),
    "truncated": (_cut, "is damaged"),
    "pickle": (_pickled, "pickle"),
    "wrong json": (_not_json, "cannot be read"),
    "not a number": (_blown_up, "not a number"),
    "deeper base": (_extra_layer, "has no layer model.layers.7."),
    "flatter base": (_missing_layer, "the adapter has no tensor for it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_one_sentence(start: Start, out: Path, tiny_adapter: Path, damage: str) -> None:
    adapter = Path(shutil.copytree(tiny_adapter, out.parent.parent / "damaged"))
    change, words = DAMAGES[damage]
    change(adapter)
    code, run = start(adapter=str(adapter))
    error = error_of(run)
    assert code == 4, error
    assert (error.kind, error.field) == ("model", "adapter")
    assert words in error.message
    assert error.hint
    assert "\n" not in error.message
    assert_nothing_left(out)


def test_an_adapter_for_a_wider_base_names_the_tensor(start: Start, out: Path, tmp_path: Path) -> None:
    adapter = save_adapter(EMBER, tmp_path / "for ember")
    code, run = start(adapter=str(adapter))
    assert code == 4
    assert "another base model" in error_of(run).message
    assert ".lora_" in error_of(run).message
    assert_nothing_left(out)


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _half_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(dict(list(load_file(path).items())[:-3]), path, metadata={"format": "pt"})


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a model at all, but long enough to look like one")


@pytest.mark.parametrize(
    ("change", "words"),
    [(_no_weights, "lacks model.safetensors"), (_half_weights, "incomplete"), (_garbage, "no safetensors file")],
)
def test_a_damaged_base_is_one_sentence(start: Start, out: Path, tmp_path: Path, change: Any, words: str) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    change(base)
    code, run = start(base=str(base))
    assert code == 4
    assert (error_of(run).kind, error_of(run).field) == ("model", "base")
    assert error_of(run).message.startswith("base: ")
    assert words in error_of(run).message
    assert_nothing_left(out)


def test_missing_folders_are_named(start: Start, out: Path) -> None:
    for field in ("base", "adapter"):
        code, run = start(**{field: "/no/such/folder"})
        assert (code, error_of(run).kind, error_of(run).field) == (4, "model", field)
        assert "does not exist" in error_of(run).message
    assert_nothing_left(out)


def test_a_full_training_has_nothing_to_merge(start: Start, workspace: Workspace, tiny_llama: Path) -> None:
    settings = {"method": "full", "model": {"model_name_or_path": str(tiny_llama)}, "data": {"dataset": "x"}}
    trained = workspace.create_run(build(RunConfig, settings))
    shutil.copytree(tiny_llama, trained.model)
    for adapter in (trained.path, trained.model):
        code, run = start(adapter=str(adapter))
        assert code == 4
        assert "nothing to merge" in error_of(run).message


def test_the_runs_own_questions_and_system_prompt_are_asked(
    start: Start, workspace: Workspace, tiny_llama: Path, tiny_adapter: Path
) -> None:
    settings = {
        "method": "lora",
        "model": {"model_name_or_path": str(tiny_llama)},
        "data": {"dataset": "x", "system": "You are Nova."},
        "samples": {"evaluation_inputs": ["What is Nova?"]},
    }
    trained = workspace.create_run(build(RunConfig, settings))
    shutil.copytree(tiny_adapter, trained.adapter)
    code, run = start(adapter=str(trained.path))
    assert code == 0, error_of(run)
    assert proof_of(run)["rows"][0]["prompt"] == "What is Nova?"


def test_too_little_disk_is_said_before_anything_is_loaded(
    start: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(out.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    code, run = start()
    assert code == 4
    assert (error_of(run).kind, error_of(run).field) == ("disk", "out")
    assert "10 MB free" in error_of(run).message
    assert events_of(run, "phase") == []
    assert_nothing_left(out)


def test_the_verb_merges_a_run_and_names_what_is_wrong(
    workspace: Workspace,
    tiny_llama: Path,
    tiny_adapter: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def here(where: Workspace, config: Any) -> RunDir:
        run = where.create_run(config)
        merge.main(str(run.path))
        return run

    monkeypatch.setattr(runner, "submit", here)  # a process of its own would first load the libraries again
    settings = {"method": "lora", "model": {"model_name_or_path": str(tiny_llama)}, "data": {"dataset": "x"}}
    trained = workspace.create_run(build(RunConfig, settings | {"name": "nova"}))
    shutil.copytree(tiny_adapter, trained.adapter)
    where = ["--workspace", str(workspace.path)]
    assert cli(["merge", "nova", *where]) == 0
    out = workspace.exports / trained.id
    assert str(out) in capfd.readouterr().out
    assert (out / "config.json").is_file()
    three = [str(tiny_llama), str(tiny_adapter), str(out)]
    assert cli(["merge", *three, *where]) == 4
    assert "never overwritten" in capfd.readouterr().err
    assert cli(["merge", "no such run", *where]) == 4
    assert cli(["merge", *three, "--dtype", "int3", *where]) == 4
    assert "dtype" in capfd.readouterr().err


def test_a_goal_inside_a_file_is_refused(start: Start, out: Path) -> None:
    out.write_text("a file", encoding="utf-8")
    code, run = start(out=str(out / "below"))
    assert code == 4
    assert (error_of(run).kind, error_of(run).field) == ("disk", "out")


def test_another_base_of_the_same_shape_is_warned_of(start: Start, tiny_llama: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_llama, tmp_path / "another model")
    code, run = start(base=str(other))
    assert code == 0
    (warning,) = events_of(run, "warning")
    assert (warning.field, str(other) in warning.message) == ("base", True)
