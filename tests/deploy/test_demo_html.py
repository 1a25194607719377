"""The HTML of the demo page, without Gradio and a browser."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from leverlab.deploy import demo_html
from leverlab.deploy.bundle import Pick
from leverlab.deploy.demo_html import Answered
from leverlab.records import Example
from leverlab.worlds.digits import convention, digits_world

ATTACK = "<img src=x onerror=alert(1)>\"'&"


def png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 7, dtype=np.uint8)).save(content, format="PNG")
    return content.getvalue()


def example(answer: str = "yes", *others: str, question: str = "Which?", image: bytes | None = None) -> Example:
    return Example("the-id", image or png(16, 16), "an-image", question, "type", (answer, *others))


def text(html: str) -> str:
    """Return the text of a page, as a reader sees it."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_the_words_of_digits_mean_their_classes() -> None:
    pool = digits_world(pool=40, train=1, val=1, test=1, label_noise=0.0, seed=0).pool
    meanings = demo_html.word_meanings(pool)
    assert len(meanings) == 26
    assert meanings[convention()["number"][3]] == "three"
    assert meanings[convention()["colour"][0]] == "red"
    shown = text(demo_html.introduction(meanings))
    assert f"three = {convention()['number'][3]} ," in shown
    assert f"framed = {convention()['texture'][7]} ." in shown


def test_other_worlds_have_no_words_to_explain() -> None:
    pool = digits_world(pool=40, train=1, val=1, test=1, label_noise=0.0, seed=0).pool
    assert demo_html.word_meanings([*pool, example("a dog")]) == {}
    assert "nonsense" not in demo_html.introduction({})


@pytest.mark.parametrize(
    ("answers", "answer", "kind", "mark"),
    [
        (("zo",), "zo", "right", "✓ right: zo = three"),
        (("zo",), "vi", "wrong", "✗ wrong: vi = four"),
        (("zo",), "zo vi", "wrong", "✗ wrong: zo vi = three four"),
        (("zo",), "other", "wrong", "✗ wrong: other"),
        (("zo",), "", "wrong", "✗ wrong: no answer"),
        (("zo",) * 10, "zo", "right", "✓ right: zo = three"),
        (("zo",) * 2 + ("b",) * 8, "zo", "right", "✓ right for 60% of the annotators: zo = three"),
        (("zo",) * 2 + ("b",) * 8, "c", "wrong", "✗ wrong: c"),
    ],
)
def test_an_answer_is_marked(answers: tuple[str, ...], answer: str, kind: str, mark: str) -> None:
    known = example(*answers)
    shown = demo_html.results(
        known, known, [Answered("grpo", [], "probability", answer)], {"zo": "three", "vi": "four"}
    )
    verdict = re.search(r'<p class="answer (\w*)" id="answer-grpo">(.*?)</p>', shown)
    assert verdict is not None
    assert verdict[1] == kind
    assert text(verdict[2]) == mark


def test_without_a_right_answer_nothing_is_marked() -> None:
    shown = demo_html.results(example(), None, [Answered("grpo", [], "probability", "yes")], {})
    assert "✓" not in shown
    assert "✗" not in shown
    assert "does not know the right answer" in shown


def test_labels_are_for_people_and_no_id_is_shown() -> None:
    picks = [Pick(example(question="A?"), 0.25), Pick(example("no", question="B?"), 0.5)]
    shown = demo_html.results(example(), None, [Answered("sft_control", picks, "probability", "yes")], {})
    assert "SFT control" in text(shown)
    assert "1. A? yes probability 0.25" in text(shown)
    assert "2. B? no probability 0.50" in text(shown)
    assert "the-id" not in shown
    assert "an-image" not in shown


def test_texts_are_escaped() -> None:
    bad = example(ATTACK, question=ATTACK)
    shown = demo_html.results(bad, bad, [Answered(ATTACK, [Pick(bad, 0.5)], ATTACK, ATTACK)], {})
    for page in (shown, demo_html.problem(ATTACK)):
        assert "&lt;img src=x" in page
        assert "<img src=x" not in page
        tags = re.findall(r"<[^>]*>", re.sub(r'"[^"]*"', '""', page))  # values of attributes left out
        assert not [tag for tag in tags if "onerror" in tag]


@pytest.mark.parametrize(
    ("size", "shown"),
    [((16, 16), (240, 240)), ((16, 8), (240, 120)), ((200, 100), (200, 100)), ((960, 480), (240, 120))],
)
def test_an_image_is_shown_at_a_size_that_can_be_seen(size: tuple[int, int], shown: tuple[int, int]) -> None:
    page = demo_html.results(example(image=png(*size)), None, [], {})
    data = re.search(r'src="data:image/png;base64,([^"]*)"', page)
    assert data is not None
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size == shown


def test_a_small_image_keeps_its_pixels() -> None:
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    page = demo_html.results(replace(example(), image=content.getvalue()), None, [], {})
    data = re.search(r'src="data:image/png;base64,([^"]*)"', page)
    assert data is not None
    large = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))
    assert np.array_equal(large[::15, ::15], pixels)


def test_a_problem_is_one_sentence() -> None:
    assert text(demo_html.problem("choose an image")) == "Choose an image."
