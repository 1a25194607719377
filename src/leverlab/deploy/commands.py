"""The commands of `leverlab` that use a bundle: select, predict and demo. The library is imported inside them."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leverlab.terminal import echo, one_line

if TYPE_CHECKING:
    from leverlab.deploy.bundle import Bundle, Pick
    from leverlab.records import Example

Folder = Annotated[Path, typer.Option(help="Folder of the bundle.")]
Shots = Annotated[int | None, typer.Option(min=0, help="Demos to show; by default as many as the selector picks.")]
Engine = Annotated[
    str | None,
    typer.Option(
        help="What answers: f16, q8_0 (the default), q5_0, q4_0, or transformers where the checkpoint is at hand."
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of llama.cpp.")]
Seconds = Annotated[float, typer.Option(min=0.001, help="That loading, or one answer, may take.")]
BUNDLE = Path("models/bundle")


def select(
    image: Annotated[Path, typer.Option(help="An image file.")],
    question: Annotated[str, typer.Option(help="The question about it.")],
    bundle: Folder = BUNDLE,
    shots: Shots = None,
    answer: Annotated[bool, typer.Option("--answer", help="Answer the question, too.")] = False,
    engine: Engine = None,
    threads: Threads = 1,
    seconds: Seconds = 60.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object; its messages are ready for a chat completions server.")
    ] = False,
) -> None:
    """Pick demos for a question about an image, and print them with the prompt."""
    from leverlab.deploy import answering
    from leverlab.deploy.bundle import Bundle
    from leverlab.deploy.gguf_tokens import read_text_tokens
    from leverlab.deploy.llama_cpp import chat_messages
    from leverlab.errors import LeverlabError

    opened = Bundle(bundle)
    kind = answering.checked_kind(opened, engine) if answer else None
    try:
        content = image.read_bytes()
    except OSError as error:
        raise LeverlabError(f"the image {image} cannot be read ({error.strerror})") from None
    asked = opened.question(content, question)
    picks = opened.pick(asked, opened.info.shots if shots is None else shots)
    demos = [pick.demo for pick in picks]
    said = None
    if kind is not None:
        with answering.engine(opened, kind, threads, seconds) as model:
            said = model.answer(demos, asked)
    if as_json:
        tokens = read_text_tokens(opened.file(opened.info.texts[0]))
        shown: dict[str, Any] = {
            "picks": [{"id": pick.demo.id, "score": pick.score} for pick in picks],
            "messages": chat_messages(demos, asked, opened.info.images, tokens),
        }
        echo(json.dumps(shown | ({} if said is None else {"answer": said}), indent=2))
        return
    _print(opened, picks, asked, said)


def _print(bundle: "Bundle", picks: Sequence["Pick"], asked: "Example", said: str | None) -> None:
    from rich.table import Table

    from leverlab.console import SafeConsole

    table = Table("", "demo", "score", "question", "answer", title=f"demos picked by {one_line(bundle.info.method)}")
    demos = [pick.demo for pick in picks]
    for place, pick in enumerate(picks, 1):
        demo = pick.demo
        table.add_row(
            str(place), one_line(demo.id), f"{pick.score:.3f}", one_line(demo.question), one_line(demo.answer)
        )
    console = SafeConsole(highlight=False, markup=False, emoji=False)
    console.print(table)
    console.print("prompt:")
    for demo in demos:
        console.print(f"  user: [image of {one_line(demo.id)}] {one_line(demo.question)}")
        console.print(f"  assistant: {one_line(demo.answer)}")
    console.print(f"  user: [your image] {one_line(asked.question)}")
    if said is not None:
        console.print(f"answer: {one_line(said)}")


def predict(
    questions: Annotated[
        Path,
        typer.Argument(
            help="A file .parquet, .csv or .jsonl with id, image and question; an image is bytes in parquet, else the "
            "name of a file beside it."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .parquet, .csv or .jsonl.")],
    bundle: Folder = BUNDLE,
    shots: Shots = None,
    engine: Engine = None,
    threads: Threads = 1,
    seconds: Seconds = 60.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object about the run.")] = False,
) -> None:
    """Answer a file of questions with a bundle; a run that was stopped goes on where it was."""
    from tqdm import tqdm

    from leverlab.deploy import answering
    from leverlab.deploy.bundle import Bundle
    from leverlab.deploy.predict import predict as predict_all

    opened = Bundle(bundle)
    kind, most = answering.checked_kind(opened, engine), opened.info.shots if shots is None else shots

    def load() -> AbstractContextManager[answering.Engine]:
        return answering.engine(opened, kind, threads, seconds)

    def track(label: str, total: int | None, done: int) -> Any:
        return tqdm(desc=label, total=total, initial=done)

    found = predict_all(opened, kind, load, questions, out, most, track, overwrite)
    if as_json:
        about = {"out": str(out), "questions": found.questions, "new": found.new, "engine": kind, "shots": most}
        echo(json.dumps(about, indent=2))
    else:
        echo(f"{out} is written; {found.new} answers are new")


def demo(
    bundle: Folder = BUNDLE,
    selectors: Annotated[
        Path, typer.Option(help="Folder of converted selectors, to compare methods; the bundle's alone without it.")
    ] = Path("models/selectors"),
    engine: Engine = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 7860,
    threads: Threads = 1,
    seconds: Seconds = 60.0,
) -> None:
    """Serve a page to try methods side by side, on this machine alone."""
    import importlib.util
    import os

    from leverlab.deploy import answering
    from leverlab.deploy.bundle import Bundle
    from leverlab.errors import LeverlabError

    if importlib.util.find_spec("gradio") is None:
        raise LeverlabError("the demo needs more packages: pip install 'leverlab[demo]', or make demo in a clone")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    from leverlab.deploy import demo as pages
    from leverlab.deploy import demo_html, demo_server

    opened = Bundle(bundle)
    methods = pages.Methods(opened, pages.read_selectors(opened, selectors))
    with (
        demo_server.listen(port) as listening,
        demo_server.private_folder() as folder,
        answering.engine(opened, engine, threads, seconds) as model,
    ):
        blocks = pages.page(opened, methods, model, opened.pool[:8], folder)
        app = demo_server.application(blocks, demo_html.CSS)
        typer.echo(f"http://{demo_server.HOST}:{port} (stop with Ctrl-C)")
        demo_server.serve(app, listening)
