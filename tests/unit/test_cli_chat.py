"""The terminal chat over a server that plays a model: options, commands, tools, stopping; and the verb tools."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.cli import build_parser, chat, main
from studio.cli.questions import questions
from studio.cli.talk import Manner, Talk
from studio.schema import ConfigError
from studio.tool_calls import Call
from studio.tools import own, search
from studio.tools.calculator import calculator
from studio.workspace import Workspace
from tests.scripted_model import FOR_EVER, ScriptedModel


class Served:
    """What a Talk knows of its chat server."""

    def __init__(self, model: ScriptedModel) -> None:
        self.base_url = model.url
        self.alive = True
        self.state: dict[str, Any] = {"state": "ready"}

    def health(self) -> dict[str, Any]:
        return self.state


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    server = ScriptedModel()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def talk(model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """talk(lines, answers) -> exit code; what was asked is in `model.asked`."""

    def hold(lines: str, *answers: Any, names: tuple[str, ...] = ("tuned",), system: str = "", **manner: Any) -> int:
        model.lines = list(answers)
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        served: Any = manner.pop("served", Served(model))
        made = Manner(**({"options": {"temperature": 0}} | manner))
        return Talk(served, list(names), system, made, tmp_path / "history.txt").hold()

    return hold


def asked(model: ScriptedModel) -> list[list[tuple[str, str]]]:
    return [[(message["role"], message["content"]) for message in body["messages"]] for _, body in model.asked]


def test_a_conversation_goes_on_and_starts_over(
    talk: Any, model: ScriptedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "Hi\nAnd?\nRESET\nHi again\n/system Be brief.\nHello\nEXIT\nnever asked\n"
    assert talk(lines, "One.", "Two.", "Three.", "Four.", system="Be kind.") == 0
    assert capsys.readouterr().out == "One.\nTwo.\nThree.\nFour.\n"
    kind, brief = ("system", "Be kind."), ("system", "Be brief.")
    assert asked(model) == [
        [kind, ("user", "Hi")],
        [kind, ("user", "Hi"), ("assistant", "One."), ("user", "And?")],
        [kind, ("user", "Hi again")],
        [brief, ("user", "Hello")],
    ]


def test_retry_and_undo_take_the_last_question_back(talk: Any, model: ScriptedModel) -> None:
    assert talk("Hi\n/retry\nMore\n/undo\nLast\n", "One.", "Two.", "Three.", "Four.") == 0
    assert asked(model) == [
        [("user", "Hi")],
        [("user", "Hi")],
        [("user", "Hi"), ("assistant", "Two."), ("user", "More")],
        [("user", "Hi"), ("assistant", "Two."), ("user", "Last")],
    ]


def test_settings_change_on_the_way(talk: Any, model: ScriptedModel, capsys: pytest.CaptureFixture[str]) -> None:
    talk("/set temperature 1.5\n/set max-new-tokens=7\na\n/set temperature\n/set top_p x\n/set size 3\nb\n", "A", "B")
    first, second = [body for _, body in model.asked]
    assert (first["temperature"], first["max_tokens"]) == (1.5, 7)
    assert "temperature" not in second
    told = capsys.readouterr().err
    assert "'x' is no number for top_p" in told
    assert "there is no setting 'size'" in told


def test_unknown_commands_are_no_questions(talk: Any, model: ScriptedModel, capsys: pytest.CaptureFixture[str]) -> None:
    talk("/bogus\n//etc is a folder?\n/retry\n/undo\n/undo\n", "Yes.", "Yes.")
    assert asked(model) == [[("user", "/etc is a folder?")]] * 2
    told = capsys.readouterr().err
    assert "there is no command /bogus" in told
    assert "there is no question yet" in told


@pytest.mark.parametrize("streams", [True, False])
def test_calls_and_results_are_seen_beside_the_answer(
    talk: Any, model: ScriptedModel, capsys: pytest.CaptureFixture[str], streams: bool
) -> None:
    call = Call("calculate", '{"expression": "1/0"}')
    good = Call("calculate", '{"expression": "12*12"}')
    assert talk("12*12?\n", [call], [good], "144.", tools=[calculator()], streams=streams) == 0
    said = capsys.readouterr()
    assert said.out == "144.\n"
    assert said.err.splitlines() == [
        '[calculate {"expression": "1/0"}]',
        "[it refuses: calculate: this divides by zero]",
        '[calculate {"expression": "12*12"}]',
        "[→ 144]",
    ]


def test_two_models_answer_with_their_names(
    talk: Any, model: ScriptedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk("Hi\nMore\n", "B1", "T1", "B2", "T2", names=("base", "tuned")) == 0
    assert capsys.readouterr().out == "base: B1\ntuned: T1\nbase: B2\ntuned: T2\n"
    assert [body["model"] for _, body in model.asked] == ["base", "tuned"] * 2
    assert asked(model)[3][1] == ("assistant", "T1"), "each keeps its own history"


def test_the_conversation_can_be_saved_once(talk: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = tmp_path / "talk.json", tmp_path / "talk.md"
    talk(f"Hi\n/save {file}\n/save {file}\n/save {other}\n/save x.pdf\n", "Hello.", system="S")
    row = json.loads(file.read_text(encoding="utf-8"))
    assert [message["content"] for message in row["messages"]] == ["S", "Hi", "Hello."]
    assert (
        other.read_text(encoding="utf-8") == "# tuned\n\n**system**\n\nS\n\n**user**\n\nHi\n\n**assistant**\n\nHello.\n"
    )
    told = capsys.readouterr().err
    assert "cannot be written (File exists)" in told
    assert "ends with .json or .md" in told


def test_a_question_the_server_refuses_is_told_and_the_next_one_asked(
    talk: Any, model: ScriptedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk("Hi\nMore\n", 400, "Fine.") == 4, "in a pipe nobody can ask again"
    said = capsys.readouterr()
    assert "error: tools: no place for them" in said.err
    assert said.out == "Fine.\n"
    assert asked(model)[1] == [("user", "More")], "what was not answered is not part of the conversation"


def test_a_chat_that_made_room_for_a_run_ends(
    talk: Any, model: ScriptedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Served(model)
    served.state = {"state": "released", "run": "r1"}
    assert talk("Hi\nMore\n", 503, served=served) == 5
    assert "run r1 needed its memory" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_not_the_program(model: ScriptedModel, tmp_path: Path) -> None:
    model.lines = [FOR_EVER, "Second."]
    program = f"""
import signal, sys
from types import SimpleNamespace
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from studio.cli.talk import Manner, Talk
server = SimpleNamespace(base_url={model.url!r}, alive=True, health=lambda: {{"state": "ready"}})
sys.exit(Talk(server, ["tuned"], "", Manner({{}}), Path({str(tmp_path / "h")!r})).hold())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write("First?\n")
    process.stdin.flush()
    assert process.stdout.read(20).startswith("la la"), "the answer is under way"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate("Second?\n", timeout=300)
    assert process.returncode == 0
    assert out.endswith(" [stopped]\nSecond.\n")
    assert "Traceback" not in err
    assert model.gone.wait(60), "the server was told"
    roles = [message["role"] for message in model.asked[1][1]["messages"]]
    assert roles == ["user", "assistant", "user"], "what was said until then is part of the conversation"


def test_a_typed_line_goes_on_behind_a_backslash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = iter(["one \\", "two", "", "three"])
    prompts: list[str] = []

    def typed(prompt: str = "") -> str:
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("builtins.input", typed)
    past = tmp_path / "chat" / "history.txt"
    assert list(questions(past)) == ["one \ntwo", "three"]
    assert prompts[:3] == ["You: ", "…  ", "You: "]
    assert past.stat().st_mode & 0o077 == 0, "what was asked is nobody else's business"


# ---- options ---------------------------------------------------------------------------------------------------------


def test_the_notes_options_have_their_names() -> None:
    line = """chat M --adapter A --bits 4 --prompt-template internlm2_chat --system S --temperature 0.1 --top-k 40
        --top-p 0.75 --repetition-penalty 1.1 --seed 0 --max-new-tokens 2048 --stop-words <eoc> <eom> --bot-name BOT
        --no-streamer --with-plugins calculate solve search"""
    given = build_parser().parse_args(line.split())
    assert chat._options(given) == {
        "temperature": 0.1, "top_k": 40, "top_p": 0.75, "min_p": None, "repetition_penalty": 1.1, "seed": 0,
        "max_tokens": 2048, "stop": ["<eoc>", "<eom>"], "chat_template": "internlm2_chat", "truncation": "auto",
    }  # fmt: skip
    assert (given.bits, given.bot_name, given.no_streamer) == (4, "BOT", True)
    assert given.with_plugins == ["calculate", "solve", "search"]


def test_older_spellings_of_the_notes_are_understood() -> None:
    given = build_parser().parse_args(["chat", "M", "--command-stop-word", "<eoc>", "--answer-stop-word", "<eom>"])
    assert chat._options(given)["stop"] == ["<eoc>", "<eom>"]
    assert chat._options(build_parser().parse_args(["chat", "M"]))["stop"] is None, "none is left from another call"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--prompt-template", "internlm2chat"), "Did you mean 'internlm2_chat'?"),
        (("--system-template", "coders"), "did you mean coder?"),
        (("--with-plugins", "calc"), "there is no tool 'calc'; there are calculate, solve, clock, search"),
        (("--with-plugins", "search"), search.KEY),
    ],
)
def test_wrong_options_are_told_before_a_model_is_loaded(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: Any, reason: str
) -> None:
    monkeypatch.delenv(search.KEY, raising=False)
    assert main(["chat", "crucible/ember", *options, "--workspace", str(workspace.path)]) == 4
    said = capsys.readouterr()
    assert reason in said.err
    assert "loading" not in said.err


def test_plugins_without_a_name_are_all_that_can_be_used(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(search.KEY, raising=False)
    assert chat.chosen_tools(workspace, None) == []
    assert [tool.name for tool in chat.chosen_tools(workspace, [])] == ["calculate", "solve", "clock"]
    assert [tool.name for tool in chat.chosen_tools(workspace, ["clock", "clock"])] == ["clock"]
    with pytest.raises(ConfigError):
        chat.chosen_tools(workspace, ["search"])


def test_own_tools_on_the_command_line(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--workspace", str(workspace.path)]
    file = tmp_path / "dice.yaml"
    file.write_text("name: dice\ndescription: Rolls.\nurl: http://127.0.0.1:9/roll\n", encoding="utf-8")
    assert main(["tools", "add", str(file), *place]) == 4
    assert "127.0.0.1:9 is not allowed; write it as a line into tools/hosts.txt" in capsys.readouterr().err
    own.folder_of(workspace).mkdir()
    (own.folder_of(workspace) / own.HOSTS).write_text("127.0.0.1:9\n", encoding="utf-8")
    assert main(["tools", "add", str(file), *place]) == 0
    assert main(["tools", "list", *place]) == 0
    assert "dice            Rolls." in capsys.readouterr().out
    assert main(["tools", "list", "--json", *place]) == 0
    found = {tool["function"]["name"]: tool for tool in json.loads(capsys.readouterr().out)}
    assert found["dice"]["own"]
    assert found["search"]["obstacle"]
    assert main(["tools", "remove", "dice", *place]) == 0
    assert main(["tools", "remove", "dice", *place]) == 4
    assert main(["tools", "add", str(tmp_path / "none.yaml"), *place]) == 4
    assert "does not exist" in capsys.readouterr().err
