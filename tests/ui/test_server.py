"""The server around the page: sockets, greeting, the mounted application; nothing here starts a process."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import built
from starlette.testclient import TestClient

from studio.ui.__main__ import main
from studio.ui.server import ServerOptions, create_app, free_socket, ssh_line, welcome
from studio.workspace import Workspace


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    workspace = Workspace(tmp_path_factory.mktemp("studio"))
    app = built(lambda: create_app(workspace))
    with TestClient(app, base_url="http://127.0.0.1:7860") as opened:
        yield opened


def test_the_page_is_served_with_both_scripts_and_no_outside_address(client: TestClient) -> None:
    page = client.get("/", headers={"accept": "text/html"}).text
    assert "studio.lang" in page
    assert "Crucible" in page
    assert "fonts.googleapis" not in page


@pytest.mark.parametrize("name", ["studio.js", "mark.svg", "vendor/uPlot.iife.min.js", "stepper.js"])
def test_assets_are_asked_for_again(client: TestClient, name: str) -> None:
    first = client.get(f"/studio-assets/{name}")
    assert first.status_code == 200
    assert first.headers["cache-control"] == "no-cache"
    again = client.get(f"/studio-assets/{name}", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("path", ["/studio-assets/../../pyproject.toml", "/studio-assets/%2e%2e/%2e%2e/launch.py"])
def test_assets_stay_in_their_folder(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_no_schema_pages(client: TestClient, path: str) -> None:
    assert "swagger" not in client.get(path).text.lower()


def test_no_endpoint_is_public(client: TestClient) -> None:
    info = client.get("/gradio_api/info").json()
    assert info["named_endpoints"] == {}
    assert info["unnamed_endpoints"] == {}


def test_files_of_the_machine_are_not_served(client: TestClient) -> None:
    assert client.get("/gradio_api/file=/etc/passwd").status_code in (403, 404)


def test_a_taken_port_gives_the_next() -> None:
    with free_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with free_socket("127.0.0.1", port) as second:
            assert second.getsockname()[1] > port


def test_two_at_once_never_get_the_same_port() -> None:
    with free_socket("127.0.0.1", 0) as probe:
        start = probe.getsockname()[1]
    found: list[socket.socket] = []
    threads = [threading.Thread(target=lambda: found.append(free_socket("127.0.0.1", start))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ports = [sock.getsockname()[1] for sock in found]
    for sock in found:
        sock.close()
    assert len(set(ports)) == 8


def test_ssh_line_names_the_address_the_visitor_came_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 51234 10.0.0.7 22")
    line = ssh_line(7861)
    assert line.startswith("ssh -L 7861:127.0.0.1:7861 ")
    assert line.endswith("@10.0.0.7")


def test_greeting_has_link_workspace_and_tunnel(weird_path: Path) -> None:
    link, text = welcome(ServerOptions(weird_path, token="t0ken"), 7866, "t0ken")
    assert link == "http://127.0.0.1:7866/?token=t0ken"
    assert link in text
    assert str(weird_path) in text
    assert "ssh -L 7866:127.0.0.1:7866 " in text


def test_a_workspace_that_is_a_file_ends_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main([f"--workspace={tmp_path / 'file' / 'inside'}"]) == 4
    said = capsys.readouterr().err
    assert "--workspace" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--port=70000"], ["--port=-1"], ["--host=no.such.host.invalid"]])
def test_bad_address_ends_with_one_sentence(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--workspace={tmp_path}", *arguments]) == 4
    said = capsys.readouterr().err
    assert said.startswith("--")
    assert said.count("\n") == 1
