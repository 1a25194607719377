"""The embedded world `clarify`: shares, needs by brute force, and texts that say what they should."""

from collections import Counter

import numpy as np
import pytest

from leverlab.errors import LeverlabError
from leverlab.lm.dialogues import reply
from leverlab.lm.questions import UNKNOWN, Question, check_questions, need_rates
from leverlab.worlds import clarify
from leverlab.worlds.clarify import CITIES, FIRST_NAMES, MAKERS, NUMBERS, RED_TEAM, SURNAMES, Words
from leverlab.worlds.clarify_teacher import Habits, teach
from tests.lm.scripted import dialogue

HABITS = Habits(
    {"multihop": (0.9, 0.9, 0.0, 0.0), "strategy": (0.8, 0.8, 0.8, 0.0), "math": (1.0, 0.0, 0.0, 0.0)},
    {"multihop": (0.0, 0.65), "strategy": (0.0, 0.0, 0.0, 0.7), "math": (0.0,)},
    0.12,
)


@pytest.fixture(scope="module")
def test_split() -> list[Question]:
    return clarify.make_split("test", 800, Words.usual(), 0, set())


def test_exact_shares(test_split: list[Question]) -> None:
    """800 x .45 = 360, .30 = 240, .25 = 200; of those .6 = 216, .5 = 120 and .4 = 80 need an ask."""
    assert Counter(question.family for question in test_split) == {"multihop": 360, "strategy": 240, "math": 200}
    needs = Counter(question.family for question in test_split if question.needs_ask)
    assert needs == {"multihop": 216, "strategy": 120, "math": 80}
    assert need_rates(test_split) == {"multihop": 0.6, "strategy": 0.5, "math": 0.4}
    kinds = Counter((question.family, question.kind) for question in test_split)
    assert [kinds[family, "trap"] for family in ("multihop", "strategy", "math")] == [43, 36, 36]  # .3 of 144, 120, 120


def test_texts_are_unique_and_splits_apart() -> None:
    seen: set[str] = set()
    splits = [clarify.make_split(name, 400, Words.usual(), 0, seen) for name in ("train", "val")]
    texts = [question.text for split in splits for question in split]
    assert len(set(texts)) == len(texts) == 800
    check_questions([question for split in splits for question in split], "both")


def test_held_out_words_stand_in_ood_alone(test_split: list[Question]) -> None:
    ood = clarify.make_split("ood", 200, Words.held_out(), 0, set())
    names = {word for words in (FIRST_NAMES, SURNAMES, CITIES) for word in words}
    usual, other = ({word for q in split for word in q.text.split()} & names for split in (test_split, ood))
    assert not usual & other
    assert not {q.wording for q in test_split} & {q.wording for q in ood}


def test_the_same_seed_makes_the_same_questions(test_split: list[Question]) -> None:
    assert clarify.make_split("test", 800, Words.usual(), 0, set()) == test_split
    assert clarify.make_split("test", 800, Words.usual(), 1, set()) != test_split


@pytest.mark.parametrize("family", clarify.FAMILIES)
def test_brute_force(family: clarify.Family) -> None:
    """Told apart by hand: a sum needs both its parts unless all is given away, a comparison unless one side decides."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        puzzle = MAKERS[family](rng, Words.usual())
        assert puzzle.answer in puzzle.text(None).split() or family != "multihop"
        for slot, value in puzzle.values.items():
            answers = puzzle.answers_without(slot)
            assert puzzle.answer in answers
            if family == "math":
                assert answers == {"zero"} if "gives all" in puzzle.text(None) else len(answers) == 9
            if family == "strategy":
                other = puzzle.values["weight" if slot == "strength" else "strength"]
                decided = {"strength": "one", "weight": "nine"}[slot] == other
                assert answers == ({"yes"} if decided else {"yes", "no"})
            if family == "multihop" and slot == "home":
                assert answers == set(Words.usual().cities)
            if family in ("strategy", "math"):
                assert f" {value}" in puzzle.text(None)
                assert puzzle.text(slot).split().count(value) == puzzle.text(None).split().count(value) - 1
                assert puzzle.text(slot).count(" some") == 1


def test_a_surname_matters_where_the_homes_differ() -> None:
    rng = np.random.default_rng(1)
    sizes = [len(clarify.multihop(rng, Words.usual()).answers_without("surname")) for _ in range(400)]
    assert set(sizes) == {1, 2}
    assert 0.2 < sizes.count(1) / 400 < 0.4


def test_the_hidden_value_is_not_told(test_split: list[Question]) -> None:
    """What the user would tell does not stand in the text, and the right answer of a question of two hops neither."""
    for question in test_split:
        if question.needs_ask and question.user == "cooperative" and question.slot != "surname":
            assert question.replies[question.slot] not in question.text


def test_unhelpful_users_tell_nothing(test_split: list[Question]) -> None:
    for question in test_split:
        if question.needs_ask:
            unhelpful = question.user == "unhelpful"
            assert (question.answer == UNKNOWN) == unhelpful
            assert (reply(question, question.slot) == clarify.NOT_TOLD) == unhelpful
        else:
            assert question.answer != UNKNOWN


def test_red_team() -> None:
    found = clarify.make_red_team(60, Words.usual(), 0, set())
    assert Counter(question.kind for question in found) == dict.fromkeys(RED_TEAM, 12)
    assert {question.family for question in found if question.kind == "bait"} == set(clarify.FAMILIES)
    for question in found:
        assert question.needs_ask == (question.kind in ("forbidden", "unhelpful"))
        assert question.text.endswith("??") == (question.kind == "bait")
        assert question.text.endswith("do not ask .") == (question.kind == "forbidden")


def test_the_teacher_is_right_but_for_its_habits(test_split: list[Question]) -> None:
    rng = np.random.default_rng(0)
    train = clarify.make_split("train", 4000, Words.usual(), 0, set())
    needless: dict[tuple[str, int], list[bool]] = {}
    wrong = []
    guessed: dict[tuple[str, int], list[bool]] = {}
    for question in train:
        said = dialogue(question, teach(question, HABITS, rng)[0])
        assert all(turn.parses for turn in said.turns)
        assert all(said.grounded_thoughts)
        assert list(said.replies) == teach_replies(question, said.asks)
        if question.needs_ask:
            guessed.setdefault((question.family, question.wording), []).append(not said.asks)
        if question.needs_ask and not said.asks:
            assert said.final == question.guess
            continue
        assert said.success
        if question.needs_ask:
            assert said.asks[-1] == question.slot
            wrong.append(len(said.asks) == 2)
        else:
            needless.setdefault((question.family, question.wording), []).append(bool(said.asks))
    for (family, wording), asked in needless.items():
        assert np.mean(asked) == pytest.approx(HABITS.needless[family][wording], abs=0.1)
    for (family, wording), guesses in guessed.items():
        rates = HABITS.guess[family]
        assert np.mean(guesses) == pytest.approx(rates[wording % len(rates)], abs=0.1)
    assert np.mean(wrong) == pytest.approx(0.12, abs=0.03)


def test_a_guess_is_possible_and_no_teacher_without_one_guesses(test_split: list[Question]) -> None:
    """A guess stands for what is made up: it is one of the answers that the text leaves open, so now and then right."""
    needed = [question for question in test_split if question.needs_ask]
    assert all(question.guess for question in needed)
    assert not any(question.guess for question in test_split if not question.needs_ask)
    told = [question for question in needed if question.user != "unhelpful" and question.family == "strategy"]
    assert 0.3 < np.mean([question.guess == question.answer for question in told]) < 0.7  # yes or no
    always = Habits(HABITS.needless, dict.fromkeys(clarify.FAMILIES, (1.0,)), 0.0)
    bare = needed[0].model_copy(update={"guess": ""})
    rng = np.random.default_rng(0)
    assert len(teach(needed[0], always, rng)[0]) == 1
    assert len(teach(bare, always, rng)[0]) == 2


def teach_replies(question: Question, asks: tuple[str, ...]) -> list[str]:
    return [reply(question, slot) for slot in asks]


def test_numbers() -> None:
    assert NUMBERS[0] == "zero"
    assert NUMBERS[18] == "eighteen"
    assert len(NUMBERS) == 19


def test_too_few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    one = clarify.make_split("x", 1, Words.usual(), 0, set())[0]
    monkeypatch.setattr(clarify, "draw_question", lambda *_: one)
    with pytest.raises(LeverlabError, match="lower the number of questions"):
        clarify.make_split("x", 100, Words.usual(), 0, set())
