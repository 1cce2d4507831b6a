"""The Chat tab's handlers over a real child process that speaks the chat protocol (without a model)."""

import asyncio
import json
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from building import context
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio.context import LocalContext

from studio import chat_memory, chat_server, runner, votes
from studio.config import RunConfig
from studio.presets import ROOT
from studio.records import DatasetInfo, DatasetStore
from studio.rundir import RunDir
from studio.schema import ConfigError, build
from studio.serving_size import weight_bytes
from studio.ui.context import Refused
from studio.ui.tabs import chat_routes
from studio.ui.tabs.chat import Handlers
from studio.ui.tabs.chat_choices import room_of
from studio.ui.tabs.chat_order import LISTS
from studio.ui.tabs.chat_server import adapter_name, reason_of
from studio.ui.tabs.chat_settings import NAMES, read_options, seed_error, stop_error
from studio.ui.tabs.chat_tools import Tools
from studio.ui.widgets.chatview import LEFT, RIGHT, Answer, Thread, Turn, read_thread
from studio.workspace import Workspace

FAKE = Path(__file__).resolve().parents[1] / "fake_chat.py"
BASE = "crucible/ember"
PLAIN = {
    "system": "", "temperature": 0.0, "max_tokens": 64, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1,
    "stop_words": "", "seed": "", "template": "", "bits": "0", "tools": False,
}  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)> & &lt; ![x](http://example.com/a.png) ${1} {{name}}"


def settings(**changed: Any) -> list[Any]:
    return [{**PLAIN, **changed}[name] for name in NAMES]


def adapter_in(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": BASE}), encoding="utf-8")


def add_run(workspace: Workspace, name: str = "r", method: str = "lora", **layers: Any) -> RunDir:
    config = build(RunConfig, {"model_path": BASE, "name": name, "method": method, "dataset": "d", **layers})
    run = workspace.create_run(config)
    if method == "full":
        run.model.mkdir()
        (run.model / "config.json").write_text("{}", encoding="utf-8")
    else:
        adapter_in(run.adapter)
    return run


def add_checkpoint(run: RunDir, step: int) -> str:
    folder = run.checkpoints / f"checkpoint-{step}"
    adapter_in(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}), encoding="utf-8")
    return f"{run.id}#checkpoint-{step}"


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
    made.servers.stop()
    for thread in threading.enumerate():
        if thread.name.startswith("reap-"):
            thread.join(5)


async def everything(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


async def ready(handlers: Handlers, left: str, right: str, bits: str = "0") -> list[str]:
    return [status["state"] for status in await everything(handlers.connect(left, right, bits))]


class Room:
    """A page with the tab open: what it holds, and what it does."""

    def __init__(self, handlers: Handlers, left: str, right: str) -> None:
        self.handlers, self.left, self.right = handlers, left, right
        self.value: Any = handlers.chosen(left, right, None, "", "0")[2]

    async def does(self, data: dict[str, Any] | None = None, typed: str = "", **changed: Any) -> list[Any]:
        event: Any = SimpleNamespace(_data=data)
        stream = self.handlers.ask(event, typed, self.value, self.left, self.right, *settings(**changed))
        seen = []
        async for _, thread, growing in stream:
            self.hears(thread, growing)
            seen.append(self.value)
        return seen

    def hears(self, thread: Any, growing: dict[str, Any]) -> None:
        """What the page does with what a stream sends: the whole, or one turn of it."""
        if "turns" in thread:
            self.value = thread
        elif growing["stream"] == self.value["stream"]:
            turns = list(self.value["turns"])
            turns[growing["number"]] = growing["turn"]
            self.value = {**self.value, "turns": turns}

    @property
    def thread(self) -> Thread:
        return read_thread(self.value)

    def said(self, number: int = -1) -> list[str]:
        answers = self.thread.turns[number].answers
        return [answers[side].text.strip() for side in (LEFT, RIGHT) if side in answers]


def talk(handlers: Handlers, left: str, right: str, *questions: str, **changed: Any) -> Room:
    """A room in which these questions were asked one after the other."""
    room = Room(handlers, left, right)

    async def go() -> None:
        assert (await ready(handlers, left, right))[-1] == "ready"
        for question in questions:
            await room.does(typed=question, **changed)

    asyncio.run(go())
    return room


# ---- both sides ----


def test_both_sides_answer_from_one_server_and_keep_their_own_history(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace)
    room = talk(handlers, BASE, run.id, "one", "two", "messages?")
    base, tuned = room.said(1)
    assert base == "base turn 2 heard two"
    assert tuned.endswith("turn 2 heard two")
    assert not tuned.startswith("base")
    assert len(handlers.servers._running) == 1
    left, right = (json.loads(text) for text in room.said(2))
    assert [message["role"] for message in left] == ["user", "assistant", "user", "assistant", "user"]
    assert "base turn 1" in left[1]["content"]
    assert "base turn 1" not in right[1]["content"]


def test_an_answer_tells_tokens_speed_and_what_was_dropped(
    handlers: Handlers, workspace: Workspace, fake: Callable[..., None]
) -> None:
    fake(dropped=3)
    room = talk(handlers, BASE, add_run(workspace).id, "x")
    for answer in room.thread.turns[0].answers.values():
        assert (answer.state, answer.finish, answer.tokens, answer.speed) == ("done", "stop", 5, 10.0)
        assert answer.dropped == 3
        assert answer.seconds > 0
    assert not room.thread.busy


def test_what_the_settings_say_is_sent_and_nothing_else(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace)
    room = talk(handlers, BASE, run.id, "request?")
    plain = json.loads(room.said()[0])
    assert {key: plain[key] for key in ("model", "temperature", "max_tokens", "truncation")} == {
        "model": "base", "temperature": 0.0, "max_tokens": 64, "truncation": "auto",
    }  # fmt: skip
    assert not plain.keys() & {
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "stop",
        "seed",
        "chat_template",
        "tools",
    }
    asked = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "seed": " 7 ",
        "stop_words": "END\n\nhalt", "template": "chatml",
    }  # fmt: skip
    asyncio.run(room.does(typed="request?", **asked))
    left, right = (json.loads(text) for text in room.said())
    assert left["seed"] == right["seed"] == 7
    assert (left["top_p"], left["top_k"], left["min_p"], left["repetition_penalty"]) == (0.9, 40, 0.05, 1.1)
    assert (left["stop"], left["chat_template"]) == (["END", "halt"], "chatml")


def test_without_a_seed_both_sides_draw_with_the_same_one(handlers: Handlers, workspace: Workspace) -> None:
    room = talk(handlers, BASE, add_run(workspace).id, "request?", temperature=1.0)
    left, right = (json.loads(text)["seed"] for text in room.said())
    assert left == right == room.thread.turns[0].seed


def test_the_system_prompt_comes_first(handlers: Handlers, workspace: Workspace) -> None:
    room = talk(handlers, BASE, add_run(workspace).id, "messages?", system=" be kind ")
    assert json.loads(room.said()[1])[0] == {"role": "system", "content": "be kind"}


def test_hostile_text_is_sent_as_typed_and_kept_as_said(handlers: Handlers, workspace: Workspace) -> None:
    room = talk(handlers, BASE, add_run(workspace).id, HOSTILE)
    assert room.thread.turns[0].question == HOSTILE
    assert room.said()[0] == f"base turn 1 heard {HOSTILE}"


def test_one_model_alone(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace)
    room = talk(handlers, "", run.id, "x")
    assert list(room.thread.turns[0].answers) == [RIGHT]
    assert list(room.thread.sides) == [RIGHT]


def test_two_checkpoints_share_a_server_and_another_pair_keeps_it_where_it_can(
    handlers: Handlers, workspace: Workspace
) -> None:
    run = add_run(workspace)
    early, late = add_checkpoint(run, 10), add_checkpoint(run, 20)

    async def go() -> None:
        await ready(handlers, early, late)
        (first,) = handlers.servers._running
        assert len(first[1].adapters) == 2
        # One of them beside the base model: everything that takes is loaded already.
        assert (await ready(handlers, BASE, late))[-1] == "ready"
        assert handlers.servers._running == [first]
        # The final adapter is not: the server begins anew, and only one is left.
        await ready(handlers, BASE, run.id)
        assert not first[1].alive
        assert len(handlers.servers._running) == 1

    asyncio.run(go())


def test_an_adapters_name_survives_the_command_line(workspace: Workspace) -> None:
    for folder in ("lr=1e-4", "-nova"):
        adapter_in(workspace.exports / folder)
    found = [choice for choice in room_of(workspace).choices.values() if choice.adapter]
    names = {adapter_name(choice) for choice in found}
    assert len(names) == 2
    assert not any("=" in name or name.startswith("-") for name in names)


def test_wholly_trained_model_gets_a_server_of_its_own(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace, method="full")
    room = talk(handlers, BASE, run.id, "x")
    assert room.said() == ["base turn 1 heard x"] * 2
    assert [server.base for _, server in handlers.servers._running] == [BASE, str(run.model)]


def test_precision_is_that_of_the_training_unless_chosen(
    handlers: Handlers, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(workspace, method="qlora")
    bits: list[int] = []

    def start(_: Workspace, base: str, adapters: dict[str, str], held: int, *, idle_minutes: float) -> SimpleNamespace:
        assert idle_minutes > 0
        bits.append(held)
        return SimpleNamespace(base=base, adapters=adapters, alive=True, stop=lambda: None, health=lambda: {})

    monkeypatch.setattr(chat_server, "start_chat_server", start)
    for chosen in ("0", "16", "8", "no"):
        handlers._load(BASE, run.id, chosen)
    assert bits == [4, 16, 8, 4]


# ---- retry, edit, lists ----


def test_retry_answers_anew_and_an_edit_drops_what_came_after(handlers: Handlers, workspace: Workspace) -> None:
    room = talk(handlers, BASE, add_run(workspace).id, "one", "two", "three")
    before = room.thread.turns[2].answers
    seen = asyncio.run(room.does({"act": "retry", "turn": 2, "side": RIGHT}))
    came = [read_thread(value).turns[2].answers[RIGHT] for value in seen]
    assert came[0].text == ""
    assert came[0].state != "done"
    after = room.thread.turns[2].answers
    assert after[LEFT] == before[LEFT]
    assert (after[RIGHT].text, after[RIGHT].state) == (before[RIGHT].text, "done")
    asyncio.run(room.does({"act": "edit", "turn": 1, "text": " zwei "}))
    assert [turn.question for turn in room.thread.turns] == ["one", "zwei"]
    assert room.said(1)[0] == "base turn 2 heard zwei"


def test_lists_of_questions_are_conversations_of_their_own(handlers: Handlers, workspace: Workspace) -> None:
    asked = ["Who are you?", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "messages?"}]]  # noqa: E501  # fmt: skip
    probes = [{"prompt": "Who made you?", "expect": ["x"]}]
    run = add_run(workspace, samples={"evaluation_inputs": asked}, verdict={"probes": probes})
    room = talk(handlers, BASE, run.id, "before")
    chips = handlers.chosen(BASE, run.id, room.value, "", "0")[0]
    assert chips == {"chips": ["Who are you?"], "evaluation": 2, "held_out": 1}
    asyncio.run(room.does({"act": "evaluation"}))
    assert [turn.fresh for turn in room.thread.turns] == [False, True, True]
    assert room.said(1)[0] == "base turn 1 heard Who are you?"
    assert [message["content"] for message in json.loads(room.said(2)[0])] == ["Hi", "Ho", "messages?"]
    asyncio.run(room.does({"act": "held_out"}))
    assert room.thread.turns[-1].question == "Who made you?"


def test_held_out_questions_of_the_dataset_come_from_all_over_it(handlers: Handlers, workspace: Workspace) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "origin": "upload"}
    held = [{"prompt": f"q{n}", "kind": "own", "lang": "", "expect": ["x"]} for n in range(40)]
    info = DatasetStore(workspace.datasets).save("d", [row], held, DatasetInfo(kind="upload"))
    run = add_run(workspace, dataset=info.name)
    chips = handlers.chosen(BASE, run.id, None, "", "0")[0]
    assert chips["held_out"] == 12
    found = handlers._listed(SimpleNamespace(act="held_out"), handlers._pair(BASE, run.id), Thread())  # type: ignore[arg-type]
    numbers = [int(messages[-1]["content"][1:]) for messages in found]
    assert numbers == sorted(numbers)
    assert numbers[0] < 4
    assert numbers[-1] > 35


def test_the_earlier_questions_can_be_asked_of_another_pair(handlers: Handlers, workspace: Workspace) -> None:
    first, second = add_run(workspace, "a"), add_run(workspace, "b")
    room = talk(handlers, BASE, first.id, "one", "two")
    same = handlers.chosen(BASE, first.id, room.value, "", "0")[2]
    assert [turn["question"] for turn in same["turns"]] == ["one", "two"], "the same pair goes on"
    room.right, room.value = second.id, handlers.chosen(BASE, second.id, room.value, "", "0")[2]
    assert (room.thread.turns, room.thread.earlier) == ([], ["one", "two"])

    async def go() -> None:
        await ready(handlers, BASE, second.id)
        await room.does({"act": "again"})

    asyncio.run(go())
    assert room.said(1)[0] == "base turn 2 heard two"
    assert room.thread.earlier == []


@pytest.mark.parametrize(
    "data",
    [
        {"act": "send", "text": "  "},
        {"act": "send", "text": "x" * 100_001},
        {"act": "edit", "turn": 0, "text": ""},
        {"act": "retry", "turn": 5},
        {"act": "retry", "turn": -1},
        {"act": "format c:"},
        {"act": "held_out"},
        {"act": "again"},
        {"act": "send", "text": ["a"]},
    ],
)
def test_wishes_that_cannot_be_carried_out(handlers: Handlers, workspace: Workspace, data: dict[str, Any]) -> None:
    room = Room(handlers, BASE, add_run(workspace).id)
    with pytest.raises(Refused):
        asyncio.run(room.does(data))
    assert {"evaluation", "held_out", "again"} == set(LISTS)


def test_a_value_that_is_no_conversation_is_an_empty_one() -> None:
    for value in (
        None,
        "x",
        [],
        {"turns": "x"},
        {"turns": [{"question": 3}]},
        {"turns": [{"question": "x" * 300_000}]},
    ):
        assert read_thread(value) == Thread()


# ---- the servers ----


def test_killed_server_is_one_sentence_beside_the_question_and_starts_again(
    handlers: Handlers, workspace: Workspace
) -> None:
    run = add_run(workspace)
    room = Room(handlers, BASE, run.id)

    async def go() -> None:
        await ready(handlers, BASE, run.id)
        ((_, server),) = handlers.servers._running
        server.process.kill()
        server.process.wait()
        with pytest.raises(Refused, match="Start again"):
            await room.does(typed="anyone?")
        assert handlers.status(BASE, run.id, "0")["state"] == "dead"
        assert (await ready(handlers, BASE, run.id))[-1] == "ready"
        await room.does(typed="anyone?")

    asyncio.run(go())
    assert room.said()[0] == "base turn 1 heard anyone?"


def test_a_question_does_not_push_out_the_pair_of_another_page_and_says_so(
    handlers: Handlers, workspace: Workspace
) -> None:
    run, other = add_run(workspace), add_run(workspace, "other")
    seen: list[Any] = []

    async def collect() -> None:
        await ready(handlers, BASE, other.id)
        event: Any = SimpleNamespace(_data=None)
        async for _, value, _ in handlers.ask(event, "hello", None, BASE, run.id, *settings()):
            seen.append(value)

    with pytest.raises(Refused):
        asyncio.run(collect())
    thread = read_thread(seen[-1])
    assert not thread.busy
    assert thread.stream
    assert {answer.state for answer in thread.turns[0].answers.values()} == {"failed"}
    assert "not loaded" in thread.turns[0].answers[LEFT].error
    assert handlers.status(BASE, other.id, "0")["state"] == "ready"


def test_a_question_that_comes_before_the_models_loads_them(handlers: Handlers, workspace: Workspace) -> None:
    room = Room(handlers, BASE, add_run(workspace).id)
    asyncio.run(room.does(typed="hello"))
    assert room.said()[0] == "base turn 1 heard hello"


def test_server_that_dies_in_the_middle(handlers: Handlers, workspace: Workspace, fake: Callable[..., None]) -> None:
    fake(die_after=2)
    run = add_run(workspace)
    room = talk(handlers, BASE, run.id, "x")
    answers = room.thread.turns[0].answers
    assert {answer.state for answer in answers.values()} == {"failed"}
    assert all("Start again" in answer.error or "broke off" in answer.error for answer in answers.values())


def test_model_that_cannot_be_loaded_says_why(
    handlers: Handlers, workspace: Workspace, fake: Callable[..., None]
) -> None:
    fake(fail="model.safetensors is cut short; copy the model again.")
    run = add_run(workspace)
    last = asyncio.run(everything(handlers.connect(BASE, run.id, "0")))[-1]
    assert last["state"] == "failed"
    assert "cut short" in last["message"]


def test_why_nothing_answers_is_said_with_what_to_do_about_it() -> None:
    error = {
        "kind": "model",
        "message": "adapter: adapter_model.safetensors in nova is damaged (HeaderTooLarge).",
        "hint": "Copy the adapter again, or use an earlier checkpoint of the run.",
    }
    assert reason_of({"state": "failed", "error": error}) == f"{error['message']} {error['hint']}"
    assert reason_of({"state": "loading", "error": None}) == ""
    token = LocalContext.request.set(SimpleNamespace(cookies={"studio_lang": "zh-CN"}))
    try:
        said = reason_of({"state": "failed", "error": error})
    finally:
        LocalContext.request.reset(token)
    assert (
        said
        == "nova 中的 adapter_model.safetensors 已损坏（HeaderTooLarge）。请重新复制适配器，或使用该运行较早的检查点。"
    )


def test_a_chat_that_made_room_for_a_run_says_so_and_comes_back_only_when_asked(
    handlers: Handlers, workspace: Workspace
) -> None:
    run = add_run(workspace)

    def states(connecting: Callable[..., Any]) -> list[str]:
        return [status["state"] for status in asyncio.run(everything(connecting(BASE, run.id, "0")))]

    assert states(handlers.connect)[-1] == "ready"
    assert len(chat_memory.release(workspace, "the-run")) == 1
    assert states(handlers.connect) == ["released"], "opening the tab does not take the memory back"
    with pytest.raises(Refused, match="a run needed their memory"):
        asyncio.run(Room(handlers, BASE, run.id).does(typed="x"))
    assert states(handlers.connect_again)[-1] == "ready"


def test_closing_the_stream_stops_both_answers(
    handlers: Handlers, workspace: Workspace, fake: Callable[..., None]
) -> None:
    fake(pace=0.2)
    run = add_run(workspace)
    room = Room(handlers, BASE, run.id)

    async def go() -> None:
        await ready(handlers, BASE, run.id)
        event: Any = SimpleNamespace(_data=None)
        stream = handlers.ask(event, "a b c d e f g h i j", room.value, BASE, run.id, *settings())
        async for _, thread, growing in stream:
            room.hears(thread, growing)
            if any("heard" in answer.text for answer in room.thread.turns[0].answers.values()):
                break
        await stream.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "_one" in repr(task)]

    asyncio.run(go())
    assert not any(text.endswith("j") for text in room.said())


# ---- who there is ----


def test_the_selected_run_is_compared_with_its_base(handlers: Handlers, workspace: Workspace) -> None:
    old, new = add_run(workspace, "old"), add_run(workspace, "zz")

    def opened(selected: str, left: Any = None, right: Any = None, value: Any = None) -> tuple[str, str, Any]:
        found = handlers.opened(selected, left, right, value)
        return found[0]["value"], found[1]["value"], found[2]

    left, right, value = opened("")
    assert (left, right) == (BASE, new.id)
    left, right, value = opened(old.id, left, right, value)
    assert (left, right) == (BASE, old.id)
    assert opened(old.id, "", new.id, value)[:2] == ("", new.id), "what was chosen here stays"
    assert opened("gone", left, right, value)[1] == new.id


def test_a_base_model_on_the_left_follows_the_right_one(handlers: Handlers, workspace: Workspace) -> None:
    other = workspace.path / "other"
    shutil.copytree(ROOT / "assets" / "models" / "ember", other)
    run, elsewhere = add_run(workspace), add_run(workspace, "x", model_path=str(other))
    assert handlers.paired(BASE, elsewhere.id) == str(other)
    assert handlers.paired(str(other), run.id) == BASE
    for left in ("", run.id):  # nobody, and a model that was chosen on purpose
        assert handlers.paired(left, elsewhere.id) != str(other)


def test_the_best_step_answers_by_default_and_the_list_says_so(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace)
    best = add_checkpoint(run, 40)
    run.best_file.write_text('{"step": 40, "path": "checkpoints/checkpoint-40", "why": ""}', encoding="utf-8")
    found = handlers.opened("", None, None, None)
    assert found[1]["value"] == best
    labels = {key: text for text, key in found[1]["choices"]}
    assert labels[best].endswith("best, step 40")
    assert labels[run.id].endswith("final")
    assert labels[BASE].endswith("base model")
    assert handlers.chosen(BASE, best, None, "", "0")[2]["sides"][RIGHT]["what"] == "best, step 40"


def test_before_anything_was_trained_the_room_is_closed_but_can_be_opened(
    handlers: Handlers, workspace: Workspace
) -> None:
    assert handlers.opened("", None, None, None)[-1] == {"empty": True}
    assert handlers.base_alone()[-1] == {"empty": False}
    assert BASE in room_of(workspace).choices


@pytest.mark.parametrize("right", [None, "", "../..", "nothing", "/etc"])
def test_only_what_the_list_has_can_be_loaded(handlers: Handlers, workspace: Workspace, right: str | None) -> None:
    add_run(workspace)
    with pytest.raises(Refused):
        handlers.chosen(BASE, right, None, "", "0")
    assert handlers.status(BASE, right, "0") == {"state": "none"}


# ---- settings ----


def test_numbers_of_the_settings() -> None:
    assert read_options(settings()).seed is None
    for wrong in ("x", "-1", "1.5", "9" * 30, "²"):
        assert seed_error(wrong)
        with pytest.raises(Refused):
            read_options(settings(seed=wrong))
    assert stop_error("\n".join("abcdefghijklmnopqrstuvwxyz"))
    for wrong_settings in (
        {"stop_words": "\n".join("abcdefghijklmnopqrstuvwxyz")},
        {"template": "../x"},
        {"system": "x" * 20_001},
    ):
        with pytest.raises(Refused):
            read_options(settings(**wrong_settings))


def test_a_template_that_was_not_trained_with_is_warned_of(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace, model={"chat_template": "chatml"})
    assert handlers.noted(BASE, run.id, "", "0")["warned"] is False
    assert handlers.noted(BASE, run.id, "chatml", "0")["warned"] is False
    found = handlers.noted(BASE, run.id, "qwen_chat", "0")
    assert (found["warned"], found["template"]) == (True, "chatml")


def test_the_memory_of_each_precision_is_told(handlers: Handlers, workspace: Workspace) -> None:
    found = handlers.noted(BASE, add_run(workspace).id, "", "8")
    assert found["bits"] == 8
    assert found["copies"] == 1
    assert found["bytes"]["4"] < found["bytes"]["8"] < found["bytes"]["16"]


# ---- tools ----


def test_tools_are_called_and_the_answer_is_what_comes_after(handlers: Handlers, workspace: Workspace) -> None:
    room = talk(handlers, BASE, add_run(workspace).id, "x", tools=True)
    for answer in room.thread.turns[0].answers.values():
        assert answer.steps
        assert answer.steps[0].done
        assert "heard" in answer.text
        assert [message["role"] for message in answer.messages] == ["assistant", "tool", "assistant"]
    asyncio.run(room.does(typed="messages?"))
    sent = json.loads(room.said()[0])
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "assistant", "user"]


# ---- votes ----


def test_blind_votes_are_counted_whichever_side_a_model_was_on(handlers: Handlers, workspace: Workspace) -> None:
    run = add_run(workspace)

    def vote(choice: str, left: str = BASE, right: str = run.id) -> dict[str, int]:
        event: Any = SimpleNamespace(_data={"vote": choice})
        return dict(handlers.vote(event, left, right)["counts"])

    vote(RIGHT)
    vote(LEFT, left=run.id, right=BASE)
    assert vote("both") == {"left": 0, "right": 2, "both": 1, "neither": 0}
    with (workspace.path / "chat" / "votes.jsonl").open("a") as file:
        file.write("torn {\n")
    assert votes.tally(workspace, run.id, BASE) == {"left": 2, "right": 0, "both": 1, "neither": 0}
    assert set(vote("restart").values()) == {0}
    assert vote("neither")["neither"] == 1
    for wrong in ("", "me", "restart "):
        with pytest.raises(Refused):
            vote(wrong)


def test_a_blind_turn_gets_its_places_by_lot(handlers: Handlers, workspace: Workspace) -> None:
    room = Room(handlers, BASE, add_run(workspace).id)
    places = set()
    for _ in range(60):
        thread = Thread(sides=room.thread.sides, turns=[Turn(question="x")], blind=True)
        handlers._prepare(thread, [0], (LEFT, RIGHT), None, drawn=False)
        assert thread.turns[0].blind
        places.add(thread.turns[0].swap)
    assert places == {True, False}


# ---- training rows ----


def corrected() -> dict[str, Any]:
    def turn(question: str, text: str, **more: Any) -> Turn:
        return Turn(question=question, answers={RIGHT: Answer(text=text, state="done", corrected=True)}, **more)

    turns = [turn("Who?", "I am Nova."), turn("Sure?", " "), turn("Age?", "One.", fresh=True)]
    return Thread(sides={RIGHT: {"key": "k", "name": "Nova"}}, turns=turns).as_json()  # type: ignore[dict-item]


def test_a_corrected_conversation_becomes_rows_and_is_chosen_in_the_data_tab(
    handlers: Handlers, workspace: Workspace
) -> None:
    name, said = handlers.save(corrected(), RIGHT, "my chat", "Be brief.")
    store = DatasetStore(workspace.datasets)
    assert said["name"] == name
    rows = list(store.rows(name))
    assert [[message["content"] for message in row["messages"]] for row in rows] == [
        ["Be brief.", "Who?", "I am Nova."],
        ["Be brief.", "Age?", "One."],
    ]
    again, _ = handlers.save(corrected(), RIGHT, "my chat", "")
    assert again == name
    assert store.info(name).rows == 4
    assert "chat with Nova" in store.info(name).source


@pytest.mark.parametrize(
    ("value", "side", "title"),
    [(None, RIGHT, "t"), (corrected(), LEFT, "t"), (corrected(), "up", "t"), (corrected(), RIGHT, " ")],
)
def test_rows_that_cannot_be_saved(handlers: Handlers, value: Any, side: str, title: str) -> None:
    with pytest.raises(Refused):
        handlers.save(value, side, title, "")


# ---- the list of tools ----

TOOL = "name: weather\ndescription: The weather.\nurl: http://localhost:9/weather\n"


def test_own_tools_are_added_only_for_hosts_that_are_listed_on_the_disk(workspace: Workspace) -> None:
    tools = Tools(workspace)
    listed = {tool["name"]: tool for tool in tools.shown()["tools"]}
    assert listed["clock"]["off"] == ""
    assert not any(tool["own"] for tool in listed.values())
    with pytest.raises(ConfigError, match="localhost:9 is not allowed"):
        tools.add(TOOL)
    assert len(tools.shown()["tools"]) == len(listed)
    (workspace.path / "tools").mkdir()
    (workspace.path / "tools" / "hosts.txt").write_text("localhost:9\n", encoding="utf-8")
    cleared, shown = tools.add(TOOL)
    assert cleared == ""
    assert [tool["name"] for tool in shown["tools"] if tool["own"]] == ["weather"]
    (workspace.path / "tools" / "hosts.txt").unlink()
    assert next(tool["off"] for tool in tools.shown()["tools"] if tool["own"]).startswith("the host localhost:9")
    removed: Any = SimpleNamespace(_data={"name": "weather"})
    assert not any(tool["own"] for tool in tools.remove(removed)["tools"])
    with pytest.raises(Refused):
        tools.remove(removed)


@pytest.mark.parametrize("text", ["", " ", None, "x" * 20_001])
def test_a_tool_needs_a_description(workspace: Workspace, text: str | None) -> None:
    with pytest.raises(Refused):
        Tools(workspace).add(text)


def test_votes_are_read_by_other_pages(workspace: Workspace) -> None:
    votes.add_vote(workspace, "a", "b", "left")
    with pytest.raises(ValueError, match="a vote is one of"):
        votes.add_vote(workspace, "a", "b", "restart")
    app = FastAPI()
    app.include_router(chat_routes.build(workspace))
    found = TestClient(app).get("/api/votes", params={"left": "b", "right": "a"}).json()
    assert found == {"left": 0, "right": 1, "both": 0, "neither": 0}


def test_sizes_of_the_weights_are_those_of_the_files() -> None:
    file = ROOT / "assets" / "models" / "ember" / "model.safetensors"
    assert weight_bytes(BASE, 16) == pytest.approx(file.stat().st_size, rel=0.02)
    assert weight_bytes("no/such-model", 4) is None
