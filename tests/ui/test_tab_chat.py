"""The Chat tab's handlers over a real child process that speaks the chat protocol (without a model)."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from building import context

from studio import chat_memory, chat_server, runner
from studio.config import RunConfig
from studio.rundir import RunDir
from studio.schema import build
from studio.ui.context import Refused
from studio.ui.tabs.chat import Handlers, sampling, seed_error
from studio.ui.tabs.chat_server import BASE, TUNED, Servers, finished_runs
from studio.ui.widgets.chatview import plain, prompt, shown
from studio.workspace import Workspace

FAKE = Path(__file__).resolve().parents[1] / "fake_chat.py"
SETTINGS = ("", 0.0, 64, "")
HOSTILE = "<img src=x onerror=alert(1)> & &lt; ![x](http://example.com/a.png) ${1} {{name}}"


def add_run(workspace: Workspace, name: str = "r", method: str = "qlora", **samples: Any) -> RunDir:
    layers = {"name": name, "method": method, "model_path": "crucible/ember", "dataset": "d", "samples": samples}
    run = workspace.create_run(build(RunConfig, layers))
    folder, file = (run.model, "config.json") if method == "full" else (run.adapter, "adapter_config.json")
    folder.mkdir()
    (folder / file).write_text("{}", encoding="utf-8")
    return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Choose how the stand-in behaves."""
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(FAKE)))

    def choose(**options: Any) -> None:
        monkeypatch.setenv("CRUCIBLE_FAKE_CHAT", json.dumps(options))

    choose()
    return choose


@pytest.fixture
def handlers(workspace: Workspace, fake: Callable[..., None]) -> Iterator[Handlers]:
    made = Handlers(context(workspace))
    yield made
    made.servers._stop()
    for thread in __import__("threading").enumerate():
        if thread.name.startswith("reap-"):
            thread.join(5)


async def everything(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def ask(handlers: Handlers, run: RunDir, text: str, *chats: list[Any]) -> list[list[Any]]:
    """Send a message and let both sides answer at once."""
    _, *asked = handlers.send(text, *(chats or ([], [])))
    streams = (handlers.answer(side)(chat, run.id, *SETTINGS) for side, chat in zip((BASE, TUNED), asked, strict=True))
    return [found[-1] for found in await asyncio.gather(*(everything(stream) for stream in streams))]


def test_both_sides_answer_from_one_server_and_keep_their_own_history(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace)

    async def talk() -> tuple[list[Any], list[Any]]:
        states = await everything(handlers.connect(run.id))
        assert states[0]["state"] == "loading"
        assert states[-1]["state"] == "ready"
        first = await ask(handlers, run, "one")
        second = await ask(handlers, run, "two", *first)
        return second[0], second[1]

    base, tuned = asyncio.run(talk())
    assert [m["content"].strip() for m in plain(base)] == [
        "one",
        "base turn 1 heard one",
        "two",
        "base turn 2 heard two",
    ]
    assert plain(tuned)[-1]["content"].strip() == "tuned turn 2 heard two"
    loaded = handlers.servers.current(run.id)
    assert loaded is not None
    assert len(loaded.servers()) == 1


def test_hostile_text_is_sent_as_typed_and_shown_inert(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace)

    async def talk() -> list[list[Any]]:
        await everything(handlers.connect(run.id))
        return await ask(handlers, run, HOSTILE)

    base, _ = asyncio.run(talk())
    assert all("<" not in message["content"] for message in base)
    assert plain(base)[0]["content"] == HOSTILE
    assert plain(base)[1]["content"].strip() == f"base turn 1 heard {HOSTILE}"


def test_shown_and_plain_are_inverse() -> None:
    said = [{"role": "user", "content": "&amp; <b> \"'\n&#39;"}, {"role": "assistant", "content": "😀"}]
    assert plain(shown(said)) == said
    parts = [{"role": "user", "content": [{"type": "text", "text": "a &lt;"}, {"type": "text", "text": " b"}]}]
    assert plain(parts) == [{"role": "user", "content": "a < b"}]


def test_prompt_has_the_system_prompt_and_skips_unanswered_questions() -> None:
    said = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", ""), ("user", "b"))]
    assert prompt(said, " be kind ") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "b"},
    ]


def test_killed_server_is_one_sentence_and_starts_again(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace)

    async def talk() -> None:
        await everything(handlers.connect(run.id))
        loaded = handlers.servers.current(run.id)
        assert loaded is not None
        loaded.servers()[0].process.kill()
        loaded.servers()[0].process.wait()
        with pytest.raises(Refused, match="Start again"):
            await ask(handlers, run, "anyone?")
        assert handlers.status(run.id)["state"] == "dead"
        assert (await everything(handlers.connect(run.id)))[-1]["state"] == "ready"
        assert "anyone" in (await ask(handlers, run, "anyone?"))[0][-1]["content"]

    asyncio.run(talk())


def test_server_that_dies_in_the_middle(handlers: Handlers, workspace: Workspace, fake: Callable[..., None]) -> None:
    fake(die_after=2)
    run = add_run(workspace)

    async def talk() -> None:
        await everything(handlers.connect(run.id))
        loaded = handlers.servers.current(run.id)
        assert loaded is not None
        with pytest.raises(Refused, match=r"Start again|broke off"):
            await everything(handlers.answer(BASE)(shown([{"role": "user", "content": "x"}]), run.id, *SETTINGS))
        await asyncio.to_thread(loaded.servers()[0].process.wait)
        assert handlers.status(run.id)["state"] == "dead"

    asyncio.run(talk())


def test_model_that_cannot_be_loaded_says_why(
    handlers: Handlers, workspace: Workspace, fake: Callable[..., None]
) -> None:
    fake(fail="model.safetensors is cut short; copy the model again.")
    run = add_run(workspace)
    last = asyncio.run(everything(handlers.connect(run.id)))[-1]
    assert last["state"] == "failed"
    assert "cut short" in last["message"]


def test_another_run_replaces_the_loaded_one(handlers: Handlers, workspace: Workspace) -> None:
    first, second = add_run(workspace, "a"), add_run(workspace, "b")

    async def talk() -> None:
        await everything(handlers.connect(first.id))
        old = handlers.servers.current(first.id)
        await everything(handlers.connect(second.id))
        assert old is not None
        assert not any(server.alive for server in old.servers())
        with pytest.raises(Refused):
            await ask(handlers, first, "still there?")

    asyncio.run(talk())


def test_fully_trained_model_gets_a_server_of_its_own(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace, method="full")

    async def talk() -> list[list[Any]]:
        await everything(handlers.connect(run.id))
        return await ask(handlers, run, "x")

    assert [plain(side)[-1]["content"].split(" ")[0] for side in asyncio.run(talk())] == ["base", "base"]
    loaded = handlers.servers.current(run.id)
    assert loaded is not None
    assert [server.base for server in loaded.servers()] == ["crucible/ember", str(run.model)]


def test_newest_finished_run_is_picked_and_the_selected_one_wins(handlers: Handlers, workspace: Workspace) -> None:
    assert handlers.opened("", None)[2] == {"empty": True}
    old, new = add_run(workspace, "old"), add_run(workspace, "zz")
    workspace.create_run(build(RunConfig, {"name": "zzz queued", "model_path": "m", "dataset": "d"}))
    assert [run.id for run in finished_runs(workspace)] == [new.id, old.id]
    assert handlers.opened("", None)[0]["value"] == new.id
    assert handlers.opened(old.id, None)[0]["value"] == old.id
    assert handlers.opened("gone", old.id)[0]["value"] == old.id


def test_chips_are_the_questions_of_the_run(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace, evaluation_inputs=["Who are you?", " ", "<b>?"])
    assert handlers.chosen(run.id)[0] == {"chips": ["Who are you?", "<b>?"]}
    sent = handlers.send_chip(SimpleNamespace(_data={"text": "<b>?"}), [], [])  # type: ignore[arg-type]
    assert plain(sent[1])[0]["content"] == "<b>?"


@pytest.mark.parametrize("run_id", [None, "", "../..", "nothing"])
def test_unknown_runs_are_refused(handlers: Handlers, run_id: str | None) -> None:
    with pytest.raises(Refused):
        handlers.chosen(run_id)


@pytest.mark.parametrize("text", ["", "  \n", "x" * 20_001])
def test_messages_that_cannot_be_sent(handlers: Handlers, text: str) -> None:
    with pytest.raises(Refused):
        handlers.send(text, [], [])


def test_seed() -> None:
    assert "seed" not in sampling(0, 64, "")
    assert sampling(0.5, 64, " 7 ") == {"temperature": 0.5, "max_tokens": 64, "seed": 7}
    for wrong in ("x", "-1", "1.5", "9" * 30, "²"):
        assert seed_error(wrong)
        with pytest.raises(Refused):
            sampling(0, 64, wrong)


def test_servers_know_nothing_of_a_run_that_was_never_loaded(workspace: Workspace) -> None:
    assert Servers(workspace).current("x") is None


def test_a_chat_that_made_room_for_a_run_says_so_and_comes_back_only_when_asked(
    handlers: Handlers, workspace: Workspace
) -> None:
    run = add_run(workspace)

    def states(connecting: Callable[[str], Any]) -> list[str]:
        return [status["state"] for status in asyncio.run(everything(connecting(run.id)))]

    assert states(handlers.connect)[-1] == "ready"
    assert len(chat_memory.release(workspace, "the-run")) == 1
    assert states(handlers.connect) == ["released"], "opening the tab does not take the memory back"
    with pytest.raises(Refused, match="a run needed their memory"):
        asyncio.run(handlers._ready(run.id))
    assert states(handlers.connect_again)[-1] == "ready"


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_best_step_answers_by_default_and_the_list_says_so(
    handlers: Handlers, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run = add_run(workspace, method=method)
    checkpoint, file = run.checkpoints / "checkpoint-40", "config.json" if method == "full" else "adapter_config.json"
    checkpoint.mkdir(parents=True)
    (checkpoint / file).write_text("{}", encoding="utf-8")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 40}', encoding="utf-8")
    started: list[tuple[str, dict[str, str]]] = []

    def start(_: Workspace, base: str, adapters: dict[str, str]) -> SimpleNamespace:
        started.append((base, adapters))
        return SimpleNamespace(alive=True, stop=lambda: None)

    monkeypatch.setattr(chat_server, "start_chat_server", start)

    def loaded() -> str:
        """Label of the run in the list, after its servers were started anew; `started` has their last call."""
        handlers.servers._stop()
        config = run.config()
        assert isinstance(config, RunConfig)
        handlers.servers.ensure(run, config)
        return str(handlers.opened("", None)[0]["choices"][0][0])

    tuned = str(run.model if method == "full" else run.adapter)
    assert "best step" not in loaded()
    assert tuned in (started[-1][0], started[-1][1].get(TUNED))
    run.best_file.write_text('{"step": 40, "path": "checkpoints/checkpoint-40", "why": ""}', encoding="utf-8")
    assert loaded().endswith("best step: 40")
    assert str(checkpoint) in (started[-1][0], started[-1][1].get(TUNED))
