"""The scoring engine against the library's own forward and generate, and what its scores must not depend on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.scoring import naive_log_probability
from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.vlm import tries
from leverlab.vlm.model import Vlm, load_vlm
from leverlab.vlm.scoring import ListScores, Scorer
from leverlab.worlds.world import World

SHOTS = range(5)
MakeScorer = Callable[..., Scorer]


def lists_for(world: World, count: int, length: int = 4, seed: int = 0) -> list[tuple[Example, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(world.pool[i] for i in rng.permutation(len(world.pool))[:length]) for _ in range(count)]


def ids(lists: list[tuple[Example, ...]]) -> list[tuple[str, ...]]:
    return [tuple(demo.id for demo in demos) for demos in lists]


def naive_scores(vlm: Vlm, questions: list[Example], lists: list[tuple[Example, ...]]) -> np.ndarray:
    return np.array(
        [
            [naive_log_probability(vlm, demos[:shots], question) for shots in SHOTS]
            for question, demos in zip(questions, lists, strict=True)
        ]
    )


def naive_answer(vlm: Vlm, demos: tuple[Example, ...], question: Example, max_new_tokens: int) -> tuple[list[int], str]:
    """Return the tokens that `model.generate` gives after the prompt, the end token included, and their text."""
    messages = []
    for example in (*demos, question):
        messages.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": example.answer}]})
    text = vlm.processor.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    images = [example.open_image() for example in (*demos, question)]
    inputs = vlm.processor(text=[text], images=images, return_tensors="pt")
    tokens = vlm.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)[0]
    new = tokens[inputs["input_ids"].shape[1] :].tolist()
    return new, vlm.processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def logp(scores: ListScores) -> np.ndarray:
    return np.log(scores.answer_prob_NM.astype(np.float64))


@pytest.mark.parametrize("template", ["vlm", "qwen_vlm"])
def test_log_probabilities_are_those_of_one_plain_forward_a_prompt(
    template: str, world: World, make_scorer: MakeScorer, request: pytest.FixtureRequest
) -> None:
    plain = request.getfixturevalue(template)
    questions = [
        *[question for question in world.train if " " not in question.answer][:2],
        *[question for question in world.train if " " in question.answer][:2],
    ]
    lists = lists_for(world, len(questions))
    wanted = naive_scores(plain, questions, lists)
    settings = {} if template == "vlm" else {"of": plain}
    scorer = make_scorer(world.pool, questions, **settings)
    scores = scorer.score([question.id for question in questions], ids(lists), SHOTS)
    np.testing.assert_allclose(logp(scores), wanted, rtol=0, atol=1e-5)
    assert scorer.computed == 20
    assert np.abs(np.diff(wanted, axis=1)).min() > 1e-3  # every demo moves the number: the comparison can fail
    turned = [
        naive_log_probability(plain, demos[::-1], question) for question, demos in zip(questions, lists, strict=True)
    ]
    assert np.abs(turned - wanted[:, 4]).max() > 1e-2  # and so does their order


def test_images_of_several_tokens_take_their_place_in_the_rotary_positions(
    vlm: Vlm, world: World, make_scorer: MakeScorer, picture: Callable[[int, int, int], bytes]
) -> None:
    """An image of 2 by 3 merged tokens counts 3 positions, not 6: what follows it must be shifted alike."""
    sizes = [(32, 32), (48, 32), (16, 64), (16, 16)]
    demos = tuple(
        replace(demo, image=picture(*size, seed))
        for seed, (demo, size) in enumerate(zip(world.pool[:4], sizes, strict=True))
    )
    question = replace(world.train[0], image=picture(32, 16, 9))
    scores = make_scorer(demos, [question]).score([question.id], ids([demos]), SHOTS)
    np.testing.assert_allclose(logp(scores), naive_scores(vlm, [question], [demos]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_texts_that_spell_control_tokens_score_as_the_text_that_they_are(
    qwen_vlm: Vlm, world: World, make_scorer: MakeScorer
) -> None:
    """Against a plain forward on token ids put together by hand: the template's parts with control tokens, the texts
    without."""
    tokenizer, control = qwen_vlm.processor.tokenizer, "<|im_end|><|image_pad|>"
    demos = tuple(replace(demo, question=f"{demo.question}{control}") for demo in world.pool[:2])
    demos = (replace(demos[0], answers=(f"{control} navi",)), demos[1])
    question = replace(world.train[0], question=f"<|vision_start|>{control}?", answers=(f"zo{control}",))

    def ids(part: str, text: bool = False) -> list[int]:
        found: list[int] = tokenizer(part, add_special_tokens=False, split_special_tokens=text).input_ids
        return found

    prompt = ids("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    for example in (*demos, question):
        prompt += ids("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>") + ids(
            example.question, text=True
        )
        prompt += ids("<|im_end|>\n<|im_start|>assistant\n")
        prompt += [] if example is question else ids(example.answer, text=True) + ids("<|im_end|>\n")
    answer = ids(question.answer, text=True)
    row = torch.tensor([[*prompt, *answer]])
    assert int((row == qwen_vlm.processor.image_token_id).sum()) == 3  # an image is one token
    images = [example.open_image() for example in (*demos, question)]
    inputs = qwen_vlm.processor.image_processor(images, return_tensors="pt")
    kinds = (row == qwen_vlm.processor.image_token_id).long()
    logits = qwen_vlm.model(
        input_ids=row, attention_mask=torch.ones_like(row), mm_token_type_ids=kinds, **inputs
    ).logits
    places = torch.arange(len(prompt) - 1, row.shape[1] - 1)
    wanted = logits[0].float().log_softmax(-1)[places, torch.tensor(answer)].mean()
    scorer = make_scorer(demos, [question], of=qwen_vlm)
    scores = scorer.score([question.id], [tuple(demo.id for demo in demos)], [2])
    np.testing.assert_allclose(logp(scores), [[wanted]], rtol=0, atol=1e-5)


def questions_with_chosen_answers(vlm: Vlm, world: World, lists: list[tuple[Example, ...]]) -> list[Example]:
    """Return questions whose answers begin as generate does after 2 demos: two words of it, one, or one and another.

    So greedy decoding is right, wrong from the first token on, and wrong from a later one on, all in one request.
    """
    chosen = []
    for index, (question, demos) in enumerate(zip(world.train, lists, strict=True)):
        _, text = naive_answer(vlm, demos[:2], question, 4)
        first, *more = text.split()
        words = {0: [first, *more[:1]], 1: [first, "navi"], 2: [first]}[index % 3]
        chosen.append(replace(question, answers=(" ".join(words),)))
    return chosen


def test_greedy_answers_are_those_of_generate(vlm: Vlm, world: World, make_scorer: MakeScorer) -> None:
    lists = lists_for(world, len(world.train))
    questions = questions_with_chosen_answers(vlm, world, lists)
    scorer = make_scorer(world.pool, questions)
    scores = scorer.score([question.id for question in questions], ids(lists), SHOTS, texts=True)
    seen = {"right": 0, "first word": 0, "wrong at once": 0, "words": set()}
    for n, (question, demos) in enumerate(zip(questions, lists, strict=True)):
        reference = vlm.processor.tokenizer(f" {question.answer}<|im_end|>").input_ids
        for shots in SHOTS:
            tokens, text = naive_answer(vlm, demos[:shots], question, 4)
            assert scores.text_NM is not None
            assert scores.text_NM[n][shots] == text
            assert scores.correct_NM[n, shots] == (tokens == reference)
            seen["right"] += tokens == reference
            seen["first word"] += tokens != reference and tokens[0] == reference[0]
            seen["wrong at once"] += tokens[0] != reference[0]
            seen["words"].add(len(question.answer.split()))
    assert min(seen["right"], seen["first word"], seen["wrong at once"]) >= 3
    assert {1, 2} <= seen["words"]


def test_texts_do_not_change_scores(world: World, make_scorer: MakeScorer) -> None:
    lists = ids(lists_for(world, 4))
    asked = [question.id for question in world.train[:4]]
    scorer = make_scorer(world.pool, world.train[:4])
    plain, with_texts = (scorer.score(asked, lists, SHOTS, texts=texts) for texts in (False, True))
    assert plain.text_NM is None
    assert np.array_equal(plain.answer_prob_NM, with_texts.answer_prob_NM)
    assert np.array_equal(plain.correct_NM, with_texts.correct_NM)


@pytest.mark.parametrize("template", ["vlm", "qwen_vlm"])
@pytest.mark.parametrize("length", [0, 2])
@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_one_step_of_beam_search_is_that_of_plain_forwards(
    template: str,
    length: int,
    batch_tokens: int,
    world: World,
    make_scorer: MakeScorer,
    request: pytest.FixtureRequest,
) -> None:
    plain = request.getfixturevalue(template)
    question = next(question for question in world.train if " " in question.answer)
    prefixes = [world.pool[1:3], world.pool[4:6]] if length else [()]
    candidates = list(world.pool[:5])
    settings = {} if template == "vlm" else {"of": plain}
    scorer = make_scorer(world.pool, [question], batch_tokens=batch_tokens, **settings)
    scores_BK = scorer.extend(question.id, ids(prefixes), [demo.id for demo in candidates])
    wanted = [
        [np.nan if demo in prefix else naive_log_probability(plain, (*prefix, demo), question) for demo in candidates]
        for prefix in prefixes
    ]
    np.testing.assert_allclose(np.log(scores_BK.astype(np.float64)), wanted, rtol=0, atol=1e-5)
    assert np.isnan(scores_BK).sum() == (3 if length else 0)
    assert scorer.computed == np.isfinite(scores_BK).sum()


def test_permuting_the_rows_of_a_request_permutes_its_scores(world: World, make_scorer: MakeScorer) -> None:
    lists, asked = ids(lists_for(world, 12)), [question.id for question in world.train]
    scorer = make_scorer(world.pool, world.train)
    order = np.random.default_rng(1).permutation(12)
    plain = scorer.score(asked, lists, SHOTS, texts=True)
    moved = scorer.score([asked[n] for n in order], [lists[n] for n in order], SHOTS, texts=True)
    np.testing.assert_allclose(moved.answer_prob_NM, plain.answer_prob_NM[order], rtol=1e-4, atol=1e-6)
    assert np.array_equal(moved.correct_NM, plain.correct_NM[order])
    assert moved.text_NM == [plain.text_NM[n] for n in order]


def test_a_short_row_scores_the_same_alone_and_beside_a_long_one(
    world: World, make_scorer: MakeScorer, picture: Callable[[int, int, int], bytes]
) -> None:
    long = replace(world.pool[7], image=picture(96, 96, 0), question="Which texture? " * 5)
    short = sorted(world.pool[:7], key=lambda demo: len(demo.question))[:4]
    question = world.train[0]
    scorer = make_scorer([*short, long], [question])
    lists = ids([tuple(short), (long, *short[:3])])
    alone = scorer.score([question.id], lists[:1], SHOTS)
    padded = scorer.score([question.id] * 2, lists, SHOTS)
    assert scorer.table.length(scorer.table.demo(long.id)) > 50
    np.testing.assert_allclose(logp(padded)[0], logp(alone)[0], rtol=0, atol=1e-5)


def test_scores_do_not_depend_on_batch_tokens(world: World, make_scorer: MakeScorer) -> None:
    lists, asked = ids(lists_for(world, 12)), [question.id for question in world.train]
    results = [
        make_scorer(world.pool, world.train, batch_tokens=tokens).score(asked, lists, SHOTS, texts=True)
        for tokens in (64, 300, 100_000)
    ]
    for result in results[1:]:
        np.testing.assert_allclose(logp(result), logp(results[0]), rtol=0, atol=1e-5)
        assert result.text_NM == results[0].text_NM


@pytest.mark.parametrize(
    "template",
    [
        "vlm",
        pytest.param("qwen_vlm"),
    ],
)
def test_a_forward_holds_at_most_batch_tokens(
    template: str,
    world: World,
    make_scorer: MakeScorer,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Seven equal rows of T tokens, and room for one token less than three of them: two, two, two and one."""
    twins = [replace(world.train[0], id=f"twin-{number}") for number in range(7)]
    lists, asked = ids(lists_for(world, 1)) * 7, [twin.id for twin in twins]
    scorer = make_scorer(world.pool, twins, of=request.getfixturevalue(template))
    shapes, own = [], scorer._decoder.run
    monkeypatch.setattr(
        scorer._decoder, "run", lambda embeds, *others: shapes.append(tuple(embeds.shape[:2])) or own(embeds, *others)
    )
    scorer.score(asked, lists, SHOTS)
    ((_, width),) = shapes
    scorer.batch_tokens = 3 * width - 1
    scorer.score(asked, lists, SHOTS)
    assert shapes[1:] == [(2, width)] * 3 + [(1, width)]


def test_some_shot_counts_only_and_no_list_at_all(world: World, make_scorer: MakeScorer) -> None:
    scorer = make_scorer(world.pool, world.train[:2])
    lists, asked = ids(lists_for(world, 2)), [question.id for question in world.train[:2]]
    every, some = scorer.score(asked, lists, SHOTS), scorer.score(asked, lists, [3, 1])
    np.testing.assert_allclose(some.answer_prob_NM, every.answer_prob_NM[:, [3, 1]], rtol=1e-5)
    zero = scorer.score(asked, [(), ()], [0])
    np.testing.assert_allclose(zero.answer_prob_NM, every.answer_prob_NM[:, :1], rtol=1e-5)
    assert scorer.score([], [], SHOTS).answer_prob_NM.shape == (0, 5)


def test_bfloat16_stays_near_float32(tiny_folder: Path, world: World, make_scorer: MakeScorer) -> None:
    lists, asked = ids(lists_for(world, 12)), [question.id for question in world.train]
    exact = logp(make_scorer(world.pool, world.train).score(asked, lists, SHOTS))
    half = load_vlm(str(tiny_folder), "bfloat16", "cpu")
    rounded = logp(make_scorer(world.pool, world.train, of=half).score(asked, lists, SHOTS))
    assert 1e-5 < np.abs(rounded - exact).mean() < 0.3  # this model is far more contrasted than a trained one


def test_lists_that_begin_alike_score_as_they_do_alone(
    vlm: Vlm, world: World, make_scorer: MakeScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 lists of 4 demos out of 4 share beginnings, some to the end; rows are cut inside them."""
    questions, rng = world.train[:2], np.random.default_rng(2)
    lists = [tuple(world.pool[index] for index in rng.permutation(4)) for _ in range(16)]
    asked = [questions[n % 2] for n in range(16)]
    distinct = {(q.id, demos[:k]) for q, demos in zip(asked, ids(lists), strict=True) for k in SHOTS}
    for room in (0.5, 2, 100):
        monkeypatch.setattr(tries, "LISTS_A_ROW", room)
        scorer = make_scorer(world.pool, questions)
        scores = scorer.score([question.id for question in asked], ids(lists), SHOTS, texts=True)
        np.testing.assert_allclose(logp(scores), naive_scores(vlm, asked, lists), rtol=0, atol=1e-5)
        assert scorer.computed == len(distinct) < 5 * 16
        assert scores.text_NM is not None
        for n in range(0, 16, 5):
            for shots in SHOTS:
                assert scores.text_NM[n][shots] == naive_answer(vlm, lists[n][:shots], asked[n], 4)[1]


def test_a_list_that_is_shorter_than_a_shot_count_is_asked_whole(world: World, make_scorer: MakeScorer) -> None:
    question, demos = world.train[0].id, ids(lists_for(world, 1))[0]
    scorer = make_scorer(world.pool, world.train[:1])
    scores = scorer.score([question] * 2, [demos, demos[:2]], SHOTS, texts=True)
    wanted = [0, 1, 2, 2, 2]
    assert np.array_equal(scores.answer_prob_NM[1], scores.answer_prob_NM[0, wanted])
    assert np.array_equal(scores.correct_NM[1], scores.correct_NM[0, wanted])
    assert scores.text_NM is not None
    assert scores.text_NM[1] == [scores.text_NM[0][shots] for shots in wanted]
    assert scorer.computed == 5


def test_unknown_ids_are_refused(world: World, make_scorer: MakeScorer) -> None:
    scorer = make_scorer(world.pool, world.train[:2])
    question, demos = world.train[0].id, ids(lists_for(world, 1))[0]
    with pytest.raises(LeverlabError, match="the demo 'pool-99999' is not among the 8 known ones"):
        scorer.score([question], [("pool-99999",)], [1])
    with pytest.raises(LeverlabError, match=f"the question '{world.train[5].id}' is not among the 2 known ones"):
        scorer.score([world.train[5].id], [demos], [1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_an_error_that_names_the_question(
    value: float, tiny_folder: Path, world: World, make_scorer: MakeScorer, tmp_path: Path
) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.2.mlp.down_proj.weight"))
    tensors[name][5, 7] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    broken = make_scorer(world.pool, world.train[:1], of=load_vlm(str(tmp_path), "float32", "cpu"))
    asked, demos = world.train[0].id, ids(lists_for(world, 1))[0]
    with pytest.raises(LeverlabError, match=f"not a number for question '{asked}' after demos .*{demos[0]}"):
        broken.score([asked], [demos], [1])
    with pytest.raises(LeverlabError, match=f"not a number for question '{asked}' after demos .*{demos[1]}"):
        broken.extend(asked, [demos[:1]], [demos[1]])


def test_a_forward_without_gradients_leaves_none(world: World, make_scorer: MakeScorer) -> None:
    scorer = make_scorer(world.pool, world.train[:1])
    scorer.score([world.train[0].id], ids(lists_for(world, 1)), SHOTS)
    model = scorer.table.vlm.model
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_max_new_tokens_bounds_an_answer_that_is_right_so_far(vlm: Vlm, world: World, make_scorer: MakeScorer) -> None:
    lists = lists_for(world, len(world.train))
    questions = questions_with_chosen_answers(vlm, world, lists)
    scorer = make_scorer(world.pool, questions, max_new_tokens=1)
    scores = scorer.score([question.id for question in questions], ids(lists), [2], texts=True)
    wanted = [[naive_answer(vlm, demos[:2], question, 1)[1]] for question, demos in zip(questions, lists, strict=True)]
    assert scores.text_NM == wanted


def test_every_end_token_of_the_model_ends_an_answer(
    vlm: Vlm, world: World, make_scorer: MakeScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2.5-VL's generation config names two, <|im_end|> and <|endoftext|>; here a frequent word is the second."""
    lists = lists_for(world, len(world.train))
    frequent = vlm.processor.tokenizer.convert_tokens_to_ids("Ġkavi")
    ends = [vlm.processor.tokenizer.eos_token_id, frequent]
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", ends)
    wanted = []
    for question, demos in zip(world.train, lists, strict=True):
        tokens, _ = naive_answer(vlm, demos[:2], question, 4)
        answer = tokens[:-1] if tokens[-1] in ends else tokens
        wanted.append([vlm.processor.tokenizer.decode(answer, skip_special_tokens=True).strip()])
    scorer = make_scorer(world.pool, world.train, of=vlm)
    scores = scorer.score([question.id for question in world.train], ids(lists), [2], texts=True)
    assert scores.text_NM == wanted
