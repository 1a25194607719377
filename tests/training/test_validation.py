"""The row of a checkpoint by hand: a selector whose picks are known, and a scorer whose answers are known."""

import math
from typing import Any

import pytest
import torch

from leverlab.records import Example
from leverlab.selector.decoding import greedy
from leverlab.selector.network import Selector
from leverlab.training.validation import Validator


def picked(toy: Any, selector: Selector, data: Any, questions: int, shots: int, set_index: int = 0) -> list[Any]:
    batch = data.batch([f"q{index}" for index in range(questions)], set_index)
    encoded = selector.eval().encode(batch.query, batch.demos)
    return [lists[0] for lists in batch.ids(greedy(selector, encoded, shots)[:, None])]


def test_accuracy_loss_and_distinct_demos_by_hand(toy: Any) -> None:
    """Three questions, two shot counts. P is .8 (right) or .2 (wrong) as the table says, by question and shots:
    q0 right, wrong; q1 right, right; q2 wrong, wrong. So 2/3 are right at one shot and 1/3 at two, 1/2 in the mean."""
    data, selector = toy.data(3), toy.selector(sharpness=3)
    lists = picked(toy, selector, data, 3, 2)
    right = {("q0", 1), ("q1", 1), ("q1", 2)}
    scorer = toy.scorer(lambda question, demos: 0.8 if (question, len(demos)) in right else 0.2)
    row = Validator(data, toy.questions(3), scorer, 2)(selector)
    assert row["val_accuracy_1"] == pytest.approx(2 / 3)
    assert row["val_accuracy_2"] == pytest.approx(1 / 3)
    assert row["val_accuracy"] == pytest.approx(1 / 2)
    assert row["val_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2, rel=1e-6)
    assert row["distinct_demos"] == len({demo for demos in lists for demo in demos})
    offered = {demo for query in ("q0", "q1", "q2") for demo in data.batch([query]).candidate_ids[0]}
    n = len(offered)  # six random picks miss a demo with probability (1 - 1/n)^6
    assert row["distinct_share"] == pytest.approx(row["distinct_demos"] / (n * (1 - (1 - 1 / n) ** 6)))
    assert row["list_length"] == 2
    assert row["identical"] == pytest.approx(max(lists.count(demos) for demos in lists) / 3)
    assert math.isnan(row["kl"])
    assert scorer.asked == list(zip(["q0", "q1", "q2"], lists, strict=True))
    assert all(type(value) is float for value in row.values())  # what the resume state can hold


def test_answers_are_compared_with_the_questions_own(toy: Any) -> None:
    """Everything is answered "no": right for q1 alone."""
    questions = [Example(f"q{n}", b"i", "image", "What?", "any", (answer,)) for n, answer in enumerate(("yes", "no"))]
    row = Validator(toy.data(2), questions, toy.scorer(lambda question, demos: 0.1), 1)(toy.selector())
    assert row["val_accuracy"] == 0.5


def test_every_candidate_set_counts(toy: Any) -> None:
    """Accuracy by loop over four questions with three sets each; the first set alone has another."""
    data, selector = toy.data(4, sets=3, seed=2), toy.selector(sharpness=3)
    lists = [picked(toy, selector, data, 4, 3, number) for number in range(3)]
    right = [[toy.hashed(f"q{n}", demos) >= 0.5 for n, demos in enumerate(found)] for found in lists]
    expected = sum(map(sum, right)) / 12
    assert sum(right[0]) / 4 != expected
    scorer = toy.scorer(toy.hashed)
    row = Validator(data, toy.questions(4), scorer, 3)(selector)
    assert row["val_accuracy_3"] == pytest.approx(expected)
    assert row["distinct_demos"] == len({demo for found in lists for demos in found for demo in demos})
    losses = [-math.log(toy.hashed(q, demos[:k])) for q, demos in scorer.asked for k in (1, 2, 3)]
    assert row["val_loss"] == pytest.approx(sum(losses) / 36, rel=1e-5)
    assert [demos for _, demos in scorer.asked] == [demos for found in lists for demos in found]


def test_an_answer_of_no_probability_has_a_finite_loss(toy: Any) -> None:
    row = Validator(toy.data(2), toy.questions(2), toy.scorer(lambda question, demos: 0.0), 1)(toy.selector())
    assert row["val_loss"] == pytest.approx(-math.log(1e-30), rel=1e-5)


def test_a_uniform_policy_has_the_entropy_of_the_candidates_left(toy: Any) -> None:
    """Keys of zero make all logits equal: log 5, log 4, log 3 at the three picks."""
    selector = toy.selector()
    with torch.no_grad():
        selector.key.weight.zero_()
        selector.key.bias.zero_()
    row = Validator(toy.data(2), toy.questions(2), toy.scorer(toy.hashed), 3)(selector)
    assert row["entropy"] == pytest.approx((math.log(5) + math.log(4) + math.log(3)) / 3, rel=1e-6)


def test_divergence_and_entropy_by_loop_and_no_divergence_from_itself(toy: Any) -> None:
    """The mean over questions, sets and picks of sum p log(p / q) along the policy's own greedy lists."""
    data, policy, other = toy.data(2, sets=2), toy.selector(sharpness=3), toy.selector(seed=1, sharpness=3).eval()
    validator = Validator(data, toy.questions(2), toy.scorer(toy.hashed), 3)
    assert validator(policy, policy)["kl"] == 0
    terms, entropies = list[float](), list[float]()
    for number in range(2):
        batch = data.batch(["q0", "q1"], number)
        picks = greedy(policy, policy.encode(batch.query, batch.demos), 3)[:, None]
        p, q = (
            torch.softmax(selector.list_logits(selector.encode(batch.query, batch.demos), picks), -1)[:, 0].tolist()
            for selector in (policy, other)
        )
        for b in range(2):
            for t in range(3):
                terms.append(sum(x * math.log(x / y) for x, y in zip(p[b][t], q[b][t], strict=True) if x > 0))
                entropies.append(-sum(x * math.log(x) for x in p[b][t] if x > 0))
    forward, backward = validator(policy, other)["kl"], validator(other, policy)["kl"]
    assert forward == pytest.approx(sum(terms) / 12, rel=1e-4)
    assert forward > 0.05
    assert backward != pytest.approx(forward, rel=1e-2)
    assert validator(policy, other)["entropy"] == pytest.approx(sum(entropies) / 12, rel=1e-4)
    assert sum(entropies[:6]) / 6 != pytest.approx(sum(entropies) / 12, rel=1e-3)


def test_dropout_is_off(toy: Any) -> None:
    validator = Validator(toy.data(3), toy.questions(3), toy.scorer(toy.hashed), 3)
    sharp = toy.selector(dropout=0.8, sharpness=4).train()
    assert str(validator(sharp)) == str(validator(toy.selector(sharpness=4)))
    assert not sharp.training
