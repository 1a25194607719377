"""Serve the demo page to this machine alone, without a way to the files or the network of its user.

Gradio passes uploads around as paths and URLs that the browser names, and has more routes than the page uses: routes
that read files, fetch URLs and send records to a hub. So three checks are made here. Every file that a request names
lies in a folder that the page alone writes to; every request comes from this page, opened under a loopback name; every
route that the page does not use is closed.
"""

import logging
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio_client.utils import traverse
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leverlab.errors import LeverlabError

HOST = "127.0.0.1"
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # Host headers; a name of another domain may be rebound
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
FILE = "/gradio_api/file="
GRACE = 1  # seconds that requests may take to end; a page that is open in a browser never ends its own
_ROUTES = re.compile(
    r"(GET|HEAD) (/|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.*"
    r"|/gradio_api/(upload_progress|queue/data|heartbeat/\w+|call/show/\w+|file=.*))"
    r"|POST /gradio_api/(upload|queue/join|run/predict|call/show)"
)
_FROM_HERE = frozenset({None, "none", "same-origin"})  # values of the header Sec-Fetch-Site


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield an empty folder that only this user can read, in which Gradio keeps all files; it is deleted at the end.

    Gradio's own choice is a folder that all its pages on a machine share.
    """
    with tempfile.TemporaryDirectory(prefix="leverlab-demo-") as name:
        folder = Path(name).resolve()
        os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder)
        yield folder


def is_upload(path: object, folder: Path) -> bool:
    """Return whether `path` is the absolute path of a file inside `folder`, symbolic links followed."""
    if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path:
        return False
    target = Path(os.path.realpath(path))
    return target.is_relative_to(folder) and target.is_file()


class LocalBlocks(gr.Blocks):
    """A page whose functions get files of `folder` only, whatever a request names."""

    def __init__(self, folder: Path, **options: Any):
        super().__init__(**options)
        self.folder = folder

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> Any:
        """Check the inputs of an event before Gradio opens, copies or fetches a file. Raises `gr.Error`."""
        return await super().preprocess_data(block_fn, self._checked(inputs), *rest, **options)

    def _checked(self, data: Any) -> Any:
        return traverse(data, self._uploaded, _names_a_file)

    def _uploaded(self, file: dict[str, Any]) -> dict[str, Any]:
        if not is_upload(file.get("path"), self.folder):
            raise gr.Error(
                f"the file {file.get('path')!s:.80} was not uploaded by a user of this page; upload it here",
                print_exception=False,
            )
        # Gradio would prefer a URL that it finds, and files below a file
        return {key: self._checked(value) for key, value in file.items()} | {"url": None}


def _names_a_file(value: object) -> bool:
    return isinstance(value, dict) and ("path" in value or "url" in value)


class Gate:
    """ASGI middleware: answers 403 to every request that the page itself does not make, and sends `POLICY` with all."""

    def __init__(self, app: ASGIApp, folder: Path):
        self._app, self._folder = app, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send_with_policy)
        else:
            await PlainTextResponse(f"refused: {problem}\n", 403)(scope, receive, send_with_policy)

    def _problem(self, scope: Scope) -> str | None:
        """Return why a request is refused, or None."""
        headers, path = Headers(scope=scope), scope["path"]
        request = f"{scope.get('method', 'WEBSOCKET')} {path}"
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not LOOPBACK.fullmatch(hosts[0]):
            return f"this page is for this machine alone, open it as http://{HOST}:PORT"
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            return "the request comes from another page"
        if path != "/" and headers.get("sec-fetch-site") not in _FROM_HERE:
            return "the request comes from another page"
        if not _ROUTES.fullmatch(request):
            return f"the page has no use for {request[:80]!r}"
        if path.startswith(FILE) and not is_upload(path.removeprefix(FILE), self._folder):
            return "the file was not uploaded by a user of this page"
        return None


def application(blocks: LocalBlocks, css: str) -> Gate:
    """Return the page as an application behind its gate."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    app = gr.mount_gradio_app(FastAPI(), blocks, path="/", theme=theme, css=css, footer_links=[], run_history=False)
    blocks.has_launched = True  # mounting leaves it False, and Gradio's own check of paths is off until it is set
    return Gate(app, blocks.folder)


def listen(port: int) -> socket.socket:
    """Return a socket on `port` of this machine alone. Raises `LeverlabError` when another program has the port."""
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()  # until then the port could be bound again
    except OSError as error:
        listening.close()
        raise LeverlabError(f"port {port} cannot be used ({error.strerror}); choose another one with --port") from None
    return listening


def serve(app: Gate, listening: socket.socket) -> None:
    """Serve the page until the process is interrupted or terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is deleted then, too
    config = uvicorn.Config(
        app, log_level="warning", proxy_headers=False, server_header=False, timeout_graceful_shutdown=GRACE
    )
    _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a request that is cut now is no error
        await super().shutdown(sockets)
