"""llama.cpp in a process of its own: what it answers, and how each of its failures is told."""

import base64
import gc
import importlib.util
import io
import json
import re
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from tokenizers import Tokenizer

from leverlab.config.base import read_params
from leverlab.deploy import llama_cpp, llama_worker
from leverlab.deploy.llama_cpp import LlamaCpp, LlamaCppError, Settings, chat_messages
from leverlab.deploy.parity import Prompt, references
from leverlab.export.gguf import export_text, export_vision
from leverlab.export.images import ImageLimits
from leverlab.export.vision_part import image_limits
from leverlab.records import Example
from leverlab.text_tokens import TextTokens
from leverlab.vlm.model import Vlm, load_vlm
from leverlab.vlm.prompt import PromptFormat
from leverlab.worlds.digits import digits_world

ROOT = Path(__file__).parents[2]
VLM = ROOT / "worlds/digits/vlm"
SETTINGS = Settings(image_limits(VLM), context=1024, exact_cache=True)
TOKENS = TextTokens(Tokenizer.from_file(str(VLM / "tokenizer.json")))
VOCABULARY = 480


@pytest.fixture(scope="module")
def pool() -> tuple[Example, ...]:
    return digits_world(pool=24, train=1, val=1, test=1, label_noise=0.0, seed=0).pool


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The VLM's text file and vision file."""
    folder = tmp_path_factory.mktemp("gguf")
    export_text(VLM, folder / "text.gguf", "f16")
    export_vision(VLM, folder / "mmproj.gguf")
    return folder / "text.gguf", folder / "mmproj.gguf"


@pytest.fixture(scope="module")
def runtime(files: tuple[Path, Path]) -> Iterator[LlamaCpp]:
    with LlamaCpp(*files, SETTINGS) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return load_vlm(str(VLM), "float32", "cpu")


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> Iterator[None]:
    """What was made before these tests is left alone by the collector, which then takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail when a process or an open file is left behind."""
    this = psutil.Process()
    gc.collect()
    before = set(this.children(recursive=True)), this.num_fds()
    yield
    gc.collect()  # an open file would be told as a ResourceWarning
    assert (set(this.children(recursive=True)), this.num_fds()) == before


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run other code in the place of the worker: `worker(code)`. `listen` and `say` are its two ends."""

    def put(code: str) -> None:
        script = tmp_path / "worker.py"
        head = """
            import json, os, signal, sys, time
            def listen():
                return json.loads(sys.stdin.readline())
            def say(**said):
                print(json.dumps(said), flush=True)
        """
        script.write_text(textwrap.dedent(head) + textwrap.dedent(code), encoding="utf-8")
        monkeypatch.setattr(llama_worker, "__file__", str(script))

    return put


def one_sentence(error: pytest.ExceptionInfo[LlamaCppError], *parts: str) -> str:
    """Check that the message is a line with all `parts` (patterns), a remedy behind the cause, and no Python in it."""
    message = str(error.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert 30 < len(message) < 800
    assert "; " in message
    for part in parts:
        assert re.search(part, message), (part, message)
    return message


# Answers


def test_messages_of_a_prompt(pool: tuple[Example, ...]) -> None:
    """Image and question of each demo, its answer, and at the end the question that is asked."""
    first, last = replace(pool[0], answers=("no", "yes", "yes")), pool[1]

    def turn(example: Example) -> dict[str, object]:
        png = base64.b64encode(SETTINGS.images.fitting_png(example.open_image()))
        url = f"data:image/png;base64,{png.decode('ascii')}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": example.question}]
        return {"role": "user", "content": content}

    assert chat_messages([], last, SETTINGS.images, TOKENS) == [turn(last)]
    assert chat_messages([first, last], last, SETTINGS.images, TOKENS) == [
        turn(first),
        {"role": "assistant", "content": "yes"},
        turn(last),
        {"role": "assistant", "content": last.answer},
        turn(last),
    ]


@pytest.mark.parametrize("control", TOKENS.controls)
def test_a_text_that_spells_a_control_token_is_refused(pool: tuple[Example, ...], control: str) -> None:
    """llama.cpp would read it as one. The answer of the question is not shown, so it may spell anything."""
    asked, said = replace(pool[0], question=f"a{control}b"), replace(pool[1], answers=(f"a{control}",))
    for demos, question, part, name in (([pool[2]], asked, "question", asked.id), ([said], pool[2], "answer", said.id)):
        with pytest.raises(LlamaCppError) as error:
            chat_messages(demos, question, SETTINGS.images, TOKENS)
        one_sentence(error, f"^the {part} of '{name}' spells '{re.escape(control)}'", "change or drop that row")
    assert chat_messages([pool[2]], said, SETTINGS.images, TOKENS)


def test_control_tokens_in_a_text_are_read_as_such_by_llama_cpp(runtime: LlamaCpp, pool: tuple[Example, ...]) -> None:
    """Why they are refused; when this fails, the runtime has learnt to tell texts from templates, and may be used."""
    plain = chat_messages([], replace(pool[0], question="Which number?"), SETTINGS.images, TOKENS)
    spelled = json.loads(json.dumps(plain))
    spelled[0]["content"][1]["text"] += "<|im_end|>"
    counts = [runtime.answer(messages, 1).prompt_tokens for messages in (plain, spelled)]
    assert counts[1] - counts[0] == 1 < len(TOKENS.ids("<|im_end|>"))


def test_the_runtime_knows_the_tokens_of_its_file(runtime: LlamaCpp) -> None:
    assert runtime.text_tokens.controls == TOKENS.controls


def remade(example: Example, size: tuple[int, int] | None = None, mode: str = "RGB", **kind: Any) -> Example:
    """The example with its image resized, in another mode, and saved as another kind of file."""
    image, content = example.open_image().convert(mode), io.BytesIO()
    image.resize(size or image.size).save(content, **kind)
    return replace(example, image=content.getvalue())


def test_images_are_sent_as_png(pool: tuple[Example, ...]) -> None:
    """With the pixels that Pillow decodes."""
    example = remade(pool[0], format="JPEG", quality=60)
    url = chat_messages([], example, SETTINGS.images, TOKENS)[0]["content"][0]["image_url"]["url"]
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(content)))
    assert shown.format == "PNG"
    assert np.array_equal(shown, example.open_image())


@pytest.mark.parametrize(
    "form",
    [
        lambda example: example,
        partial(remade, format="JPEG", quality=60),
        partial(remade, format="WEBP", quality=60),
        partial(remade, format="PNG", mode="RGBA", size=(21, 37)),
        partial(remade, format="PNG", mode="L", size=(7, 5)),
        partial(remade, format="GIF", size=(100, 40)),
    ],
    ids=["png", "jpeg", "webp", "odd", "smaller", "larger"],
)
def test_answers_are_those_of_transformers(
    runtime: LlamaCpp, vlm: Vlm, pool: tuple[Example, ...], form: Callable[[Example], Example]
) -> None:
    """Greedy, after two demos; the same count of tokens in the prompt, and the whole distribution of each place."""
    shown = [form(example) for example in pool]
    prompts = [Prompt("1x1", tuple(shown[at : at + 2]), shown[at + 2]) for at in range(0, 12, 2)]
    texts = set()
    for prompt, expected in zip(prompts, references(vlm, prompts, 4), strict=True):
        found = runtime.answer(chat_messages(prompt.demos, prompt.question, SETTINGS.images, TOKENS), 4, 1000)
        assert found.ids == expected.ids
        assert found.text == PromptFormat(vlm.processor).decode(list(expected.ids)) != ""
        assert found.prompt_tokens == expected.prompt_tokens
        assert [len(row) for row in found.top] == [VOCABULARY] * len(found.ids)
        assert [max(row, key=lambda token: row[token]) for row in found.top] == list(found.ids)
        texts.add(found.text)
    assert len(texts) >= 3


def test_what_is_asked_for_is_given(runtime: LlamaCpp, pool: tuple[Example, ...]) -> None:
    messages = chat_messages(pool[:2], pool[2], SETTINGS.images, TOKENS)
    whole = runtime.answer(messages, 4, 1000)
    assert len(whole.ids) > 1  # a word and the end
    silent = runtime.answer(messages, 4)
    assert (silent.text, silent.prompt_tokens) == (whole.text, whole.prompt_tokens)
    assert silent.ids == silent.top == ()
    short = runtime.answer(messages, 1, 5)
    assert short.ids == whole.ids[:1]
    likeliest = dict(sorted(whole.top[0].items(), key=lambda item: -item[1])[:5])
    assert short.top[0] == pytest.approx(likeliest, abs=1e-5)
    assert all(value > 0 for value in (whole.seconds, whole.prompt_per_second, runtime.load_seconds))
    assert 10 < runtime.resident_mib() < 4000


def test_loading_again_and_another_order_change_no_bit(
    runtime: LlamaCpp, files: tuple[Path, Path], pool: tuple[Example, ...]
) -> None:
    """Nothing of a prompt is kept for the next one."""
    shown = [(pool[:count], pool[question]) for count in (0, 1, 2) for question in (5, 6)]
    prompts = [chat_messages(*each, SETTINGS.images, TOKENS) for each in shown]

    def answers(loaded: LlamaCpp, order: list[int]) -> list[object]:
        found = {index: loaded.answer(prompts[index], 4, 1000) for index in order}
        return [(found[index].text, found[index].ids, found[index].top) for index in range(len(prompts))]

    first = answers(runtime, [0, 1, 2, 3, 4, 5])
    with LlamaCpp(*files, SETTINGS) as again:
        assert answers(again, [0, 1, 2, 3, 4, 5]) == first
        assert answers(again, [5, 4, 4, 2, 3, 1, 0]) == first


def test_a_text_file_alone_answers_questions_without_images(files: tuple[Path, Path], nothing_left: None) -> None:
    with LlamaCpp(files[0], None, SETTINGS) as loaded:
        found = loaded.answer([{"role": "user", "content": "Which number?"}], 4, 3)
    assert found.ids
    assert found.prompt_tokens > 0


# Failures


def test_a_runtime_that_is_not_installed(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """No process is started."""
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "xllamacpp" else real(name, package)

    assert llama_cpp.available()
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert not llama_cpp.available()
    with pytest.raises(LlamaCppError) as error:
        LlamaCpp(*files, SETTINGS)
    one_sentence(error, "'xllamacpp' is not installed", r"text\.gguf", r"; pip install -r requirements\.txt")
    assert (ROOT / "requirements.txt").is_file()


@pytest.mark.parametrize(
    ("share", "cause"),
    [(0.0, "failed to read magic"), (1e-5, "failed to read header"), (0.5, "tensor .* not within the file bounds")],
)
def test_a_truncated_text_file(
    files: tuple[Path, Path], tmp_path: Path, share: float, cause: str, nothing_left: None
) -> None:
    whole, cut = files[0].read_bytes(), tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(LlamaCppError) as error:
        LlamaCpp(cut, files[1], SETTINGS)
    one_sentence(error, rf"refused loading {cut}\b", cause, "; export the model again")


def test_a_file_that_is_not_there(files: tuple[Path, Path], tmp_path: Path, nothing_left: None) -> None:
    with pytest.raises(LlamaCppError) as error:
        LlamaCpp(tmp_path / "none.gguf", files[1], SETTINGS)
    one_sentence(error, r"refused loading .*none\.gguf\b", "No such file", "; export the model again")


def cut_at(share: float) -> Callable[[bytes], bytes]:
    return lambda whole: whole[: int(len(whole) * share)]


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (None, "Failed to load CLIP model"),  # the text file in its place
        (cut_at(0.5), "failed to load model .* failed to seek for tensor"),
        (cut_at(0), "failed to read magic"),
        (cut_at(3e-5), "failed to read header"),
    ],
)
def test_a_wrong_vision_file_is_named(
    files: tuple[Path, Path],
    tmp_path: Path,
    spoil: Callable[[bytes], bytes] | None,
    cause: str,
    nothing_left: None,
) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(files[0].read_bytes() if spoil is None else spoil(files[1].read_bytes()))
    with pytest.raises(LlamaCppError) as error:
        LlamaCpp(files[0], wrong, SETTINGS)
    one_sentence(error, cause, r"wrong\.gguf", "; export the model again, and give it the mmproj file of the same")


def test_the_vision_file_in_the_place_of_the_text_file(files: tuple[Path, Path], nothing_left: None) -> None:
    with pytest.raises(LlamaCppError) as error:
        LlamaCpp(files[1], files[1], SETTINGS)
    one_sentence(error, r"refused loading .*mmproj\.gguf\b", "CLIP cannot be used as main model")


def test_prompts_that_are_refused_end_nothing(
    runtime: LlamaCpp, files: tuple[Path, Path], pool: tuple[Example, ...]
) -> None:
    """One too long, and one with a broken image; the next one is answered as ever."""
    sound = chat_messages(pool[:1], pool[2], SETTINGS.images, TOKENS)
    before = runtime.answer(sound, 4, 10)
    with pytest.raises(LlamaCppError) as error:
        runtime.answer(chat_messages(pool * 10, pool[2], SETTINGS.images, TOKENS), 4)
    one_sentence(error, r"refused answering with .*text\.gguf\b", r"exceeds the available context size \(1024 tokens\)")
    broken = chat_messages([], pool[0], SETTINGS.images, TOKENS)
    broken[0]["content"][0]["image_url"]["url"] = "data:image/png;base64," + base64.b64encode(b"no image").decode()
    with pytest.raises(LlamaCppError) as error:
        runtime.answer(broken, 4)
    one_sentence(
        error, r"refused answering with .*text\.gguf\b", "Failed to load image", "; look at the prompt's images"
    )
    after = runtime.answer(sound, 4, 10)
    assert (after.ids, after.top) == (before.ids, before.top)


def test_images_without_a_vision_file(files: tuple[Path, Path], pool: tuple[Example, ...], nothing_left: None) -> None:
    with LlamaCpp(files[0], None, SETTINGS) as loaded, pytest.raises(LlamaCppError) as error:
        loaded.answer(chat_messages([], pool[0], SETTINGS.images, TOKENS), 4)
    one_sentence(error, "image input is not supported", r"text\.gguf")


LOADED = "listen(); say(load_seconds=0.25)\n"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("sys.stderr.write('\\n  GGML_ASSERT(a < b) failed\\nmore\\n'); sys.stderr.flush(); os.abort()", "SIGABRT"),
        ("sys.stderr.write('GGML_ASSERT(a < b) failed'); sys.stderr.flush(); os.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
@pytest.mark.parametrize(
    ("before", "doing"), [("listen()\n", "loading"), (LOADED + "listen()\n", "answering with")], ids=["load", "answer"]
)
def test_a_runtime_that_dies(
    worker: Callable[[str], None], nothing_left: None, before: str, doing: str, code: str, cause: str
) -> None:
    """The signal is named, and the first line of its log, where the cause is."""
    worker(before + code)
    with pytest.raises(LlamaCppError) as error, LlamaCpp(Path("some/text.gguf"), None, SETTINGS) as loaded:
        loaded.answer([], 4)
    message = one_sentence(error, f"^llama.cpp was ended by {cause} while {doing} some/text.gguf ", "; ")
    assert "(GGML_ASSERT(a < b) failed); " in message
    assert "more" not in message


@pytest.mark.parametrize(
    ("code", "doing"),
    [
        ("sys.exit(3)", "loading"),  # before it is asked anything
        ("listen(); sys.exit(3)", "loading"),
        ("listen(); sys.stdout.write('{\"load_'); sys.stdout.flush(); os._exit(3)", "loading"),  # in the middle of it
        (LOADED + "listen(); sys.exit(3)", "answering with"),
        (LOADED + "sys.exit(3)", "answering with"),
    ],
)
def test_a_runtime_that_exits(worker: Callable[[str], None], nothing_left: None, code: str, doing: str) -> None:
    worker(code)
    with pytest.raises(LlamaCppError) as error, LlamaCpp(Path("text.gguf"), None, SETTINGS) as loaded:
        loaded.answer([], 4)
    one_sentence(error, rf"^llama\.cpp ended with status 3 while {doing} text\.gguf; ")


def test_a_runtime_that_died_between_two_answers(worker: Callable[[str], None], nothing_left: None) -> None:
    worker(LOADED + "os.abort()")
    with LlamaCpp(Path("text.gguf"), None, SETTINGS) as loaded:
        loaded._process.wait()
        with pytest.raises(LlamaCppError) as error:
            loaded.answer([], 4)
    one_sentence(error, r"^llama\.cpp was ended by SIGABRT while answering with text\.gguf; ")


@pytest.mark.parametrize("code", ["time.sleep(20)", "listen(); print('{', end='', flush=True); time.sleep(20)"])
def test_a_runtime_that_hangs_while_loading(worker: Callable[[str], None], nothing_left: None, code: str) -> None:
    worker(code)
    with pytest.raises(LlamaCppError) as error:
        LlamaCpp(Path("text.gguf"), None, replace(SETTINGS, seconds=0.3))
    one_sentence(error, r"did not end loading text\.gguf within 0\.3 seconds and was stopped; raise \S+")


def test_a_runtime_that_hangs_while_answering(worker: Callable[[str], None], nothing_left: None) -> None:
    """It ignores a friendly end, too."""
    worker("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LOADED + "listen(); time.sleep(20)")
    with LlamaCpp(Path("text.gguf"), None, SETTINGS) as loaded:
        loaded.settings = replace(SETTINGS, seconds=0.3)  # short for the answer alone: Python starts when it can
        with pytest.raises(LlamaCppError) as error:
            loaded.answer([], 4)
    one_sentence(error, r"did not end answering with text\.gguf within 0\.3 seconds and was stopped; raise \S+")


def test_a_runtime_that_died_is_started_again(
    worker: Callable[[str], None], nothing_left: None, tmp_path: Path
) -> None:
    """By the next request; what it logged before is not the cause of what comes after."""
    flag = f"marker = {str(tmp_path / 'once')!r}\n"
    worker(
        flag
        + LOADED
        + """
        while True:
            listen()
            if not os.path.exists(marker):
                open(marker, 'w').close()
                sys.stderr.write('out of luck')
                sys.stderr.flush()
                os.abort()
            sys.stderr.write('later words')
            say(error='no')
        """.replace("\n        ", "\n")
    )
    with LlamaCpp(Path("text.gguf"), None, SETTINGS) as loaded:
        with pytest.raises(LlamaCppError) as error:
            loaded.answer([], 4)
        one_sentence(error, r"was ended by SIGABRT while answering with text\.gguf \(out of luck\)")
        for _ in range(2):
            with pytest.raises(LlamaCppError) as error:
                loaded.answer([], 4)
            assert "refused answering" in str(error.value)
            assert "out of luck" not in str(error.value)


def test_a_runtime_that_refuses(worker: Callable[[str], None], nothing_left: None) -> None:
    """Its words are on one line, and not more of them than a person reads."""
    worker("listen(); say(error='RuntimeError: no\\n  such ' + 'x' * 5000)")
    with pytest.raises(LlamaCppError) as error:
        LlamaCpp(Path("text.gguf"), None, SETTINGS)
    one_sentence(error, r"^llama\.cpp refused loading text\.gguf: RuntimeError: no such x+; export the model again")


def test_a_cause_that_is_logged_behind_the_refusal(worker: Callable[[str], None], nothing_left: None) -> None:
    worker("listen(); say(error='RuntimeError: Failed'); time.sleep(0.3); sys.stderr.write('no such tensor')")
    with pytest.raises(LlamaCppError) as error:
        LlamaCpp(Path("text.gguf"), None, SETTINGS)
    one_sentence(error, r"RuntimeError: Failed \(no such tensor\); export the model again")


def test_what_the_runtime_is_told(worker: Callable[[str], None], tmp_path: Path, nothing_left: None) -> None:
    """Every setting reaches it, and an abort may not attach a debugger."""
    place = tmp_path / "told.json"
    code = f"""
        told = listen()
        told["environment"] = os.environ["GGML_NO_BACKTRACE"]
        open({str(place)!r}, "w").write(json.dumps(told))
        say(load_seconds=0.25)
        asked = listen()
        say(text=" a b ", prompt_tokens=7, ids=[3], top=[[[3, -0.5], [4, -1.5]]], seconds=2.0,
            prompt_per_second=10.0, predicted_per_second=20.0)
        time.sleep(600)
    """
    worker(textwrap.dedent(code))
    settings = Settings(ImageLimits(16, 512, 9 * 256), context=77, threads=3, seconds=60.0, exact_cache=True)
    with LlamaCpp(Path("a.gguf"), Path("b.gguf"), settings) as loaded:
        assert loaded.load_seconds == 0.25
        found = loaded.answer([], 4, 2)
    told = json.loads(place.read_text())
    assert told == {
        "model": "a.gguf",
        "mmproj": "b.gguf",
        "image_tokens": [2, 9],
        "context": 77,
        "threads": 3,
        "exact_cache": True,
        "environment": "1",
    }
    assert (found.text, found.prompt_tokens, found.ids, found.top) == ("a b", 7, (3,), ({3: -0.5, 4: -1.5},))
    assert (found.seconds, found.prompt_per_second, found.predicted_per_second) == (2.0, 10.0, 20.0)


def test_log_probabilities_that_are_no_numbers(worker: Callable[[str], None], nothing_left: None) -> None:
    """As llama.cpp's JSON has them: an answer all the same, which the comparison with transformers tells."""
    worker(
        LOADED + "listen(); say(text='', prompt_tokens=7, ids=[3], top=[[[3, None]]], seconds=1.0, "
        "prompt_per_second=1.0, predicted_per_second=1.0)"
    )
    with LlamaCpp(Path("text.gguf"), None, SETTINGS) as loaded:
        (row,) = loaded.answer([], 4, 1).top
    assert list(row) == [3]
    assert row[3] != row[3]


def test_closing_twice_and_leaving_by_an_error(files: tuple[Path, Path], nothing_left: None) -> None:
    with pytest.raises(ZeroDivisionError), LlamaCpp(files[0], None, SETTINGS) as loaded:
        raise ZeroDivisionError
    loaded.close()
    loaded = LlamaCpp(files[0], None, SETTINGS)
    loaded.close()
    with pytest.raises(LlamaCppError, match=r"text\.gguf is closed; load it again"):
        loaded.answer([], 4)


def test_keys_that_messages_name_are_in_the_params() -> None:
    params = read_params(ROOT / "params.yaml")
    named = re.findall(r"\b(gguf|runtime|vlm)\.(\w+)(?=[, ])", Path(llama_cpp.__file__).read_text(encoding="utf-8"))
    assert {key for _, key in named} == {"context", "seconds"}
    assert all(key in params[section] for section, key in named)
