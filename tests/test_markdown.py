"""Texts of users and data sets are shown by Markdown as they are."""

import random
import re

import pytest
from markdown_it import MarkdownIt

from leverlab.markdown import code, inline, paragraph
from leverlab.terminal import one_line

PIECES = [
    *"\\`*_~[]()<>!|&#:.-+=@$ 12aé\n\x1b",
    "http://e.com",
    "www.e.com",
    "a@e.com",
    "<b>",
    "&lt;",
    "&#60;",
    "](",
    "![",
    "```",
    "---",
    "1. ",
    "snake_case",
]


def parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Which number? 3 < 4, 2 * 3, snake_case, [1, 0.5], < 0.001, A & B, 5 €, -3", None),
        ("[click](http://evil.com)", r"[click\](http\://evil.com)"),
        ("![x](y) <img src=x> &lt;", r"![x\](y) \<img src=x> \&lt;"),
        ("a|b `c` *d* _e_ ~~f~~", r"a\|b \`c\` \*d\* \_e\_ \~\~f\~\~"),
        ("from $5 to $6, $$x_1$$, $`a`$", r"from \$5 to \$6, \$\$x_1\$\$, \$\`a\`\$"),
        ("www.e.com a@e.com", r"www\.e.com a\@e.com"),
        ("a\n# b\r\n\x1b[2J", "a # b \N{REPLACEMENT CHARACTER}[2J"),
    ],
)
def test_only_markup_is_escaped(text: str, written: str | None) -> None:
    assert inline(text) == (text if written is None else written)


@pytest.mark.parametrize("text", ["# a", "- a", "+ a", "> a", "1. a", "12) a", "---", "===", "[a]: http://e.com"])
def test_a_paragraph_stays_one(text: str) -> None:
    assert [token.type for token in parser().parse(paragraph(text))] == ["paragraph_open", "inline", "paragraph_close"]
    assert shown(paragraph(text)) == text


@pytest.mark.parametrize("text", ["1999 was", "3.5 a", "a - b"])
def test_a_paragraph_of_ordinary_text_keeps_its_bytes(text: str) -> None:
    assert paragraph(text) == text


@pytest.mark.parametrize("text", ["$5 and $6", "$$x$$", "$`x`$", "a $x$", "$", r"\$x$"])
def test_no_dollar_begins_or_ends_mathematics(text: str) -> None:
    """GitHub takes $x$, $$x$$ and $`x`$ for mathematics, where no backslash is before a dollar."""
    for written in (inline(text), paragraph(text)):
        bare = re.sub(r"\\.", "", written)  # without what is escaped
        assert "$" not in bare
        assert shown(written) == text


def shown(markdown: str) -> str:
    """Return the text that a reader sees; fail on anything but text in one paragraph."""
    _, body, _ = parser().parse(markdown)
    assert {child.type for child in body.children or []} <= {"text", "text_special", "code_inline"}, markdown
    return "".join(child.content for child in body.children or [])


def test_any_text_is_shown_as_it_is() -> None:
    draws = random.Random(0)
    for _ in range(3000):
        text = "x" + "".join(draws.choices(PIECES, k=draws.randint(1, 8))) + "x"
        assert shown(inline(text)) == one_line(text)
        assert shown(f"a {code(text)} b") == f"a {one_line(text)} b"
        table = f"| a | b |\n| --- | --- |\n| {inline(text)} | end |\n"
        cells = [token.children for token in parser().parse(table) if token.type == "inline"]
        assert ["".join(child.content for child in cell or []) for cell in cells] == ["a", "b", one_line(text), "end"]


@pytest.mark.parametrize(("text", "written"), [("a`b", "``a`b``"), ("`", "`` ` ``"), ("x", "`x`")])
def test_code_by_hand(text: str, written: str) -> None:
    assert code(text) == written
