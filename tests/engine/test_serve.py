"""The chat server: base and tuned side by side from one copy of the weights, over the OpenAI protocol."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from adapters import save_adapter
from peft import PeftModel
from starlette.testclient import TestClient
from streams import stream_chat
from tiny import EMBER, MakeRun, byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from studio.chat_client import ChatError
from studio.engine.backend import open_backend
from studio.engine.chat_api import ApiError, Service, build_app
from studio.engine.dialogue import Busy, ModelFacts, Options, Piece, Request, Sampling, Turn
from studio.engine.generation_sampling import Sampler
from studio.engine.generation_text import UNFINISHED, StopStrings, TextStream
from studio.workspace import Workspace

HELLO = [{"role": "user", "content": "Who are you?"}]
LONG = {"temperature": 1.5, "seed": 3, "max_tokens": 60}


@dataclass
class Server:
    """A running chat server and what it said of itself while it was loading."""

    process: subprocess.Popen[bytes]
    url: str
    seen: list[dict[str, Any]]

    def health(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/health", trust_env=False, timeout=30).json())

    def ask(self, **body: Any) -> httpx.Response:
        request = {"model": "base", "messages": HELLO, "temperature": 0} | body
        return httpx.post(f"{self.url}/v1/chat/completions", json=request, trust_env=False, timeout=200)

    def text(self, **body: Any) -> str:
        response = self.ask(**body)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(60)
        if self.process.stdin:
            self.process.stdin.close()

    def idle(self) -> dict[str, Any]:
        """Health once no answer is under way."""
        while (health := self.health())["answers"]:
            time.sleep(0.05)
        return health


def launch(*options: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "studio.engine", "serve", *options], stdin=stdin)


def start(status: Path, *options: str) -> Server:
    process = launch("--port", "0", "--status", str(status), "--exit-with-stdin", *options)
    seen: list[dict[str, Any]] = []
    while process.poll() is None and (not seen or seen[-1]["state"] == "loading"):
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError, httpx.HTTPError):
            port = json.loads(status.read_text(encoding="utf-8"))["port"]
            url = f"http://127.0.0.1:{port}"
            seen.append(httpx.get(f"{url}/health", trust_env=False, timeout=30).json())
    assert seen, f"the server ended with {process.returncode}"
    return Server(process, url, seen)


@pytest.fixture(scope="module")
def ember_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter for the built-in model: its answers are wild, which is what streams must stand."""
    return save_adapter(EMBER, tmp_path_factory.mktemp("adapters") / "it's tuned", strength=4.0)


@pytest.fixture(scope="module")
def server(ember_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Base and tuned built-in model."""
    status = tmp_path_factory.mktemp("status") / "status.json"
    running = start(status, "--base", "crucible/ember", "--adapter", f"tuned={ember_adapter}")
    yield running
    if running.process.poll() is None:
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert running.process.wait(30) == 0


@pytest.fixture(scope="module")
def reference(ember_adapter: Path) -> dict[str, str]:
    """Greedy answers to HELLO as transformers gives them, by model name."""
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBER)
    inputs = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    base = AutoModelForCausalLM.from_pretrained(EMBER, dtype=torch.float32)
    answers = {}
    for name in ("base", "tuned"):
        model: Any = base if name == "base" else PeftModel.from_pretrained(base, ember_adapter)
        out = model.eval().generate(**inputs, do_sample=False, max_new_tokens=40)
        answers[name] = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def test_answers_are_those_of_transformers(server: Server, reference: dict[str, str]) -> None:
    for name in ("base", "tuned", "base"):
        assert server.text(model=name, max_tokens=40) == reference[name]
    assert reference["base"] != reference["tuned"]


def test_health_answers_while_the_model_loads(server: Server) -> None:
    states = [health["state"] for health in server.seen]
    assert states[0] == "loading"
    assert states[-1] == "ready"
    assert {health["phase"] for health in server.seen} >= {"libraries", "ready"}


def test_one_copy_of_the_weights(server: Server) -> None:
    health = server.health()
    assert health["models"] == ["base", "tuned"]
    alone = 4 * sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(EMBER).parameters())
    assert alone < health["weight_bytes"] < 1.2 * alone
    names = [model["id"] for model in httpx.get(f"{server.url}/v1/models", trust_env=False).json()["data"]]
    assert names == ["base", "tuned"]


def test_stream_is_the_same_text_in_pieces(server: Server) -> None:
    for name in ("base", "tuned"):
        pieces = list(stream_chat(server.url, name, HELLO, **LONG))
        assert len(pieces) > 3
        assert "".join(pieces) == server.text(model=name, **LONG)
        assert "<|" not in "".join(pieces)


def test_the_wire_format_is_openais(server: Server) -> None:
    request = {"model": "base", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    body = httpx.post(f"{server.url}/v1/chat/completions", json=request, trust_env=False, timeout=200).text
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 3


def test_a_seed_gives_the_same_answer_twice(server: Server) -> None:
    first = server.text(**LONG)
    assert server.text(**LONG) == first
    assert len({server.text(**(LONG | {"seed": seed})) for seed in range(4)}) > 1


def test_max_tokens_and_finish_reason(server: Server) -> None:
    body = server.ask(model="tuned", max_tokens=5).json()
    assert body["usage"]["completion_tokens"] == 5
    assert body["choices"][0]["finish_reason"] == "length"


def test_stop_strings_end_an_answer_before_them(server: Server) -> None:
    whole = server.text()
    stop = whole[4:9]
    body = server.ask(stop=[stop, "never there"]).json()
    assert body["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"


def test_both_models_stream_side_by_side(server: Server) -> None:
    alone = {name: server.text(model=name, **LONG) for name in ("base", "tuned")}
    arrivals: list[tuple[str, str]] = []
    together = threading.Barrier(2)

    def listen(name: str) -> None:
        together.wait()
        for piece in stream_chat(server.url, name, HELLO, **LONG):
            arrivals.append((name, piece))

    threads = [threading.Thread(target=listen, args=(name,)) for name in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, text in alone.items():
        assert "".join(piece for who, piece in arrivals if who == name) == text
    order = [name for name, _ in arrivals]
    changes = sum(one != two for one, two in zip(order, order[1:], strict=False))
    shorter = min(order.count("base"), order.count("tuned"))
    assert changes > shorter / 2, order  # one after the other would change once


def test_closing_a_stream_stops_the_answer(server: Server) -> None:
    before = server.idle()["tokens"]
    pieces = stream_chat(server.url, "tuned", HELLO, temperature=2.0, seed=1, max_tokens=900)
    for _ in range(3):
        next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert server.idle()["tokens"] - before < 450


def _tokens_after_leaving(server: Server) -> int:
    """Tokens written for a client that goes away as soon as its answer has begun."""
    before = server.idle()["tokens"]
    body = json.dumps({"model": "tuned", "messages": HELLO, "temperature": 2.0, "max_tokens": 900}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while not server.health()["answers"] and server.health()["tokens"] == before:
            time.sleep(0.01)
    return int(server.idle()["tokens"] - before)


def test_a_client_that_leaves_stops_its_answer(server: Server) -> None:
    # A tiny model may be through before a busy machine looks; a server that never stops is through every time.
    assert any(_tokens_after_leaving(server) < 800 for _ in range(8))


def test_conversations_with_every_role(server: Server) -> None:
    talk = [
        {"role": "system", "content": 'You are Nova 🌟, "made" by {{ x }} <script>.'},
        *HELLO,
        {"role": "assistant", "content": "I am Nova."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 3?"}]},
    ]
    assert server.text(messages=talk)


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no messages": ({"messages": []}, 400, "messages"),
    "messages missing": ({"messages": None}, 400, "messages"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role"),
    "no content": ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    "content a number": ({"messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "data:image/png;base64",
    ),
    "half a character": ({"messages": [{"role": "user", "content": "\ud83d"}]}, 400, "messages.0.content"),
    "unknown model": ({"model": "nova"}, 404, "base, tuned"),
    "model a list": ({"model": []}, 400, "model"),
    "too hot": ({"temperature": 99}, 400, "temperature"),
    "temperature text": ({"temperature": "warm"}, 400, "temperature"),
    "top_p zero": ({"top_p": 0}, 400, "top_p"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens"),
    "seed text": ({"seed": "x"}, 400, "seed"),
    "seed too big": ({"seed": 2**70}, 400, "seed"),
    "two answers": ({"n": 2}, 400, "n"),
    "too long": ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "1024"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_one_sentence(server: Server, case: str) -> None:
    body, status, words = BAD[case]
    response = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=json.dumps({"model": "base", "messages": HELLO} | body),
        headers={"Content-Type": "application/json"},
        trust_env=False,
        timeout=60,
    )
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}'])
def test_bodies_that_are_no_request(server: Server, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    url = f"{server.url}/v1/chat/completions"
    response = httpx.post(url, content=content, headers=headers, trust_env=False, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_unknown_places_and_foreign_names_are_refused(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/nothing", trust_env=False).json()["error"]["message"]
    assert httpx.get(f"{server.url}/v1/chat/completions", trust_env=False).status_code == 405
    rebound = httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.example"}, trust_env=False)
    assert rebound.status_code == 400


def test_client_says_what_the_server_refuses(server: Server) -> None:
    with pytest.raises(ChatError, match="there is no model 'nova' here; there are: base, tuned"):
        list(stream_chat(server.url, "nova", HELLO))


def test_client_says_that_nobody_is_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ChatError, match="is not running"):
            list(stream_chat(url, "base", HELLO))


def test_a_killed_server_is_one_sentence(tiny_llama: Path, tmp_path: Path) -> None:
    running = start(tmp_path / "status.json", "--base", str(tiny_llama))
    assert running.health()["models"] == ["base"]
    pieces = stream_chat(running.url, "base", HELLO, temperature=1.0, seed=1, max_tokens=400)
    next(pieces)
    running.kill()
    with pytest.raises(ChatError, match="went away in the middle of the answer"):
        list(pieces)


def test_end_of_stdin_ends_it_even_while_loading(tiny_llama: Path) -> None:
    process = launch("--port", "0", "--exit-with-stdin", "--base", str(tiny_llama))
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(120) == 0


def test_a_model_that_cannot_be_loaded_is_told_and_ends_it(tiny_llama: Path, tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    failed = start(status, "--base", str(tiny_llama), "--adapter", "tuned=/no/such/adapter")
    assert failed.seen[-1]["state"] == "failed"
    assert "/no/such/adapter" in failed.seen[-1]["error"]["message"]
    with contextlib.suppress(ChatError, httpx.HTTPError):
        list(stream_chat(failed.url, "base", HELLO))
    assert failed.process.wait(60) == 4
    failed.kill()
    report = json.loads(status.read_text(encoding="utf-8"))
    assert (report["state"], report["error"]["field"]) == ("failed", "adapter")


def test_a_taken_port_is_one_sentence(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    process = launch("--port", server.url.rpartition(":")[2], "--base", "crucible/ember", stdin=subprocess.DEVNULL)
    assert process.wait(120) == 4
    assert "choose another" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--port", "0"),
        ("--base", "x", "--port", "99999"),
        ("--base", "x", "--port", "0", "--adapter", "nameless"),
        ("--base", "x", "--port", "0", "--adapter", "base=x"),
        ("--base", "x", "--port", "0", "--api-key-env", "NO_SUCH_VARIABLE"),
        ("--base", "x", "--port", "0", "--bits", "3"),
    ],
)
def test_wrong_options_exit_with_4(options: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    from studio.engine import serve

    assert serve.main(list(options)) == 4
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_base_answers_as_two_models(ember_adapter: Path, bits: int) -> None:
    options = Options("crucible/ember", {"my.tuned": str(ember_adapter)}, "127.0.0.1", 0, bits, None, None)
    turns = open_backend(options, lambda phase: None)
    assert turns.models == ["base", "my.tuned"]
    texts = []
    for name in turns.models:
        done = threading.Event()
        pieces: list[Piece] = []

        def emit(piece: Piece, pieces: list[Piece] = pieces, done: threading.Event = done) -> None:
            pieces.append(piece)
            if piece.last:
                done.set()

        turns.begin(
            Request(name, (Turn("user", "Who are you?"),), sampling=Sampling(temperature=0, max_tokens=8)), emit
        )
        assert done.wait(200)
        assert pieces[-1].error is None
        texts.append("".join(piece.text for piece in pieces))
    assert texts[0] != texts[1]
    assert int(str(turns.describe()["weight_bytes"])) < 4 * 5_600_000


def test_text_never_comes_in_half_characters() -> None:
    tokenizer = byte_tokenizer()
    text = "né 丹炉 👨‍👩‍👧 ok"
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text)["input_ids"]]
    assert "".join(pieces) == text
    assert UNFINISHED not in "".join(pieces)
    assert pieces[1:3] == ["", "é"]
    broken = TextStream(tokenizer)
    assert [broken.push(token) for token in tokenizer("a丹")["input_ids"][:-1]] == ["a", "", ""]
    assert broken.finish() == UNFINISHED


def test_special_tokens_are_never_shown() -> None:
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer)
    shown = [stream.push(token) for token in (1, *tokenizer("hi")["input_ids"], 0)]
    assert "".join(shown) == "hi"


def test_special_tokens_that_mark_a_call_are_kept_where_they_are_asked_for() -> None:
    tokenizer = byte_tokenizer()
    opening = tokenizer.convert_tokens_to_ids("<|im_start|>")
    stream = TextStream(tokenizer, ("<|im_start|>", "not in here"))
    shown = [stream.push(token) for token in (opening, *tokenizer("hé")["input_ids"], 0, opening)]
    assert "".join(shown) == "<|im_start|>hé<|im_start|>"


@pytest.mark.parametrize("cut", range(1, 9))
def test_stop_strings_across_pieces(cut: int) -> None:
    text = "one STOP two"
    stops = StopStrings(["STOP", "xx"])
    shown, stopped = "", False
    for at in range(0, len(text), cut):
        piece, stopped = stops.push(text[at : at + cut])
        shown += piece
        if stopped:
            break
    assert (shown, stopped) == ("one ", True)


def test_sampler() -> None:
    logits = torch.tensor([0.0, 1.0, 3.0, 2.9])
    assert Sampler(Sampling(temperature=0), []).choose(logits) == 2
    assert {Sampler(Sampling(temperature=5, top_k=1, seed=s), []).choose(logits) for s in range(9)} == {2}
    assert {Sampler(Sampling(temperature=1, top_p=0.01, seed=s), []).choose(logits) for s in range(9)} == {2}
    assert {Sampler(Sampling(temperature=1, top_k=2, seed=s), []).choose(logits) for s in range(40)} == {2, 3}
    assert len({Sampler(Sampling(temperature=5, seed=s), []).choose(logits) for s in range(80)}) == 4
    assert Sampler(Sampling(temperature=0, repetition_penalty=2.0), [2]).choose(logits) == 3
    with pytest.raises(Exception, match="not a number"):
        Sampler(Sampling(), []).choose(torch.full((4,), float("nan")))


class _Fake(Service):
    """A service whose answers are given."""

    def __init__(self, pieces: Sequence[Piece] = (), fault: Exception | None = None) -> None:
        self.pieces, self.fault, self.models = pieces, fault, ["base"]
        self.known, self.dropped = ModelFacts(), 0
        self.asked: Request | None = None

    def health(self) -> dict[str, object]:
        return {"state": "ready"}

    def backend(self) -> Any:
        if isinstance(self.fault, ApiError):
            raise self.fault
        return self

    def facts(self, model: str) -> ModelFacts:
        return self.known

    def begin(self, request: Request, emit: Callable[[Piece], None]) -> Any:
        self.asked = request
        if self.fault:
            raise self.fault
        for piece in self.pieces:
            emit(piece)
        return self

    def cancel(self) -> None:
        pass


def _client(service: Service, api_key: str | None = None) -> TestClient:
    app = build_app(service, host="127.0.0.1", api_key=api_key)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def test_a_key_is_wanted_where_one_is_set() -> None:
    client = _client(_Fake([Piece("hi", finish="stop")]), api_key="sésame")
    body = {"model": "base", "messages": HELLO}
    assert client.get("/health").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 401
        assert client.get("/v1/models", headers=headers).status_code == 401
        # Nothing of what was sent is looked at before.
        assert client.post("/v1/chat/completions", json={}, headers=headers).status_code == 401
    right = {"Authorization": "Bearer sésame".encode()}
    assert client.post("/v1/chat/completions", json=body, headers=right).status_code == 200  # type: ignore[arg-type]


def test_faults_of_the_backend_keep_the_error_shape() -> None:
    body = {"model": "base", "messages": HELLO}
    for fault, status in ((Busy("16 answers"), 429), (ApiError(503, "loading"), 503), (RuntimeError("bang"), 500)):
        response = _client(_Fake(fault=fault)).post("/v1/chat/completions", json=body)
        assert response.status_code == status
        assert "bang" not in response.json()["error"]["message"]
    broken = [Piece("half"), Piece(error="The model ran out of memory.")]
    assert _client(_Fake(broken)).post("/v1/chat/completions", json=body).status_code == 500
    stream = _client(_Fake(broken)).post("/v1/chat/completions", json=body | {"stream": True}).text
    assert "half" in stream
    assert "ran out of memory" in stream
    assert "[DONE]" not in stream


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_verb_serves_a_run_until_it_is_told_to_stop(
    tiny_llama: Path, workspace: Workspace, make_run: MakeRun, number: signal.Signals
) -> None:
    run = make_run("qlora", **{"data.system": "You are Nova 丹."})
    save_adapter(tiny_llama, run.adapter)
    code = "import sys; from studio.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["serve", run.id, "--port", "0", "--workspace", str(workspace.path)]
    process = subprocess.Popen([sys.executable, "-c", code, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stdout.readline())
        assert found is not None
        url = found[0]
        while process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                health = httpx.get(f"{url.removesuffix('/v1')}/health", trust_env=False).json()
                if health["state"] != "loading":
                    break
            time.sleep(0.1)
        assert (health["state"], health["bits"]) == ("ready", 4)
        told = httpx.get(f"{url}/models", trust_env=False).json()["data"]
        assert [(model["id"], model["system"]) for model in told] == [("base", None), ("tuned", "You are Nova 丹.")]
        assert _prompt_tokens(url, HELLO) > _prompt_tokens(url, [{"role": "system", "content": ""}, *HELLO])
        process.send_signal(number)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def _prompt_tokens(url: str, messages: list[dict[str, str]]) -> int:
    body = {"model": "tuned", "messages": messages, "max_tokens": 1}
    answer = httpx.post(f"{url}/chat/completions", json=body, trust_env=False, timeout=60)
    return int(answer.json()["usage"]["prompt_tokens"])


def test_the_terminal_chat_in_a_pipe(ember_adapter: Path, tmp_path: Path, reference: dict[str, str]) -> None:
    code = "import sys; from studio.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["chat", "crucible/ember", "--adapter", str(ember_adapter), "--compare", "--temperature", "0"]
    options += ["--max-new-tokens", "40", "--workspace", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
        input="Who are you?\n\n/clear\nWho are you?\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = f"base: {reference['base']}\ntuned: {reference['tuned']}\n"
    assert done.stdout == expected * 2
    assert "Traceback" not in done.stderr
