"""The studio's server: FastAPI with the page and the REST reads, a socket that is really free, a quiet shutdown."""

import getpass
import json
import os
import secrets
import signal
import socket
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from studio.events import ExitCode
from studio.ui import doctor_routes, library_routes, queue_care, queue_routes, routes, theme
from studio.ui.app import ASSETS, build_ui
from studio.ui.i18n import page_texts, translations
from studio.ui.shell import Guard, Shell, is_loopback
from studio.ui.tabs import chat_routes, data_routes, export_list, train_routes
from studio.workspace import Workspace, WorkspaceError

PORTS_TRIED = 50


class Assets(StaticFiles):
    """Our scripts and styles; the browser asks again each time and mostly gets 304, so an update is seen at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, with revalidation demanded."""
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the studio is served. ``port`` is the first one tried; ``open`` starts the browser."""

    workspace: Path
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    open: bool = False


def head() -> str:
    """The script that must be there before any component is mounted."""
    texts = json.dumps(page_texts(), ensure_ascii=False).replace("</", "<\\/")
    core = (ASSETS / "studio.js").read_text(encoding="utf-8")
    return f"<script>window.STUDIO_TEXTS={texts};\n{core}</script>"


def stylesheets() -> list[Path]:
    """The frame first, so that the sheets of the parts may differ from it."""
    frame = ASSETS / "studio.css"
    parts = sorted(path for path in ASSETS.glob("*.css") if path != frame)
    return [ASSETS / "vendor" / "uPlot.min.css", frame, *parts]


def create_app(workspace: Workspace, token: str | None = None, cookie: str = "studio") -> FastAPI:
    """The whole application over one workspace; ``token`` None means that only this machine may use it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=queue_care.lifespan(workspace))
    app.include_router(routes.build(workspace))
    app.include_router(queue_routes.build(workspace))
    app.include_router(library_routes.build(workspace))
    app.include_router(doctor_routes.build(workspace))
    app.include_router(data_routes.build(workspace))
    app.include_router(train_routes.build(workspace))
    app.include_router(chat_routes.build(workspace))
    app.include_router(export_list.build(workspace))
    app.mount("/studio-assets", Assets(directory=ASSETS))
    gr.mount_gradio_app(
        app,
        build_ui(workspace),
        path="/",
        theme=theme.build(),
        css_paths=stylesheets(),
        head=head(),
        i18n=translations(),
        favicon_path=str(ASSETS / "favicon.png"),
        footer_links=[],
        run_history=False,
        max_file_size="200mb",
        show_error=True,
        ssr_mode=False,
    )
    app.add_middleware(Shell)
    app.add_middleware(Guard, token=token, cookie=cookie)
    return app


def free_socket(host: str, port: int) -> socket.socket:
    """A bound socket on ``port`` or the next free one; OSError when the address itself cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last: OSError | None = None
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, candidate))
            # Bound is not enough: with SO_REUSEADDR only listening shows whether somebody else already does.
            sock.listen(128)
        except (OSError, OverflowError) as error:
            sock.close()
            last = error if isinstance(error, OSError) else OSError(str(error))
            continue
        return sock
    raise last or OSError(f"no port from {port} on")


def ssh_line(port: int) -> str:
    """The command that brings the studio of this machine to the browser of another one."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    host = connection[2] if len(connection) == 4 else socket.gethostname()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "user"
    return f"ssh -L {port}:127.0.0.1:{port} {user}@{host}"


def welcome(options: ServerOptions, port: int, token: str | None) -> tuple[str, str]:
    """The link, and all lines that are printed once the studio answers."""
    host = "127.0.0.1" if options.host in ("", "0.0.0.0", "::") else options.host
    shown = f"[{host}]" if ":" in host else host
    link = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
    lines = ["", f"  Crucible 丹炉 is ready:  {link}", f"  workspace:              {options.workspace}"]
    if options.host in ("0.0.0.0", "::"):
        lines.append(f"  from other machines:    {link.replace(shown, socket.gethostname(), 1)}")
    lines += [f"  from another machine:   {ssh_line(port)}", "                          then open the link there"]
    lines += ["  stop:                   Ctrl+C (runs go on)", ""]
    return link, "\n".join(lines)


class Server(uvicorn.Server):
    """uvicorn that says where it is once it answers."""

    announcement = ""
    open_link: str | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print the link and open the browser if that was asked for."""
        await super().startup(sockets)
        if self.started:
            _say(self.announcement)
            if self.open_link:
                webbrowser.open(self.open_link)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """uvicorn raises the signal again after its shutdown; by then all is done."""


def serve(options: ServerOptions) -> int:
    """Serve until SIGINT or SIGTERM; the exit code. Runs are never stopped from here."""
    try:
        workspace = Workspace(options.workspace)
    except WorkspaceError as error:
        sys.stderr.write(f"{error}\n")
        return int(ExitCode.BAD_INPUT)
    token = options.token or (None if is_loopback(options.host) else secrets.token_urlsafe(18))
    try:
        sock = free_socket(options.host, options.port)
    except OSError as error:
        sys.stderr.write(f"--host/--port: cannot listen on {options.host} port {options.port} ({error}).\n")
        return int(ExitCode.BAD_INPUT)
    port = int(sock.getsockname()[1])
    if options.port not in (0, port):
        _say(f"Port {options.port} is taken; using {port}.")
    app = create_app(workspace, token, cookie=f"studio_{port}")
    return _run(app, sock, options, welcome(options, port, token))


def _run(app: FastAPI, sock: socket.socket, options: ServerOptions, texts: tuple[str, str]) -> int:
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, lifespan="on")
    server = Server(config)
    server.announcement = texts[1]
    server.open_link = texts[0] if options.open else None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)
    server.run(sockets=[sock])
    return int(ExitCode.FINISHED) if server.started else int(ExitCode.INTERNAL)
