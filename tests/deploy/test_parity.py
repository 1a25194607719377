"""Parity of llama.cpp with transformers: figures worked by hand, and sound and broken exports of the real VLM."""

import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from leverlab.config.base import parse_section, read_params
from leverlab.config.gguf import KINDS, Kind
from leverlab.config.report import ReportParams
from leverlab.deploy.llama_cpp import Answer, LlamaCpp, LlamaCppError, Message, Settings
from leverlab.deploy.parity import (
    Parity,
    Prompt,
    Reference,
    as_record,
    compare_prompts,
    parity_prompts,
    references,
)
from leverlab.evaluation.gates import evaluate_gates
from leverlab.export.gguf import export_text, export_vision
from leverlab.export.vision_part import image_limits
from leverlab.records import Example
from leverlab.text_tokens import TextTokens
from leverlab.vlm.model import Vlm, load_vlm
from leverlab.vlm.prompt import PromptFormat
from leverlab.worlds.digits import digits_world

ROOT = Path(__file__).parents[2]
VLM = ROOT / "worlds/digits/vlm"
PARAMS = read_params(ROOT / "params.yaml")
NEW_TOKENS, LIKELIEST = PARAMS["vlm"]["max_new_tokens"], PARAMS["gguf"]["parity"]["likeliest"]
LN2, LN10 = math.log(2), math.log(10)


# Figures by hand


class FakeRuntime:
    """Gives the answers that it was made with, one after the other, and notes what it was asked."""

    settings = Settings(image_limits(VLM), context=1024)
    text_tokens = TextTokens(Tokenizer.from_file(str(VLM / "tokenizer.json")))

    def __init__(self, *answers: Answer):
        self.answers = list(answers)
        self.asked: list[tuple[list[Message], int, int]] = []

    def answer(self, messages: list[Message], max_tokens: int, top_logprobs: int = 0) -> Answer:
        self.asked.append((messages, max_tokens, top_logprobs))
        return self.answers.pop(0)


def picture(colour: tuple[int, int, int], side: int = 16) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(content, format="PNG")
    return content.getvalue()


def example(name: str, colour: tuple[int, int, int] = (0, 0, 0), side: int = 16) -> Example:
    return Example(name, picture(colour, side), f"image-{name}", f"What is {name}?", "any", (f"answer {name}",))


def reference(ids: Sequence[int], *rows: Sequence[float], prompt_tokens: int = 10) -> Reference:
    """Return what transformers says; `rows` are probabilities of all tokens."""
    with np.errstate(divide="ignore"):
        return Reference(prompt_tokens, tuple(ids), np.log(np.array(rows, dtype=np.float64)))


def said(ids: Sequence[int], *rows: dict[int, float], prompt_tokens: int = 10) -> Answer:
    """Return what llama.cpp says; `rows` are probabilities of the listed tokens."""
    top = tuple({token: math.log(share) if share else -math.inf for token, share in row.items()} for row in rows)
    return Answer("", prompt_tokens, tuple(ids), top, 0.0, 0.0, 0.0)


def listed(*shares: float) -> dict[int, float]:
    return dict(enumerate(shares))


def compared(*pairs: tuple[Reference, Answer], sizes: Sequence[str] = ()) -> dict[str, Parity]:
    prompts = [
        Prompt(size, (), example("x"))
        for size, _ in zip([*sizes, *["1x1"] * (len(pairs) - len(sizes))], pairs, strict=True)
    ]
    runtime: Any = FakeRuntime(*(answer for _, answer in pairs))
    return compare_prompts(runtime, prompts, [expected for expected, _ in pairs], 4, 1000)


def test_one_place_by_hand() -> None:
    """Tokens of 1/2 and 1/4 change places: both are off by ln 2, and KL = 1/2 ln 2 - 1/4 ln 2."""
    found = compared((reference([0], [0.5, 0.25, 0.125, 0.125]), said([0], listed(0.25, 0.5, 0.125, 0.125))))
    assert set(found) == {"all", "1x1"}
    assert found["1x1"] == found["all"]
    assert vars(found["all"]) == pytest.approx(
        {
            "prompts": 1,
            "decided": 1,
            "places": 1,
            "equal_tokens": 1,
            "finite": True,
            "max_delta": LN2,
            "max_delta_any": LN2,
            "mean_kl": LN2 / 4,
            "greedy": 1.0,
            "greedy_decided": 1.0,
        },
        abs=1e-12,
    )


def test_equal_distributions_differ_by_nothing() -> None:
    """In single precision the runtime's log-probabilities may sum to more than 1, here by e^0.01: that is no error."""
    rows = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]
    sound = compared((reference([0, 1], *rows), said([0, 1], *(listed(*row) for row in rows))))["all"]
    more = said([0, 1], *(listed(*(share * math.exp(0.01) for share in row)) for row in rows))
    for found in (sound, compared((reference([0, 1], *rows), more))["all"]):
        assert (found.places, found.greedy, found.finite) == (2, 1.0, True)
        assert found.max_delta_any == pytest.approx(0, abs=1e-12)
        assert found.mean_kl == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize(
    ("ours", "theirs", "delta", "delta_any"),
    [
        (1e-6, 1e-5, 0.0, LN10),  # neither side gives it 1e-4
        (1e-5, 9e-5, 0.0, math.log(9)),
        (1e-5, 1.1e-4, math.log(11), math.log(11)),
        (1.1e-4, 1e-5, math.log(11), math.log(11)),
    ],
)
def test_unlikely_tokens_count_only_in_the_difference_of_any(
    ours: float, theirs: float, delta: float, delta_any: float
) -> None:
    """The rest is one token, which takes what the unlikely one leaves: its own difference is about 1e-4."""
    row, other = [1 - ours, ours], listed(1 - theirs, theirs)
    found = compared((reference([0], row), said([0], other)))["all"]
    assert found.max_delta == pytest.approx(delta, abs=1.2e-4)
    assert found.max_delta_any == pytest.approx(delta_any, rel=1e-9)


def test_tokens_that_are_not_listed_are_taken_as_one() -> None:
    """1/4 in transformers and 1/5 in llama.cpp; the listed two come in the order of llama.cpp, which is another."""
    found = compared((reference([0], [0.25, 0.5, 0.125, 0.125]), said([0], {1: 0.6, 0: 0.2})))["all"]
    by_hand = 0.5 * math.log(0.5 / 0.6) + 0.25 * math.log(0.25 / 0.2) + 0.25 * math.log(0.25 / 0.2)
    assert found.mean_kl == pytest.approx(by_hand)
    assert found.max_delta == pytest.approx(math.log(0.25 / 0.2))


def test_places_are_compared_until_the_first_difference() -> None:
    """The second token differs: its place counts, since both saw the same before it, and the third does not.

    Differences are 0, ln 2 (0.5 against 0.25, and the other way round) and, in the third place, ln 10. The mean of the
    two places' divergences is half of that of the second, 1/2 ln 2 - 1/4 ln 2.
    """
    rows = [[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]
    answer = said([0, 1, 1], listed(0.7, 0.2, 0.1), listed(0.25, 0.5, 0.25), listed(0.01, 0.89, 0.1))
    found = compared((reference([0, 0, 1], *rows), answer))["all"]
    assert (found.places, found.greedy, found.finite) == (2, 0.0, True)
    assert found.max_delta == found.max_delta_any == pytest.approx(LN2)
    assert found.mean_kl == pytest.approx(LN2 / 8)


def test_an_answer_that_ends_early_is_another_answer() -> None:
    """And the places that both have are compared."""
    rows = [[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]
    found = compared((reference([0, 0], *rows), said([0], listed(0.7, 0.2, 0.1))))["all"]
    assert (found.places, found.greedy) == (1, 0.0)
    assert found.max_delta == pytest.approx(0, abs=1e-12)
    none = compared((reference([0, 0], *rows), said([])))["all"]
    assert (none.places, none.finite) == (0, False)
    assert math.isnan(none.greedy)
    assert math.isnan(none.max_delta)


def test_greedy_shares_by_hand() -> None:
    """Four prompts. Transformers prefers its token by ln(0.53 / 0.47) = 0.12 nats in two of them, of which one is
    answered alike, by ln(0.52 / 0.48) = 0.08 in one, and in one by 0.12 in the first place alone, then by 0.08."""
    clear, close = [0.53, 0.47], [0.52, 0.48]
    pairs = [
        (reference([0], clear), said([0], listed(*clear))),
        (reference([0], clear), said([1], listed(*clear))),
        (reference([0], close), said([0], listed(*close))),
        (reference([0, 0], clear, close), said([0, 0], listed(*clear), listed(*close))),
    ]
    found = compared(*pairs)["all"]
    assert (found.prompts, found.decided, found.places) == (4, 2, 5)
    assert (found.greedy, found.greedy_decided) == (0.75, 0.5)
    undecided = compared(*pairs[2:])["all"]
    assert (undecided.decided, undecided.greedy) == (0, 1.0)
    assert math.isnan(undecided.greedy_decided)


def test_prompts_of_another_length_are_counted_and_make_no_figure() -> None:
    """Equal answers to other prompts are chance: no gate on them may pass."""
    row = [0.75, 0.25]
    pairs = [(reference([0], row), said([0], listed(*row), prompt_tokens=count)) for count in (9, 10, 11)]
    found = compared(*pairs)["all"]
    assert (found.prompts, found.decided, found.finite) == (3, 3, True)
    assert found.equal_tokens == pytest.approx(1 / 3)
    for value in (found.max_delta, found.max_delta_any, found.mean_kl, found.greedy, found.greedy_decided):
        assert math.isnan(value)
    assert compared(pairs[1])["all"].greedy == 1.0


def test_sizes_are_told_apart() -> None:
    """Two prompts of 1x1, off by 0 and ln 2, one of 1x3 off by ln 10 and of other tokens; no other size is there."""
    even = [0.5, 0.5]
    pairs = [
        (reference([0], even), said([0], listed(*even))),
        (reference([0], [0.5, 0.25, 0.25]), said([0], listed(0.25, 0.5, 0.25))),
        (reference([0], [0.1, 0.9]), said([1], listed(0.01, 0.99))),
    ]
    found = compared(*pairs, sizes=("1x1", "1x1", "1x3"))
    assert {name: parity.prompts for name, parity in found.items()} == {"all": 3, "1x1": 2, "1x3": 1}
    assert {name: parity.max_delta for name, parity in found.items()} == pytest.approx(
        {"all": LN10, "1x1": LN2, "1x3": LN10}
    )
    assert {name: parity.greedy for name, parity in found.items()} == {"all": 2 / 3, "1x1": 1.0, "1x3": 0.0}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([0.5, 0.5], {0: 0.5, 1: math.nan}),
        ([0.5, 0.5], {0: math.nan, 1: 0.5}),
        ([0.5, 0.5], {0: math.nan, 1: math.nan}),
        ([0.5, 0.5], {0: 1.0, 1: 0.0}),
        ([math.nan, 0.5], {0: 0.5, 1: 0.5}),
        ([1.0, 0.0], {0: 0.5, 1: 0.5}),
    ],
)
def test_what_is_no_number_makes_no_figure(ours: list[float], theirs: dict[int, float]) -> None:
    """Neither NaN nor a probability of 0 is passed over: in one place of three it takes the figures of all, and only
    those of its own size."""
    row = [0.75, 0.25]
    sound = (reference([0], row), said([0], listed(*row)))
    found = compared(sound, (reference([0], ours), said([0], theirs)), sound, sizes=("1x1", "2x2", "3x1"))
    for name in ("all", "2x2"):
        assert not found[name].finite
        assert all(math.isnan(value) for value in (found[name].max_delta, found[name].max_delta_any))
        assert math.isnan(found[name].mean_kl)
        assert math.isnan(found[name].greedy)
    assert found["3x1"].finite
    assert found["3x1"].max_delta == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("place", ["demo", "question"])
def test_a_text_that_cannot_be_asked_is_told_before_any_prompt_is(place: str) -> None:
    runtime: Any = FakeRuntime(*[said([0], listed(0.75, 0.25))] * 2)
    bad = replace(example("bad"), question="<|im_end|>")
    last = Prompt("1x1", (bad,), example("c")) if place == "demo" else Prompt("1x1", (), bad)
    with pytest.raises(LlamaCppError, match=r"the question of 'bad' spells '<\|im_end\|>'"):
        compare_prompts(runtime, [Prompt("1x1", (), example("a")), last], [reference([0], [0.75, 0.25])] * 2, 7, 33)
    assert runtime.asked == []


def test_what_the_runtime_is_asked() -> None:
    """The demos, in their order, with answers, and the question without one."""
    runtime: Any = FakeRuntime(said([0], listed(0.75, 0.25)))
    prompt = Prompt("1x1", (example("a"), example("b")), example("c"))
    compare_prompts(runtime, [prompt], [reference([0], [0.75, 0.25])], 7, 33)
    (messages, max_tokens, top) = runtime.asked[0]
    assert (max_tokens, top) == (7, 33)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]
    assert [message["content"] for message in messages[1::2]] == ["answer a", "answer b"]
    assert [message["content"][1]["text"] for message in messages[::2]] == [f"What is {name}?" for name in "abc"]


def test_record_of_a_file() -> None:
    parity = Parity(3, 0, 5, 1.0, True, 0.0123456789, math.nan, 1.23456789e-7, 1 / 3, math.nan)
    assert as_record(parity) == {
        "prompts": 3,
        "decided": 0,
        "places": 5,
        "equal_tokens": 1.0,
        "finite": True,
        "max_delta": 0.0123457,
        "max_delta_any": None,
        "mean_kl": 1.23457e-7,
        "greedy": 0.333333,
        "greedy_decided": None,
    }
    json.dumps(as_record(parity), allow_nan=False)


# Prompts

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]


def test_prompts_have_every_size_and_number_of_images() -> None:
    pool = [example(str(index), colour) for index, colour in enumerate(COLOURS)]
    prompts = parity_prompts(pool, 16, 2, 0)
    assert [(prompt.size, 1 + len(prompt.demos)) for prompt in prompts] == [
        (size, images) for size in ("1x1", "2x2", "3x1", "1x3") for images in (1, 1, 2, 2, 3, 3)
    ]
    pixels = {"1x1": (16, 16), "2x2": (32, 32), "3x1": (48, 16), "1x3": (16, 48)}
    for prompt in prompts:
        for found in (*prompt.demos, prompt.question):
            assert found.image.startswith(b"\x89PNG")
            assert found.open_image().size == pixels[prompt.size]


def test_images_are_tiles_of_the_pool() -> None:
    """Row by row; question and answer are those of the first. Draws are those of numpy's generator of the seed."""
    pool = [example(str(index), colour) for index, colour in enumerate(COLOURS)]
    rng, shown = np.random.default_rng(7), set()
    for prompt in parity_prompts(pool, 16, 3, 7):
        for found in (*prompt.demos, prompt.question):
            image = found.open_image()
            corners = [(x, y) for y in range(0, image.height, 16) for x in range(0, image.width, 16)]
            drawn = rng.integers(len(pool), size=len(corners)).tolist()
            for index, (x, y) in zip(drawn, corners, strict=True):
                assert image.crop((x, y, x + 16, y + 16)).getcolors() == [(256, COLOURS[index])]
            first = pool[drawn[0]]
            assert (found.id, found.question, found.answers) == (first.id, first.question, first.answers)
            shown |= set(drawn)
    assert shown == set(range(len(pool)))


def test_images_are_resized_to_a_tile() -> None:
    pool = [example(str(index), colour, side=20) for index, colour in enumerate(COLOURS)]
    for prompt in parity_prompts(pool, 8, 1, 0):
        if prompt.size == "2x2":
            image = prompt.question.open_image()
            assert image.size == (16, 16)
            assert {colour for _, colour in image.getcolors()} <= set(COLOURS)  # no mixture of neighbours


def test_prompts_depend_on_the_seed_alone() -> None:
    pool = [example(str(index), colour) for index, colour in enumerate(COLOURS)]
    assert parity_prompts(pool, 16, 2, 3) == parity_prompts(pool, 16, 2, 3)
    assert parity_prompts(pool, 16, 2, 3) != parity_prompts(pool, 16, 2, 4)


# The real VLM, exported, in llama.cpp


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    pool = digits_world(pool=40, train=1, val=1, test=1, label_noise=0.0, seed=0).pool
    return parity_prompts(pool, image_limits(VLM).smallest_square, 3, 0)


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return load_vlm(str(VLM), "float32", "cpu")


@pytest.fixture(scope="module")
def expected(vlm: Vlm, prompts: list[Prompt]) -> list[Reference]:
    return references(vlm, prompts, NEW_TOKENS)


Measure = Callable[[Path, Kind], dict[str, Parity]]


@pytest.fixture(scope="module")
def measure(
    prompts: list[Prompt], expected: list[Reference], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path, Kind], dict[str, Parity]]:
    """Export a checkpoint folder and compare it with the sound one: `measure(folder, kind)`."""
    settings = Settings(image_limits(VLM), context=1024, exact_cache=True)

    def run(folder: Path, kind: Kind) -> dict[str, Parity]:
        out = tmp_path_factory.mktemp("export")
        export_text(folder, out / "text.gguf", kind)
        export_vision(folder, out / "mmproj.gguf")
        with LlamaCpp(out / "text.gguf", out / "mmproj.gguf", settings) as runtime:
            return compare_prompts(runtime, prompts, expected, NEW_TOKENS, LIKELIEST)

    return run


@pytest.fixture(scope="module")
def sound(measure: Measure) -> dict[Kind, dict[str, Parity]]:
    return {kind: measure(VLM, kind) for kind in KINDS}


def limit_of_f16() -> float:
    rule = parse_section(ReportParams, "report", PARAMS).rules["f16_parity"]
    assert (rule.metric, rule.at_least) == ("gguf.f16.max_delta", None)
    assert rule.at_most is not None
    return rule.at_most


def test_references_are_those_of_one_pass_over_the_answer(
    vlm: Vlm, prompts: list[Prompt], expected: list[Reference]
) -> None:
    """Greedy tokens and all log-probabilities, prompt and answer read at once, without the cache of `generate`."""
    form = PromptFormat(vlm.processor)
    for prompt, found in list(zip(prompts, expected, strict=True))[::5]:
        inputs = vlm.processor(
            text=form.render_prompt(list(prompt.demos), prompt.question),
            images=[item.open_image() for item in (*prompt.demos, prompt.question)],
            return_tensors="pt",
        )
        length = inputs["input_ids"].shape[1]
        assert found.prompt_tokens == length
        ids = torch.tensor([found.ids])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        for name, filler in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.cat([inputs[name], torch.full_like(ids, filler)], dim=1)
        with torch.no_grad():
            logits = vlm.model(**inputs).logits[0, length - 1 : -1].double()
        assert logits.argmax(-1).tolist() == list(found.ids)
        assert found.log_probs_TV.shape == tuple(logits.shape)
        np.testing.assert_allclose(found.log_probs_TV, logits.log_softmax(-1).numpy(), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_export_passes_the_gates(sound: dict[Kind, dict[str, Parity]], kind: Kind) -> None:
    """Those of params.yaml on its own figures; token counts are equal, and every size is there."""
    found = sound[kind]
    assert {name: parity.prompts for name, parity in found.items()} == {
        "all": 36,
        "1x1": 9,
        "2x2": 9,
        "3x1": 9,
        "1x3": 9,
    }
    assert all(parity.equal_tokens == 1 for parity in found.values())
    assert all(parity.finite for parity in found.values())
    assert found["all"].decided >= 18  # or shares of them would say little
    rules = {
        name: rule
        for name, rule in parse_section(ReportParams, "report", PARAMS).rules.items()
        if rule.metric.startswith(f"gguf.{kind}.") and rule.metric.rpartition(".")[2] in as_record(found["all"])
    }
    assert rules
    for gate in evaluate_gates(rules, {"gguf": {kind: as_record(found["all"])}}):
        assert gate.passed, gate


def test_fewer_bits_are_further_away(sound: dict[Kind, dict[str, Parity]]) -> None:
    """The measure is graded: f16 is nearest, q4_0 furthest."""
    divergences = [sound[kind]["all"].mean_kl for kind in ("f16", "q8_0", "q5_0", "q4_0")]
    assert divergences == sorted(divergences)
    assert divergences[0] < divergences[1] / 10


def test_an_exact_cache_is_nearer(
    sound: dict[Kind, dict[str, Parity]],
    prompts: list[Prompt],
    expected: list[Reference],
    tmp_path: Path,
) -> None:
    """Keys and values in half precision cost more than weights that were half precision's before (bf16 has fewer
    digits)."""
    export_text(VLM, tmp_path / "text.gguf", "f16")
    export_vision(VLM, tmp_path / "mmproj.gguf")
    settings = Settings(image_limits(VLM), context=1024)
    with LlamaCpp(tmp_path / "text.gguf", tmp_path / "mmproj.gguf", settings) as runtime:
        found = compare_prompts(runtime, prompts, expected, NEW_TOKENS, LIKELIEST)
    assert found["all"].max_delta > 2 * sound["f16"]["all"].max_delta


Edit = Callable[[dict[str, torch.Tensor]], None]


def exchange(first: int, second: int) -> Edit:
    """Return an edit that swaps two of q, k and v in every layer of vision."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".attn.qkv." in name]:
            parts = list(tensors[name].chunk(3))
            parts[first], parts[second] = parts[second], parts[first]
            tensors[name] = torch.cat(parts)

    return edit


def without_second_frame(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("patch_embed.proj.weight")]:
        tensors[name][:, :, 1] = 0


def broken(folder: Path, edit: Edit | None = None, file: str = "", change: Callable[[Any], object] = repr) -> Path:
    """Return a copy of the checkpoint with other tensors, or with another JSON file."""
    shutil.copytree(VLM, folder)
    if edit is not None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if file:
        data = json.loads((folder / file).read_text(encoding="utf-8"))
        change(data)
        (folder / file).write_text(json.dumps(data), encoding="utf-8")
    return folder


def sections(config: Any) -> None:
    config["text_config"]["rope_parameters"]["mrope_section"] = [8, 4, 4]


DAMAGES = [
    pytest.param({"edit": exchange(1, 2)}, id="vision keys and values swapped"),
    pytest.param({"edit": exchange(0, 1)}, id="vision queries and keys swapped"),
    pytest.param({"edit": without_second_frame}, id="second temporal kernel lost"),
    pytest.param(
        {
            "file": "processor_config.json",
            "change": lambda keys: keys["image_processor"].update(image_mean=[0.5] * 3, image_std=[0.5] * 3),
        },
        id="mean and deviation of another processor",
    ),
    pytest.param(
        {
            "file": "processor_config.json",
            "change": lambda keys: keys["image_processor"]["image_mean"].reverse(),
        },
        id="mean of blue, green, red",
    ),
    pytest.param({"file": "config.json", "change": sections}, id="rope sections"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_export_fails_the_gate(measure: Measure, tmp_path: Path, damage: dict[str, Any]) -> None:
    """Everything else looks well: as many tokens, all of them numbers."""
    found = measure(broken(tmp_path / "broken", **damage), "f16")["all"]
    assert found.max_delta > limit_of_f16()
    assert found.finite
    assert found.equal_tokens == 1


def test_wrong_rope_sections_show_in_larger_images_alone(measure: Measure, tmp_path: Path) -> None:
    """An image of one token has no rows and columns, and greedy answers are all the same: what the sizes are for."""
    found = measure(broken(tmp_path / "broken", file="config.json", change=sections), "f16")
    assert found["1x1"].max_delta <= limit_of_f16() < found["1x3"].max_delta
    assert found["all"].greedy_decided == 1.0
