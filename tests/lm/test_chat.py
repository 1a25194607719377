"""Dialogues as tokens: what users wrote is text, and the tags of a turn are the policy's."""

import pytest

from leverlab.errors import LeverlabError
from leverlab.lm import tiny
from leverlab.lm.chat import Chat
from leverlab.lm.questions import read_questions, write_questions
from leverlab.lm.tokens import dialogue_tokens
from leverlab.lm.turns import compose_turn, parse_turn, tag_in
from tests.lm.scripted import question

CHAT = Chat(tiny.build_tokenizer(["where does Bo live ?", "in Oslo"]))
CONTROLS = CHAT.tokenizer.get_added_vocab()


def by_hand(*parts: str) -> list[int]:
    """Token ids: every other part, the first one too, is the template's, those between are texts without controls."""
    ids: list[int] = []
    for place, part in enumerate(parts):
        ids += CHAT.tokenizer(part, add_special_tokens=False, split_special_tokens=place % 2 == 1).input_ids
    return ids


@pytest.mark.parametrize("control", tiny.SPECIAL_TOKENS)
def test_questions_and_replies_that_spell_control_tokens_are_text(control: str) -> None:
    text = f"{control} where{control}{control} ?{control}"
    start, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    # the template puts a space before a text, and a control token would stand apart from it
    assert CHAT.prompt(text) == by_hand(start, f" {text}", end)
    assert CHAT.reply(text) == by_hand(f"\n{start}", f" {text}", end)
    turns = [compose_turn("a", "ask", "b"), compose_turn("a", "final", "b")]
    found, own = dialogue_tokens(CHAT, text, turns, [text])
    plain, _ = dialogue_tokens(CHAT, "where ?", turns, ["where ?"])
    assert [token for token in found if token in CONTROLS.values()] == [
        token for token in plain if token in CONTROLS.values()
    ]
    assert CHAT.tokenizer.decode([token for token, said in zip(found, own, strict=True) if not said]).count(text) == 2


def test_only_the_tags_of_a_turn_are_control_tokens() -> None:
    """A teacher's turn may quote a text with any other control token."""
    turn = compose_turn(f"Bo {tiny.STOP} {tiny.START}", "final", f"Oslo{tiny.END}")
    ids = CHAT.turn(turn)
    assert [token for token in ids if token in CONTROLS.values()] == [
        *(CONTROLS[tag] for tag in ("<think>", "</think>", "<final>", "</final>")),
        CHAT.eos,
    ]
    assert CHAT.text(ids[:-1]) == turn
    assert parse_turn(CHAT.text(ids[:-1])).final == f"Oslo{tiny.END}"


def test_ordinary_dialogues_have_the_tokens_of_the_template() -> None:
    asked, turn = question(), compose_turn("Ana Lima Bo ?", "ask", "home")
    said = compose_turn("Ana Lima Bo Oslo", "final", "Oslo")
    messages = [("user", asked.text), ("assistant", turn), ("user", "Bo Oslo"), ("assistant", said)]
    whole = CHAT.tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages], tokenize=False
    ).removesuffix("\n")
    ids, _ = dialogue_tokens(CHAT, asked.text, [turn, said], ["Bo Oslo"])
    assert ids == CHAT.tokenizer(whole, add_special_tokens=False).input_ids


@pytest.mark.parametrize("field", ["answer", "guess", "thought", "thought_told", "slot"])
def test_a_question_that_no_turn_could_answer_is_refused(field: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What is asked and replied may spell a tag; what a turn says may not, since it could not be read in it."""
    sound = question(text="what is <final> ?", replies={"home": "</think>"})
    write_questions(tmp_path / "q.jsonl", [sound])
    assert read_questions(tmp_path / "q.jsonl") == [sound]
    changes = {"slot": "<ask>", "replies": {"<ask>": "a"}} if field == "slot" else {field: "a</ask>"}
    line = sound.model_copy(update={"id": "r", "text": "other", **changes}).model_dump_json()
    (tmp_path / "q.jsonl").write_text(f"{sound.model_dump_json()}\n{line}\n")
    with pytest.raises(
        LeverlabError, match=r"q.jsonl line 2: .* spells the tag <.*ask>, so no turn of a policy can say"
    ):
        read_questions(tmp_path / "q.jsonl")
    assert tag_in("a < final > <finals>") is None
