"""The data card tells what is there, and its digests see every change."""

from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from leverlab.records import Example
from leverlab.worlds.data_card import data_card, split_digest
from leverlab.worlds.digits import digits_world
from leverlab.worlds.world import World

A = Example("a", b"image", "scan-1", "Which | number?", "number", ("bazo",))
B = Example("b", b"image", "scan-1", "Which colour?", "colour", ("divi", "divi", "bazo"))


def card(world: World) -> str:
    return data_card(world, 0.1, 7, "mix", 64, 20, 1, "vlm")


def test_counts_by_hand():
    """Pool of A and B: 2 questions, 1 image, answers 'bazo' and 'divi', 1 to 3 answers each."""
    text = card(World("small", (A, B), (A,), (B,), (B,), "CC0", "A small world."))
    assert "| pool | 2 | 1 | 2 | 1 to 3 |" in text
    assert "| val | 1 | 1 | 1 | 3 |" in text
    assert "| colour | 1 | 0 | 1 | 1 |" in text
    assert "| a | scan-1 | number | Which \\| number? | bazo |" in text
    assert "Licence: CC0" in text
    assert "label noise in the pool: 0.1" in text
    assert "64 demos of the pool a set, sampler `mix`" in text
    assert f"| pool | `{split_digest((A, B))}` |" in text


def test_texts_of_a_data_set_are_no_markup():
    """Links, images, tags, pipes, code, headings and line breaks in every text: one table cell each, shown as it is."""
    evil = "# a | [b](http://e.com) ![c](d) <script>e</script> `f` **g**\n\n## h\x1b[2J"
    bad = replace(A, id=evil, image_id=evil, question=evil, question_type=evil, answers=(evil, f"{evil}\\"))
    world = World(evil, (bad,), (B,), (B,), (B,), evil, evil)
    text = data_card(world, 0.1, 7, "mix", 64, 20, 1, evil)
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    kinds = {child.type for token in tokens for child in token.children or []}
    assert kinds <= {"text", "text_special", "code_inline", "softbreak"}
    seen = " ".join(evil.split()).replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    texts = ["".join(child.content for child in token.children) for token in tokens if token.type == "inline"]
    assert texts[:3] == [f"Data card: {seen}", seen, f"Licence: {seen}"]
    assert [texts.count(part) for part in (seen, f"{seen}, {seen}\\")] == [6, 1]
    plain = MarkdownIt("commonmark").enable("table").parse(card(World("w", (A,), (B,), (B,), (B,), "CC0", "d")))
    assert [token.type for token in tokens] == [token.type for token in plain]


def test_three_examples_a_split_and_equal_cards_for_equal_worlds():
    text = card(digits_world(9, 5, 4, 3, 0.0, 0))
    assert "| pool-00002 |" in text
    assert "| pool-00003 |" not in text
    assert text == card(digits_world(9, 5, 4, 3, 0.0, 0))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "c"},
        {"image": b"other"},
        {"question": "What?"},
        {"answers": ("divi", "divi", "divi")},
        {"answers": ("divi", "divi")},
        {"image_id": "scan-2"},
        {"question_type": "texture"},
    ],
)
def test_the_digest_sees_every_field(changes):
    assert split_digest((A, replace(B, **changes))) != split_digest((A, B))


def test_the_digest_sees_order_and_where_texts_end():
    assert split_digest((A, B)) != split_digest((B, A))
    assert split_digest((replace(B, answers=("ab", "c")),)) != split_digest((replace(B, answers=("a", "bc")),))
