"""Both report pages in a real browser, at the widths of a telephone and a desk: nothing is clipped, tables scroll."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report import test_clarify_report, test_stage

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]
WIDTHS = [390, 1400]  # pixels
LONG = "a_gate_whose_name_is_longer_than_any_other_on_the_page"
# Elements that reach over the window's edge; what is in a table that scrolls can be brought into view.
OUTSIDE = """() => [...document.querySelectorAll('body, body *')].filter(element => {
  const box = element.getBoundingClientRect();
  if (!box.width || element.closest('.unseen') || element.parentElement?.closest('svg')) return false;
  if (element.closest('.scroll') && !element.classList.contains('scroll')) return false;
  return box.right > document.documentElement.clientWidth + 1 || box.left < -1;
}).map(element => element.outerHTML.slice(0, 200))"""
# Cells whose text reaches over their edge into the next one.
OVERFLOWING = """() => [...document.querySelectorAll('th, td')].filter(
  cell => cell.scrollWidth > cell.clientWidth + 1
).map(cell => cell.outerHTML.slice(0, 200))"""
# Of every table that scrolls: whether the shade at its edge is drawn, and the keyboard reaches it.
CUES = """() => [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1).map(
  box => getComputedStyle(box).overflowX === 'auto' && box.tabIndex === 0
  && getComputedStyle(box).backgroundAttachment.includes('scroll')
)"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of the main pipeline and that of the recipe, of a small run each, as files."""
    main, recipe = tmp_path_factory.mktemp("main"), tmp_path_factory.mktemp("recipe")
    test_stage.make_repository(
        main, gates={LONG: {"metric": "comparisons.sft_control.shots_4.ci_low", "at_least": 0.9}}
    )
    test_clarify_report.make_repository(
        recipe,
        gates={**test_clarify_report.GATES, LONG: {"metric": "lift.over_clarification_reduction", "at_least": 0.9}},
    )
    with pytest.MonkeyPatch.context() as patch:
        test_stage.run(main, patch)
        test_clarify_report.run(recipe, patch)
    return {"main": main / "reports/report.html", "clarify": recipe / "recipes/clarify/reports/report.html"}


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["main", "clarify"])
def page(browser: Any, pages: dict[str, Path], width: int, request: pytest.FixtureRequest) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": width, "height": 1000})
    opened.goto(pages[request.param].as_uri())
    opened.evaluate("() => document.querySelectorAll('details').forEach(part => part.open = true)")
    yield opened
    opened.close()


def test_nothing_is_clipped(page: Any) -> None:
    """The page itself does not scroll sideways, nothing reaches over its edge, no text leaves its cell."""
    whole, body, window = page.evaluate(
        "() => [document.documentElement, document.body].map(part => part.scrollWidth)"
        ".concat(document.documentElement.clientWidth)"
    )
    assert whole <= window
    assert body <= window
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERFLOWING) == []


def test_tables_that_scroll_have_a_cue(page: Any, width: int) -> None:
    cues = page.evaluate(CUES)
    assert all(cues)
    assert cues or width > 390


def test_the_first_heading_is_the_answer(page: Any) -> None:
    """What the run found is in sight without scrolling, before any table."""
    answer = page.locator("h1").bounding_box()
    assert answer["y"] + answer["height"] < 1000
    assert answer["y"] < page.locator("table").first.bounding_box()["y"]
