"""The running demo page is attacked: no request gets a file that was not uploaded to it, or comes from elsewhere."""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.deploy.bundles import REPOSITORY, Made
from tests.deploy.demo_page import serve_demo

pytestmark = [pytest.mark.demo, pytest.mark.filterwarnings("ignore::ResourceWarning")]
META = {"_type": "gradio.FileData"}
CANARY = "canary-of-the-attack"
REFUSED = "was not uploaded by a user"


@dataclass(frozen=True)
class Target:
    """The page under attack, what it must not give away, and what it was given."""

    host: str
    secret: Path  # a text file outside of the page's folder
    picture: Path  # an image outside of the page's folder
    upload: str  # the path of an uploaded image, inside of the page's folder
    link: str  # a symbolic link to `secret` beside it, and
    picture_link: str  # one to `picture`
    foreign: str  # the address of another server on this machine
    asked: list[str]  # the paths that it was asked for

    def send(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """Return status and body of the answer to a request whose path goes out as it is."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, path: str, content: object, headers: Mapping[str, str] | None = None) -> Any:
        kind = {"Content-Type": "application/json"}
        return self.send("POST", path, json.dumps(content).encode(), kind | dict(headers or {}))

    def call(self, data: list[Any]) -> str:
        """Return the events of a call by name."""
        status, body = self.post("/gradio_api/call/show", {"data": data})
        assert status == 200, body
        return self.send("GET", f"/gradio_api/call/show/{json.loads(body)['event_id']}")[1].decode()

    def event(self, data: list[Any]) -> dict[str, Any]:
        """Return the body of a call by the number of the page's function."""
        config = json.loads(self.send("GET", "/config")[1])
        number = next(entry["id"] for entry in config["dependencies"] if entry["api_name"] == "show")
        return {"data": data, "fn_index": number, "session_hash": "attack"}

    def join(self, data: list[Any]) -> str:
        """Return the events of a call as the page's own script makes it."""
        status, body = self.post("/gradio_api/queue/join", self.event(data))
        assert status == 200, body
        return self.send("GET", "/gradio_api/queue/data?session_hash=attack")[1].decode()

    def predict(self, data: list[Any]) -> str:
        """Return the answer to a call that does not wait in the queue."""
        return self.post("/gradio_api/run/predict", self.event(data))[1].decode()


def multipart(name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    head = f'--X\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    return head.encode() + content + b"\r\n--X--\r\n", {"Content-Type": "multipart/form-data; boundary=X"}


@pytest.fixture(scope="module")
def target(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    root = tmp_path_factory.mktemp("attack")
    secret, picture = root / "secret.txt", root / "secret.png"
    secret.write_text(CANARY)
    picture.write_bytes(made.questions[0].image)
    asked: list[str] = []

    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CANARY.encode())

        def log_message(self, *_: object) -> None: ...

    foreign = HTTPServer(("127.0.0.1", 0), Foreign)
    threading.Thread(target=foreign.serve_forever, daemon=True).start()
    with serve_demo(made.folder) as address:
        host = address.removeprefix("http://")
        there = f"http://127.0.0.1:{foreign.server_port}/x.png"
        empty = Target(host, secret, picture, "", "", "", there, asked)
        body, headers = multipart("q.png", made.questions[1].image)
        status, answer = empty.send("POST", "/gradio_api/upload", body, headers)
        assert status == 200, answer
        upload = json.loads(answer)[0]
        links = [Path(upload).with_name(f"link{path.suffix}") for path in (secret, picture)]
        for link, path in zip(links, (secret, picture), strict=True):
            link.symlink_to(path)
        yield Target(host, secret, picture, upload, *map(str, links), there, asked)
        for link in links:
            link.unlink()
    foreign.shutdown()
    foreign.server_close()


def up(path: Path, upload: str) -> str:
    """Return a path that begins in the upload's folder and leads to `path`."""
    return f"{Path(upload).parent}/" + "../" * (len(Path(upload).parts) - 2) + str(path).lstrip("/")


def below(upload: str, path: str) -> dict[str, Any]:
    """Return a file that was uploaded, with another one below it."""
    return {"path": upload, "more": [{"path": path, "meta": META}]}


# The path that each attack gives in place of the image, by the name of the attack.
PATHS = {
    "absolute": lambda t: str(t.picture),
    "absolute_text": lambda t: str(t.secret),
    "passwd": lambda t: "/etc/passwd",
    "params": lambda t: str(REPOSITORY / "params.yaml"),
    "relative": lambda t: "params.yaml",
    "dots": lambda t: up(t.picture, t.upload),
    "below_the_upload": lambda t: f"{t.upload}/../../../../..{t.picture}",
    "symlink": lambda t: t.link,
    "symlink_to_a_picture": lambda t: t.picture_link,
    "the_folder": lambda t: str(Path(t.upload).parent),
    "file_url": lambda t: t.picture.as_uri(),
    "http_url": lambda t: t.foreign,
    "http_url_upper": lambda t: t.foreign.replace("http", "HTTP"),
    "public_url": lambda t: "http://leverlab.invalid/x.png",
    "percent": lambda t: quote(str(t.picture), safe=""),
    "null": lambda t: f"{t.picture}\0.png",
    "environment": lambda t: "/proc/self/environ",
    "home": lambda t: "~/.ssh/id_rsa",
    "empty": lambda t: "",
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("way", ["call", "join", "predict"])
def test_a_path_that_was_not_uploaded_is_refused(target: Target, name: str, way: str) -> None:
    path = PATHS[name](target)
    events = getattr(target, way)([{"path": path, "meta": META}, "Which number?", ["random"], 1])
    assert REFUSED in events
    assert CANARY not in events
    assert target.asked == []


# Files in places where none is expected, and references of other forms.
DATA = {
    "without_meta": lambda t: [{"path": str(t.picture)}, "q", ["random"], 1],
    "in_the_question": lambda t: [None, {"path": str(t.secret), "meta": META}, ["random"], 1],
    "deep_in_the_question": lambda t: [None, {"a": [{"b": {"path": str(t.secret), "meta": META}}]}, ["random"], 1],
    "in_the_methods": lambda t: [None, "q", [{"path": str(t.secret), "meta": META}], 1],
    "in_the_shots": lambda t: [None, "q", ["random"], {"path": str(t.secret), "meta": META}],
    "stream": lambda t: [{"path": str(t.picture), "meta": META, "is_stream": True}, "q", ["random"], 1],
    "path_is_no_text": lambda t: [{"path": ["/etc/passwd"], "meta": META}, "q", ["random"], 1],
    "below_an_upload": lambda t: [below(t.upload, str(t.secret)), "q", ["random"], 1],
    "url_below_an_upload": lambda t: [below(t.upload, t.foreign), "q", ["random"], 1],
    "url_below_an_upload_in_the_question": lambda t: [None, below(t.upload, t.foreign), ["random"], 1],
    "url_alone": lambda t: [{"url": t.foreign, "meta": META}, "q", ["random"], 1],
    "url_beside": lambda t: [{"path": str(t.picture), "url": t.foreign, "meta": META}, "q", ["random"], 1],
    "data_url": lambda t: [{"path": None, "url": "data:image/png;base64,eA==", "meta": META}, "q", ["random"], 1],
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("way", ["call", "join", "predict"])
def test_a_file_anywhere_in_the_data_is_refused(target: Target, name: str, way: str) -> None:
    events = getattr(target, way)(DATA[name](target))
    assert REFUSED in events
    assert CANARY not in events
    assert target.asked == []


ROUTES = {
    "passwd": lambda t: "/gradio_api/file=/etc/passwd",
    "params": lambda t: f"/gradio_api/file={REPOSITORY / 'params.yaml'}",
    "secret": lambda t: f"/gradio_api/file={t.secret}",
    "percent": lambda t: f"/gradio_api/file={quote(str(t.secret), safe='')}",
    "twice_percent": lambda t: f"/gradio_api/file={quote(quote(str(t.secret), safe=''))}",
    "dots": lambda t: f"/gradio_api/file={up(t.secret, t.upload)}",
    "dots_percent": lambda t: f"/gradio_api/file={quote(up(t.secret, t.upload), safe='').replace('.', '%2e')}",
    "symlink": lambda t: f"/gradio_api/file={t.link}",
    "folder": lambda t: f"/gradio_api/file={Path(t.upload).parent}",
    "http": lambda t: f"/gradio_api/file={t.foreign}",
    "file_url": lambda t: f"/gradio_api/file={t.secret.as_uri()}",
    "old_file": lambda t: f"/gradio_api/file/{t.secret}",
    "proxy": lambda t: f"/gradio_api/proxy={t.foreign}",
    "static": lambda t: f"/static/{'../' * 12}{t.secret}",
    "assets": lambda t: f"/assets/{'..%2f' * 12}{quote(str(t.secret), safe='')}",
    "component": lambda t: "/gradio_api/custom_component/1/client/component/../../../../etc/passwd",
    "history": lambda t: "/gradio_api/run-history/records?path=/etc/passwd",
    "monitoring": lambda t: "/monitoring",
    "docs": lambda t: "/docs",
    "openapi": lambda t: "/gradio_api/openapi.json",
}


@pytest.mark.parametrize("name", ROUTES)
def test_a_route_gives_no_file(target: Target, name: str) -> None:
    status, body = target.send("GET", ROUTES[name](target))
    assert status in (403, 404), body
    assert CANARY.encode() not in body
    assert b"root:" not in body
    assert b"world:" not in body
    assert target.asked == []


CLOSED = ["run/show", "api/show", "call/v2/show", "call/load_example", "component_server", "process_recording"]
CLOSED += ["run-history/connect", "vibe-edit", "vibe-code", "login"]


@pytest.mark.parametrize("route", CLOSED)
def test_a_route_that_the_page_does_not_use_is_closed(target: Target, route: str) -> None:
    data = [{"path": str(target.picture), "meta": META}, "Which number?", ["random"], 1]
    status, body = target.post(f"/gradio_api/{route}", {"data": data, "session_hash": "x", "fn_index": 0})
    assert status in (403, 404), body
    assert b"refused" in body


FOREIGN_HEADERS = {
    "host": {"Host": "rebound.example"},
    "host_and_port": {"Host": "rebound.example:{port}"},
    "host_like_ours": {"Host": "127.0.0.1.rebound.example:{port}"},
    "host_with_user": {"Host": "127.0.0.1@rebound.example"},
    "any_address": {"Host": "0.0.0.0:{port}"},
    "no_host": {"Host": ""},
    "origin": {"Origin": "http://rebound.example"},
    "origin_with_our_port": {"Origin": "http://rebound.example:{port}"},
    "origin_on_another_port": {"Origin": "http://127.0.0.1:1"},
    "origin_of_the_other_name": {"Origin": "http://localhost:{port}"},
    "origin_with_https": {"Origin": "https://127.0.0.1:{port}"},
    "origin_null": {"Origin": "null"},
    "rebound": {"Host": "rebound.example:{port}", "Origin": "http://rebound.example:{port}"},
    "fetched_by_another_site": {"Sec-Fetch-Site": "cross-site"},
    "fetched_from_another_port": {"Sec-Fetch-Site": "same-site"},
}


@pytest.mark.parametrize("name", FOREIGN_HEADERS)
def test_a_request_from_elsewhere_is_refused(target: Target, name: str) -> None:
    port = target.host.rpartition(":")[2]
    headers = {key: value.format(port=port) for key, value in FOREIGN_HEADERS[name].items()}
    good = [{"path": target.upload, "meta": META}, "Which number?", ["random"], 1]
    assert target.post("/gradio_api/call/show", {"data": good}, headers)[0] == 403
    assert target.send("GET", "/config", headers=headers)[0] == 403
    assert target.send("GET", f"/gradio_api/file={target.upload}", headers=headers)[0] == 403
    assert target.send("OPTIONS", "/gradio_api/upload", headers=headers)[0] == 403
    body, kind = multipart("q.png", b"x")
    assert target.send("POST", "/gradio_api/upload", body, headers | kind)[0] == 403


@pytest.mark.parametrize(
    "name", ["../../../../../../tmp/evil.png", "..%2f..%2fevil.png", "/etc/evil.png", "a/../../b.png"]
)
def test_the_name_of_an_upload_does_not_choose_its_folder(target: Target, name: str) -> None:
    status, body = target.send("POST", "/gradio_api/upload", *multipart(name, Path(target.upload).read_bytes()))
    assert status == 200, body
    assert Path(json.loads(body)[0]).resolve().is_relative_to(Path(target.upload).parents[1])
    assert not Path("/tmp/evil.png").exists()
    assert not Path("/etc/evil.png").exists()


def test_uploads_lie_in_a_folder_of_this_page_that_others_cannot_read(target: Target) -> None:
    folder = Path(target.upload).parents[1]
    assert folder.name.startswith("leverlab-demo-")
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("headers", [{}, {"Host": "localhost:{port}"}, {"Origin": "http://127.0.0.1:{port}"}])
def test_the_page_itself_is_served(target: Target, headers: dict[str, str]) -> None:
    headers = {key: value.format(port=target.host.rpartition(":")[2]) for key, value in headers.items()}
    assert target.send("GET", "/", headers=headers)[0] == 200
    assert target.send("GET", f"/gradio_api/file={target.upload}", headers=headers)[0] == 200


@pytest.mark.parametrize("way", ["call", "join", "predict"])
@pytest.mark.parametrize("url", [None, "file:///etc/passwd", "data:image/svg+xml;base64,eA=="])
def test_an_upload_is_answered_whatever_url_stands_beside_it(target: Target, way: str, url: str | None) -> None:
    image = {"path": target.upload, "url": url, "meta": META}
    events = getattr(target, way)([image, "Which number?", ["random"], 1])
    assert "answer-random" in events
    assert REFUSED not in events


def test_the_folder_is_deleted_when_the_page_is_terminated(made: Made, tmp_path: Path) -> None:
    with serve_demo(made.folder) as address:
        target = Target(address.removeprefix("http://"), tmp_path, tmp_path, "", "", "", "", [])
        upload = Path(json.loads(target.send("POST", "/gradio_api/upload", *multipart("q.png", b"x"))[1])[0])
        assert upload.exists()
    assert not upload.parents[1].exists()


def test_the_page_ends_while_a_browser_has_it_open(made: Made, tmp_path: Path) -> None:
    with serve_demo(made.folder) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        connection.request("GET", "/gradio_api/heartbeat/attack")
        assert connection.getresponse().status == 200
        started = time.monotonic()
    assert time.monotonic() - started < 30
    connection.close()


def test_the_page_writes_nothing_into_the_package(target: Target) -> None:
    assert [*(REPOSITORY / "src/leverlab/deploy").glob("*.pyi")] == []


def test_the_check_of_gradio_itself_is_on(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from leverlab.deploy.demo_server import LocalBlocks, application\n"
        "blocks = LocalBlocks(Path(sys.argv[1]), analytics_enabled=False)\n"
        "application(blocks, '')\n"
        "sys.exit(not blocks.has_launched)"
    )
    # in a process of its own: Gradio leaves event loops open
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == 0


def test_a_port_that_is_taken_is_one_sentence(target: Target) -> None:
    from leverlab.deploy.demo_server import listen
    from leverlab.errors import LeverlabError

    port = int(target.host.rpartition(":")[2])
    with pytest.raises(LeverlabError, match=rf"^port {port} cannot be used \(.*\); choose another one with --port$"):
        listen(port)


def test_a_port_is_taken_before_the_page_is_served() -> None:
    from leverlab.deploy.demo_server import listen
    from leverlab.errors import LeverlabError

    with listen(0) as first:
        port = first.getsockname()[1]
        with pytest.raises(LeverlabError, match=rf"^port {port} cannot be used"):
            listen(port)
