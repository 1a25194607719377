"""The profile `tiny` as a CPU with fewer instructions runs it: which bytes are the same, and how near the rest is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from leverlab.files import files_below
from tests.instruction_sets import SSE
from tests.stages.clones import Clone, Cold, make_tiny

pytestmark = pytest.mark.slow

SCORES = ("beam_score", "correct", "vqa_accuracy", "answer_prob")
UNTRAINED = {"zero_shot", "random", "fixed", "image_sim", "text_sim", "mix", "type_sim", "oracle"}


@pytest.fixture(scope="module")
def elsewhere(make_clone: Callable[..., Clone]) -> Path:
    """The root of a clone in which the stages up to the first checkpoints and the answers to the test questions ran."""
    clone = make_clone(workers=1)
    make_tiny(clone)
    clone.environment |= SSE
    clone.run("dvc", "repro", "infer-800")
    return clone.root


def test_prepared_data_have_the_same_bytes(finished: Cold, elsewhere: Path) -> None:
    names = [path.relative_to(finished.root) for path in files_below(finished.root / "data/prepared")]
    assert len(names) == 6
    assert [name for name in names if (elsewhere / name).read_bytes() != (finished.root / name).read_bytes()] == []


def test_scores_agree_to_five_digits(finished: Cold, elsewhere: Path) -> None:
    """A beam may differ where two demos score alike but for the last bits; all others are the same, and so are their
    scores. The files are not: float32 sums end in other bits, or this test says nothing."""
    here, there = (pd.read_parquet(root / "data/rl/groups.parquet") for root in (finished.root, elsewhere))
    same = np.array([list(one) == list(other) for one, other in zip(here["demos"], there["demos"], strict=True)])
    assert same.mean() > 0.98
    for name in SCORES:
        np.testing.assert_allclose(stacked(here[name][same]), stacked(there[name][same]), atol=1e-5)
    assert not np.array_equal(stacked(here["answer_prob"]), stacked(there["answer_prob"]))


def stacked(column: Any) -> Any:
    return np.array([list(row) for row in column], float)


def test_answers_agree(finished: Cold, elsewhere: Path) -> None:
    """Of the methods that nobody trained all, and of trained ones all but some: training makes much of little."""
    keys = ["method", "seed", "shots", "question_id"]
    here, there = (
        pd.read_parquet(root / "data/answers.parquet").set_index(keys) for root in (finished.root, elsewhere)
    )
    assert set(here.index) == set(there.index)
    equal = here["prediction"] == there["prediction"].reindex(here.index)
    untrained = here.index.get_level_values("method").isin(UNTRAINED)
    assert equal[untrained].mean() > 0.99
    assert equal[~untrained].mean() > 0.9
