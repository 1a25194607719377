"""A page to try methods side by side: the demos that each picks, their scores, the prompt and the answer.

It needs the packages of requirements-demo.txt. It is served to this machine alone, sends nothing anywhere, and its
content security policy keeps the browser from fetching anything from elsewhere (see `demo_server`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from leverlab.deploy import demo_html
from leverlab.deploy.answering import Engine
from leverlab.deploy.bundle import FEATURES, Bundle, Pick, PoolSelector
from leverlab.deploy.demo_server import LocalBlocks
from leverlab.errors import LeverlabError
from leverlab.evaluation.baselines import mixed, select
from leverlab.evaluation.summary import SELECTORS
from leverlab.records import Example
from leverlab.selector.candidates import unit_vectors
from leverlab.selector.inference import InferenceSelector

RANDOM, MIX = "random", "mix"
SCORES = {MIX: "similarity"}  # what a pick's score is; of every other method it is a probability


class Methods:
    """The ways to pick demos that the page offers: random, by mixed similarity, and trained selectors by name."""

    def __init__(self, bundle: Bundle, selectors: Mapping[str, PoolSelector]):
        self._bundle, self._selectors = bundle, selectors
        self.names = (RANDOM, MIX, *selectors)

    def pick(self, name: str, question: Example, shots: int) -> list[Pick]:
        """Return the demos of method `name`.

        Their score is the probability of the pick, and for mixed similarity the mean cosine of image and question.
        """
        self._bundle.check_shots(shots)
        if shots == 0:
            return []
        vectors = self._bundle.vectors(question)
        candidates = self._bundle.candidates(question, vectors)
        if name == RANDOM:
            found = [(demo, 1 / len(candidates)) for demo in candidates[:shots]]  # they come in random order
        elif name == MIX:
            rows, (image, text) = self._bundle.features.rows(candidates), vectors
            images, texts = self._bundle.features.image_ND[rows], self._bundle.features.question_ND[rows]
            cosines = (unit_vectors(images) @ unit_vectors(image)[0] + unit_vectors(texts) @ unit_vectors(text)[0]) / 2
            places = select(mixed(image, images[None], text, texts[None]), shots)[0]
            found = [(candidates[place], float(cosines[place])) for place in places]
        else:
            found = self._selectors[name].pick(vectors, candidates, shots)
        return [Pick(self._bundle.demos[demo], score) for demo, score in found]


def read_selectors(bundle: Bundle, folder: Path) -> dict[str, PoolSelector]:
    """Return by name the selectors of `folder` that read the bundle's features, of each method the first seed; without
    such a folder the bundle's own."""
    found: dict[str, PoolSelector] = {}
    for path in sorted(folder.glob("*-*")):
        method = path.name.rpartition("-")[0]
        if method not in found and not (path / FEATURES).exists():
            found[method] = PoolSelector(InferenceSelector.load(path), bundle.features)
    ordered = {name: found[name] for name in SELECTORS if name in found}
    return ordered or {bundle.info.method: bundle.selector}


def page(bundle: Bundle, methods: Methods, engine: Engine, samples: Sequence[Example], folder: Path) -> LocalBlocks:
    """Return the page.

    samples: questions of the pool to begin with; folder: gets their images, and uploads.
    """
    known = {(demo.image, demo.question): demo for demo in bundle.pool}
    meanings = demo_html.word_meanings(bundle.pool)

    def show(image: dict[str, Any] | None, text: str | None, names: list[str] | None, shots: float) -> str:
        chosen = [name for name in methods.names if name in (names or [])]
        path, asked = image["path"] if image else "", text or ""
        given = {"choose an image": path, "ask a question": asked.strip(), "choose a method": chosen}
        if missing := [step for step, value in given.items() if not value]:
            return demo_html.problem(" and ".join(missing))
        try:
            question = bundle.question(Path(path).read_bytes(), asked)
            answered = [_answered(engine, methods, name, question, int(shots)) for name in chosen]
        except LeverlabError as error:
            return demo_html.problem(str(error))
        return demo_html.results(question, known.get((question.image, question.question)), answered, meanings)

    with LocalBlocks(folder, title="leverlab", analytics_enabled=False) as blocks:
        gr.Markdown("# leverlab: which demos help?")
        gr.HTML(demo_html.introduction(meanings), elem_id="introduction", padding=False)
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.Image(label="Image", sources=["upload", "clipboard"], height=280, elem_id="image")
                text = gr.Textbox(label="Question", elem_id="question")
                choices = [(demo_html.label_of(name), name) for name in methods.names]
                names = gr.CheckboxGroup(
                    choices, value=[methods.names[0], methods.names[-1]], label="Methods", elem_id="methods"
                )
                shots = gr.Slider(0, bundle.info.shots, value=bundle.info.shots, step=1, label="Demos in the prompt")
                run = gr.Button("Answer", variant="primary", elem_id="run")
            with gr.Column(scale=3):
                answers = gr.HTML(demo_html.placeholder(), elem_id="answers", padding=False)
        rows = [[path, sample.question] for path, sample in zip(_write(samples, folder), samples, strict=True)]
        gr.Examples(rows, [image, text], label="Sample questions, whose right answer is known", elem_id="samples")
        # Without Gradio's preprocessing the bundle decodes the uploaded file itself, as for every other command; the
        # engine answers one question at a time.
        run.click(show, [image, text, names, shots], answers, preprocess=False, concurrency_limit=1)
    return blocks


def _answered(engine: Engine, methods: Methods, name: str, question: Example, shots: int) -> demo_html.Answered:
    picks = methods.pick(name, question, shots)
    answer = engine.answer([pick.demo for pick in picks], question)
    return demo_html.Answered(name, picks, SCORES.get(name, "probability"), answer)


def _write(samples: Sequence[Example], folder: Path) -> list[str]:
    """Write the images of `samples`, byte for byte, and return their paths."""
    paths = [folder / f"sample-{place}.png" for place, _ in enumerate(samples)]  # browsers go by the content
    for path, sample in zip(paths, samples, strict=True):
        path.write_bytes(sample.image)
    return [str(path) for path in paths]
