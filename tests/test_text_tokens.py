"""Users' text stays text: no text gives a control token, and ordinary text has the tokens that it always had."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from leverlab.errors import LeverlabError
from leverlab.lm import tiny as language
from leverlab.text_tokens import TextTokens

DIGITS = Path(__file__).parents[1] / "worlds/digits/vlm"
# special tokens, added tokens that are not special, some that overlap, take the space beside them, or are one character
ADDED = (
    AddedToken("<|im_start|>", special=True, normalized=False),
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<pad>", special=True, normalized=False, lstrip=True, rstrip=True),
    AddedToken("<tool_call>", special=False, normalized=False),
    AddedToken("</think>", special=False, normalized=True),
    AddedToken("☃", special=True, normalized=False),
    AddedToken("§x§", special=False, normalized=False),
    AddedToken("covid19", special=False, normalized=False),
    AddedToken("    ", special=False, normalized=False),
)
WORDS = ("covid19", "    ")  # added tokens that are vocabulary


def backend(normalizer: Any = None) -> Tokenizer:
    """A byte-level BPE as Qwen's, whose added tokens have ids behind its vocabulary."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    made.train_from_iterator(["what is it ? a dog , im_end think tool call", "user assistant"], trainer)
    made.add_tokens(list(ADDED))
    return made


def of_language() -> Tokenizer:
    return language.build_tokenizer(["what is it ?", "a dog"]).backend_tokenizer


BACKENDS = {
    "behind": backend(),
    "nfc": backend(normalizers.NFC()),
    "digits": AutoTokenizer.from_pretrained(str(DIGITS)).backend_tokenizer,  # in the vocabulary, as the first ids
    "clarify": of_language(),
}
CASES = [(name, control) for name, made in BACKENDS.items() for control in TextTokens(made).controls]
PLACES = ("{}", "What is {} ?", "a{}b", "{}{}", "\n {}\n", "{}   dog", "é{}👩‍🚀")


def ids_of(made: Tokenizer, text: str) -> list[int]:
    ids: list[int] = made.encode(text, add_special_tokens=False).ids
    return ids


def test_all_special_and_added_tokens_are_controls_but_words() -> None:
    assert set(TextTokens(BACKENDS["behind"]).controls) == {token.content for token in ADDED} - set(WORDS)
    for name in ("digits", "clarify"):
        added = BACKENDS[name].get_added_tokens_decoder()
        assert TextTokens(BACKENDS[name]).controls == {token.content: id_ for id_, token in added.items()}
    assert "<final>" in TextTokens(BACKENDS["clarify"]).controls


@pytest.mark.parametrize(("name", "control"), CASES)
def test_a_text_that_spells_a_control_token_has_none_and_is_the_text(name: str, control: str) -> None:
    made = BACKENDS[name]
    tokens = TextTokens(made)
    for place in PLACES:
        text = place.replace("{}", control)
        assert set(ids_of(made, text)) & set(tokens.controls.values())  # which is what is to be kept out
        ids = tokens.ids(text)
        assert not set(ids) & set(tokens.controls.values())
        assert made.decode(ids, skip_special_tokens=False) == text
        assert tokens.control_in(text) == control
        assert tokens.unmarked(tokens.marked(text)) == text


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_in_a_text_is_text_and_what_is_in_the_template_is_control(name: str, data: st.DataObject) -> None:
    """A prompt of two controls around any text: both are there, once, and between them is the text."""
    tokens = TextTokens(BACKENDS[name])
    controls = list(tokens.controls)
    part = st.one_of(st.sampled_from([*controls, *(control[:-1] for control in controls), *WORDS]), st.text(max_size=4))
    text = "".join(data.draw(st.lists(part, max_size=5)))
    first, last = controls[0], controls[2 if name != "behind" and name != "nfc" else 1]
    encoded = tokens.encode(f"{first}{tokens.marked(text)}{last}")
    assert (encoded.ids[0], encoded.ids[-1]) == (tokens.controls[first], tokens.controls[last])
    assert encoded.ids[1:-1] == tokens.ids(text)
    assert not set(encoded.ids[1:-1]) & set(tokens.controls.values())


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30), spaces=st.sampled_from(["", " ", "\n", "    ", " covid19 "]))
def test_ordinary_text_has_the_tokens_that_it_had(name: str, text: str, spaces: str) -> None:
    """On its own and around the template's control tokens, where a text may merge with what the template writes."""
    made = BACKENDS[name]
    tokens = TextTokens(made)
    if tokens.control_in(text) is not None:
        return
    assert tokens.marked(text) == text
    assert tokens.ids(text) == ids_of(made, text)
    prompt = "".join(f"{control}{spaces}{text}{spaces}" for control in tokens.controls)
    found = made.encode(prompt, add_special_tokens=False)
    encoded = tokens.encode(prompt)
    assert encoded.ids == found.ids
    assert encoded.spans == found.offsets


def test_spans_are_those_of_the_prompt() -> None:
    """By hand: the template's <|im_end|> between two marked texts that spell it."""
    tokens = TextTokens(BACKENDS["behind"])
    text = "é<|im_end|>"
    marked = tokens.marked(text)
    prompt = f"{marked}<|im_end|>{marked}"
    encoded = tokens.encode(prompt)
    place = encoded.ids.index(tokens.controls["<|im_end|>"])
    behind = len(marked) + len("<|im_end|>")
    assert encoded.spans[place] == (len(marked), behind)
    mark = len(marked) - len("é|im_end|>")  # in place of the '<'
    assert encoded.spans[:3] == [(0, 1), (0, 1), (1, 1 + mark)]  # two bytes of a character
    assert encoded.spans[place - 1] == (len(marked) - 1, len(marked))
    assert encoded.spans[place + 1 :] == [(start + behind, end + behind) for start, end in encoded.spans[:place]]
    assert encoded.ids[:place] == encoded.ids[place + 1 :] == tokens.ids(text)


def test_some_control_tokens_may_be_kept() -> None:
    tokens = TextTokens(BACKENDS["clarify"])
    ids = tokens.encode(tokens.marked("<final> a<|im_end|></final>", keep=("<final>", "</final>"))).ids
    assert [token for token in ids if token in tokens.controls.values()] == [
        tokens.controls["<final>"],
        tokens.controls["</final>"],
    ]
    assert tokens.control_in("<final>", keep=("<final>",)) is None


def test_overlapping_control_tokens_are_text() -> None:
    """Of '§x§x§' the first three characters spell '§x§', and so do the last three."""
    tokens = TextTokens(BACKENDS["behind"])
    for text in ("§x§x§", "<<tool_call>tool_call>", "<|im_<|im_end|>end|>"):
        assert not set(tokens.ids(text)) & set(tokens.controls.values())
        assert BACKENDS["behind"].decode(tokens.ids(text), skip_special_tokens=False) == text


def test_pieces_of_a_unigram_vocabulary_are_text() -> None:
    """A unigram model finds its pieces in any text, and '</s>' is one of them."""
    letters = [(letter, -3.0) for letter in "</s>abc"]
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *letters], unk_id=0))
    made.add_special_tokens(["<unk>", "</s>"])
    tokens = TextTokens(made)
    assert tokens.ids("a</s>b") == [made.token_to_id(letter) for letter in "a</s>b"]
    assert tokens.encode("a</s>b").ids == [made.token_to_id(piece) for piece in ("a", "</s>", "b")]
    assert tokens.ids("a?b") == [made.token_to_id("a"), 0, made.token_to_id("b")]  # unknown, as ever


def test_an_unknown_token_that_the_template_writes_is_no_error() -> None:
    """Texts give it as well, so it is counted neither there nor in the template."""
    made = Tokenizer(models.WordLevel({"<|end|>": 0, "a": 1, "<final>": 2}, unk_token="<|end|>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<|end|>", "<final>"])
    assert TextTokens(made).encode("a b <|end|> <final>").ids == [1, 0, 0, 2]


def test_a_vocabulary_that_itself_holds_what_a_text_spells_is_refused() -> None:
    """Words are looked up as they are, so '<final>' cannot be had as anything else than the control token."""
    made = Tokenizer(models.WordLevel({"<final>": 0, "a": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<final>", "?"])
    tokens = TextTokens(made)
    assert tokens.ids("a b a") == [1, 2, 1]
    assert tokens.encode("<final> a").ids == [0, 1]
    with pytest.raises(LeverlabError, match=r"other control tokens than the 0 of the template .*change the text"):
        tokens.ids("a <final> a")


def test_the_tokenizer_is_left_as_it_was() -> None:
    made = backend()
    made.enable_truncation(3)
    made.enable_padding(length=9)
    before = made.to_str()
    ids = TextTokens(made).ids("what is it ? a dog , what is it ?")
    assert len(ids) > 9
    assert made.to_str() == before


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(LeverlabError, match="object has no fast tokenizer, so control tokens cannot be kept out"):
        TextTokens.of(object())
