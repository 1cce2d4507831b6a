"""The tools of a chat: what each works out, and what it refuses in a sentence; nothing evaluates Python."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sympy

from studio.schema import ConfigError
from studio.tools import Tool, ToolError, available, listed, own, solving
from studio.tools import search as search_tool
from studio.tools import solver as solver_tool
from studio.tools.calculator import calculate
from studio.tools.expression import ExpressionError
from studio.tools.solver import solver
from studio.tools.tool import LONGEST_RESULT
from studio.workspace import Workspace


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+1=", "2"), ("0.1+0.2", "0.3"), ("2^10", "1024"), ("（3+4）×2", "14"), ("1,234*2", "2468"),
        ("max(1,2)", "2"), ("sqrt(2)", "1.4142135623731"), ("√16", "4"), ("15%*200", "30"), ("2(3+4)(1+1)", "28"),
        ("2pi", "6.28318530717959"), ("10/4", "2.5"), ("1/3", "0.333333333333333"), ("20!", "2432902008176640000"),
        ("sin(pi)", "0"), ("５²", "25"), ("7//2", "3"), ("-7%3", "2"), ("2**-2", "0.25"), ("2**0.5", "1.4142135623731"),
        ("round(2.567, 1)", "2.6"), ("floor(-1/2)", "-1"), ("gcd(12, 18)", "6"), ("log(100, 10)", "2"), ("1e3", "1000"),
        ("100000000*123456789123", "12345678912300000000"), ("0.00000001", "1E-8"), ("9" * 30 + "+1", "1" + "0" * 30),
    ],
)  # fmt: skip
def test_arithmetic_is_exact(text: str, value: str) -> None:
    assert calculate(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("9**9**9", "too large"), ("2**100000", "too large"), ("factorial(10000)", "too large"), ("1e400", "too large"),
        ("round(1.5, 99999999999)", "too large"), ("round()", "too few"),
        ("(((((10**999)**9)**9)**9)**9)", "too large"), ("comb(10**9, 5)", "too large"),
        ("1/0", "divides by zero"), ("0**-1", "divides by zero"), ("sqrt(-1)", "no real value"), 
        ("(-8)**(1/3)", "no real value"),
        ("a+1", "no number"), ("min()", "arguments"), ("", "empty"), ("3 4", "no expression"), ("1" * 1001, "longer"),
        ("(" * 400 + "1" + ")" * 400, "no expression"), ("'a'*9", "no number"), ("[1]*9", "more than arithmetic"),
        ("__import__('os').system('id')", "calls what is no function"), ("().__class__", "more than arithmetic"),
        ("(lambda: 1)()", "more than arithmetic"), ("open('x')", "no number"), ("True+1", "no number"),
        ("eval(1)", "no function 'eval'"), ("1if 1else 2", "no expression"), ("x if y else z", "more than arithmetic"),
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_or_too_much_of_it_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ToolError, match=re.escape(reason)):
        calculate(text)


@pytest.mark.parametrize(
    ("equations", "solution"),
    [
        ("x^2 - 5x + 6 = 0", "x = 2 or x = 3"),
        ("x + y = 3；x - y = 1", "x = 2, y = 1"),
        ("x^2=2", "x = -sqrt(2) ≈ -1.414213562 or x = sqrt(2) ≈ 1.414213562"),
        ("sin(x) = x + 1", "x ≈ -1.934563211"),
        ("ax + b = 0", "x = -b/a"),
        ("exp(x)=0", "no solution"),
        ("1+1=2", "true"),
    ],
)
def test_equations_are_solved(equations: str, solution: str) -> None:
    assert solving.solve(sympy, equations) == solution


def test_the_solver_answers_from_a_process_of_its_own() -> None:
    assert solver().use('{"equations": "2x + 3y = 6", "unknown": "y"}') == "y = 2 - 2*x/3"
    with pytest.raises(ToolError, match="'z' does not occur"):
        solver().use({"equations": "2x + 3y = 6", "unknown": "z"})


def test_what_would_take_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_tool, "COMPUTING_S", 1)
    with pytest.raises(ToolError, match="make it simpler"):
        solver().use({"equations": "x**9**9**9 = 1"})


@pytest.mark.parametrize(
    ("equations", "reason"),
    [
        ("__import__('os').system('touch pwned') = 1", "calls what is no function"),
        ("x = 1 = 2", "no equation"),
        ("system(1) = x", "there is no function 'system'"),
        (";", "there is no equation"),
        ("x=1;" * 9, "more than 8 equations"),
    ],
)
def test_equations_that_are_none_are_refused(equations: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason):
        solving.solve(sympy, equations)


def test_the_clock_tells_the_time_of_a_zone(workspace: Workspace) -> None:
    clock = {tool.name: tool for tool in available(workspace)}["clock"]
    before = datetime.now(ZoneInfo("Asia/Shanghai")).replace(microsecond=0)
    told = clock.use({"timezone": "Asia/Shanghai"})
    after = datetime.now(ZoneInfo("Asia/Shanghai"))
    assert before <= datetime.strptime(told, "%Y-%m-%d %H:%M:%S, %A, UTC%z") <= after
    assert clock.use("") != ""
    for name in ("Mars/Base", "../../etc/passwd", "/etc/passwd"):
        with pytest.raises(ToolError, match="no time zone"):
            clock.use({"timezone": name})


def test_arguments_are_checked_against_the_schema() -> None:
    tool = Tool(
        "echo",
        "",
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]},
        lambda given: json.dumps(given),
    )
    assert tool.use('{"a": 1}') == '{"a": 1}'
    assert tool.use({"input": "x"}) == '{"a": "x"}', "a call without names, as MOSS writes it"
    for given, reason in (
        ("{", "valid JSON"),
        ("[1]", "JSON object"),
        ("{}", "a is missing"),
        ('{"a": 1, "c": 2}', "no argument c"),
    ):
        with pytest.raises(ToolError, match=reason):
            tool.use(given)
    long = Tool("long", "", {"type": "object", "properties": {}}, lambda _: "x" * (LONGEST_RESULT + 5))
    assert long.use("").endswith(f"(cut: {LONGEST_RESULT + 5} characters in all)")


# ---- search and own tools: a service on the loopback -----------------------------------------------------------------


class Service(ThreadingHTTPServer):
    """Answers with what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict[str, str], str]] = []
        self.answer: tuple[int, dict[str, str], bytes] = (200, {"content-type": "application/json"}, b"{}")
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.asked.append((self.command, self.path, headers, body))
        status, told, content = self.server.answer
        self.send_response(status)
        for key, value in told.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    yield server
    server.shutdown()
    server.server_close()


def test_search_is_off_without_a_key_and_never_tells_it(
    workspace: Workspace, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(search_tool.KEY, raising=False)
    off = {tool.name: tool for tool in listed(workspace)}["search"]
    assert off.obstacle is not None
    assert search_tool.KEY in off.obstacle
    assert "search" not in [tool.name for tool in available(workspace)]
    monkeypatch.setenv(search_tool.KEY, "very-secret")
    monkeypatch.setattr(search_tool, "SERVICE", f"http://{service.netloc}/search")
    found = {"answerBox": {"answer": "42"}, "organic": [{"title": "T", "snippet": "S", "link": "L"}] * 9}
    service.answer = (200, {"content-type": "application/json"}, json.dumps(found).encode())
    on = {tool.name: tool for tool in available(workspace)}["search"]
    assert on.use({"query": "tea"}).splitlines() == ["42", *(f"{n}. T — S — L" for n in range(1, 6))]
    assert json.loads(service.asked[0][3])["q"] == "tea"
    assert service.asked[0][2]["x-api-key"] == "very-secret"
    service.answer = (403, {"content-type": "application/json"}, b'{"message": "Unauthorized."}')
    with pytest.raises(ToolError, match="HTTP 403: .*Unauthorized") as refused:
        on.use({"query": "tea"})
    assert "very-secret" not in str(refused.value)
    service.answer = (200, {"content-type": "application/json"}, b"[]")
    assert on.use({"query": "tea"}) == "nothing was found"


def write_tool(workspace: Workspace, url: str, hosts: str, **changes: Any) -> Tool:
    folder = own.folder_of(workspace)
    folder.mkdir(exist_ok=True)
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"name": "weather", "description": "The weather.", "parameters": schema, "url": url} | changes
    (folder / "weather.yaml").write_text(json.dumps(tool), encoding="utf-8")
    (folder / own.HOSTS).write_text(hosts, encoding="utf-8")
    return {tool.name: tool for tool in listed(workspace)}["weather"]


def test_an_own_tool_is_asked_at_its_address(
    workspace: Workspace, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answer = (200, {"content-type": "application/json; charset=utf-8"}, '{"temperature": "20 °C"}'.encode())
    url = f"http://{service.netloc}/weather?unit=C"
    tool = write_tool(workspace, url, f"# mine\n{service.netloc}\n")
    assert tool.obstacle is None
    assert tool.schema["function"]["name"] == "weather"
    assert tool.use('{"city": "上海"}') == '{"temperature": "20 °C"}'
    method, path, headers, body = service.asked[-1]
    assert (method, path, json.loads(body)) == ("POST", "/weather?unit=C", {"city": "上海"})
    assert headers["host"] == service.netloc
    assert "authorization" not in headers
    monkeypatch.setenv("CRUCIBLE_TOOL_WEATHER", "k")
    tool = write_tool(workspace, url, service.netloc, method="GET", key_env="CRUCIBLE_TOOL_WEATHER")
    tool.use({"city": "a b"})
    method, path, headers, body = service.asked[-1]
    assert (method, path, body) == ("GET", "/weather?unit=C&city=a+b", "")
    assert headers["authorization"] == "Bearer k"


def test_hosts_that_are_not_listed_are_never_asked(workspace: Workspace, service: Service) -> None:
    port = service.server_address[1]
    for hosts in ("", "127.0.0.1", f"127.0.0.1:{port + 1}", f"localhost:{port}", f"# 127.0.0.1:{port}"):
        tool = write_tool(workspace, f"http://127.0.0.1:{port}/", hosts)
        assert tool.obstacle is not None
        assert f"127.0.0.1:{port} is not allowed" in tool.obstacle
        with pytest.raises(ToolError, match="is not allowed"):
            tool.use({"city": "x"})
    assert not service.asked


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"]
)
def test_a_name_that_leads_to_a_private_address_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, socket.SOCK_STREAM, 6, "", (address, 80))])
    tool = write_tool(workspace, "http://weather.example.org/", "weather.example.org")
    assert tool.obstacle is None
    with pytest.raises(ToolError, match="has a private address"):
        tool.use({"city": "x"})


def test_the_address_that_was_judged_is_the_one_that_is_asked(
    workspace: Workspace, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere when it is looked up a second time."""
    port = service.server_address[1]
    looked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, *rest: Any, **more: Any) -> Any:
        looked.append(host)
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    tool = write_tool(workspace, f"http://weather.example.org:{port}/", f"weather.example.org:{port}\n127.0.0.1:{port}")
    tool.use({"city": "x"})
    assert [host for host in looked if host != "127.0.0.1"] == ["weather.example.org"], "the name is looked up once"
    assert service.asked[0][2]["host"] == f"weather.example.org:{port}"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((302, {"location": "http://127.0.0.1:1/"}, b""), "redirect, which is not followed"),
        ((200, {"content-type": "image/png"}, b"x"), "answers with image/png, not with text"),
        ((200, {"content-type": "text/plain"}, b"x" * 300_000), "more than 256 KB"),
        ((500, {"content-type": "text/plain"}, b"out of order"), "HTTP 500: out of order"),
    ],
)
def test_answers_of_a_service_that_cannot_be_used(
    workspace: Workspace, service: Service, answer: tuple[int, dict[str, str], bytes], reason: str
) -> None:
    service.answer = answer
    tool = write_tool(workspace, f"http://{service.netloc}/", service.netloc)
    with pytest.raises(ToolError, match=reason):
        tool.use({"city": "x"})
    assert len(service.asked) == 1


def test_a_service_that_is_not_there(workspace: Workspace) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        netloc = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ToolError, match=r"cannot be reached \(ConnectError\)"):
            write_tool(workspace, f"http://{netloc}/", netloc).use({"city": "x"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": "file:///etc/passwd"}, "http"),
        ({"url": "http://u:p@127.0.0.1/"}, "without a password"),
        ({"name": "a b"}, "name"),
        ({"parameters": {"type": "array"}}, "JSON schema of type object"),
        ({"parameters": {"type": "object", "properties": {}, "required": ["x"]}}, "what is required"),
        ({"key_env": "HF_TOKEN"}, "key_env"),
        ({"timeout": 9999}, "timeout"),
        ({"headers": {}}, "headers"),
    ],
)
def test_a_description_that_cannot_be_used_is_listed_as_off_with_the_reason(
    workspace: Workspace, changes: dict[str, Any], reason: str
) -> None:
    write_tool(workspace, "http://127.0.0.1/", "127.0.0.1")
    text = (own.folder_of(workspace) / "weather.yaml").read_text(encoding="utf-8")
    (own.folder_of(workspace) / "weather.yaml").write_text(json.dumps(json.loads(text) | changes), encoding="utf-8")
    tool = {tool.name: tool for tool in listed(workspace)}["weather"]
    assert reason in str(tool.obstacle)
    assert "weather" not in [tool.name for tool in available(workspace)]


def test_an_own_tool_cannot_take_the_place_of_a_built_in_one(workspace: Workspace) -> None:
    write_tool(workspace, "http://127.0.0.1/", "127.0.0.1")
    path = own.folder_of(workspace) / "weather.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace('"weather"', '"calculate"'), encoding="utf-8")
    assert [tool.use({"expression": "1+1"}) for tool in available(workspace) if tool.name == "calculate"] == ["2"]


@pytest.mark.parametrize("name", ["calculate", "solve", "clock", "search"])
def test_a_tool_of_a_built_in_name_is_refused_and_not_added(workspace: Workspace, name: str) -> None:
    write_tool(workspace, "http://127.0.0.1/", "127.0.0.1")
    text = json.dumps({"name": name, "description": "Mine.", "url": "http://127.0.0.1/"})
    with pytest.raises(ConfigError, match=f"{name} is the name of a built-in tool"):
        own.add_own(workspace, text)
    assert not (own.folder_of(workspace) / f"{name}.yaml").exists()


def test_the_solver_is_given_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []
    honest = solver_tool.subprocess.run

    def run(*arguments: Any, **named: Any) -> Any:
        given.append(named["env"])
        return honest(*arguments, **named)

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("CRUCIBLE_TOOL_WEATHER", "secret")
    monkeypatch.setattr(solver_tool.subprocess, "run", run)
    assert solver().use({"equations": "x + 1 = 3"}) == "x = 2"
    assert "secret" not in given[0].values()
    assert "PATH" in given[0]


def test_tools_are_added_only_for_hosts_that_are_allowed(workspace: Workspace) -> None:
    schema = {"name": "dice", "description": "Rolls.", "parameters": {"type": "object", "properties": {}}}
    text = json.dumps({"type": "function", "function": schema, "url": "http://127.0.0.1:9/roll"})
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9 is not allowed"):
        own.add_own(workspace, text)
    assert not list(workspace.path.glob("tools/*"))
    own.folder_of(workspace).mkdir()
    (own.folder_of(workspace) / own.HOSTS).write_text("127.0.0.1:9\n", encoding="utf-8")
    assert own.add_own(workspace, text).name == "dice"
    assert "dice" in [tool.name for tool in available(workspace)]
    assert own.remove_own(workspace, "dice")
    assert not own.remove_own(workspace, "../dice")
    assert "dice" not in [tool.name for tool in available(workspace)]


def test_no_tool_evaluates_python() -> None:
    """Neither the built-in functions nor sympy's own reader, which calls them."""
    folder = Path(own.__file__).parent
    paths = sorted(folder.glob("*.py"))
    assert len(paths) > 8
    for path in paths:
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])(eval|exec|compile)\(|sympify|parse_expr|\bshell=|os\.system", code), path.name
