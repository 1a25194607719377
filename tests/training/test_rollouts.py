"""Trajectories: the right reward on the right list, nothing scored twice, and random in seed and step alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.training.groups import Group
from leverlab.training.rollouts import Moment, OnlineRollouts, StoredRollouts, Trajectories

QUERIES = ["q2", "q0", "q1"]
PAID = {"q0": 0.25, "q1": 0.5, "q2": 0.75}


def paid_for(query: str, text: str) -> float:
    """What an answer is worth."""
    return PAID[query] * (text == "yes")


def probability(terms: Any, progress: float) -> Any:
    return terms["answer_prob"]


def online(
    toy: Any, reward: Any = probability, seed: int = 0, needed: Any = (), **data: int
) -> tuple[OnlineRollouts, Any]:
    scorer = toy.scorer(toy.hashed)
    return OnlineRollouts(toy.data(3, **data), scorer, reward, paid_for, needed, QUERIES, seed), scorer


def listed(drawn: Trajectories) -> list[list[tuple[str, ...]]]:
    return drawn.inputs.ids(drawn.picks_BGT)


def test_every_prefix_of_every_list_gets_its_own_reward(toy: Any) -> None:
    rollouts, _ = online(toy)
    drawn = rollouts.draw(toy.selector(), QUERIES, Moment(1, 0, 0.0), lists=6, shots=3)
    assert drawn.picks_BGT.shape == drawn.rewards_BGT.shape == (3, 6, 3)
    assert drawn.rewards_BGT.dtype == torch.float64
    for b, query in enumerate(QUERIES):
        for g, demos in enumerate(listed(drawn)[b]):
            expected = [toy.hashed(query, demos[: t + 1]) for t in range(3)]
            assert drawn.rewards_BGT[b, g].tolist() == pytest.approx(expected, rel=1e-6)
    assert drawn.inputs.query_ids == tuple(QUERIES)
    assert rollouts.query_ids == QUERIES


def test_equal_lists_are_scored_once(toy: Any) -> None:
    """3 candidates make 6 lists of two, so 40 draws repeat; the same list before two questions is two prompts."""
    rollouts, scorer = online(toy, candidates=3)
    drawn = rollouts.draw(toy.selector(), QUERIES, Moment(1, 0, 0.0), lists=40, shots=2)
    unique = {(query, demos) for query, lists in zip(QUERIES, listed(drawn), strict=True) for demos in lists}
    assert len(unique) <= 18
    assert sorted(scorer.asked) == sorted(unique)
    for b, query in enumerate(QUERIES):
        expected = [[toy.hashed(query, demos[:1]), toy.hashed(query, demos)] for demos in listed(drawn)[b]]
        np.testing.assert_allclose(drawn.rewards_BGT[b].numpy(), expected, rtol=1e-6)


def test_the_same_seed_and_step_give_the_same_lists(toy: Any) -> None:
    policy = toy.selector()

    def lists(seed: int, step: int) -> list[Any]:
        torch.manual_seed(seed + 10 * step + 100)
        return listed(online(toy, seed=seed)[0].draw(policy, QUERIES, Moment(1, step, 0.0), lists=6, shots=3))

    first = lists(0, 3)
    rollouts, _ = online(toy)
    rollouts.draw(policy, QUERIES, Moment(1, 2, 0.0), lists=6, shots=3)  # what was drawn before does not matter
    torch.manual_seed(0)
    assert listed(rollouts.draw(policy, QUERIES, Moment(1, 3, 0.0), lists=6, shots=3)) == first
    assert lists(0, 4) != first
    assert lists(1, 3) != first


def test_candidate_sets_take_turns_over_epochs(toy: Any) -> None:
    rollouts, _ = online(toy, sets=3)
    data = toy.data(3, sets=3)
    for epoch, number in ((1, 0), (2, 1), (3, 2), (4, 0), (8, 1)):
        drawn = rollouts.draw(toy.selector(), QUERIES, Moment(epoch, 0, 0.0), lists=2, shots=2)
        assert drawn.inputs.candidate_ids == data.batch(QUERIES, number).candidate_ids
        offered = zip(drawn.inputs.candidate_ids, listed(drawn), strict=True)
        assert all(set(demos) <= set(candidates) for candidates, lists in offered for demos in lists)


def test_lists_come_from_the_policy_without_dropout(toy: Any) -> None:
    sharp = toy.selector(dropout=0.9, sharpness=5)
    drawn = online(toy)[0].draw(sharp.train(), QUERIES, Moment(1, 0, 0.0), lists=5, shots=3)
    assert not sharp.training
    still = toy.selector(dropout=0.0, sharpness=5)
    assert listed(online(toy)[0].draw(still, QUERIES, Moment(1, 0, 0.0), lists=5, shots=3)) == listed(drawn)
    assert listed(online(toy)[0].draw(toy.selector(seed=3), QUERIES, Moment(1, 0, 0.0), lists=5, shots=3)) != listed(
        drawn
    )


def test_terms_are_correct_answer_prob_and_when_asked_vqa_accuracy(toy: Any) -> None:
    """The fake answers "yes" from 1/2 on; the accuracy here pays .25 for "yes" to q0, .5 to q1, .75 to q2."""
    seen: dict[str, Any] = {}

    def reward(terms: Any, progress: float) -> Any:
        seen.update(terms)
        return terms.get("vqa_accuracy", terms["correct"])

    rollouts, scorer = online(toy, reward)
    hard = rollouts.draw(toy.selector(), QUERIES, Moment(1, 0, 0.0), lists=6, shots=3)
    assert sorted(seen) == ["answer_prob", "correct"]
    assert scorer.texts_asked == [False]
    assert seen["correct"].dtype == seen["answer_prob"].dtype == np.float64

    soft, texts = online(toy, reward, needed=("vqa_accuracy",))
    drawn = soft.draw(toy.selector(), QUERIES, Moment(1, 0, 0.0), lists=6, shots=3)
    assert texts.texts_asked == [True]
    assert listed(drawn) == listed(hard)
    for b, query in enumerate(QUERIES):
        right = [[toy.hashed(query, demos[: t + 1]) >= 0.5 for t in range(3)] for demos in listed(drawn)[b]]
        np.testing.assert_array_equal(hard.rewards_BGT[b].numpy(), np.array(right, float))
        np.testing.assert_array_equal(drawn.rewards_BGT[b].numpy(), PAID[query] * np.array(right))
    assert 0 < hard.rewards_BGT.mean() < 1


def groups_of(toy: Any, data: Any, lists: int = 4) -> list[Group]:
    """Stored groups of q0, q1, q2: lists that run backwards from candidate g, with hashed probabilities."""
    groups = []
    for query in sorted(QUERIES):
        candidates = data.batch([query]).candidate_ids[0]
        demos = tuple((candidates[g], candidates[g - 1]) for g in range(lists))
        scores = np.array([[toy.hashed(query, found[: t + 1]) for t in range(2)] for found in demos])
        groups.append(Group(query, demos, ("random",) * lists, {"answer_prob": scores, "correct": scores > 0.5}))
    return groups


def test_stored_groups_come_back_whole_in_the_order_asked_for(toy: Any) -> None:
    data = toy.data(3)
    groups = {group.query_id: group for group in groups_of(toy, data)}
    rollouts = StoredRollouts(data, list(groups.values()), lambda terms, progress: 2 * terms["answer_prob"])
    assert rollouts.query_ids == sorted(QUERIES)
    drawn = rollouts.draw(toy.selector(), QUERIES, Moment(5, 9, 0.0), lists=99, shots=99)
    assert drawn.inputs.query_ids == tuple(QUERIES)
    assert listed(drawn) == [list(groups[query].lists) for query in QUERIES]
    expected = np.stack([2 * groups[query].terms["answer_prob"] for query in QUERIES])
    np.testing.assert_array_equal(drawn.rewards_BGT.numpy(), expected)
    assert drawn.rewards_BGT.dtype == torch.float64


def test_stored_lists_are_found_among_permuted_candidates(toy: Any) -> None:
    """The same eight demos in another order: other positions, the same demos and rewards."""
    first, other = toy.data(3, candidates=8, seed=0), toy.data(3, candidates=8, seed=1)
    groups = groups_of(toy, first)
    one, two = (
        StoredRollouts(data, groups, probability).draw(toy.selector(), QUERIES, Moment(1, 0, 0.0), 4, 2)
        for data in (first, other)
    )
    assert listed(one) == listed(two)
    assert not torch.equal(one.picks_BGT, two.picks_BGT)
    assert torch.equal(one.rewards_BGT, two.rewards_BGT)


def test_a_stored_demo_that_is_no_candidate_is_refused(toy: Any) -> None:
    """Groups that were made for five of the eight demos, read for another five."""
    rollouts = StoredRollouts(toy.data(3, seed=1), groups_of(toy, toy.data(3, seed=0)), probability)
    with pytest.raises(LeverlabError, match=r"stands in a list of query 'q\d' but not among its candidates"):
        rollouts.draw(toy.selector(), QUERIES, Moment(1, 0, 0.0), 4, 2)


def test_relevance_and_gains_are_scored_where_the_reward_reads_them(toy: Any) -> None:
    seen: dict[str, Any] = {}

    def reward(terms: Any, progress: float) -> Any:
        seen.update(terms)
        return terms["beam_score"] + progress

    rollouts, _ = online(toy, reward, needed=("beam_score", "relevance"))
    drawn = rollouts.draw(toy.selector(), QUERIES, Moment(1, 0, 0.5), lists=4, shots=2)
    assert sorted(seen) == ["answer_prob", "beam_score", "correct", "relevance"]
    for b, query in enumerate(QUERIES):
        bare = toy.hashed(query, ())
        for g, demos in enumerate(listed(drawn)[b]):
            gains = [toy.hashed(query, demos[: t + 1]) - bare for t in range(2)]
            assert drawn.rewards_BGT[b, g].tolist() == pytest.approx([gain + 0.5 for gain in gains], rel=1e-5)
            assert seen["answer_prob"][b, g].tolist() == pytest.approx([gain + bare for gain in gains], rel=1e-6)
    np.testing.assert_array_equal(seen["relevance"], drawn.inputs.relevance(drawn.picks_BGT))


def test_success_is_the_share_of_right_answers(toy: Any) -> None:
    drawn = online(toy)[0].draw(toy.selector(), QUERIES, Moment(1, 0, 0.0), lists=6, shots=3)
    for b, query in enumerate(QUERIES):
        right = [toy.hashed(query, demos[: t + 1]) >= 0.5 for demos in listed(drawn)[b] for t in range(3)]
        assert drawn.success_B[b].item() == pytest.approx(sum(right) / 18)
    stored = StoredRollouts(toy.data(3), groups_of(toy, toy.data(3)), probability)
    found = stored.draw(toy.selector(), ["q1"], Moment(1, 0, 0.0), 0, 0).success_B
    assert found.tolist() == [groups_of(toy, toy.data(3))[1].terms["correct"].mean()]


def test_best_and_worst_by_hand(toy: Any) -> None:
    """Mean rewards .5, .2, .9, .4 of the first query: the best is list 2, the worst list 1."""
    drawn = online(toy)[0].draw(toy.selector(), QUERIES, Moment(1, 0, 0.0), lists=4, shots=2)
    rewards = torch.tensor([[0.5, 0.2, 0.9, 0.4], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    drawn = replace(drawn, rewards_BGT=torch.stack([rewards + 0.1, rewards - 0.1], dim=-1))
    kept = drawn.best_and_worst(2)
    for b, places in enumerate(([1, 2], [0, 3], [0, 3])):
        assert torch.equal(kept.picks_BGT[b], drawn.picks_BGT[b, places])
        assert torch.equal(kept.rewards_BGT[b], drawn.rewards_BGT[b, places])
