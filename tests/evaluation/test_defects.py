"""Six defects of a predecessor, rebuilt as broken inputs of a world that is else in health: each is caught by name.

Its ladder of results was noise, and it was read as progress for weeks, because nothing stopped at these. They pass the
real files and readers, with the limits and the reward of the committed params.yaml.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from leverlab.config.base import parse_section, read_params
from leverlab.config.reward import RewardParams
from leverlab.config.schedule import Schedule
from leverlab.errors import LeverlabError
from leverlab.evaluation.health import Finding, failures, pool_identity
from leverlab.evaluation.summary import shots_table
from leverlab.evaluation.vqa_metric import vqa_accuracy
from leverlab.pipeline.groups_health import groups_health
from leverlab.records import write_table
from leverlab.rl.advantages import group_advantages
from leverlab.rl.sampling import keep_best_and_worst
from leverlab.selector.architecture import Architecture
from leverlab.selector.batches import QueryData
from leverlab.selector.candidates import Candidates, CandidateSet, read_candidates, write_candidates
from leverlab.selector.features import FeatureTable
from leverlab.selector.network import Selector
from leverlab.training.collect import beam_search
from leverlab.training.groups import TERMS, Group, read_groups, write_groups
from leverlab.training.grpo import Grpo
from leverlab.training.reward import list_reward
from leverlab.training.rollouts import Moment, StoredRollouts
from leverlab.worlds.vqa import okvqa_world

PARAMS = Path(__file__).parents[2] / "params.yaml"
REWARD = parse_section(RewardParams, "reward", read_params(PARAMS))
POOL = [f"d{index}" for index in range(40)]
K, SHOTS, QUERIES = 8, 4, 40
SOURCES = ("beam", "beam", "retrieval", "random")
WIDTHS = (4, 3, 2)


def offered(query: int, pool: Sequence[str] = POOL) -> tuple[str, ...]:
    """The 8 candidates of a query: the demos whose number leaves the rest `query` by 5. All 40 occur."""
    return tuple(pool[(query + 5 * k) % len(pool)] for k in range(K))


def windows(candidates: Sequence[str], lists: int) -> tuple[tuple[str, ...], ...]:
    """Lists of four neighbours: candidates 0-3, 1-4, …"""
    return tuple(tuple(candidates[(g + t) % len(candidates)] for t in range(SHOTS)) for g in range(lists))


def group(
    query: int,
    lists: Sequence[Sequence[str]],
    sources: Sequence[str],
    correct_GT: object,
    probability_GT: object = None,
) -> Group:
    """A group whose answers have probability 1/2 where right and .05 where wrong, unless others are given."""
    correct = np.asarray(correct_GT, np.float64)
    probability = np.where(correct > 0, 0.5, 0.05) if probability_GT is None else np.asarray(probability_GT, np.float64)
    values = {"beam_score": probability - 0.05, "correct": correct, "vqa_accuracy": correct, "answer_prob": probability}
    values["relevance"] = np.zeros_like(probability)
    terms = {term: np.broadcast_to(values[term], correct.shape) for term in TERMS}
    return Group(f"q{query}", tuple(map(tuple, lists)), tuple(sources), terms)


def healthy_group(query: int, candidates: Sequence[str]) -> Group:
    """One beam right at every shot count and one never; retrieval right at 1 and 2; random right in every 4th query."""
    right = float(query % 4 == 0)
    correct = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [right] * 4]
    return group(query, windows(candidates, 4), SOURCES, correct)


def healthy() -> list[Group]:
    return [healthy_group(query, offered(query)) for query in range(QUERIES)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS.read_text())
    return tmp_path


def report(
    root: Path,
    groups: Sequence[Group],
    candidates: Callable[[int], Sequence[str]] = offered,
    pool: Sequence[str] = POOL,
) -> dict[str, Finding]:
    """The findings by name, after writing and reading all files."""
    prepared = root / "prepared"
    prepared.mkdir(exist_ok=True)
    write_table(prepared / "pool.parquet", [{"id": name} for name in pool], pa.schema([("id", pa.string())]))
    sets = [CandidateSet("train", f"q{query}", 0, tuple(candidates(query))) for query in range(len(groups))]
    write_candidates(prepared / "candidates.parquet", sets)
    write_groups(root / "groups.parquet", groups)
    return {finding.name: finding for finding in groups_health(root, root / "groups.parquet", prepared)}


def failing(found: dict[str, Finding]) -> set[str]:
    return {finding.name for finding in failures(list(found.values()))}


def rewards(group: Group) -> np.ndarray:
    """The reward of every list."""
    return list_reward(REWARD, group.terms, 0.0)


def query_data(queries: int) -> QueryData:
    rng = np.random.default_rng(0)
    ids = (*POOL, *(f"q{query}" for query in range(queries)))
    vectors = [rng.normal(size=(len(ids), width)).astype(np.float32) for width in WIDTHS]
    sets = [CandidateSet("train", f"q{query}", 0, offered(query)) for query in range(queries)]
    return QueryData(FeatureTable(ids, *vectors), Candidates(sets, POOL, "candidates"))


def test_without_a_defect_nothing_fails(root: Path) -> None:
    """So that what fails below fails for its defect. Right: 4 + 0 of 8 beam answers; random in a quarter."""
    found = report(root, healthy())
    assert failing(found) == set()
    values = {name: finding.value for name, finding in found.items()}
    assert (values["positives_beam"], values["positives_random"], values["oracle_accuracy"]) == (0.5, 0.25, 1)
    assert (values["distinct_candidates"], values["flat_groups"]) == (1, 0)


# 1: at inference the pool was the first K = 2 training rows for every question: two fixed demos in one order or another


def test_1_two_demos_for_every_query(root: Path) -> None:
    """Lists of 2 shots. 2 demos of a pool of 40 are offered, in 80 places."""
    params = read_params(root / "params.yaml")
    params["eval"]["shots"], params["reward"]["shot_weights"] = 2, [1.0, 1.0]
    (root / "params.yaml").write_text(json.dumps(params))
    pair, swapped = ("d0", "d1"), ("d1", "d0")
    groups = [
        group(query, [pair, swapped, pair, swapped], SOURCES, healthy_group(query, POOL).terms["correct"][:, :2])
        for query in range(QUERIES)
    ]
    found = report(root, groups, lambda query: pair)
    assert failing(found) == {"distinct_candidates"}
    assert found["distinct_candidates"].value == 2 / 40
    assert "2 demos of a pool of 40, in 80 places" in found["distinct_candidates"].meaning


def test_1_another_pool_at_inference() -> None:
    finding = pool_identity({"training": POOL, "inference": POOL[:2]})
    assert (finding.name, finding.value, finding.ok) == ("pool_identity", 2, False)


def test_1_two_candidates_make_no_list_of_four() -> None:
    with pytest.raises(LeverlabError, match=r"lists of 4 demos need as many candidates, not 2.*prepare\.candidates"):
        beam_search(None, "q0", POOL[:2], width=5, shots=4)  # type: ignore[arg-type]  # it comes to no scoring


def test_1_the_table_of_results_tells_two_demos() -> None:
    """800 questions answered with d0 and d1: 2 distinct demos stand beside the accuracy."""
    answers = pd.DataFrame(
        {"method": "grpo", "seed": 0, "shots": 2, "question_id": [f"q{n}" for n in range(800)], "question_type": "t"}
        | {"prediction": "p", "vqa_accuracy": [0.0, 1.0] * 400, "answer_prob": 0.5}
        | {"demos": [["d0", "d1"], ["d1", "d0"]] * 400}
    )
    assert shots_table(answers, resamples=10)["distinct_demos"].tolist() == [2]


# 2: labels were `train_index mod K`: positions where ids belong, and a lookup that gave an unknown key back


def by_position() -> list[Group]:
    """Lists of the positions of candidates, as texts: "0", "1", "2", "3" for candidates 0-3."""
    positions = [str(position) for position in range(K)]
    return [healthy_group(query, positions) for query in range(QUERIES)]


def test_2_positions_in_place_of_ids(root: Path) -> None:
    """Four lists of neighbours hold the positions 0 to 6; none of the 40 x 4 lists is among the candidates."""
    found = report(root, by_position())
    assert failing(found) == {"demos_outside_pool", "demos_outside_candidates"}
    assert (found["demos_outside_pool"].value, found["demos_outside_candidates"].value) == (7, 160)
    assert found["demos_outside_pool"].meaning.endswith("(such as 0, 1, 2)")


def test_2_positions_that_happen_to_be_ids(root: Path) -> None:
    """In a pool of the ids "0" to "39" every position is a demo; candidates of a query are 5 apart, positions are 1."""
    numbered = [str(index) for index in range(40)]
    found = report(root, by_position(), lambda query: offered(query, numbered), numbered)
    assert failing(found) == {"demos_outside_candidates"}
    assert found["demos_outside_candidates"].value == 160


def test_2_numbers_in_place_of_texts(root: Path) -> None:
    report(root, healthy())
    path = root / "groups.parquet"
    table = pq.read_table(path)
    positions = pa.array([[0, 1, 2, 3]] * len(table), pa.list_(pa.int64()))
    pq.write_table(table.set_column(table.column_names.index("demos"), "demos", positions), path)
    with pytest.raises(LeverlabError, match=r"column 'demos' must hold list<.*string>, not list<.*int64>"):
        groups_health(root, path, None)


def test_2_training_looks_every_id_up(root: Path) -> None:
    groups = healthy()[:2]
    drawn = StoredRollouts(query_data(2), groups, lambda terms, progress: terms["correct"]).draw(
        Selector(WIDTHS, Architecture(8, "gru", "dot", False, False), 0.0),
        ["q0", "q1"],
        Moment(1, 0, 0.0),
        lists=4,
        shots=SHOTS,
    )
    assert drawn.picks_BGT[1].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]
    rollouts = StoredRollouts(query_data(2), by_position()[:2], lambda terms, progress: terms["correct"])
    with pytest.raises(LeverlabError, match="the demo '0' stands in a list of query 'q0' but not among its candidates"):
        rollouts.draw(
            Selector(WIDTHS, Architecture(8, "gru", "dot", False, False), 0.0),
            ["q0"],
            Moment(1, 0, 0.0),
            lists=4,
            shots=SHOTS,
        )


def test_2_candidates_are_ids_of_the_pool(tmp_path: Path) -> None:
    positions = tuple(str(position) for position in range(K))
    write_candidates(tmp_path / "candidates.parquet", [CandidateSet("train", "q0", 0, positions)])
    with pytest.raises(LeverlabError, match="set 0 of query 'q0' holds '0', a demo id that no pool has"):
        read_candidates(tmp_path / "candidates.parquet", POOL)


# 4: without the annotation file rewards were substring matches: 0.1 % positives, 5 of 800 groups with any spread


@pytest.mark.parametrize("soft_term_differs", [False, True])
def test_4_next_to_no_positives(root: Path, soft_term_differs: bool) -> None:
    """800 groups of 2 beams, a retrieval and 2 random lists: 800 x 5 x 4 = 16,000 answers, 16 of them right.

    A beam of each of five groups is right in its first 4, 4, 4, 2 and 2 prefixes: 16 of 6,400 beam answers, and 3 of
    800 at full length. Where P(answer) differs a little in every list no reward is equal: then the flat groups are
    hidden, and nothing else is.
    """
    prefixes = [4, 4, 4, 2, 2]
    probability = np.linspace(0.03, 0.05, 5)[:, None] if soft_term_differs else 0.05
    groups = []
    for query in range(800):
        correct = np.zeros((5, SHOTS))
        correct[0, : prefixes[query] if query < 5 else 0] = 1
        groups.append(group(query, windows(offered(query), 5), (*SOURCES, "random"), correct, probability))
    found = report(root, groups)
    values = {name: finding.value for name, finding in found.items()}
    assert values["flat_groups"] == (0 if soft_term_differs else 795 / 800)
    assert values["positives_beam"] == 16 / 6400
    assert values["positives_random"] == values["positives_retrieval"] == 0
    assert values["oracle_accuracy"] == values["headroom"] == 3 / 800
    assert failing(found) == {
        "positives_beam",
        "positives_random",
        "positives_retrieval",
        "oracle_accuracy",
        "headroom",
        *([] if soft_term_differs else ["flat_groups"]),
    }


def test_4_without_annotations_there_is_no_world(tmp_path: Path) -> None:
    for part in ("train2014", "val2014"):
        (tmp_path / f"OpenEnded_mscoco_{part}_questions.json").write_text('{"questions": []}')
    with pytest.raises(LeverlabError, match=r"mscoco_train2014_annotations\.json does not exist"):
        okvqa_world(str(tmp_path), pool=1, train=1, val=1, test=1, seed=0)


def test_4_a_substring_is_no_answer() -> None:
    assert vqa_accuracy("a photo of a car park", ["car"] * 10) == 0
    assert vqa_accuracy("car", ["car"] * 10) == 1
    with pytest.raises(LeverlabError, match="at least one answer"):
        vqa_accuracy("car", [])


# 5: "AdvStd 0.0062" was 4 groups with a spread, averaged with 636 flat ones


def four_of_640() -> list[Group]:
    """Groups of four lists: in 4 groups two are right and two wrong, in 636 all are wrong."""
    return [
        group(query, windows(offered(query), 4), SOURCES, [[float(query < 4 and g < 2)] * SHOTS for g in range(4)])
        for query in range(640)
    ]


def test_5_flat_groups_are_counted_by_the_report(root: Path) -> None:
    found = report(root, four_of_640())
    assert found["flat_groups"].value == 636 / 640
    assert "flat_groups" in failing(found)


def test_5_statistics_are_over_live_groups(tmp_path: Path) -> None:
    """A live group's z-scores are +-1, so their deviation is 1; over all 640 groups it would have been .00625."""
    write_groups(tmp_path / "groups.parquet", four_of_640())
    groups = read_groups(tmp_path / "groups.parquet", SHOTS)
    rewards_BG = torch.from_numpy(np.stack([rewards(found) for found in groups]))
    advantages_BG, live_B = group_advantages(rewards_BG, "zscore", epsilon=0.0)
    assert live_B.nonzero().flatten().tolist() == [0, 1, 2, 3]
    deviation_B = advantages_BG.std(dim=1, correction=0)
    assert float(deviation_B[live_B].mean()) == pytest.approx(1)
    assert float(deviation_B.mean()) == pytest.approx(0.00625)


def test_5_training_counts_flat_groups_and_learns_from_the_others_alone() -> None:
    """The gradient of all 640 is that of the 4; averaged in, the flat ones would leave a 160th of it."""
    groups, data = four_of_640(), query_data(640)
    torch.manual_seed(0)
    policy = Selector(WIDTHS, Architecture(8, "gru", "dot", False, False), 0.0)
    epsilon, beta = Schedule.model_validate(0.2), Schedule.model_validate(0.0)
    objective = Grpo(policy, "zscore", "to_go", (1.0,) * SHOTS, epsilon, beta, "pick")

    def step(some: Sequence[Group]) -> tuple[torch.Tensor, float]:
        rollouts = StoredRollouts(data, some, lambda terms, progress: terms["correct"])
        drawn = rollouts.draw(policy, rollouts.query_ids, Moment(1, 0, 0.0), lists=4, shots=SHOTS)
        closure = objective.prepare(policy, drawn, 0.0)
        assert closure is not None
        loss, diagnostics = closure()
        slopes = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
        return torch.cat([slope.flatten() for slope in slopes if slope is not None]), float(diagnostics["flat_groups"])

    (all_640, flat), (the_4, none_flat) = step(groups), step(groups[:4])
    assert (flat, none_flat) == (pytest.approx(636 / 640), 0)
    assert float(the_4.norm()) > 1e-3
    torch.testing.assert_close(all_640, the_4, rtol=1e-4, atol=1e-6)


# 7: the label mask ignored the chat template and the image tokens: P(answer) was about 1e-6 for all


def test_7_inert_answer_probabilities(root: Path) -> None:
    """List g has 1e-6 + g * 1e-7. Nothing else shows it: answers are judged by their texts."""
    probability = 1e-6 + 1e-7 * np.arange(4)[:, None]
    groups = [
        group(query, found.lists, found.sources, found.terms["correct"], probability)
        for query, found in enumerate(healthy())
    ]
    found = report(root, groups)
    assert failing(found) == {"answer_prob_median", "answer_prob_tiny"}
    assert found["answer_prob_median"].value == pytest.approx(1.15e-6)
    assert found["answer_prob_tiny"].value == 1
    assert "the answer's tokens are masked wrongly" in found["answer_prob_median"].meaning


# 10: top-k by reward kept only winners


def sixteen_lists(query: int) -> Group:
    """5 beams, 4 retrieval and 7 random lists. Six are right at every shot count, the others at 1 shot alone; and of
    either kind a later list is a little less probable."""
    right = [g in (0, 1, 5, 9, 10, 11) for g in range(16)]
    correct = [[1, 1, 1, 1] if hit else [1, 0, 0, 0] for hit in right]
    probability = [[(0.5 if hit else 0.05) * (1 - g / 100)] * SHOTS for g, hit in enumerate(right)]
    sources = ["beam"] * 5 + ["retrieval"] * 4 + ["random"] * 7
    return group(query, windows(offered(query), 16), sources, correct, probability)


def kept(whole: Group, chosen: Sequence[int]) -> Group:
    terms = {term: whole.terms[term][list(chosen)] for term in TERMS}
    return Group(whole.query_id, *(tuple(part[g] for g in chosen) for part in (whole.lists, whole.sources)), terms)


def test_10_the_top_5_are_all_winners(root: Path) -> None:
    """Lists 0, 1, 5, 9 and 10. A random list that was kept is a winner: no headroom is left."""
    wholes = [sixteen_lists(query) for query in range(QUERIES)]
    assert failing(report(root, wholes)) == set()
    top = [np.argsort(-rewards(whole), kind="stable")[:5].tolist() for whole in wholes]
    assert top == [[0, 1, 5, 9, 10]] * QUERIES
    found = report(root, [kept(whole, chosen) for whole, chosen in zip(wholes, top, strict=True)])
    assert failing(found) == {"winner_groups", "random_accuracy", "headroom"}
    assert found["winner_groups"].value == 1
    assert "nothing worse is left to learn from" in found["winner_groups"].meaning


def test_10_the_top_3_hold_no_random_list(root: Path) -> None:
    groups = [kept(sixteen_lists(query), [0, 1, 5]) for query in range(QUERIES)]
    with pytest.raises(LeverlabError, match="no trajectory from source 'random'"):
        report(root, groups)


def test_10_the_best_and_the_worst_are_in_health(root: Path) -> None:
    """3 best (0, 1, 5) and 2 worst (14, 15)."""
    wholes = [sixteen_lists(query) for query in range(QUERIES)]
    chosen = [keep_best_and_worst(rewards(whole), 5).tolist() for whole in wholes]
    assert chosen == [[0, 1, 5, 14, 15]] * QUERIES
    found = report(root, [kept(whole, some) for whole, some in zip(wholes, chosen, strict=True)])
    assert failing(found) == set()
    assert found["winner_groups"].value == 0
