"""The demo page in a real browser: an image and a question go in, picks and answers come out, nothing leaves."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.deploy.bundles import Made, make_bundle

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WAIT = 120_000  # milliseconds


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def address(made: Made) -> Iterator[str]:
    """The address of a page that is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "leverlab.cli", "demo", "--bundle", str(made.folder), "--port", str(port)]
    process = subprocess.Popen([*command, "--selectors", str(made.folder / "none"), "--engine", "f16"])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "the demo ended"
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.asked = []
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.goto(address)
        opened.wait_for_selector("#run", timeout=WAIT)
        yield opened
        browser.close()


def ask(page: Any, image: Path, question: str) -> None:
    page.set_input_files("#image input[type=file]", image)
    page.wait_for_selector("#image img", timeout=WAIT)
    page.fill("#question textarea", question)
    page.click("#run")


def test_an_image_and_a_question_give_picks_and_answers(page: Any, address: str, made: Made, tmp_path: Path) -> None:
    asked = made.questions[0]
    image = tmp_path / "q.png"
    image.write_bytes(asked.image)
    ask(page, image, asked.question)
    method = made.bundle.info.method
    page.wait_for_function(f"(document.querySelector('#answer-{method} textarea') || {{}}).value", timeout=WAIT)
    picks = [pick.demo.id for pick in made.bundle.pick(made.bundle.question(asked.image, asked.question), 4)]
    prompt = page.input_value(f"#prompt-{method} textarea")
    assert [line.split("]")[0].split()[-1] for line in prompt.splitlines() if line.startswith("user: [image")] == picks
    assert prompt.endswith(f"user: [your image] {asked.question}")
    page.wait_for_selector(f"#picks-{method} img", timeout=WAIT)
    assert page.locator(f"#picks-{method} img").count() >= len(picks)
    assert page.input_value("#answer-random textarea")
    picture = tmp_path / "page.png"
    page.screenshot(path=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    elsewhere = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == []


def test_an_empty_question_is_told(page: Any, made: Made, tmp_path: Path) -> None:
    image = tmp_path / "q.png"
    image.write_bytes(made.questions[1].image)
    ask(page, image, " ")
    page.wait_for_selector("text=the question is empty", timeout=WAIT)


def test_the_page_is_for_this_machine_and_forbids_the_rest(address: str) -> None:
    with urllib.request.urlopen(address, timeout=30) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    port = int(address.rpartition(":")[2])
    listening = {
        connection.laddr for connection in psutil.net_connections("tcp") if connection.status == psutil.CONN_LISTEN
    }
    assert {where.ip for where in listening if where.port == port} == {"127.0.0.1"}
