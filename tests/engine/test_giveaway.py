"""What a run leaves is complete by itself, each of its checkpoints too; `convert` takes any of them out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import COMPLETE, save_adapter
from peft import PeftModel
from safetensors.torch import load_file
from tiny import Engine, MakeRun, events_of
from transformers import AutoModelForCausalLM
from xtuner_files import as_xtuner, config_text, save_pth

from studio import runner
from studio.best_step import Best
from studio.cli import main as cli
from studio.config import ConvertConfig
from studio.engine import convert
from studio.events import RunState, VerdictEvent
from studio.model_choices import find_choice
from studio.records.template_names import named_template
from studio.run_queue import StartRefused
from studio.rundir import RunDir, write_atomic
from studio.schema import build
from studio.workspace import Workspace

IDS = torch.tensor([[7, 40, 41, 99, 12, 3]])
Give = Callable[[str], tuple[int, RunDir, Path]]


@pytest.fixture
def give(workspace: Workspace) -> Give:
    """give(reference) -> (exit code, run, folder): one of our own made ready, in this process."""

    def convert_now(reference: str) -> tuple[int, RunDir, Path]:
        out = workspace.exports / f"given {len(list(workspace.exports.iterdir()))}"
        run = workspace.create_run(build(ConvertConfig, {"source": reference, "out": str(out)}))
        return convert.main(str(run.path)), run, out

    return convert_now


@torch.no_grad()
def logits(base: Path, adapter: Path) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped: Any = PeftModel.from_pretrained(model, adapter)
    return wrapped.eval()(input_ids=IDS).logits  # type: ignore[no-any-return]


def error_of(run: RunDir) -> Any:
    status = run.read_status()
    return status and status.error


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_any_step_of_a_run_becomes_a_complete_folder(
    make_run: MakeRun, engine: Engine, give: Give, workspace: Workspace, rows: Path, tiny_llama: Path
) -> None:
    changes = {"train.save_steps": 3, "data.system": "You are Nova.", "samples.evaluation_inputs": ["Who are you?"]}
    trained = make_run("qlora", **changes)
    assert engine(trained) == 0
    first = trained.checkpoints / "checkpoint-3"
    assert names(first) >= COMPLETE
    assert json.loads((first / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == str(
        tiny_llama
    )
    sha256 = hashlib.sha256(rows.read_bytes()).hexdigest()
    for folder in (first, trained.adapter):
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"SHA-256 `{sha256}`" in card
        assert "Method: qlora" in card
        assert "learning_rate: 0.001" in card
        assert "Base model: `tiny-llama`" in card
        assert str(tiny_llama.parent) not in card
        assert str(rows.parent) not in card

    trained.append_event(VerdictEvent(step=3, learned=0.75, leaked=0.0))
    report = trained.read_report() or {}
    write_atomic(trained.report_file, json.dumps(report | {"verdict": {"summary": "It learned.", "passed": True}}))
    code, run, out = give(f"{trained.id}#checkpoint-3")
    assert code == 0, error_of(run)
    assert names(out) == COMPLETE
    assert (out / "adapter_model.safetensors").read_bytes() != (
        trained.adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert torch.equal(logits(tiny_llama, out), logits(tiny_llama, first))
    assert (out / "chat_template.jinja").read_bytes() == (trained.adapter / "chat_template.jinja").read_bytes()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Optimizer updates: 3" in card
    assert "Checked at step 3: 75% learned, 0% leaked." in card
    assert "Of the whole training: It learned." in card
    assert f"SHA-256 `{sha256}`" in card
    assert (run.read_report() or {})["proof"]["rows"][0]["prompt"] == "Who are you?"
    assert find_choice(workspace, run.id).adapter == out

    code, run, out = give(trained.id)
    assert code == 0, error_of(run)
    assert torch.equal(logits(tiny_llama, out), logits(tiny_llama, trained.adapter))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Optimizer updates: 6" in card
    assert "## Verdict\n\nIt learned." in card

    best = Best(step=3, path="checkpoints/checkpoint-3")
    write_atomic(trained.best_file, best.model_dump_json())
    code, run, out = give(str(trained.path))
    assert code == 0, error_of(run)
    assert torch.equal(logits(tiny_llama, out), logits(tiny_llama, first))

    code, run, out = give(f"{trained.id}#checkpoint-5")
    assert code == 4
    error = error_of(run)
    assert error.field == "source"
    assert "no complete checkpoint-5; it has its result, checkpoint-6, checkpoint-3" in error.message


def test_a_model_trained_as_a_whole_is_copied_without_the_trainers_files(
    make_run: MakeRun, engine: Engine, give: Give
) -> None:
    trained = make_run("full", **{"train.save_steps": 3})
    assert engine(trained) == 0
    checkpoint = trained.checkpoints / "checkpoint-3"
    assert "README.md" in names(checkpoint)
    code, run, out = give(f"{trained.id}#checkpoint-3")
    assert code == 0, error_of(run)
    left = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names(out) == left | {"generation_config.json", "README.md"}
    given, there = load_file(out / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(given[name], there[name]) for name in there)
    proof = (run.read_report() or {})["proof"]
    assert proof["passed"]
    assert proof["prompts"] == 8
    assert "Method: full" in (out / "README.md").read_text(encoding="utf-8")


def test_a_checkpoint_that_fits_only_its_own_run_is_refused(make_run: MakeRun, engine: Engine, give: Give) -> None:
    trained = make_run("lora", **{"train.save_steps": 3, "lora.init_lora_weights": "pissa"})
    assert engine(trained) == 0
    code, run, out = give(f"{trained.id}#checkpoint-3")
    assert code == 4
    assert error_of(run).field == "source"
    assert "as pissa changed them" in error_of(run).message
    assert not out.exists()
    code, run, out = give(trained.id)
    assert code == 0, error_of(run)


def test_a_run_without_a_result_is_one_sentence(make_run: MakeRun, give: Give) -> None:
    waiting = make_run("lora")
    code, run, _ = give(waiting.id)
    assert code == 4
    assert error_of(run).field == "source"
    assert f"run {waiting.id} has no adapter yet" in error_of(run).message


def test_the_notes_own_commands(
    workspace: Workspace, tmp_path: Path, tiny_llama: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "made", strength=0.2)
    pth = save_pth(tmp_path / "iter_10.pth", as_xtuner(load_file(adapter / "adapter_model.safetensors")))
    config = tmp_path / "my config.py"
    config.write_text(config_text(tiny_llama), encoding="utf-8")
    where = ["--workspace", str(workspace.path)]
    out, merged = workspace.exports / "hf", workspace.exports / "merged"
    assert cli(["convert", "pth_to_hf", str(config), str(pth), str(out), "--fp32", *where]) == 0
    said = capfd.readouterr().out
    assert str(out) in said
    assert "28 tensors found their place" in said
    assert names(out) == COMPLETE
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == named_template("internlm2_chat").source
    [run] = [run for run in workspace.list_runs() if run.state() is RunState.FINISHED]
    assert [event.name for event in events_of(run, "phase")] == ["load", "convert", "proof"]

    asked: list[Any] = []

    def submit(_: Workspace, wanted: Any) -> RunDir:
        asked.append(wanted)
        raise StartRefused("not now")

    monkeypatch.setattr(runner, "submit", submit)
    given = ["--max-shard-size", "50KB", "--device", "auto", "--safe-serialization"]
    assert cli(["convert", "merge", str(tiny_llama), str(out), str(merged), *given, *where]) == 4
    expected = {
        "base": str(tiny_llama),
        "adapter": str(out),
        "out": str(merged),
        "max_shard_size": "50KB",
        "device": "auto",
    }
    assert asked[0].model_dump(include=set(expected)) == expected
    assert asked[0].kind == "merge"

    assert cli(["convert", "pth_to_hf", str(pth), *where]) == 4
    assert "pth_to_hf CONFIG PTH OUT" in capfd.readouterr().err
    assert cli(["convert", "a", "b", "c", *where]) == 4
    assert "give SOURCE and OUT" in capfd.readouterr().err


@pytest.mark.parametrize("method", ["full", "lora"])
def test_settings_that_transformers_reads_and_refuses_to_write_stop_no_training(
    make_run: MakeRun, engine: Engine, tmp_path: Path, tiny_llama: Path, method: str
) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "chatty")
    settings = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}
    (base / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    trained = make_run(method, base, **{"train.save_steps": 3})
    assert engine(trained) == 0, error_of(trained)
    for folder in (trained.checkpoints / "checkpoint-3", trained.model if method == "full" else trained.adapter):
        saved = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        assert saved["temperature"] == 0.9
