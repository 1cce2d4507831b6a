"""The chat server's protocol, asked with OpenAI's own Python client over a socket."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from adapters import save_adapter
from openai import OpenAI
from PIL import Image
from streams import stream_events
from transformers import AutoModelForCausalLM, AutoTokenizer

from studio.engine.backend import open_backend
from studio.engine.chat_api import Service, build_app
from studio.engine.dialogue import (
    Backend,
    ModelFacts,
    Options,
    Piece,
    Request,
    TokenChance,
    Turn,
    Unavailable,
    UnknownModel,
)
from studio.presets import ROOT
from studio.records.template_names import named_template

HELLO: list[Any] = [{"role": "user", "content": "Who are you?"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "description": "What time it is."}}
PATTERNS = [pattern for pattern, _ in json.loads((ROOT / "assets/i18n/sentences.zh.json").read_text(encoding="utf-8"))]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


class Ready(Service):
    """A server process whose model is loaded."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def health(self) -> dict[str, object]:
        return {"state": "ready", **self._backend.describe()}

    def backend(self) -> Backend:
        return self._backend


class Scripted:
    """A backend that says what it is told to, and remembers what it was asked."""

    def __init__(self, *texts: str, facts: ModelFacts | None = None, endless: bool = False) -> None:
        self.pieces = [Piece(text, chances=(TokenChance(text, -0.5, ((text, -0.5), ("x", -1.5))),)) for text in texts]
        self.known = facts or ModelFacts(named_template("chatml").source, context_length=100)
        self.endless, self.dropped = endless, 3
        self.models = ["base"]
        self.asked: list[Request] = []
        self.cancelled = threading.Event()
        self.emitted = 0

    def facts(self, model: str) -> ModelFacts:
        if model not in self.models:
            raise UnknownModel(f"there is no model {model!r} here; there are: base")
        return self.known

    def describe(self) -> dict[str, object]:
        return {}

    def close(self) -> None:
        pass

    def cancel(self) -> None:
        self.cancelled.set()

    def begin(self, request: Request, emit: Callable[[Piece], None]) -> Any:
        self.asked.append(request)
        for piece in self.pieces:
            emit(piece)
        if not self.endless:
            emit(Piece(finish="stop", prompt_tokens=7, completion_tokens=len(self.pieces)))
        return self


@contextlib.contextmanager
def listening(backend: Any) -> Iterator[str]:
    """The address of a server over `backend`."""
    app = build_app(Ready(backend), host="127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def client_of(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False, timeout=120))


@contextlib.contextmanager
def talking_to(backend: Any) -> Iterator[OpenAI]:
    with listening(backend) as url, client_of(url) as client:
        yield client


@pytest.fixture(scope="module")
def url(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny model and an adapter for it, served."""
    adapter = save_adapter(tiny_llama, tmp_path_factory.mktemp("adapters") / "adapter", strength=4.0)
    options = Options(str(tiny_llama), {"tuned": str(adapter)}, "127.0.0.1", 0, 32, None, None)
    backend = open_backend(options, lambda phase: None)
    with listening(backend) as address:
        yield address
    backend.close()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with client_of(url) as found:
        yield found


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["base", "tuned"]
    one: Any = client.models.retrieve("tuned")
    assert (one.id, one.context_length, one.tools, one.images) == ("tuned", 512, True, False)
    with pytest.raises(openai.NotFoundError, match="there is no model 'nova' here; there are: base, tuned"):
        client.models.retrieve("nova")


def test_a_conversation_whole_and_streamed(client: OpenAI) -> None:
    answers = set()
    for model in ("base", "tuned"):
        wishes: Any = {"model": model, "messages": HELLO, "temperature": 1.0, "seed": 5, "max_tokens": 24}
        whole = client.chat.completions.create(**wishes)
        chunks = list(client.chat.completions.create(**wishes, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert whole.choices[0].message.content == text
        assert whole.usage is not None
        assert chunks[-1].usage == whole.usage
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        timings: Any = chunks[-1]
        assert timings.timings["prompt_ms"] > 0
        answers.add(text)
    assert len(answers) == 2


def test_logprobs_are_those_of_the_model(client: OpenAI, tiny_llama: Path) -> None:
    wishes: Any = {"model": "base", "messages": HELLO, "temperature": 0, "max_tokens": 6}
    choice = client.chat.completions.create(**wishes, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs is not None
    told = choice.logprobs.content or []
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    inputs = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(tiny_llama)(**inputs).logits[0, -1].log_softmax(-1)
    assert told[0].logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert [one.logprob for one in told[0].top_logprobs] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
    assert told[0].token == told[0].top_logprobs[0].token
    streamed = client.chat.completions.create(**wishes, logprobs=True, top_logprobs=3, stream=True)
    pieces = [c.choices[0].logprobs.content or [] for c in streamed if c.choices[0].logprobs]
    again = [one.logprob for piece in pieces for one in piece]
    assert again == pytest.approx([one.logprob for one in told])
    assert client.chat.completions.create(**wishes).choices[0].logprobs is None


def test_a_plain_text_goes_on_as_transformers_has_it(client: OpenAI, tiny_llama: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    inputs = tokenizer("Once upon", return_tensors="pt")
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    expected = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    wishes: Any = {"model": "base", "prompt": "Once upon", "temperature": 0, "max_tokens": 12}
    whole = client.completions.create(**wishes, logprobs=2)
    assert whole.choices[0].text == expected
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == inputs["input_ids"].shape[1]
    told = whole.choices[0].logprobs
    assert told is not None
    assert len(told.tokens or []) == len(told.token_logprobs or []) == len(told.text_offset or []) > 0
    assert all(logprob <= 0 for logprob in told.token_logprobs or [])
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**wishes, stream=True))
    assert streamed == expected


def test_min_p_of_one_takes_the_likeliest(client: OpenAI) -> None:
    def answer(**more: Any) -> str:
        given = client.chat.completions.create(model="base", messages=HELLO, max_tokens=12, seed=3, **more)
        return given.choices[0].message.content or ""

    greedy = answer(temperature=0)
    assert answer(temperature=3, extra_body={"min_p": 1.0}) == greedy
    assert answer(temperature=3, extra_body={"top_k": 1}) == greedy
    assert answer(temperature=3) != greedy


def test_a_long_conversation_is_refused_or_visibly_cut(client: OpenAI) -> None:
    talk: list[Any] = [{"role": "system", "content": "Short."}]
    for number in range(20):
        talk += [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "Yes."}]
    talk += HELLO
    wishes: Any = {"model": "base", "messages": talk, "max_tokens": 8, "temperature": 0}
    with pytest.raises(openai.BadRequestError, match="tokens long and this model reads at most 512") as caught:
        client.chat.completions.create(**wishes)
    assert in_chinese(caught.value)
    cut: Any = client.chat.completions.create(**wishes, extra_body={"truncation": "auto"})
    assert 0 < cut.dropped_messages < 40
    assert cut.dropped_messages % 2 == 0
    assert cut.usage.total_tokens <= 512
    kept = [talk[0], *talk[1 + cut.dropped_messages :]]
    short: Any = client.chat.completions.create(**wishes | {"messages": kept})
    assert (short.dropped_messages, short.choices[0].message) == (0, cut.choices[0].message)
    first: Any = next(iter(client.chat.completions.create(**wishes, stream=True, extra_body={"truncation": "auto"})))
    assert first.dropped_messages == cut.dropped_messages


def test_a_template_by_name_and_its_variables(client: OpenAI) -> None:
    def tokens(**more: Any) -> int:
        given = client.chat.completions.create(model="base", messages=HELLO, max_tokens=1, extra_body=more)
        assert given.usage is not None
        return given.usage.prompt_tokens

    assert tokens(chat_template="chatml") == tokens()
    assert tokens(chat_template="vicuna") != tokens()
    assert tokens(chat_template_kwargs={"enable_thinking": False}) == tokens()
    with pytest.raises(openai.BadRequestError, match=r"chat_template: .*nothing-like-it") as caught:
        tokens(chat_template="nothing-like-it")
    assert in_chinese(caught.value)
    with pytest.raises(openai.BadRequestError, match="chat_template_kwargs: messages cannot be set this way"):
        tokens(chat_template_kwargs={"messages": []})


def test_tools_and_their_results_reach_the_template(client: OpenAI) -> None:
    def tokens(messages: Any, **more: Any) -> int:
        given = client.chat.completions.create(model="base", messages=messages, max_tokens=1, **more)
        assert given.usage is not None
        return given.usage.prompt_tokens

    bare = tokens(HELLO)
    assert tokens(HELLO, tools=[CLOCK]) > bare + 100
    assert tokens(HELLO, tools=[CLOCK], tool_choice="none") == bare
    call = {"id": "a1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    talk = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a1", "content": "noon"},
    ]
    assert tokens(talk) > bare + 40


@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_calls_of_tools_come_as_calls(cut: int) -> None:
    said = f"Let me see.\n{CALL}\n{CALL.replace('Bern', 'Basel')}"
    backend = Scripted(*[said[at : at + cut] for at in range(0, len(said), cut)])
    wishes: Any = {"model": "base", "messages": HELLO, "tools": [WEATHER, CLOCK]}
    with talking_to(backend) as client:
        choice = client.chat.completions.create(**wishes).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert (choice.message.content or "").strip() == "Let me see."
        calls: Any = choice.message.tool_calls
        assert [call.function.name for call in calls] == ["weather", "weather"]
        assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Bern", "Basel"]
        assert len({call.id for call in calls}) == 2
        single = client.chat.completions.create(**wishes, parallel_tool_calls=False).choices[0]
        assert len(single.message.tool_calls or []) == 1
        with client.chat.completions.stream(**wishes) as events:
            final: Any = events.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls"
        assert [call.function.arguments for call in final.message.tool_calls] == [c.function.arguments for c in calls]
        assert final.message.content.strip() == "Let me see."
        unasked = client.chat.completions.create(model="base", messages=HELLO).choices[0]
        assert unasked.message.content == said
    assert backend.asked[0].tools[0]["function"]["name"] == "weather"
    assert backend.asked[-1].tools == ()


def test_the_studios_client_tells_calls_counts_and_what_was_left_out() -> None:
    with listening(Scripted("Well. ", CALL)) as url:
        deltas = list(stream_events(url, {"model": "base", "messages": HELLO, "tools": [WEATHER]}))
    assert "".join(delta.text for delta in deltas).strip() == "Well."
    assert [call["function"]["name"] for delta in deltas for call in delta.tool_calls] == ["weather"]
    assert [delta.finish for delta in deltas if delta.finish] == ["tool_calls"]
    assert deltas[-1].usage == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert max(delta.dropped for delta in deltas) == 3


def test_a_call_can_be_demanded() -> None:
    opening = '<tool_call>\n{"name": "weather", "arguments": '
    backend = Scripted(CALL.removeprefix(opening))
    wishes: Any = {"model": "base", "messages": HELLO, "tools": [WEATHER, CLOCK]}
    named: Any = {"type": "function", "function": {"name": "weather"}}
    with talking_to(backend) as client:
        calls: Any = client.chat.completions.create(**wishes, tool_choice=named).choices[0].message.tool_calls
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
            ("weather", {"city": "Bern"})
        ]
        assert backend.asked[-1].opening == opening
        with pytest.raises(openai.BadRequestError, match="there is no tool 'oven'; there are: weather, clock"):
            client.chat.completions.create(**wishes, tool_choice={"type": "function", "function": {"name": "oven"}})
        with pytest.raises(openai.BadRequestError, match="there are no tools to choose from"):
            client.chat.completions.create(model="base", messages=HELLO, tool_choice="required")
        backend.known = ModelFacts("{{ messages }}")
        with pytest.raises(openai.BadRequestError, match="has no place for them"):
            client.chat.completions.create(**wishes)


def test_what_a_demanded_call_begins_with_is_in_the_prompt(client: OpenAI) -> None:
    def tokens(**more: Any) -> int:
        given = client.chat.completions.create(model="base", messages=HELLO, max_tokens=1, tools=[CLOCK], **more)
        assert given.usage is not None
        return given.usage.prompt_tokens

    opening = '<tool_call>\n{"name": "'  # the tokenizer has one token per byte
    assert tokens(tool_choice="required") == tokens() + len(opening)


def _png(width: int = 3, height: int = 2) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def _picture(content: bytes, kind: str = "png") -> dict[str, Any]:
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _shown(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]


def test_pictures_reach_a_model_that_sees() -> None:
    backend = Scripted("A red one.", facts=ModelFacts("{{ messages }}", images=True))
    with talking_to(backend) as client:
        client.chat.completions.create(model="base", messages=_shown(_picture(_png())))
    assert backend.asked[0].turns == (Turn("user", "What is it?", images=(_png(),)),)


PICTURES: dict[str, tuple[list[Any], str]] = {
    "address": (_shown({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}), "are not opened"),
    "path": (_shown({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "are not opened"),
    "no base64": (_shown({"type": "image_url", "image_url": {"url": "data:image/png;base64,???"}}), "no base64"),
    "no picture": (_shown(_picture(b"hello")), "cannot be read"),
    "cut off": (_shown(_picture(_png(64, 64)[:60])), "cannot be read"),
    "svg": (_shown(_picture(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml")), "cannot be read"),
    "many": (_shown(*[_picture(_png())] * 200), "200 pictures, and one request may have 16"),
    "spread": ([*_shown(*[_picture(_png())] * 9), *_shown(*[_picture(_png())] * 9)], "there are 18 pictures"),
    "of the model": (
        [{"role": "assistant", "content": [_picture(_png())]}, *HELLO],
        "belong into a message of the user",
    ),
    "sound": (_shown({"type": "input_audio", "input_audio": {}}), "only text parts and image_url parts"),
}


UNSEEN = {"address", "path", "no base64", "svg", "of the model", "sound"}  # the chat page sends nothing of the kind


def in_chinese(error: openai.APIStatusError) -> bool:
    """Whether the page has Chinese for what the server says."""
    body: Any = error.body
    return any(re.search(pattern, body["message"], re.IGNORECASE | re.DOTALL) for pattern in PATTERNS)


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_that_are_none_are_one_sentence(case: str) -> None:
    messages, words = PICTURES[case]
    backend = Scripted("no", facts=ModelFacts("{{ messages }}", images=True))
    with talking_to(backend) as client, pytest.raises(openai.BadRequestError, match=words) as caught:
        client.chat.completions.create(model="base", messages=messages)
    assert backend.asked == []
    assert case in UNSEEN or in_chinese(caught.value)


@pytest.mark.parametrize("side", [8_000, 20_000])
def test_a_huge_picture_is_refused_before_it_is_unpacked(side: int) -> None:
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    backend = Scripted("no", facts=ModelFacts("{{ messages }}", images=True))
    with talking_to(backend) as client, pytest.raises(openai.BadRequestError, match="more than 50 million pixels"):
        client.chat.completions.create(model="base", messages=_shown(_picture(bomb.getvalue())))


def test_nobody_waits_while_the_pictures_of_another_are_unpacked() -> None:
    large = io.BytesIO()
    Image.new("RGB", (5_000, 5_000)).save(large, "PNG")
    messages = _shown(*[_picture(large.getvalue())] * 8)
    backend = Scripted("Black.", facts=ModelFacts("{{ messages }}", images=True))
    with talking_to(backend) as client, ThreadPoolExecutor() as others:
        asked = others.submit(client.chat.completions.create, model="base", messages=messages)
        health = f"{client.base_url}".replace("/v1/", "/health")
        waits = []
        while not asked.done():
            began = time.monotonic()
            httpx.get(health, timeout=60)
            waits.append(time.monotonic() - began)
        assert asked.result().choices[0].message.content == "Black."
    assert len(waits) > 5, waits


def test_half_a_character_in_a_tool_is_a_sentence(client: OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"title": "\ud800"}}}
    body = json.dumps({"model": "base", "messages": HELLO, "tools": [tool], "chat_template": "chatml"})
    kind = {"Content-Type": "application/json"}
    answer = httpx.post(f"{client.base_url}chat/completions", content=body, headers=kind, timeout=60)
    assert (answer.status_code, "half a character" in answer.text) == (400, True)


def test_a_model_without_eyes_says_so(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tuned sees no pictures; send text only"):
        client.chat.completions.create(model="tuned", messages=_shown(_picture(_png())))


def _said(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": "x"} for role in roles]


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "empty message": (
        {"messages": [{"role": "user", "content": " \n"}]},
        400,
        "messages.0.content: the message is empty",
    ),
    "no message at all": ({"messages": []}, 400, "messages: "),
    "a megabyte": ({"messages": [{"role": "user", "content": "a" * 1_000_000}]}, 400, "tokens long"),
    "more": ({"messages": [{"role": "user", "content": "a" * 1_000_001}]}, 400, "at most 1000000 are read; shorten it"),
    "the model had the last word": ({"messages": _said("user", "assistant")}, 400, "end with a question of the user"),
    "only a system prompt": ({"messages": _said("system")}, 400, "end with a question of the user"),
    "a result of nothing": ({"messages": _said("user", "tool")}, 400, "no call of a tool stands before it"),
    "unknown model": ({"model": "nova"}, 404, "there are: base, tuned"),
    "penalty": ({"frequency_penalty": 0.5}, 400, "frequency_penalty: it is not supported here; use repetition_penalty"),
    "json": ({"response_format": {"type": "json_object"}}, 400, "answers are plain text"),
    "functions": ({"functions": [{"name": "x"}]}, 400, "use tools"),
    "logprobs": ({"logprobs": True, "top_logprobs": 50}, 400, "top_logprobs"),
    "a long stop word": ({"stop": "x" * 1001}, 400, "stop.0"),
    "many stop words": ({"stop": ["x"] * 17}, 400, "stop"),
    "min_p": ({"min_p": 2}, 400, "min_p"),
    "truncation": ({"truncation": "maybe"}, 400, "truncation"),
    "a tool with a bad name": (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        400,
        "tools.0.function.name",
    ),
    "too many tools": ({"tools": [CLOCK] * 200}, 400, "tools"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_sentence_and_the_server_stays(url: str, case: str) -> None:
    change, status, words = REFUSED[case]
    body = {"model": "base", "messages": HELLO, "max_tokens": 2} | change
    with httpx.Client(trust_env=False, timeout=120) as asking:
        response = asking.post(f"{url}/chat/completions", json=body)
        assert response.status_code == status, response.text
        assert words in response.json()["error"]["message"]
        good = {"model": "base", "messages": HELLO, "max_tokens": 2}
        assert asking.post(f"{url}/chat/completions", json=good).status_code == 200


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1]], 3, None])
def test_completions_of_what_is_no_text(url: str, prompt: Any) -> None:
    body = {"model": "base", "prompt": prompt}
    response = httpx.post(f"{url}/completions", json=body, trust_env=False, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_keys_that_change_nothing_are_no_fault() -> None:
    body = {"model": "base", "messages": HELLO, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}}
    body |= {"response_format": {"type": "text"}, "user": "me", "store": False, "metadata": {"a": "b"}, "n": 1}
    with listening(Scripted("hi")) as url:
        assert httpx.post(f"{url}/chat/completions", json=body, trust_env=False).status_code == 200


def test_a_body_that_is_too_large_is_refused_unread() -> None:
    backend = Scripted("hi")

    def endless() -> Iterator[bytes]:
        yield b'{"model": "base", "messages": "'
        for _ in range(80):
            yield b"a" * 1_000_000

    with listening(backend) as url:
        for content in (b"a" * 70_000_000, endless()):
            try:
                response = httpx.post(
                    f"{url}/chat/completions",
                    content=content,
                    headers={"content-type": "application/json"},
                    trust_env=False,
                    timeout=60,
                )
            except httpx.TransportError:  # the server hung up in the middle, as it may
                continue
            assert response.status_code == 413
            assert "at most" in response.json()["error"]["message"]
    assert backend.asked == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_answer(stream: bool) -> None:
    backend = Scripted("one ", endless=True)
    with listening(backend) as url:
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        body = json.dumps({"model": "base", "messages": HELLO, "stream": stream}).encode()
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                assert connection.recv(20)
            else:
                while not backend.asked:
                    pass
            assert not backend.cancelled.is_set()
        assert backend.cancelled.wait(60)


def test_a_model_that_cannot_be_loaded_again_is_503() -> None:
    backend = Scripted("hi")

    def begin(request: Request, emit: Callable[[Piece], None]) -> Any:
        raise Unavailable("the model cannot be loaded again: its file is gone.")

    backend.begin = begin  # type: ignore[method-assign]
    with talking_to(backend) as client, pytest.raises(openai.InternalServerError, match="its file is gone"):
        client.chat.completions.create(model="base", messages=HELLO)


def test_several_at_once_and_each_its_own_answer(client: OpenAI) -> None:
    wishes = [
        {"model": model, "seed": seed, "temperature": 1.0, "max_tokens": 20, "messages": HELLO}
        for model in ("base", "tuned")
        for seed in (1, 2)
    ]
    alone = [client.chat.completions.create(**wish).choices[0].message.content for wish in wishes]  # type: ignore[call-overload]
    together: dict[int, str | None] = {}

    def ask(number: int) -> None:
        given: Any = client.chat.completions.create(**wishes[number])  # type: ignore[call-overload]
        together[number] = given.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(wishes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(len(wishes))] == alone
    assert len(set(alone)) == len(wishes)
