"""What the base reads: sequences whose continuation a word decides, and dialogues that end right."""

import numpy as np
import pytest

from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import Dialogue
from leverlab.lm.tiny import build_tokenizer
from leverlab.worlds.clarify import CITIES, FIRST_NAMES, SURNAMES, WORDINGS, make_red_team, make_split
from leverlab.worlds.clarify import Words as ClarifyWords
from leverlab.worlds.clarify_base import Reader, all_words, draw_question, vocabulary, without_habit
from tests.lm.scripted import dialogue


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(build_tokenizer(vocabulary()))


def test_every_word_is_one_token(chat: Chat) -> None:
    """In every split, thoughts and replies included: a word that falls apart could not be copied."""
    rng = np.random.default_rng(0)
    questions = [
        *make_split("train", 300, ClarifyWords.usual(), 0, set()),
        *make_split("ood", 100, ClarifyWords.held_out(), 0, set()),
        *make_red_team(50, ClarifyWords.usual(), 0, set()),
        *(draw_question(rng) for _ in range(100)),
    ]
    texts = {text for q in questions for text in (q.text, q.thought, q.thought_told, q.answer, *q.replies.values())}
    for word in {word for text in texts for word in text.split()}:
        assert len(chat.tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1, word


def test_what_is_to_be_repeated_follows_from_the_word_before(chat: Chat) -> None:
    reader, rng = Reader(chat), np.random.default_rng(0)
    offsets = set()
    for _ in range(50):
        ids, wanted = reader.repetition(rng, 40)
        assert len(ids) == len(wanted) == 40
        for place in range(1, 40):
            if wanted[place]:
                earlier = [n for n in range(1, place) if ids[n - 1] == ids[place - 1]]
                assert ids[place] in {ids[n] for n in earlier}
                offsets.add(place - earlier[0])
        assert not any(wanted[:3])
    assert len(offsets) > 20  # no fixed distance would do


def test_dialogues_of_no_habit_end_right() -> None:
    rng = np.random.default_rng(0)
    asked: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(500):
        question = draw_question(rng)
        turns, replies = without_habit(question, rng)
        found: Dialogue = dialogue(question, turns)
        assert found.success
        assert list(found.replies) == replies
        asked[question.needs_ask].append(bool(found.asks))
    assert all(asked[True])
    assert 0.2 < np.mean(asked[False]) < 0.8


def test_all_is_read() -> None:
    """What is held out is held out from fine-tuning: a base has read all names, cities and wordings."""
    words = all_words()
    assert (words.names, words.surnames, words.cities) == (FIRST_NAMES, SURNAMES, CITIES)
    assert set(words.wordings) == set(range(len(WORDINGS["math"])))


def test_tokens_of_a_dialogue(chat: Chat) -> None:
    family, (ids, own) = Reader(chat).dialogue(np.random.default_rng(3))
    assert family in ("multihop", "strategy", "math")
    said = chat.tokenizer.decode([token for token, mine in zip(ids, own, strict=True) if mine])
    assert said.startswith("<think>")
    assert said.endswith("</final><|im_end|>")
