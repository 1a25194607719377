"""All splits of the recipe in one form: embedded, and from files as the hub stores them."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from leverlab.config.clarify_data import ClarifyDataParams
from leverlab.errors import LeverlabError
from leverlab.lm.questions import check_questions
from leverlab.lm.records import Taught
from leverlab.worlds.clarify import FAMILIES, RED_TEAM
from leverlab.worlds.clarify_card import data_card, digest, teacher_table
from leverlab.worlds.clarify_splits import make_splits
from tests.worlds.test_clarify_hub import rows_of, write

COUNTS = {"train": 40, "val": 20, "test": 20, "ood": 20, "red_team": 10, "shadow": 10, "calib": 10, "seed": 0}


def write_sources(folder: Path, count: int) -> dict[str, Any]:
    """Rows of all families: `count` of the split, and 40 others for ood."""
    sources = {}
    for family in FAMILIES:
        rows = rows_of(family, count + 40)
        write(folder / family / "train.jsonl", rows[:count])
        write(folder / family / "test.jsonl", rows[count:])
        sources[family] = {"source": str(folder / family), "split": "train", "ood": "test"}
    return sources


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def params(world: str, sources: dict[str, Any] | None = None, **changes: int) -> ClarifyDataParams:
    return ClarifyDataParams.model_validate({"world": world, "sources": sources or {}} | COUNTS | changes)


def test_embedded_splits() -> None:
    splits, notes = make_splits(params("clarify"))
    assert {name: len(questions) for name, questions in splits.items()} == {n: COUNTS[n] for n in splits}
    check_questions([question for questions in splits.values() for question in questions], "all splits")
    assert {question.kind for question in splits["red_team"]} == set(RED_TEAM)
    assert make_splits(params("clarify"))[0] == splits
    assert make_splits(params("clarify", seed=1))[0] != splits
    assert "brute force" in notes[0]


def test_splits_from_the_hub(tmp_path: Path) -> None:
    """Twins stay together, so that half of every split needs an ask; the red team has all its kinds."""
    splits, notes = make_splits(params("hub", write_sources(tmp_path, 120)))
    for name in ("train", "val", "test", "ood", "shadow", "calib"):
        assert len(splits[name]) == COUNTS[name]
        assert sum(question.needs_ask for question in splits[name]) == COUNTS[name] / 2
        ids = {question.id for question in splits[name]}
        assert all(question.twin in ids for question in splits[name] if question.needs_ask)
    for question in splits["red_team"]:
        assert question.needs_ask == (question.kind in ("forbidden", "unhelpful"))
    assert {question.kind for question in splits["red_team"]} == set(RED_TEAM)
    check_questions([question for questions in splits.values() for question in questions], "all splits")
    assert "made no pair" in notes[1]


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError):
        make_splits(params("hub", write_sources(tmp_path, 8)))


def test_a_hub_without_sources() -> None:
    with pytest.raises(ValueError, match="needs a source for each of"):
        params("hub")


def test_the_card() -> None:
    """Counts, what the teacher does by hand, digests; the same for the same data, and other for other."""
    splits, notes = make_splits(params("clarify"))
    needed = next(question for question in splits["train"] if question.needs_ask)
    taught = [
        Taught(question=needed.id, turns=["a", "b"], replies=["c"]),
        Taught(question=needed.id, turns=["a"], replies=[]),
    ]
    card = data_card("clarify", splits, taught, notes)
    assert card == data_card("clarify", splits, taught, notes)
    for name, questions in splits.items():
        assert digest(questions) in card
        assert name in card
    table = teacher_table(splits["train"], taught).set_index("family")
    assert table.loc[needed.family, "asks when it needs to"] == 0.5
    assert str(table.loc[needed.family, "asks when it need not"]) == "nan"
    changed = {**splits, "val": splits["val"][1:]}
    assert data_card("clarify", changed, taught, notes) != card


def test_texts_of_a_data_set_are_no_markup_in_the_card() -> None:
    """Pipes, links and tags are shown; the answer 12.50 keeps its digits."""
    splits, notes = make_splits(params("clarify"))
    evil = "a | [b](http://e.com) <b> `c`"
    bad = splits["train"][0].model_copy(update={"text": evil, "kind": evil, "answer": "12.50", "user": evil})
    card = data_card(evil, splits | {"train": [bad, *splits["train"][1:]]}, [], notes)
    written = r"a \| [b\](http\://e.com) \<b> \`c\`"
    assert card.startswith(f"# Data card: {written}\n")
    assert card.count(written) == 5  # title, kind and user with their counts, kind and text of the example
    assert evil not in card
    assert "| 12.50 " in card
