"""Training of the embedded world's VLM: what a batch holds, what its loss weighs, and that a kill changes nothing."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from leverlab.training.digits_episodes import (
    CLASS_OFFSET,
    Item,
    SceneSampler,
    draw_convention,
    matching_episode,
    training_episode,
)
from leverlab.training.digits_vlm import (
    END_WEIGHT,
    IGNORED,
    ClassHeads,
    collate,
    embed,
    episode_loss,
    fit,
    learning_rate_factor,
    matching_accuracy,
    patches,
    run_text,
)
from leverlab.vlm.tiny import build_model, build_processor, build_tokenizer
from leverlab.worlds.digits_scenes import ATTRIBUTES, CLASSES, QUESTIONS, WORDS, scan_parts

ORDER = ("number", "colour", "texture")


@pytest.fixture(scope="module")
def processor() -> Any:
    words = [*(word for names in CLASSES.values() for word in names), *WORDS]
    questions = [question for wordings in QUESTIONS.values() for question in wordings]
    return build_processor(build_tokenizer([*questions, *(f" {word}" for word in words)]))


@pytest.fixture(scope="module")
def sampler() -> SceneSampler:
    return SceneSampler(scan_parts()["meta"])


def new_model(processor: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_model(processor.tokenizer)


def item(words: tuple[str, ...], classes: tuple[int, ...], question: str = "Which number?", seed: int = 0) -> Item:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Item(pixels, question, words, classes, (0, 0, 0))


# Episodes


def test_a_convention_gives_26_classes_26_words() -> None:
    one, other = (draw_convention(np.random.default_rng(seed)) for seed in (0, 1))
    assert sorted(one) == list(range(26))
    assert len(set(one.values())) == 26
    assert set(one.values()) <= set(WORDS)
    assert one != other


def test_training_episodes_hold_few_types_and_few_classes(sampler: SceneSampler) -> None:
    types, active = Counter(), Counter()
    for seed in range(60):
        episode = training_episode(sampler, 24, np.random.default_rng(seed))
        asked = {kind for one in episode for kind, wordings in QUESTIONS.items() if one.question in wordings}
        types[len(asked)] += 1
        for axis in range(3):
            active[len({one.shown[axis] for one in episode})] += 1
        convention = {index: word for one in episode for index, word in zip(one.classes, one.words, strict=True)}
        for one in episode:
            (kind,) = (kind for kind, wordings in QUESTIONS.items() if one.question in wordings)
            shown = dict(zip(ORDER, one.shown, strict=True))
            assert one.classes == tuple(CLASS_OFFSET[name] + shown[name] for name in ATTRIBUTES[kind])
            assert one.words == tuple(convention[index] for index in one.classes)
    assert set(types) == {1, 2, 3, 4}
    assert set(active) == {2, 3, 4}


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_a_matching_episode_has_one_match_and_near_misses_only(sampler: SceneSampler, shots: int) -> None:
    rng = np.random.default_rng(0)
    places, kinds, other_attributes = Counter(), set(), 0
    for _ in range(200):
        *demos, query = matching_episode(sampler, shots, rng)
        assert len(demos) == shots
        (kind,) = (kind for kind, wordings in QUESTIONS.items() if query.question in wordings)
        assert all(demo.question in QUESTIONS[kind] for demo in demos)
        matches = [demo.classes == query.classes for demo in demos]
        assert sum(matches) == 1
        for demo, match in zip(demos, matches, strict=True):
            if match:
                assert demo.words == query.words
            else:  # every class asked for differs, so no part of the answer can be read from it
                assert not set(demo.classes) & set(query.classes)
                assert not set(demo.words) & set(query.words)
        asked = [ORDER.index(name) for name in ATTRIBUTES[kind]]
        free = [axis for axis in range(3) if axis not in asked]
        other_attributes += any(demo.shown[axis] == query.shown[axis] for demo in demos for axis in free)
        places[matches.index(True)] += 1
        kinds.add(kind)
    assert kinds == set(QUESTIONS)
    assert sorted(places) == list(range(shots))
    assert min(places.values()) > 200 / shots * 0.6  # the place of the match tells nothing
    assert other_attributes > 0  # what is not asked for is drawn freely


# Batches


def test_a_batch_is_what_the_chat_template_and_the_processor_write(processor: Any, sampler: SceneSampler) -> None:
    episodes = [training_episode(sampler, items, np.random.default_rng(items)) for items in (4, 2, 3)]
    batch = collate(episodes, processor.tokenizer, 0.5)
    for row, items in enumerate(episodes):
        messages: list[dict[str, Any]] = []
        for one in items:
            messages.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.question}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": " ".join(one.words)}]})
        text = processor.apply_chat_template(messages, tokenize=False)
        images = [Image.fromarray(one.image) for one in items]
        wanted = processor(text=[text], images=images, return_tensors="pt")["input_ids"][0]
        assert torch.equal(batch.ids_BP[row, : len(wanted)], wanted)
        assert (batch.ids_BP[row, len(wanted) :] == processor.tokenizer.pad_token_id).all()
        assert (batch.targets_BP[row, len(wanted) :] == IGNORED).all()
        asked = torch.nonzero(batch.targets_BP[row] != IGNORED).flatten()
        assert torch.equal(batch.targets_BP[row, asked], wanted[asked + 1])
        assert len(asked) == sum(len(one.words) + 1 for one in items)
    assert np.array_equal(batch.images, np.stack([one.image for items in episodes for one in items]))
    assert batch.shown.tolist() == [list(one.shown) for items in episodes for one in items]


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (48, 32)])
def test_patches_are_those_of_the_image_processor_bit_for_bit(processor: Any, size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8)
    wanted = processor.image_processor([Image.fromarray(image) for image in images], return_tensors="pt")
    pixel_values, grids = patches(images, processor.image_processor)
    assert torch.equal(pixel_values, wanted["pixel_values"])
    assert torch.equal(grids, wanted["image_grid_thw"])


def test_loss_weights_by_hand(processor: Any) -> None:
    """Two items that share one class; `unseen_weight` .25.

    Item 1 'fazo bivi' (classes 3, 12): both unseen, .25 and .25, end .1. Item 2 'bivi kovi' (12, 5): class 12 was shown
    in item 1, weight 1; class 5 was not, .25; end .1. A class that an item itself shows does not count for it.
    """
    words = [item(("fazo", "bivi"), (3, 12)), item(("bivi", "kovi"), (12, 5), seed=1)]
    batch = collate([words], processor.tokenizer, 0.25)
    asked = batch.targets_BP[0] != IGNORED
    assert END_WEIGHT == 0.1
    expected = [0.25, 0.25, 0.1, 1.0, 0.25, 0.1]
    assert batch.weights_BP[0, asked].tolist() == pytest.approx(expected)
    assert batch.classes_BP[0, asked].tolist() == [3, 12, IGNORED, 12, 5, IGNORED]
    tokens = processor.tokenizer.convert_ids_to_tokens(batch.targets_BP[0, asked])
    assert tokens == ["Ġfazo", "Ġbivi", "<|im_end|>", "Ġbivi", "Ġkovi", "<|im_end|>"]
    assert float(batch.weights_BP.sum()) == pytest.approx(sum(expected))
    # an episode of its own forgets what another showed
    apart = collate([words[:1], words[1:]], processor.tokenizer, 0.25)
    assert apart.weights_BP[1, apart.targets_BP[1] != IGNORED].tolist() == pytest.approx([0.25, 0.25, 0.1])


def test_a_repeated_class_inside_one_item_is_not_seen_before_it(processor: Any) -> None:
    batch = collate([[item(("fazo", "fazo"), (3, 3))]], processor.tokenizer, 0.25)
    assert batch.weights_BP[batch.targets_BP != IGNORED].tolist() == pytest.approx([0.25, 0.25, 0.1])


# Loss


def test_inputs_and_hidden_states_are_the_librarys(processor: Any, sampler: SceneSampler) -> None:
    """Against `model(**inputs)` on the processor's own inputs, which computes positions and image places itself."""
    model = new_model(processor).eval()
    episodes = [training_episode(sampler, 3, np.random.default_rng(seed)) for seed in (0, 1)]
    batch = collate(episodes, processor.tokenizer, 1.0)
    with torch.no_grad():
        output = run_text(model, embed(model, processor.image_processor, batch)[0], hidden_states=True)
        for row, items in enumerate(episodes):
            length = sum(len(ids) for ids in (row_ids(processor, one) for one in items))
            images = [Image.fromarray(one.image) for one in items]
            pictures = processor.image_processor(images, return_tensors="pt")
            ids = batch.ids_BP[row : row + 1, :length]
            wanted = model(
                input_ids=ids,
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
                output_hidden_states=True,
                **pictures,
            )
            for layer in (2, 3):
                torch.testing.assert_close(
                    output.hidden_states[layer][row, :length], wanted.hidden_states[layer][0], rtol=0, atol=1e-5
                )
            logits = model.lm_head(output.last_hidden_state[row, :length])
            torch.testing.assert_close(logits, wanted.logits[0], rtol=0, atol=1e-5)


def row_ids(processor: Any, one: Item) -> list[int]:
    text = f"<|vision_start|><|image_pad|><|vision_end|>{one.question} {' '.join(one.words)}<|im_end|>"
    return list(processor.tokenizer(text).input_ids)


def test_the_loss_is_the_weighted_mean_of_a_slow_loop(processor: Any, sampler: SceneSampler) -> None:
    """Answer loss: Σ weight · −log p(next token) / Σ weight. Class losses: after layer 2 where a word is predicted,
    after layer 3 where it stands, and number, colour and texture from the image's feature, each a plain mean."""
    model = new_model(processor).eval()
    torch.manual_seed(1)
    heads = ClassHeads(128).requires_grad_(False)
    rng = np.random.default_rng(3)
    batch = collate([training_episode(sampler, 4, rng) for _ in range(3)], processor.tokenizer, 0.25)
    with torch.no_grad():
        loss, diagnostics = episode_loss(model, heads, processor.image_processor, batch, head_weight=0.3)
        embeds, features = embed(model, processor.image_processor, batch)
        output = run_text(model, embeds, hidden_states=True)
    answers, weights, second, third, right = [], [], [], [], []
    for row in range(3):
        for place in range(batch.ids_BP.shape[1]):
            target, index = int(batch.targets_BP[row, place]), int(batch.classes_BP[row, place])
            if target == IGNORED:
                continue
            weight = float(batch.weights_BP[row, place])
            logits = model.lm_head(output.last_hidden_state[row, place]).detach()
            answers.append(weight * -float(torch.log_softmax(logits, -1)[target]))
            weights.append(weight)
            if index != IGNORED:
                at = torch.tensor(index)
                second.append(
                    float(functional.cross_entropy(heads.after_second(output.hidden_states[2][row, place]), at))
                )
                third.append(
                    float(functional.cross_entropy(heads.after_third(output.hidden_states[3][row, place + 1]), at))
                )
                if weight == 1.0:
                    right.append(int(logits.argmax()) == target)
    logits_NC = heads.image(features)
    shown = [
        float(functional.cross_entropy(logits_NC[:, start:stop], batch.shown[:, axis]))
        for axis, (start, stop) in enumerate(((0, 10), (10, 18), (18, 26)))
    ]
    answer_loss, head_loss = sum(answers) / sum(weights), np.mean(second) + np.mean(third) + sum(shown)
    assert float(diagnostics["answer_loss"]) == pytest.approx(answer_loss, rel=1e-5)
    assert float(diagnostics["head_loss"]) == pytest.approx(head_loss, rel=1e-5)
    assert float(loss) == pytest.approx(answer_loss + 0.3 * head_loss, rel=1e-5)
    assert float(diagnostics["accuracy"]) == pytest.approx(np.mean(right))


def test_padding_changes_nothing(processor: Any, sampler: SceneSampler) -> None:
    model = new_model(processor).eval()
    short, long = (training_episode(sampler, items, np.random.default_rng(items)) for items in (2, 6))
    with torch.no_grad():
        hidden = []
        for episodes in ([short], [short, long]):
            batch = collate(episodes, processor.tokenizer, 1.0)
            hidden.append(run_text(model, embed(model, processor.image_processor, batch)[0]).last_hidden_state[0])
    torch.testing.assert_close(hidden[1][: len(hidden[0])], hidden[0], rtol=0, atol=1e-5)


# Training


@pytest.mark.parametrize(
    ("step", "steps", "factor"),
    [
        (0, 1500, 0.01),
        (49, 1500, 0.5),
        (99, 1500, 1.0),
        (500, 1500, 1.0),
        (900, 1500, 1.0),  # 600 steps left of the 600 that decay
        (1200, 1500, 0.5),
        (1499, 1500, 1 / 600),
        (30, 40, 0.31),  # a short run is still warming up
        (39, 40, 1 / 16),
    ],
)
def test_learning_rate_factor_by_hand(step: int, steps: int, factor: float) -> None:
    assert learning_rate_factor(step, steps) == pytest.approx(factor)


class KilledError(Exception):
    """Stands for a kill in the middle of a step."""


def train(processor: Any, folder: Path, kill_at: int | None = None, **changes: Any) -> tuple[Any, list[float]]:
    model, losses = new_model(processor), []

    def on_step(step: int, diagnostics: dict[str, float]) -> None:
        if step == kill_at:
            raise KilledError
        losses.append(diagnostics["loss"])

    settings = {
        "steps": 4,
        "episodes": 3,
        "items": 3,
        "learning_rate": 0.05,
        "unseen_weight": 0.1,
        "head_weight": 0.3,
        "seed": 0,
        "save_every": 2,
        "state_file": folder / "resume.pt",
        "on_step": on_step,
    }
    fit(model, processor, scan_parts()["meta"], **(settings | changes))
    return model, losses


def test_a_run_that_was_killed_ends_as_one_that_was_not(processor: Any, tmp_path: Path) -> None:
    """Killed in step 4 of 4, with a resume point after step 2: steps 3 and 4 run again, to the same bytes."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, losses = train(processor, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(processor, tmp_path / "killed", kill_at=4)
    torch.manual_seed(99)  # the state of torch's generator must not matter
    resumed, later = train(processor, tmp_path / "killed")
    assert len(losses) == 4
    assert later == losses[2:]
    before = dict(new_model(processor).named_parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name))
    moved = [name for name, parameter in whole.named_parameters() if not torch.equal(parameter, before[name])]
    assert len(moved) == len(before)
    assert not whole.training


def test_the_resume_point_appears_whole_or_not_at_all(
    processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while the second resume point is written leaves the first, and a run continues from it."""
    whole, _ = train(processor, tmp_path / "none", save_every=9)
    own, calls = torch.save, []

    def save(state: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise KilledError
        own(state, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KilledError):
        train(processor, tmp_path, save_every=1)
    monkeypatch.undo()
    resumed, losses = train(processor, tmp_path, save_every=9)
    assert len(losses) == 3
    assert torch.equal(whole.lm_head.weight, resumed.lm_head.weight)


def test_batches_depend_on_the_seed(processor: Any, tmp_path: Path) -> None:
    one, other = (train(processor, tmp_path, seed=seed, steps=1)[1] for seed in (0, 1))
    assert not math.isclose(one[0], other[0], rel_tol=1e-4)


# The matching test


def test_matching_accuracy_counts_whole_answers(processor: Any, sampler: SceneSampler) -> None:
    """A random model is right on none; one whose head always gives the true next token is right on all.

    The oracle knows the answers in order; in every tenth episode it ends the answer with a wrong token.
    """
    model = new_model(processor).eval()
    scans = scan_parts()["pool"]
    assert matching_accuracy(model, processor, scans, shots=3, episodes=70, seed=0) == 0.0

    oracle, rng = [], np.random.default_rng([0, 3])
    pool = SceneSampler(scans)
    for index in range(70):
        *_, query = matching_episode(pool, 3, rng)
        tokens = [*(processor.tokenizer(f" {word}").input_ids[0] for word in query.words), 2]
        assert processor.tokenizer.eos_token_id == 2
        oracle.append(tokens if index % 10 else [*tokens[:-1], 7])

    class Head(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            tokens = oracle.pop(0)
            assert len(hidden) == len(tokens)
            return functional.one_hot(torch.tensor(tokens), 480).float()

    model.lm_head = Head()
    assert matching_accuracy(model, processor, scans, shots=3, episodes=70, seed=0) == pytest.approx(63 / 70)
    assert not oracle
