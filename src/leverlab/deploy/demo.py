"""A page to try methods side by side: the demos that each picks, their scores, the prompt and the answer.

It needs the packages of requirements-demo.txt. It is served to this machine alone, sends nothing anywhere, and its
content security policy keeps the browser from fetching anything from elsewhere.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image

from leverlab.deploy.answering import Engine
from leverlab.deploy.bundle import FEATURES, Bundle, Pick, PoolSelector
from leverlab.errors import LeverlabError
from leverlab.evaluation.baselines import mixed, select
from leverlab.evaluation.summary import SELECTORS
from leverlab.records import Example
from leverlab.selector.candidates import unit_vectors
from leverlab.selector.inference import InferenceSelector

RANDOM, MIX = "random", "mix"
HOST = "127.0.0.1"
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'"
_SHOWN = 160  # pixels of a small image's side on the page


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


def page(bundle: Bundle, methods: Methods, engine: Engine, samples: Sequence[Example]) -> gr.Blocks:
    """Return the page. samples: questions to begin with."""

    # The page hands images on as pixels; of the samples the bundle must see the files, as they stand in its pool.
    known = {_pixels(sample.open_image()): sample.image for sample in samples}

    def show(image: Image.Image | None, text: str, names: list[str], shots: float) -> list[Any]:
        try:
            if image is None:
                raise LeverlabError("choose an image")
            question = bundle.question(known.get(_pixels(image)) or _png(image), text)
            columns = [_column(engine, methods.pick(name, question, int(shots)), question) for name in names]
        except LeverlabError as error:
            raise gr.Error(str(error), print_exception=False) from None
        by_name = dict(zip(names, columns, strict=True))
        return [
            part
            for name in methods.names
            for part in (gr.Column(visible=name in by_name), *by_name.get(name, ([], "", "")))
        ]

    with gr.Blocks(title="leverlab", analytics_enabled=False) as blocks:
        gr.Markdown("# leverlab: which demos help?")
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.Image(
                    type="pil", format="png", label="Image", sources=["upload", "clipboard"], elem_id="image"
                )
                text = gr.Textbox(label="Question", elem_id="question")
                names = gr.CheckboxGroup(
                    list(methods.names), value=[methods.names[0], methods.names[-1]], label="Methods", elem_id="methods"
                )
                shots = gr.Slider(0, bundle.info.shots, value=bundle.info.shots, step=1, label="Shots")
                run = gr.Button("Answer", variant="primary", elem_id="run")
                gr.Examples([[sample.open_image(), sample.question] for sample in samples], [image, text])
            with gr.Column(scale=3), gr.Row():
                outputs: list[Any] = []
                for name in methods.names:
                    with gr.Column(visible=name in names.value, min_width=240) as column:
                        gr.Markdown(f"### {name}")
                        answer = gr.Textbox(label="Answer", interactive=False, elem_id=f"answer-{name}")
                        picks = gr.Gallery(label="Demos", columns=2, height="auto", elem_id=f"picks-{name}")
                        prompt = gr.Textbox(label="Prompt", lines=8, interactive=False, elem_id=f"prompt-{name}")
                    outputs += [column, picks, prompt, answer]
        run.click(show, [image, text, names, shots], outputs, concurrency_limit=1)  # the engine answers one at a time
    return blocks


def serve(blocks: gr.Blocks, port: int) -> None:
    """Serve the page on this machine alone until it is interrupted."""
    uvicorn.run(application(blocks), host=HOST, port=port, log_level="warning")


def application(blocks: gr.Blocks) -> FastAPI:
    """Return the page as an application whose answers forbid the browser to fetch anything from elsewhere."""
    app = FastAPI()

    async def keep_at_home(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    app.middleware("http")(keep_at_home)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return gr.mount_gradio_app(app, blocks, path="/", theme=theme)


def _column(engine: Engine, picks: Sequence[Pick], question: Example) -> tuple[list[Any], str, str]:
    """Return gallery, prompt and answer of one method."""
    demos = [pick.demo for pick in picks]
    gallery = [
        (_large(pick.demo.open_image()), f"{pick.demo.answer} · {pick.score:.2f} · {pick.demo.id}") for pick in picks
    ]
    turns = [f"user: [image of {demo.id}] {demo.question}\nassistant: {demo.answer}" for demo in demos]
    prompt = "\n".join([*turns, f"user: [your image] {question.question}"])
    return gallery, prompt, engine.answer(demos, question)


def _large(image: Image.Image) -> Image.Image:
    """Return a small image enlarged, its pixels kept sharp."""
    factor = max(1, _SHOWN // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _pixels(image: Image.Image) -> tuple[tuple[int, int], bytes]:
    rgb = image.convert("RGB")
    return rgb.size, rgb.tobytes()


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.convert("RGB").save(content, format="PNG")
    return content.getvalue()
