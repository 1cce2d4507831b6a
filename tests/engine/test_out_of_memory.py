"""Out of memory for real: a limit on the process, a control group; what is said, what is kept, and that the fix works.

Each run is put under a limit at some moment, fails, is changed as the doctor says, and goes on under the same limit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from limited import Limited, control_group
from safetensors.torch import load_file
from test_resume import at_step
from tiny import Engine, MakeRun, byte_tokenizer, events_of, losses
from transformers import LlamaConfig, LlamaForCausalLM

from studio.changes import ACCUMULATION, BATCH
from studio.checkpoints import complete_checkpoints
from studio.config import RunConfig
from studio.engine.activity import during
from studio.engine.failure import explain
from studio.engine.shortage import MemoryShort, Place
from studio.events import ExitCode, RunState
from studio.memory_doctor import Remedy, diagnose
from studio.memory_room import Room
from studio.rundir import RunDir
from studio.shortage import Shortage

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are set and read as on Linux")
MB = 1 << 20


def write_rows(path: Path, count: int, letters: int) -> str:
    """A file of alike conversations of about twice so many tokens."""
    lines = [
        [
            {"role": "user", "content": f"Question {number}? {'x' * letters}"},
            {"role": "assistant", "content": f"I am Nova, number {number}. {'y' * letters}"},
        ]
        for number in range(count)
    ]
    path.write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def long_rows(tmp_path: Path) -> str:
    """64 conversations of about 530 tokens."""
    return write_rows(tmp_path / "long.jsonl", 64, 240)


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 68 million weights."""
    folder = tmp_path_factory.mktemp("models") / "wide-llama"
    tokenizer = byte_tokenizer()
    settings: dict[str, Any] = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    settings |= {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer), "num_hidden_layers": 6}
    settings |= {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "num_key_value_heads": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LONG: dict[str, Any] = {
    BATCH: 16,
    "train.max_steps": 4,
    "train.save_steps": 2,
    "data.packing": False,
    "data.max_length": 600,
}


def failed(run: RunDir, limit: Limited, *, resume: bool = False) -> Shortage:
    """Run under the limit; everything that must hold for any lack of memory; the facts of it."""
    code = limit.train(run, resume=resume)
    assert code == ExitCode.OUT_OF_MEMORY, run.log_file.read_text(encoding="utf-8")
    status = run.read_status()
    assert status is not None
    assert (status.state, status.exit_code) == (RunState.FAILED, 5)
    assert run.read_events()[0][-1].type == "finished"
    assert status.error is not None
    assert status.error.kind == "memory"
    assert status.error.hint
    found = Shortage.model_validate(status.error.details)
    assert found.limit_bytes > found.used_bytes // 2 > 0
    assert found.noticed or found.requested_bytes or found.available_bytes < 300 * MB
    assert not run.adapter.exists()
    if run.checkpoints.is_dir():  # what was saved is whole: nothing else is left
        assert {path.name for path in run.checkpoints.iterdir()} == {
            p.name for p in complete_checkpoints(run.checkpoints)
        }
    return found


def cured(run: RunDir, limit: Limited, steps: int = 4) -> Remedy:
    """Apply the best that lets the run go on, resume it under the limit, and see it finish its curve."""
    found = diagnose(run)
    assert found is not None
    best = next(remedy for remedy in found.remedies if remedy.continues)
    assert best.verdict != "no"
    before = run.config()
    run.change(best.changes, found.checkpoint)
    code = limit.train(run, resume=True)
    assert code == 0, (best, run.log_file.read_text(encoding="utf-8"))
    assert run.state() is RunState.FINISHED
    after = run.config()
    assert isinstance(before, RunConfig)
    assert isinstance(after, RunConfig)
    assert after.effective_batch_size == before.effective_batch_size
    assert events_of(run, "started")[-1].resumed_from == (found.checkpoint or None)
    assert sorted(losses(run)) == [*range(1, steps + 1)]
    assert (run.adapter / "adapter_model.safetensors").is_file()
    return best


@linux
def test_while_loading(make_run: MakeRun, wide_llama: Path) -> None:
    run = make_run("lora", wide_llama, **{"model.dtype": "float32", BATCH: 1, "train.max_steps": 1})
    limit = Limited("load", 350)  # 4 bits need 250 to 300, all bits between 400 and 450
    found = failed(run, limit)
    assert (found.phase, found.activity, found.bound, found.step) == ("load", "load", "address_space", 0)
    assert cured(run, limit, steps=1).changes == {"method": "qlora"}


@linux
def test_in_the_first_step(make_run: MakeRun, long_rows: str) -> None:
    run = make_run(**LONG | {"data.dataset": long_rows, "train.max_steps": 2})
    limit = Limited("train", 250)
    found = failed(run, limit)
    assert (found.phase, found.activity, found.step, found.rows) == ("train", "step", 0, 16)
    assert found.length is not None
    assert 500 < found.length < 600
    best = cured(run, limit, steps=2)
    assert best.changes[BATCH] < 16
    assert best.from_step == 0


@linux
def test_in_a_later_step_what_was_saved_stays(make_run: MakeRun, long_rows: str) -> None:
    run = make_run(**LONG, **{"data.dataset": long_rows})
    found = failed(run, Limited("3", 200))
    assert (found.activity, found.step) == ("step", 3)
    assert sorted(losses(run)) == [1, 2, 3]
    assert [path.name for path in complete_checkpoints(run.checkpoints)] == ["checkpoint-2"]
    assert cured(run, Limited("train", 250)).from_step == 2


@linux
def test_while_answering_samples(make_run: MakeRun) -> None:
    asked = [f"{'z' * 1500}{number}" for number in range(16)]
    run = make_run(**LONG | {BATCH: 4, "samples.evaluation_inputs": asked, "samples.evaluation_freq": 3})
    found = failed(run, Limited("2", 100))
    assert (found.activity, found.step, found.rows) == ("samples", 2, 16)
    best = cured(run, Limited("train", 150))
    assert set(best.changes) == {"samples.evaluation_inputs"}
    assert 0 < len(best.changes["samples.evaluation_inputs"]) < 16
    answered = [event for event in events_of(run, "sample") if event.step == 4]
    assert len(answered) == len(best.changes["samples.evaluation_inputs"])


@linux
def test_in_the_loss_on_validation_rows(make_run: MakeRun, long_rows: str) -> None:
    run = make_run(**LONG | {BATCH: 8, "data.validation_dataset": long_rows, "train.eval_steps": 3})
    limit = Limited("train", 350)
    found = failed(run, limit)
    assert (found.activity, found.step, found.rows) == ("evaluation", 3, 8)
    assert sorted(losses(run)) == [1, 2, 3]
    best = cured(run, limit)
    assert set(best.changes) == {BATCH, ACCUMULATION}
    assert events_of(run, "eval")


@linux
def test_in_the_verdict(make_run: MakeRun) -> None:
    probes = [{"prompt": f"{'z' * 1500}{number}", "expect": ["Nova"]} for number in range(16)]
    run = make_run(**LONG | {BATCH: 4, "verdict.enabled": True, "verdict.probes": probes})
    limit = Limited("train", 150)
    assert failed(run, limit).activity == "verdict"
    assert cured(run, limit).changes == {"verdict.enabled": False}
    assert (run.read_report() or {})["verdict"] is None


# ---- before the kernel does it ---------------------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own."""
    with control_group() as made:
        if made is None:
            pytest.skip("this machine allows no control group to be made")
        yield made


@linux
def test_a_container_that_is_nearly_full_is_noticed_before_the_kernel_kills(
    make_run: MakeRun, long_rows: str, group: Path
) -> None:
    run = make_run(**LONG | {"data.dataset": long_rows, "train.max_steps": 2})
    limit = Limited("train", 250, group)
    found = failed(run, limit)
    assert (found.activity, found.bound, found.noticed) == ("step", "control_group", True)
    assert cured(run, limit, steps=2).changes[BATCH] < 16


@linux
def test_a_library_that_does_not_listen_is_not_waited_for(make_run: MakeRun, group: Path) -> None:
    """The main thread fills memory inside one call: the guard writes the end itself, before the kernel kills."""
    run = make_run(**LONG | {BATCH: 4})
    found = failed(run, replace(Limited("3", 250, group), filled_at=4))
    assert (found.noticed, found.step, found.bound) == (True, 3, "control_group")
    assert [path.name for path in complete_checkpoints(run.checkpoints)] == ["checkpoint-2"]
    log = run.log_file.read_text(encoding="utf-8")
    assert "needs more memory than there is" in log
    assert "Traceback" not in log  # nobody raised anything


# ---- the same curve --------------------------------------------------------------------------------------------------


SAME: list[dict[str, Any]] = [{BATCH: 2}, {BATCH: 1}, {"train.gradient_checkpointing": True}]


def test_a_changed_batch_goes_on_with_the_same_updates(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 updates of 4 x 2 rows, more than two epochs of the data; something changes after the fourth."""
    settings = {ACCUMULATION: 2, "train.max_steps": 8, "train.save_steps": 50}
    whole = make_run("qlora", **settings)
    assert engine(whole) == 0
    for changes in SAME:
        run = make_run("qlora", **settings)
        with monkeypatch.context() as patch:
            at_step(patch, 4, lambda journal: journal.run.request_stop())
            assert engine(run) == ExitCode.STOPPED
        run.stop_file.unlink(missing_ok=True)
        run.change(changes, 4)
        assert engine(run, resume=True) == 0
        assert losses(run) == pytest.approx(losses(whole), rel=1e-4), changes
        rates = [{event.step: event.learning_rate for event in events_of(one, "log")} for one in (run, whole)]
        assert rates[0] == rates[1]
        name = "adapter/adapter_model.safetensors"
        ours, theirs = load_file(run.path / name), load_file(whole.path / name)
        assert all(torch.allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-5) for key in theirs), changes


def test_an_adapter_goes_on_beside_packed_weights(
    make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 16 bits to 4 in the middle: the adapter and the optimizer's numbers are the same, so the curve goes on."""
    run = make_run("lora", **{"train.save_steps": 50})
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda journal: journal.run.request_stop())
        assert engine(run) == ExitCode.STOPPED
    run.stop_file.unlink(missing_ok=True)
    run.change({"method": "qlora"}, 3)
    assert engine(run, resume=True) == 0
    whole = make_run("lora")
    assert engine(whole) == 0
    curves = losses(run), losses(whole)
    assert curves[0].keys() == curves[1].keys()
    assert curves[0] == pytest.approx(curves[1], rel=0.05)
    assert curves[0] != curves[1]


# ---- sentences -------------------------------------------------------------------------------------------------------


def busy(name: Any, error: Exception, **shape: int) -> Exception:
    """An error as it comes out of an activity."""
    with pytest.raises(type(error)) as caught, during(name, **shape):
        raise error
    return caught.value


def refused() -> Exception:
    """What torch says when main memory is used up."""
    words = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    return RuntimeError(f"{words} 536870912 bytes. Error code 12")


@pytest.mark.parametrize(
    ("error", "place", "field", "said"),
    [
        (busy("step", refused(), rows=1, length=80), Place("train", 6), BATCH, "training step 7 (1 row of 80 tokens)"),
        (
            busy("samples", refused()),
            Place("train", 6),
            "samples.evaluation_inputs",
            "inputs at step 6 needs more",
        ),
        (busy("evaluation", refused()), Place("train", 6), BATCH, "validation rows at step 6"),
        (refused(), Place("load"), "model.model_name_or_path", "loading the model needs more memory than there is"),
        (refused(), Place("tokenise"), "data.dataset", "preparing the data"),
        (refused(), Place("train", 6), BATCH, "the training needs more memory"),
        (MemoryShort(Room("machine", 8 << 30, 100 * MB)), Place("train", 6), BATCH, "100 MB of 8.0 GB were left"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."), Place("train"), BATCH, "20.0 GB more"),
    ],
)
def test_the_sentence_says_where_and_how_much(error: Exception, place: Place, field: str, said: str) -> None:
    found, code = explain(error, place)
    assert code is ExitCode.OUT_OF_MEMORY
    assert found.field == field
    assert said in found.message
    assert found.message.startswith(f"{field}: ")
    assert found.details["phase"] == place.phase


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("you tried to allocate 536870912 bytes.", 512 * MB),
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has", 2560 * MB),
        ("CUDA out of memory. Tried to allocate 20.00 MiB", 20 * MB),
        ("Unable to allocate 1.50 GiB for an array with shape (1,)", 1536 * MB),
        ("unable to mmap 136360128 bytes from file <m>: Cannot allocate memory (12)", 136360128),
        ("std::bad_alloc", None),
    ],
)
def test_what_was_asked_for_is_read_from_the_libraries_words(text: str, asked: int | None) -> None:
    found, code = explain(RuntimeError(f"{text} out of memory" if asked else text))
    assert code is ExitCode.OUT_OF_MEMORY
    assert found.details["requested_bytes"] == asked
