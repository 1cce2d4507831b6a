"""Models that are let go while nobody asks, and loaded again; models that cannot be loaded at all."""

from __future__ import annotations

import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import save_adapter
from safetensors.torch import load_file, save_file

from studio.engine import backend as backends
from studio.engine import loading
from studio.engine.backend import open_backend
from studio.engine.dialogue import BASE, ModelFacts, Options, Piece, PromptError, Request, Sampling, Turn, Unavailable
from studio.engine.failure import EngineError, model_failure
from studio.engine.resident import Loaded, Resident
from studio.engine.serve import ChatService, _explained
from studio.events import ExitCode
from studio.memory_room import Room

ASKED = Request(BASE, (Turn("user", "Who are you?"),), sampling=Sampling(temperature=0, max_tokens=6))
AT_ONCE = 1e-6


class Speaker:
    """A model that answers when it is told to."""

    models = (BASE,)

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.emits: list[Callable[[Piece], None]] = []
        self.closed = False
        self.tokens = 0
        self.dropped = 0
        self.fault: Exception | None = None

    def describe(self) -> dict[str, object]:
        return {"tokens": self.tokens, "answers": len(self.emits), "weight_bytes": 1000, "device": "cpu"}

    def begin(self, request: Request, emit: Callable[[Piece], None]) -> Any:
        assert not self.closed
        if self.fault:
            raise self.fault
        self.asked.append(request)
        self.emits.append(emit)
        return self

    def answer(self) -> None:
        self.tokens += 5
        self.emits.pop(0)(Piece("yes", finish="stop"))

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Shelf:
    """Loads a new speaker each time, as long as there is no fault."""

    def __init__(self, system: str | None = None) -> None:
        self.speakers: list[Speaker] = []
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.system = system

    def load(self) -> Loaded:
        assert self.gate.wait(60)
        if self.fault:
            raise self.fault
        self.speakers.append(Speaker())
        return Loaded(self.speakers[-1], {BASE: ModelFacts(system=self.system)})


def ignore(piece: Piece) -> None:
    """Nobody listens."""


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def test_weights_are_let_go_after_the_last_answer_and_loaded_for_the_next() -> None:
    shelf = Shelf()
    resident = Resident(shelf.load, idle_s=AT_ONCE)
    until(lambda: resident.describe()["loaded"] is False)
    assert shelf.speakers[0].closed
    assert resident.describe()["weight_bytes"] == 0
    assert resident.models == [BASE]
    resident.begin(ASKED, ignore)
    assert resident.describe()["loaded"] is True
    time.sleep(0.05)
    assert not shelf.speakers[1].closed  # an answer is under way, however long it takes
    shelf.speakers[1].answer()
    until(lambda: shelf.speakers[1].closed)
    resident.begin(ASKED, ignore)
    shelf.speakers[2].answer()
    assert resident.describe()["tokens"] == 10
    resident.close()


def test_without_idle_minutes_they_stay() -> None:
    shelf = Shelf()
    resident = Resident(shelf.load)
    time.sleep(0.05)
    assert resident.describe()["loaded"] is True
    resident.close()
    assert shelf.speakers[0].closed


def test_a_refused_request_counts_as_no_answer_under_way() -> None:
    shelf = Shelf()
    resident = Resident(shelf.load, idle_s=0.2)
    shelf.speakers[0].fault = PromptError("too long")
    with pytest.raises(PromptError):
        resident.begin(ASKED, ignore)
    until(lambda: shelf.speakers[0].closed)
    resident.close()


def test_two_who_ask_at_once_load_it_once() -> None:
    shelf = Shelf()
    resident = Resident(shelf.load, idle_s=AT_ONCE)
    until(lambda: resident.describe()["loaded"] is False)
    shelf.gate.clear()
    threads = [threading.Thread(target=resident.begin, args=(ASKED, ignore)) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: resident.describe()["answers"] == 4)  # told while it is being loaded
    shelf.gate.set()
    for thread in threads:
        thread.join()
    assert len(shelf.speakers) == 2
    assert len(shelf.speakers[1].asked) == 4
    resident.close()


def test_what_cannot_be_loaded_again_is_a_sentence_and_the_next_may_try() -> None:
    shelf = Shelf()
    resident = Resident(shelf.load, idle_s=AT_ONCE)
    until(lambda: resident.describe()["loaded"] is False)
    for fault in (model_failure("base: a file is gone.", "Copy it again.", "base"), MemoryError()):
        shelf.fault = fault
        with pytest.raises(Unavailable, match=r"cannot be loaded again: .*(a file is gone\. Copy|emory)"):
            resident.begin(ASKED, ignore)
    shelf.fault = None
    resident.begin(ASKED, ignore)
    assert len(shelf.speakers) == 2
    resident.close()


def test_the_system_prompt_of_the_run_where_there_is_none() -> None:
    shelf = Shelf(system="You are Nova.")
    question = Turn("user", "Who are you?")
    own = Turn("system", "You are Max.")
    for with_system, turns, expected in (
        (True, (question,), (Turn("system", "You are Nova."), question)),
        (True, (own, question), (own, question)),
        (True, (Turn("system", " "), question), (question,)),
        (False, (question,), (question,)),
        (False, (Turn("system", ""), question), (question,)),
    ):
        resident = Resident(shelf.load, with_system=with_system)
        resident.begin(Request(BASE, turns), ignore)
        assert shelf.speakers[-1].asked[0].turns == expected
    resident.begin(Request(BASE, prompt="Once"), ignore)
    assert shelf.speakers[-1].asked[1].turns == ()


def options(base: Path, **changes: Any) -> Options:
    settings = {"host": "127.0.0.1", "port": 0, "bits": 32, "status": None, "api_key": None, "adapters": {}}
    return Options(base=str(base), **settings | changes)


def said(backend: Resident) -> str:
    """The greedy answer."""
    text: list[str] = []
    done = threading.Event()

    def listen(piece: Piece) -> None:
        text.append(piece.error or piece.text)
        if piece.last:
            done.set()

    backend.begin(ASKED, listen)
    assert done.wait(120)
    return "".join(text)


def test_a_real_model_leaves_the_memory_and_comes_back_the_same(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[torch.nn.Module]] = []
    load_base = backends.load_base

    def remembered(*arguments: Any) -> Any:
        model = load_base(*arguments)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(backends, "load_base", remembered)
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    phases: list[str] = []
    backend = open_backend(options(tiny_llama, adapters={"tuned": str(adapter)}, idle_minutes=0.0005), phases.append)
    first = said(backend)
    until(lambda: backend.describe()["loaded"] is False)
    until(lambda: models[0]() is None)
    assert said(backend) == first
    assert len(models) == 2
    assert phases.count("ready") == 2
    backend.close()


# ---- what cannot be loaded -------------------------------------------------------------------------------------------


def fault_of(given: Options) -> str:
    """The sentence of a model that cannot be loaded."""
    with pytest.raises(EngineError) as caught:
        open_backend(given, lambda phase: None)
    return f"{caught.value.error.message} {caught.value.error.hint}"


@pytest.fixture
def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model that may be damaged."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copied"))


def test_an_adapter_of_another_base_names_the_shape(tiny_llama: Path, copied: Path, tmp_path: Path) -> None:
    config = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    (copied / "config.json").write_text(json.dumps(config | {"hidden_size": 32, "head_dim": 16}), encoding="utf-8")
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(copied)).save_pretrained(copied)
    adapter = save_adapter(copied, tmp_path / "adapter")
    sentence = fault_of(options(tiny_llama, adapters={"tuned": str(adapter)}))
    assert "trained on another base model: its tensor" in sentence
    assert "lora_B.weight is 32 x 4" in sentence
    assert "of the base model goes from 128 to 64" in sentence


def test_a_missing_shard_is_named(copied: Path) -> None:
    whole = load_file(copied / "model.safetensors")
    names = sorted(whole)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for name, keys in halves.items():
        save_file({key: whole[key].clone() for key in keys}, copied / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, keys in halves.items() for key in keys}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (copied / "model.safetensors").unlink()
    said(open_backend(options(copied), lambda phase: None))
    (copied / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in fault_of(options(copied))


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_corrupt_weights_are_one_sentence(copied: Path, tmp_path: Path, which: str) -> None:
    adapter = save_adapter(copied, tmp_path / "adapter")
    file = copied / "model.safetensors" if which == "base" else adapter / "adapter_model.safetensors"
    file.write_bytes(b"\xff" * 40 + file.read_bytes()[40:])
    sentence = fault_of(options(copied, adapters={"tuned": str(adapter)}))
    assert sentence.startswith(f"{which}: ")
    assert file.name in sentence or "damaged" in sentence
    assert "Traceback" not in sentence


def test_a_template_with_a_fault_is_told_when_it_is_asked(copied: Path) -> None:
    (copied / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content", encoding="utf-8")
    backend = open_backend(options(copied), lambda phase: None)
    with pytest.raises(PromptError, match=r"chat template is no valid template \(line 1: .*choose another one by name"):
        backend.begin(ASKED, ignore)
    done = threading.Event()
    other = Request(BASE, ASKED.turns, sampling=ASKED.sampling, template="chatml")
    backend.begin(other, lambda piece: done.set() if piece.last else None)
    assert done.wait(120)
    backend.close()


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "tightest", lambda: Room("machine", 10_000, 5_000))
    monkeypatch.setattr(backends, "load_base", pytest.fail)
    with pytest.raises(EngineError, match="bits: the model does not fit into memory: it needs about") as caught:
        open_backend(options(tiny_llama), lambda phase: None)
    error, code = _explained(caught.value)
    assert code is ExitCode.OUT_OF_MEMORY
    assert "does not fit" in error.message


@pytest.mark.parametrize("fault", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_memory_that_runs_out_while_loading_is_one_sentence(tiny_llama: Path, fault: Exception) -> None:
    error, code = _explained(fault)
    service = ChatService(options(tiny_llama))
    service.fail(error, code)
    assert service.health()["state"] == "failed"
    assert error.message == "bits: the model needs more memory than there is."
    assert code is ExitCode.OUT_OF_MEMORY
