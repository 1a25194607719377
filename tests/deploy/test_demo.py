"""The demo page in a real browser: an image and a question go in, picks and answers come out, nothing leaves."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from leverlab.deploy.demo_html import prompt
from tests.deploy.bundles import Made
from tests.deploy.demo_page import serve_demo

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]
WAIT = 120_000  # milliseconds
WIDTHS = [390, 1400]  # pixels of a telephone and of a desk
# Elements that reach over the window's edge, or whose content is cut off by their own.
CLIPPED = """() => [...document.querySelectorAll('body, body *')].filter(element => {
  const box = element.getBoundingClientRect();
  if (!box.width || element.closest('.sr-only')) return false;
  const outside = box.right > document.documentElement.clientWidth + 1 || box.left < -1;
  const cut = getComputedStyle(element).overflowX !== 'visible' && element.scrollWidth > element.clientWidth + 1;
  return outside || cut;
}).map(element => element.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def address(made: Made) -> Iterator[str]:
    with serve_demo(made.folder) as address:
        yield address


@pytest.fixture(params=WIDTHS)
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, newly opened; it lists in `asked` and `refused` the addresses that it asked for."""
    opened = browser.new_page(viewport={"width": request.param, "height": 1000})
    opened.asked, opened.refused = [], []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("response", lambda answer: opened.refused.append(answer.url) if answer.status >= 400 else None)
    opened.goto(address)
    opened.wait_for_selector("#run", timeout=WAIT)
    yield opened
    opened.close()


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
    page.wait_for_selector(f"#answer-{method}", timeout=WAIT)
    question = made.bundle.question(asked.image, asked.question)
    picks = made.bundle.pick(question, 4)
    assert page.text_content(f"#prompt-{method}") == prompt(picks, question)
    assert page.locator(f"#picks-{method} img").count() == len(picks) == 4
    assert page.inner_text("#answer-random").strip()
    assert "does not know the right answer" in page.inner_text("#asked")
    assert "right:" not in page.inner_text("#answers")
    assert not any(demo.id in page.inner_text("body") for demo in made.bundle.pool)
    picture = tmp_path / "page.png"
    page.screenshot(path=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [url for url in page.asked if not url.startswith((address, "data:", "blob:"))] == []
    assert page.refused == []


def test_a_sample_question_is_marked_and_its_image_can_be_seen(page: Any, made: Made) -> None:
    page.locator("#samples tbody tr").nth(3).click()
    page.wait_for_selector("#image img", timeout=WAIT)
    page.click("#run")
    page.wait_for_selector("#answer-random", timeout=WAIT)
    assert f"Right answer, as the pool has it: {made.bundle.pool[3].answer} = " in page.inner_text("#asked")
    for method in ("random", made.bundle.info.method):
        assert page.inner_text(f"#answer-{method}").strip()[0] in "✓✗"
    for image in ("#image img", "#asked img"):
        assert page.locator(image).bounding_box()["width"] >= 150
    assert page.refused == []


def test_nothing_is_clipped(page: Any) -> None:
    assert page.evaluate(CLIPPED) == []
    page.locator("#samples tbody tr").first.click()
    page.wait_for_selector("#image img", timeout=WAIT)
    for method in page.locator("#methods input[type=checkbox]").all():
        method.check()
    page.click("#run")
    page.wait_for_selector("#answer-mix", timeout=WAIT)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate(CLIPPED) == []


def test_an_empty_form_says_one_sentence(page: Any) -> None:
    page.click("#run")
    page.wait_for_selector(".problem", timeout=WAIT)
    assert page.inner_text("#answers").strip() == "Choose an image and ask a question."
    assert page.locator(".toast-body, .error").count() == 0


def test_a_file_that_is_no_image_is_one_sentence(page: Any, tmp_path: Path) -> None:
    image = tmp_path / "q.png"
    image.write_bytes(b"this is no image")
    page.set_input_files("#image input[type=file]", image)
    page.wait_for_selector("#image img", state="attached", timeout=WAIT)
    page.fill("#question textarea", "Which number?")
    page.click("#run")
    page.wait_for_selector(".problem", timeout=WAIT)
    assert "cannot be decoded" in page.inner_text("#answers")
    assert page.locator(".toast-body").count() == 0


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
