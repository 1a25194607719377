"""The HTML of the demo page: what the words of a world mean, and the demos and answers of each method.

Every text of a user, a pool or a model is escaped.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from leverlab.deploy.bundle import Pick
from leverlab.evaluation.vqa_metric import vqa_accuracy
from leverlab.records import Example
from leverlab.report.words import LABELS, MEANINGS
from leverlab.worlds.digits import convention
from leverlab.worlds.digits_scenes import CLASSES

DEMO_SIDE, ASKED_SIDE = 160, 240  # pixels of the longer side of an image on the page
PLACEHOLDER = "Choose an image and ask a question about it, or click a sample question below."
CSS = """
#image img { width: 100%; height: 100%; object-fit: contain; }
#samples img { width: 100% !important; height: 100% !important; object-fit: contain !important; }
.lever p { margin: 0 0 .5em; }
.lever .problem { border-left: 4px solid #d55e00; padding: .5em .8em; }
.lever .asked { display: flex; flex-wrap: wrap; gap: 16px; margin-bottom: 16px; }
.lever .methods { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 16px; }
.lever section { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px; min-width: 0; }
.lever h3, .lever .question { margin: 0; font-size: 1.15em; }
.lever .small { font-size: .85em; opacity: .8; }
.lever .answer { font-size: 1.15em; border-left: 4px solid var(--border-color-primary); padding-left: .6em; }
.lever .answer.right { border-color: #009e73; }
.lever .answer.wrong { border-color: #d55e00; }
.lever .demos { display: grid; grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); gap: 10px; }
.lever figure { margin: 0; min-width: 0; }
.lever figcaption, .lever pre { font-size: .85em; overflow-wrap: anywhere; }
.lever img { max-width: 100%; border-radius: 4px; margin: 0; }
.lever pre { white-space: pre-wrap; margin: .5em 0 0; }
"""


@dataclass(frozen=True)
class Answered:
    """The demos that a method picked for a question, best first, what their scores are, and the answer after them."""

    method: str
    picks: Sequence[Pick]
    score: str
    answer: str


def word_meanings(pool: Iterable[Example]) -> dict[str, str]:
    """Return the class that each word of the world `digits` names; nothing where `pool` has other answers."""
    known = {
        word: meaning
        for attribute, words in convention().items()
        for word, meaning in zip(words, CLASSES[attribute], strict=True)
    }
    return known if all(word in known for demo in pool for word in demo.answer.split()) else {}


def introduction(meanings: Mapping[str, str]) -> str:
    """Return what the page shows, and what the words of the answers mean."""
    lines = [
        "A vision-language model answers a question about an image. Before the question, its prompt has a few <b>demos"
        "</b>: other images with their question and answer. Each method picks other demos: compare what the model "
        "answers after them."
    ]
    if meanings:
        lines.append(
            "In this world the answers are <b>nonsense words</b>, and only the demos show the model what they mean:"
        )
        word_of = {meaning: word for word, meaning in meanings.items()}
        for attribute, classes in CLASSES.items():
            pairs = ", ".join(f"{meaning} = <b>{escape(word_of[meaning])}</b>" for meaning in classes)
            lines.append(f"{attribute.capitalize()}: {pairs}.")
    return _page("".join(f"<p>{line}</p>" for line in lines))


def problem(sentence: str) -> str:
    """Return the one sentence that takes the place of the answers; `sentence` has no full stop."""
    return _page(f'<p class="problem" role="alert">{escape(sentence[:1].upper() + sentence[1:])}.</p>')


def placeholder() -> str:
    """Return what is shown before the first answer."""
    return _page(f"<p>{PLACEHOLDER}</p>")


def results(question: Example, known: Example | None, answered: Sequence[Answered], meanings: Mapping[str, str]) -> str:
    """Return the question and the answers of all methods.

    known: the same question with its right answers, where the pool has it; the answers are then marked.
    """
    right = (
        f"<p>Right answer, as the pool has it: {_word(known.answer, meanings)}</p>"
        if known
        else '<p class="small">The pool does not have this question, so the page does not know the right answer.</p>'
    )
    asked = (
        f'<div class="asked" id="asked">{_image(question.open_image(), ASKED_SIDE, "your image")}'
        f'<div><p class="question">{escape(question.question)}</p>{right}</div></div>'
    )
    columns = "".join(_column(entry, question, known, meanings) for entry in answered)
    return _page(f'{asked}<div class="methods">{columns}</div>')


def label_of(method: str) -> str:
    """Return the name of a method for people."""
    return LABELS.get(method, method)


def _column(entry: Answered, question: Example, known: Example | None, meanings: Mapping[str, str]) -> str:
    name = escape(entry.method)
    demos = "".join(_demo(place, pick, entry.score, meanings) for place, pick in enumerate(entry.picks, 1))
    return (
        f'<section><h3>{escape(label_of(entry.method))}</h3><p class="small">{escape(MEANINGS.get(entry.method, ""))}'
        f"</p>{_verdict(entry, known, meanings)}"
        f'<div class="demos" id="picks-{name}">{demos or "no demos"}</div>'
        f'<details><summary>Prompt</summary><pre id="prompt-{name}">{escape(prompt(entry.picks, question))}</pre>'
        "</details></section>"
    )


def _verdict(entry: Answered, known: Example | None, meanings: Mapping[str, str]) -> str:
    kind, mark = "", ""
    if known:
        accuracy = vqa_accuracy(entry.answer, known.answers)
        if accuracy == 0:
            kind, mark = "wrong", "✗ wrong: "
        else:
            kind, mark = "right", "✓ right: " if accuracy == 1 else f"✓ right for {accuracy:.0%} of the annotators: "
    answer = _word(entry.answer, meanings) if entry.answer else "no answer"
    return f'<p class="answer {kind}" id="answer-{escape(entry.method)}">{mark}{answer}</p>'


def _demo(place: int, pick: Pick, score: str, meanings: Mapping[str, str]) -> str:
    demo = pick.demo
    return (
        f"<figure>{_image(demo.open_image(), DEMO_SIDE, f'demo {place}')}<figcaption>{place}. {escape(demo.question)}"
        f"<br>{_word(demo.answer, meanings)}<br>"
        f'<span class="small">{escape(score)} {pick.score:.2f}</span></figcaption></figure>'
    )


def prompt(picks: Sequence[Pick], question: Example) -> str:
    """Return the prompt as text, one turn a line; images are numbered as on the page."""
    turns = [
        f"user: [image {place}] {pick.demo.question}\nassistant: {pick.demo.answer}"
        for place, pick in enumerate(picks, 1)
    ]
    return "\n".join([*turns, f"user: [your image] {question.question}"])


def _word(answer: str, meanings: Mapping[str, str]) -> str:
    """Return an answer with its meaning, where every word of it has one."""
    words = answer.split()
    meaning = f" = {' '.join(meanings[word] for word in words)}" if all(word in meanings for word in words) else ""
    return f"<b>{escape(answer)}</b>{escape(meaning)}"


def _image(image: Image.Image, side: int, description: str) -> str:
    """Return an image brought to at most `side` pixels: a small one is enlarged with sharp pixels."""
    factor = side // max(image.size)
    if factor > 1:
        shown = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        shown = image.copy()
        shown.thumbnail((side, side))
    content = io.BytesIO()
    shown.save(content, format="PNG")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(description)}">'


def _page(content: str) -> str:
    return f'<div class="lever">{content}</div>'
