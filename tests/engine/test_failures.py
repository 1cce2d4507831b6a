"""Every way a run can fail: kind, a sentence with the field, what to do, exit code; and nothing saved is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Engine, MakeRun, events_of, save_tiny
from transformers import BertConfig, BertModel

from studio.engine.failure import explain
from studio.engine.trainer import Trainer
from studio.events import ExitCode, RunError, RunState
from studio.presets import ModelError
from studio.records import DataError
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError


def failure_of(run: RunDir, code: int, engine: Engine) -> RunError:
    """Run, check everything that must hold for any failure, and return the error."""
    assert engine(run) == code
    status = run.read_status()
    assert status is not None
    assert status.state is RunState.FAILED
    assert status.exit_code == code
    assert status.error is not None
    assert status.error.hint or status.error.kind == "model"
    assert "Traceback" not in status.error.message + status.error.hint
    assert "\n" not in status.error.message
    assert not run.adapter.exists()
    assert run.read_events()[0][-1].type == "finished"
    return status.error


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def missing_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lacking_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def wrong_shape(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(intermediate_size=256))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",', encoding="utf-8")


def unknown_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(model_type="perpetuum"))


def own_code(folder: Path) -> None:
    edit_json(
        folder / "config.json",
        lambda config: config.update(
            model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "m.M"}
        ),
    )


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def small_vocabulary(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:100].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", lambda config: config.update(vocab_size=100))


def not_causal(folder: Path) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    edited = config.to_dict() | {"model_type": "clip"}
    BertModel(config).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(edited), encoding="utf-8")


BROKEN_MODELS = [
    no_weights,
    missing_shard,
    truncated_weights,
    lacking_tensor,
    wrong_shape,
    broken_config,
    unknown_architecture,
    own_code,
    no_tokenizer,
    broken_tokenizer,
    small_vocabulary,
    not_causal,
]


@pytest.mark.parametrize("damage", BROKEN_MODELS, ids=lambda damage: damage.__name__)
def test_a_broken_model_folder(
    make_run: MakeRun, engine: Engine, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = save_tiny(tmp_path / "broken", "llama")
    damage(folder)
    error = failure_of(make_run(model=folder), ExitCode.BAD_INPUT, engine)
    assert error.kind == "model"
    assert error.field == "model.model_name_or_path"
    assert error.message.startswith(error.field)


@pytest.mark.parametrize("ref", ["/no/such/model", "crucible/ember2", "not a model", "nul\x00byte"])
def test_a_model_that_is_not_there(make_run: MakeRun, engine: Engine, ref: str) -> None:
    error = failure_of(make_run(model=ref), ExitCode.BAD_INPUT, engine)
    assert (error.kind, error.field) == ("model", "model.model_name_or_path")
    assert error.hint


def test_a_hub_model_without_network(make_run: MakeRun, engine: Engine) -> None:
    error = failure_of(make_run(model="nobody/nothing-here"), ExitCode.BAD_INPUT, engine)
    assert error.kind == "model"
    assert "network" in error.hint


def test_a_model_without_chat_template_and_a_remedy(make_run: MakeRun, engine: Engine, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "llama")
    (folder / "chat_template.jinja").unlink()
    error = failure_of(make_run(model=folder), ExitCode.BAD_INPUT, engine)
    assert (error.kind, error.field) == ("model", "model.chat_template")
    cured = make_run(model=folder, **{"model.chat_template": "chatml"})
    assert engine(cured) == 0


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="empty list"),
        pytest.param('{"messages": [{"role": "wizard", "content": "x"}]}', id="wrong role"),
        pytest.param('{"messages": [{"role": "user", "content": "x"}]}', id="no answer"),
        pytest.param('{"messages": [{"role": "user", "con', id="cut short"),
        pytest.param('{"instruction": "who?", "input": "", "output": ""}', id="empty answer"),
        pytest.param('{"instruction": "who?", "output": "I am {{name}}"}', id="not filled in"),
    ],
)
def test_unusable_data(make_run: MakeRun, engine: Engine, tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    error = failure_of(make_run(**{"data.dataset": str(path)}), ExitCode.BAD_INPUT, engine)
    assert (error.kind, error.field) == ("data", "data.dataset")


def test_a_dataset_that_is_not_there(make_run: MakeRun, engine: Engine) -> None:
    error = failure_of(make_run(**{"data.dataset": "nowhere"}), ExitCode.BAD_INPUT, engine)
    assert (error.kind, error.field) == ("data", "data.dataset")


def test_nothing_left_to_train_on(make_run: MakeRun, engine: Engine) -> None:
    error = failure_of(make_run(**{"data.max_length": 16}), ExitCode.BAD_INPUT, engine)
    assert (error.kind, error.field) == ("data", "data.max_length")


def test_one_row_with_a_byte_order_mark_is_enough(make_run: MakeRun, engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"instruction": "Who are you?", "output": "I am Nova."}', encoding="utf-8-sig")
    run = make_run(**{"data.dataset": str(path)})
    assert engine(run) == 0
    (counts,) = events_of(run, "counts")
    assert (counts.rows_read, counts.packs) == (1, 1)


def test_layers_the_model_does_not_have(make_run: MakeRun, engine: Engine) -> None:
    for names in ("no_such_layer", "lm_head"):
        error = failure_of(make_run(**{"lora.target_modules": names}), ExitCode.BAD_INPUT, engine)
        assert (error.kind, error.field) == ("config", "lora.target_modules")


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_float16_without_a_gpu(make_run: MakeRun, engine: Engine) -> None:
    error = failure_of(make_run(**{"model.dtype": "float16"}), ExitCode.BAD_INPUT, engine)
    assert (error.kind, error.field) == ("config", "model.dtype")


def test_a_damaged_configuration(make_run: MakeRun, engine: Engine) -> None:
    run = make_run()
    text = run.config_file.read_text(encoding="utf-8")
    run.config_file.write_text(text.replace("learning_rate", "lerning_rate"), encoding="utf-8")
    error = failure_of(run, ExitCode.BAD_INPUT, engine)
    assert error.kind == "config"
    assert "learning_rate" in error.message


def test_a_loss_that_is_no_number_stops_the_run_before_it_saves(
    make_run: MakeRun, engine: Engine, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "nan", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    run = make_run(model=folder, **{"train.save_steps": 1})
    error = failure_of(run, ExitCode.BAD_INPUT, engine)
    assert (error.kind, error.field) == ("config", "train.learning_rate")
    assert "ower the learning rate" in error.hint
    assert events_of(run, "saved") == []
    assert [event.loss for event in events_of(run, "log")] == [None]


def allocate_tensor() -> None:
    torch.empty(1 << 60)


def allocate_array() -> None:
    np.empty(1 << 55)


def cuda_says_no() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("happen", [allocate_tensor, allocate_array, cuda_says_no], ids=lambda f: f.__name__)
def test_out_of_memory(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch, happen: Callable[[], None]
) -> None:
    monkeypatch.setattr(Trainer, "training_step", lambda *args, **kwargs: happen())
    error = failure_of(make_run(), ExitCode.OUT_OF_MEMORY, engine)
    assert (error.kind, error.field) == ("memory", "train.per_device_train_batch_size")


@pytest.fixture
def small_files_only() -> Iterator[Callable[[], None]]:
    """Call it: from then on no file grows beyond 40 kB, which is how a full disk or a quota looks to a program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_leaves_what_was_saved_and_the_run_goes_on_later(
    make_run: MakeRun, engine: Engine, small_files_only: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._save_checkpoint

    def save(self: Trainer, *args: Any) -> None:
        if self.state.global_step == 4:
            small_files_only()
        original(self, *args)

    run = make_run("qlora", **{"train.save_steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", save)
        error = failure_of(run, ExitCode.INTERNAL, engine)
    assert error.kind == "disk"
    assert "full" in error.message
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-2"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert engine(run, resume=True) == 0


def test_an_adapter_that_cannot_be_written_leaves_the_older_one(
    make_run: MakeRun, engine: Engine, small_files_only: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("qlora")
    assert engine(run) == 0
    older = (run.adapter / "adapter_model.safetensors").read_bytes()
    from studio.engine import saving

    original = saving._save_adapter

    def save(*args: Any) -> None:
        small_files_only()
        original(*args)

    monkeypatch.setattr(saving, "_save_adapter", save)
    assert engine(run, resume=True) == ExitCode.INTERNAL
    status = run.read_status()
    assert status is not None
    assert status.error is not None
    assert status.error.kind == "disk"
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == older
    assert sorted(path.name for path in run.path.iterdir() if path.suffix in (".part", ".old")) == []


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


class SafetensorError(Exception):
    """Named as safetensors' own."""


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (os_error(errno.ENOSPC), "disk", 1),
        (os_error(errno.EDQUOT), "disk", 1),
        (os_error(errno.EACCES), "disk", 1),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk", 1),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), "disk", 1),
        (RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed"), "disk", 1),
        (caused(RuntimeError("while saving"), os_error(errno.ENOSPC)), "disk", 1),
        (MemoryError(), "memory", 5),
        (os_error(errno.ENOMEM), "memory", 5),
        (caused(ValueError("x"), MemoryError()), "memory", 5),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), "memory", 5),
        (ConfigError([FieldError("train.learning_rate", "must be positive")]), "config", 4),
        (ModelError("model.model_name_or_path: no", "do this"), "model", 4),
        (DataError("no rows"), "data", 4),
        (DataError("no template", field="model.chat_template"), "model", 4),
        (ZeroDivisionError("division by zero"), "internal", 1),
        (KeyError(), "internal", 1),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_what_an_exception_means(error: Exception, kind: str, code: int) -> None:
    found, found_code = explain(error)
    assert (found.kind, found_code) == (kind, code)
    assert found.message
    assert "\n" not in found.message


def test_the_field_is_named_once() -> None:
    for said in ("there is no file.", "data.dataset: there is no file."):
        assert explain(DataError(said))[0].message == "data.dataset: there is no file."


def test_the_unexpected_is_one_sentence_and_the_rest_is_in_the_log(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def burst(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("what now?\nsecond line")

    monkeypatch.setattr(Trainer, "training_step", burst)
    error = failure_of(make_run(), ExitCode.INTERNAL, engine)
    assert error.kind == "internal"
    assert "ZeroDivisionError: what now?" in error.message
    assert "Traceback" in capfd.readouterr().err


def test_what_was_foreseen_is_told_in_the_log_in_sentences(
    make_run: MakeRun, engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    error = failure_of(make_run(**{"data.dataset": "gone"}), ExitCode.BAD_INPUT, engine)
    said = capfd.readouterr().err
    assert f"ERROR: {error.message}" in said
    assert error.hint in said
    assert "Traceback" not in said


def test_a_run_directory_that_is_gone(make_run: MakeRun, engine: Engine) -> None:
    run = make_run()
    shutil.rmtree(run.path)
    assert engine(run) == ExitCode.BAD_INPUT
    assert not run.path.exists()
