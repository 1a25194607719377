"""HotpotQA, StrategyQA and GSM8K: from small files of the same schema to pairs of twins, one with a fact missing."""

import datetime
import gzip
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from leverlab.errors import LeverlabError
from leverlab.lm.dialogues import reply
from leverlab.lm.questions import UNKNOWN, Question, check_questions
from leverlab.worlds.clarify import FAMILIES, NOT_KNOWN, NOT_TOLD, Family
from leverlab.worlds.clarify_hub import CONFIGS, ROWS, load_family, make_twins, split_twins
from leverlab.worlds.clarify_rows import AS_SAID, Math
from leverlab.worlds.clarify_sums import answers_without
from leverlab.worlds.clarify_teacher import Habits, teach
from leverlab.worlds.hub import load_splits
from tests.lm.scripted import dialogue

COOPERATIVE, TERSE, UNHELPFUL = {"cooperative": 1.0}, {"terse": 1.0}, {"unhelpful": 1.0}
FILM = {
    "id": "h1",
    "question": 'The director of the comedy "Big Stone Gap" is based in what city?',
    "answer": "Greenwich Village",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": {"title": ["Big Stone Gap (film)", "Adriana Trigiani"], "sent_id": [0, 1]},
    "context": {
        "title": ["Oslo", "Big Stone Gap (film)", "Lima", "Adriana Trigiani", "Rome"],
        "sentences": [
            ["Oslo is a city.", " It has a fjord."],
            ["Big Stone Gap is a film directed by Adriana Trigiani.", " It is set in Virginia."],
            ["Lima is a city in Peru."],
            ["Adriana Trigiani is a writer.", " She lives in  Greenwich Village.", " She has a shop."],
            ["Rome is a city in Italy."],
        ],
    },
}
LAKE = {
    "qid": "s1",
    "term": "Lake",
    "description": "water",
    "question": "Could a swan cross the lake?",
    "answer": True,
    "facts": ["Swans can swim a mile.", "The lake is half a mile wide.", "Swans are birds."],
}
CLIPS = {
    "question": "Natalia sold clips to 48 of her friends in April.  In May she sold 1,000 clips for $5 each. "
    "How many clips did she sell, and how much did May bring if she has 3 dogs?",
    "answer": "In April and May she sold 48+1000 = <<48+1000=1048>>1,048 clips.\n"
    "May brought 1000*5 = $<<1000*5=5000>>5000.\nTogether that is 1048+5000 = <<1048+5000=6048>>6048.\n#### 6,048",
}


def rows_of(family: Family, count: int) -> list[dict[str, Any]]:
    """Return rows that can all be used, each with its own numbers and names."""
    made: list[dict[str, Any]] = []
    for n in range(100, 100 + count):
        if family == "multihop":
            text = json.dumps(FILM).replace("Big Stone Gap", f"Film {n}").replace("Greenwich Village", f"Place {n}")
            made.append(json.loads(text) | {"id": f"h{n}"})
        elif family == "strategy":
            made.append(LAKE | {"qid": f"s{n}", "question": f"Could swan {n} cross?", "answer": n % 2 == 0})
        else:
            made.append(
                {
                    "question": f"Ann has {n} apples. She buys {n + 1000} apples. How many has she?",
                    "answer": f"She has {n}+{n + 1000} = <<{n}+{n + 1000}={2 * n + 1000}>>{2 * n + 1000}.\n"
                    f"#### {2 * n + 1000}",
                }
            )
    return made


def pair(family: Family, row: dict[str, Any], **options: Any) -> tuple[Question, Question]:
    made = make_twins(family, [row], 0, **({"user_shares": COOPERATIVE} | options))
    assert made.skipped == {}
    plain, asked = made.questions
    return plain, asked


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


# ---- loading


def test_dates_and_a_byte_order_mark_in_json_files(tmp_path: Path) -> None:
    """The reader of `datasets` makes a time of the answer 1999-01-01."""
    dated = FILM | {"answer": "1999-01-01"}
    for path in (tmp_path / "one.jsonl", tmp_path / "flat" / "train.jsonl"):
        write(path, [dated])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (tmp_path / "list.json").write_text(json.dumps([dated], indent=1))
    for source in ("one.jsonl", "flat", "list.json"):
        (row,) = load_family("multihop", str(tmp_path / source), "train")
        assert row["answer"] == "1999-01-01"


def test_a_column_that_the_first_row_lacks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write(path, [{"a": "1"}, {"a": "2", "b": "3"}])
    assert list(load_splits(str(path))["train"]) == [{"a": "1", "b": None}, {"a": "2", "b": "3"}]


def test_compressed_json_lines_are_unpacked(tmp_path: Path) -> None:
    packed = tmp_path / "packed" / "train.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(json.dumps(CLIPS).encode()))
    assert load_family("math", str(packed.parent), "train") == [CLIPS]


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n{\n")
    with pytest.raises(LeverlabError, match=r"train\.jsonl line 2 is not JSON"):
        load_family("math", str(tmp_path), "train")


def test_a_column_of_times_is_refused(tmp_path: Path) -> None:
    row = CLIPS | {"answer": datetime.date(1999, 1, 1)}
    with pytest.raises(LeverlabError, match="column 'answer' was read as times"):
        load_family("math", write(tmp_path / "train.parquet", [row]), "train")


def test_texts_come_in_one_form() -> None:
    """Decomposed letters of a row, in its text, slot and replies, are composed in its questions."""
    row = json.loads(json.dumps(FILM).replace("Adriana Trigiani", "Ame\u0301lie"))
    plain, asked = pair("multihop", row)
    for question in (plain, asked):
        for text in (question.text, question.thought, question.slot, *question.replies, *question.replies.values()):
            assert unicodedata.is_normalized("NFC", text)
    assert "Am\u00e9lie" in plain.text


@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_of_source_gives_the_same_rows(tmp_path: Path, family: Family) -> None:
    """A folder of the hub (with and without the folder of its configuration), files alone, and a saved folder."""
    rows = rows_of(family, 3)
    wanted = [{name: row[name] for name in ROWS[family].model_fields} for row in rows]
    inner = tmp_path / "hub" / (CONFIGS[family] or "data")
    write(inner / "train-00000-of-00001.parquet", rows)
    write(inner / "test-00000-of-00001.parquet", rows[:1])
    write(tmp_path / "flat" / "train.jsonl", rows)
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(tmp_path / "saved")
    files = [write(tmp_path / name, rows) for name in ("one.parquet", "one.jsonl", "one.json")]
    for source in (tmp_path / "hub", tmp_path / "flat", tmp_path / "saved", *files):
        assert load_family(family, str(source), "train") == wanted
    assert load_family(family, str(tmp_path / "hub"), "test") == wanted[:1]
    assert load_family(family, files[0], "train", 2) == wanted[:2]
    assert len(load_family(family, files[0], "train", 9)) == 3


def test_loaded_rows_make_the_twins_of_the_rows_that_were_written(tmp_path: Path) -> None:
    for family in FAMILIES:
        rows = rows_of(family, 4)
        loaded = load_family(family, write(tmp_path / f"{family}.parquet", rows), "train")
        assert make_twins(family, loaded, 5) == make_twins(family, rows, 5)


def test_a_source_that_lacks_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(
        LeverlabError, match=r"lacks the columns \['facts'\] of the family 'strategy'; it holds \['qid'"
    ):
        load_family("strategy", write(tmp_path / "a.parquet", [without(LAKE, "facts")]), "train")
    (tmp_path / "empty.jsonl").write_text("")
    empty = datasets.Features({"question": datasets.Value("string"), "answer": datasets.Value("string")})
    datasets.Dataset.from_dict({"question": [], "answer": []}, empty).to_parquet(tmp_path / "empty.parquet")
    datasets.Dataset.from_dict({"question": [], "answer": []}, empty).save_to_disk(tmp_path / "empty")
    for name in ("empty.jsonl", "empty.parquet", "empty"):
        with pytest.raises(LeverlabError, match=f"'train' of the family 'math' cannot be loaded from '.*{name}'"):
            load_family("math", str(tmp_path / name), "train")
    with pytest.raises(LeverlabError, match=r"'train' of the family 'math' cannot be loaded from '.*nothing'"):
        load_family("math", str(tmp_path / "nothing"), "train")
    (tmp_path / "rows.csv").write_text("question,answer\n")
    with pytest.raises(LeverlabError, match=r"rows\.csv is no data file that is known here; name one in \.parquet"):
        load_family("math", str(tmp_path / "rows.csv"), "train")
    write(tmp_path / "flat" / "train.jsonl", [CLIPS])
    with pytest.raises(LeverlabError, match="the split 'validation' of the family 'math' cannot be loaded"):
        load_family("math", str(tmp_path / "flat"), "validation")
    with pytest.raises(LeverlabError, match="limit of rows of 'math' is 0"):
        load_family("math", str(tmp_path / "flat"), "train", 0)


# ---- multihop


def test_a_paragraph_is_hidden() -> None:
    """Two supporting paragraphs and none to spare: the film's stays, since the answer would not go with it.

    Her name stands in the paragraph of the film, so it can be asked for. The supporting sentences are number 0 and 1.
    """
    row = FILM | {"context": {key: [value[1], value[3]] for key, value in FILM["context"].items()}}
    plain, asked = pair("multihop", row)
    film = "Big Stone Gap (film): Big Stone Gap is a film directed by Adriana Trigiani. It is set in Virginia."
    her = "Adriana Trigiani: Adriana Trigiani is a writer. She lives in Greenwich Village. She has a shop."
    assert plain.text == f"{film}\n{her}\n\nQuestion: {FILM['question']}"
    assert asked.text == f"{film}\n\nQuestion: {FILM['question']}"
    assert (asked.id, asked.twin, plain.id, plain.twin) == ("multihop-h1-asked", plain.id, "multihop-h1-plain", "")
    assert (asked.needs_ask, asked.slot, plain.needs_ask, plain.slot) == (True, "Adriana Trigiani", False, "")
    assert asked.answer == plain.answer == "Greenwich Village"
    assert reply(asked, "Adriana Trigiani") == reply(asked, "adriana trigiani") == her
    assert reply(asked, "Big Stone Gap (film)").startswith(f"{AS_SAID}Big Stone Gap is a film")
    assert reply(plain, "Adriana Trigiani") == f"{AS_SAID}{her}"
    assert reply(pair("multihop", row, user_shares=TERSE)[1], asked.slot) == "She lives in Greenwich Village."
    first = "Big Stone Gap is a film directed by Adriana Trigiani."
    assert (asked.thought, asked.thought_told) == (
        f"{first} Adriana Trigiani ?",
        f"{first} She lives in Greenwich Village.",
    )
    assert plain.thought == plain.thought_told == asked.thought_told


def test_what_stands_in_brackets_is_not_part_of_the_name() -> None:
    """Asked what the film is, the answer goes with its paragraph, whose title is known from the question."""
    row = FILM | {"answer": "Virginia", "question": "In which state is Big Stone Gap set?"}
    plain, asked = pair("multihop", row)
    assert asked.slot == "Big Stone Gap"
    assert {slot for slot in asked.replies if "big" in slot.lower()} == {
        "Big Stone Gap",
        "big stone gap",
        "Big Stone Gap (film)",
    }
    assert "Virginia" not in asked.text
    assert "Virginia" in plain.text


@pytest.mark.parametrize(("most", "shown"), [(1, 2), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_the_number_of_paragraphs_does_not_tell(most: int, shown: int) -> None:
    """Five paragraphs, two of them supporting: one is kept to take the place of the hidden one, so four at most."""
    drawn = set()
    for seed in range(12):
        plain, asked = make_twins("multihop", [FILM], seed, COOPERATIVE, most).questions
        whole, text = (question.text.split("\n\n")[0].split("\n") for question in (plain, asked))
        assert len(whole) == len(text) == shown
        (spare,) = set(text) - set(whole)
        (hidden,) = set(whole) - set(text)
        assert hidden == reply(asked, asked.slot)
        assert asked.text.replace(spare, hidden) == plain.text
        assert hidden not in asked.text
        for question in (plain, asked):
            named = {title for title in FILM["context"]["title"] if f"{title}: " in question.text}
            assert named - {"Adriana Trigiani"} == set(question.replies) - {*pair_names(asked), "question"}
        drawn.add(plain.text)
    assert len(drawn) == {2: 1, 3: 3, 4: 3}[shown]


def pair_names(asked: Question) -> set[str]:
    return {asked.slot, asked.slot.lower(), "Adriana Trigiani"}


def test_a_comparison_may_hide_either() -> None:
    """The answer is yes, so neither paragraph holds it alone; both names stand in the question."""
    row = {
        "id": "h2",
        "question": "Are Oslo and Lima cities?",
        "answer": "yes",
        "supporting_facts": {"title": ["Oslo", "Lima", "Lima"], "sent_id": [0, 0, 7]},
        "context": FILM["context"],
    }
    found = {make_twins("multihop", [row], seed, TERSE).questions[1].slot for seed in range(12)}
    assert found == {"Oslo", "Lima"}
    assert make_twins("multihop", [row], 0).questions[1].guess == "no"
    asked = make_twins("multihop", [row], 0, TERSE).questions[1]
    assert reply(asked, asked.slot) == {"Oslo": "Oslo is a city.", "Lima": "Lima is a city in Peru."}[asked.slot]


def test_rows_without_a_paragraph_to_hide() -> None:
    """The answer is in both paragraphs; the name of hers nowhere else; no supporting facts; one that is not there."""
    context = json.loads(json.dumps(FILM["context"]))
    context["sentences"][1][1] = "It is set in Greenwich Village."
    unnamed = json.loads(json.dumps(FILM["context"]))
    unnamed["sentences"][1][0] = "Big Stone Gap is a film directed by Adriana."
    rows = [
        FILM | {"id": "a", "context": context},
        FILM | {"id": "b", "context": unnamed},
        FILM | {"id": "c", "supporting_facts": {"title": [], "sent_id": []}},
        FILM | {"id": "d", "supporting_facts": {"title": ["Adriana Trigiani", "Bergen"], "sent_id": [1, 0]}},
        FILM | {"id": "e"},
    ]
    made = make_twins("multihop", rows, 0)
    assert [question.id for question in made.questions] == ["multihop-e-plain", "multihop-e-asked"]
    assert made.skipped == {
        "no supporting paragraph is named elsewhere and holds the answer alone": 2,
        "its supporting facts are not in its context": 2,
    }
    with pytest.raises(LeverlabError, match=r"no row of the family 'multihop' can be used \(no supporting .*: 2, its"):
        make_twins("multihop", rows[:4], 0)


def test_rows_that_spell_a_tag() -> None:
    """Where only users say it, it stays; where the policy would have to say it, no turn could be read."""
    other, own = (json.loads(json.dumps(FILM["context"])) for _ in range(2))
    other["sentences"][2][0] = "Lima is a <final>city</final>."
    own["sentences"][3][1] = " She lives in  Greenwich Village </think>."
    asked = 'The director of the <ask> comedy "Big Stone Gap" is based in what city?'
    rows = [FILM | {"id": "a", "context": other, "question": asked}, FILM | {"id": "b", "context": own}]
    made = make_twins("multihop", rows, 0, max_paragraphs=9)
    assert [question.id for question in made.questions] == ["multihop-a-plain", "multihop-a-asked"]
    assert all("<ask>" in question.text for question in made.questions)
    assert any("<final>" in question.text for question in made.questions)
    assert made.skipped == {"what a policy is to say of it spells a tag": 1}


# ---- strategy


@pytest.mark.parametrize("form", ["list", "text"])
def test_a_fact_is_hidden(form: str) -> None:
    """Each of three facts for some seed; put back in its place, it makes the whole text again."""
    facts = LAKE["facts"]
    row = LAKE | {"facts": facts if form == "list" else " ".join(facts)}
    hidden = set()
    for seed in range(12):
        plain, asked = make_twins("strategy", [row], seed, COOPERATIVE).questions
        fact = reply(asked, "fact")
        n = facts.index(fact)
        lines = asked.text.split("\n")
        assert f"- {fact}" not in lines
        assert fact not in asked.text
        assert "\n".join([*lines[:n], f"- {fact}", *lines[n:]]) == plain.text
        assert asked.thought == " ".join([*facts[:n], *facts[n + 1 :], "fact ?"])
        assert asked.thought_told == plain.thought == " ".join(facts)
        assert (asked.slot, asked.answer, plain.answer) == ("fact", "yes", "yes")
        hidden.add(fact)
    assert plain.text == (
        "- Swans can swim a mile.\n- The lake is half a mile wide.\n- Swans are birds.\n\n"
        "Question: Could a swan cross the lake?"
    )
    assert hidden == set(facts)
    assert (asked.guess, plain.guess) == ("no", "")
    refused = pair("strategy", row | {"answer": False})[1]
    assert (refused.answer, refused.guess) == ("no", "yes")


def test_sentences_end_where_a_new_one_begins() -> None:
    """Not after an initial, a title or a number with a point."""
    row = LAKE | {
        "facts": 'J. Smith and Mr. Day ran 3.5 km in the U.S. Army. Mrs. Lee did not! Was it 9? "No," he said.'
    }
    plain, _ = pair("strategy", row)
    assert plain.text.split("\n")[:4] == [
        "- J. Smith and Mr. Day ran 3.5 km in the U.S. Army.",
        "- Mrs. Lee did not!",
        "- Was it 9?",
        '- "No," he said.',
    ]


def test_rows_without_a_fact_to_hide() -> None:
    rows = [
        LAKE | {"qid": "a", "facts": ["One."]},
        LAKE | {"qid": "b", "facts": ["One.", "One.", " "]},
        LAKE | {"qid": "c", "facts": []},
    ]
    with pytest.raises(LeverlabError, match=r"\(it has fewer than two facts: 3\)"):
        make_twins("strategy", rows, 0)


# ---- math


def test_a_number_is_hidden() -> None:
    """48, 1,000 and $5 decide 48 + 1000 + 1000 x 5 = 6048; the dogs do not. Each is hidden for some seed."""
    text = " ".join(CLIPS["question"].split())
    first, second = "In April and May she sold 48+1000 = 1,048 clips.", "May brought 1000*5 = $5000."
    third = "Together that is 1048+5000 = 6048."
    april = "Natalia sold clips to 48 of her friends in April."
    may = "In May she sold 1,000 clips for $5 each."
    wanted = {
        "48": ("some", april, "number ?"),
        "1,000": ("some", may, "number ?"),
        "$5": ("some dollars", may, f"{first} number ?"),
    }
    others = {
        "48": ("6049", "6050", "6055"),  # one, two or seven more
        "1,000": (
            "6054",
            "6060",
            "6090",
        ),  # six, twelve or forty-two more: of May's 1,000, and of its five dollars each
        "$5": ("7048", "8048", "13048"),
    }
    found = set()
    for seed in range(16):
        plain, asked = make_twins("math", [CLIPS], seed, TERSE).questions
        number = reply(asked, "number")
        word, sentence, before = wanted[number]
        assert plain.text == text
        assert asked.text.count(word) == 1
        assert asked.text.replace(word, number) == text
        assert reply(make_twins("math", [CLIPS], seed, COOPERATIVE).questions[1], "number") == sentence
        assert sentence not in asked.text
        assert asked.thought == before
        assert asked.thought_told == plain.thought == f"{first} {second} {third}"
        assert asked.answer == plain.answer == "6048"
        assert asked.guess in others[number]
        assert reply(asked, "question") == f"{AS_SAID}{asked.text}"
        assert reply(plain, "question") == f"{AS_SAID}{text}"
        found.add(number)
    assert found == set(wanted)


HALVED = [("48/2", "24"), ("48+24", "72")]


@pytest.mark.parametrize(
    ("value", "chain", "answer", "others"),
    [
        (48, HALVED, "72", ["73.5", "75", "82.5"]),  # 49 + 24.5, 50 + 25, 55 + 27.5
        (2, HALVED, "72", ["64", "60", "53.33"]),  # 48 + 48/3, 48/4, 48/9
        (3, HALVED, "72", []),  # it is not calculated with
        (24, HALVED, "72", []),  # it comes out on the way
        (5, [("5*2", "10"), ("10-5", "5"), ("5+1", "6")], "6", []),  # the same
        (48, HALVED, "71", []),  # the chain leads elsewhere
        (6, [("6-6", "0"), ("5+0", "5")], "5", []),  # it cancels out
        (6, [("6*2", "12"), ("12*0", "0")], "0", []),  # all is given away
        (6, [("6*2", "12"), ("5*2", "10")], "10", []),  # it leads to something that is not used
        (20, [("20%*50", "10")], "10", ["10.5", "11", "13.5"]),
        (1500, [("$1,500*.1", "150")], "150", ["150.1", "150.2", "150.7"]),
        (4, [("-(4-10)", "6"), ("6x2", "12")], "12", ["10", "8", "-2"]),
        (4, [("4**2", "16")], "16", []),  # none of + - * /
        (4, [("4 apples", "4")], "4", []),
        (4, [("8/(5-4)", "8")], "8", []),  # another number cannot be calculated with
        (4, [], "4", []),
    ],
)
def test_answers_without_a_number(value: float, chain: list[tuple[str, str]], answer: str, others: list[str]) -> None:
    assert answers_without(value, chain, answer) == others


@pytest.mark.parametrize(
    ("question", "calculation", "hidden"),
    [
        ("He has 50% of 300 left.", "300*50%=150", {"50%", "300"}),
        ("He has 3.5 apples, 10 pears.", "3.5+10=13.5", {"3.5", "10"}),
        ("A 5-pound bag and 8 pounds. Yes.", "5+8=13", {"8"}),  # no "some-pound bag"
        ("He has 9 apples and 9 pears and 11 plums.", "9+11=20", {"11"}),  # which of the two is meant is not known
        ("He has 2 apples, twice as many pears as 5 people.", "2*5=10", {"5"}),  # 2 may be that of "twice"
        ("He works 7 days a week for 31 people.", "7*31=217", {"31"}),
        ("He eats 1/2 of 16 pies on the 3rd at 12:30.", "16/2=8", {"16"}),
        ("He has 1,234,567 grains and 1.", "1234567+1=1234568", {"1,234,567"}),
    ],
)
def test_which_numbers_can_be_hidden(question: str, calculation: str, hidden: set[str]) -> None:
    row = {"question": question, "answer": f"It is <<{calculation}>>.\n#### {calculation.split('=')[1]}"}
    found = {make_twins("math", [row], seed, TERSE).questions[1].replies["number"] for seed in range(12)}
    assert found == hidden


def test_rows_without_a_number_to_hide() -> None:
    rows = [
        {"question": "How many has she of 3?", "answer": "She has 3."},
        {"question": "How many has she of 3 ?", "answer": "She has 3.\n#### three"},
        {"question": "How many has she?", "answer": "None: <<3-3=0>>0.\n#### 0"},
        {"question": "How many of 3 has she?", "answer": "She has 3.\n#### 3"},
        {"question": "How many of 3 nuts and 4 figs has she?", "answer": "<<3+4=7>>\n#### 7"},
        {"question": "A 5-day trip cost $30.", "answer": "A day cost <<30/5=6>>6.\n#### 6"},
        {"question": "They plan a 5-day trip.", "answer": "It is <<5*2=10>>10.\n#### 10"},
        CLIPS,
        CLIPS,
    ]
    made = make_twins("math", rows, 0)
    assert next(question.text for question in made.questions if question.needs_ask).startswith("A 5-day trip cost some")
    assert len(made.questions) == 4
    assert made.skipped == {
        "its answer does not end in '####' and a number": 2,
        "its question has no number": 1,
        "no number of its question stands there once and decides its calculations": 1,
        "no number of its question that decides its calculations can be 'some'": 1,
        "its solution says nothing": 1,
        "another row has its text": 1,
    }
    with pytest.raises(LeverlabError, match=r"no row of the family 'math' can be used \(its answer does not end"):
        make_twins("math", rows[:5], 0)


def test_the_name_of_a_row_of_math_is_that_of_its_question() -> None:
    names = {Math.model_validate(row).name for row in [CLIPS, CLIPS | {"answer": "#### 1"}, *rows_of("math", 9)]}
    assert len(names) == 10


# ---- all families


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shares_of_users_are_exact(family: Family) -> None:
    """.6, .3 and .1 of 20 pairs are 12, 6 and 2; of 7 they are 4.2, 2.1 and .7, so 4, 2 and 1."""
    for count, wanted in ((20, (12, 6, 2)), (7, (4, 2, 1))):
        made = make_twins(family, rows_of(family, count), 3).questions
        assert made[0].twin == ""
        found = Counter(question.user for question in made if question.needs_ask)
        assert tuple(found[user] for user in ("cooperative", "terse", "unhelpful")) == wanted
        assert [q.user for q in made[::2]] == [q.user for q in made[1::2]]
    check_questions(made, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_unhelpful_users_tell_nothing(family: Family) -> None:
    plain, asked = make_twins(family, rows_of(family, 1), 0, UNHELPFUL).questions
    assert {asked.replies[slot] for slot in asked.replies if slot.lower() == asked.slot.lower()} == {NOT_TOLD}
    assert (asked.answer, asked.thought_told) == (UNKNOWN, NOT_KNOWN)
    assert plain.answer != UNKNOWN
    assert NOT_TOLD not in plain.replies.values()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_hidden_depends_on_the_seed_and_the_row_alone(family: Family) -> None:
    rows = rows_of(family, 12)
    made = make_twins(family, rows, 0, COOPERATIVE)
    assert make_twins(family, rows, 0, COOPERATIVE) == made
    alone = [question for row in rows[::-1] for question in make_twins(family, [row], 0, COOPERATIVE).questions]
    assert sorted(alone, key=lambda q: q.id) == sorted(made.questions, key=lambda q: q.id)
    others = [make_twins(family, rows, seed, COOPERATIVE, 3).questions for seed in range(4)]
    assert len({tuple(question.text for question in questions) for questions in others}) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_answers_all(family: Family) -> None:
    """The questions fit the dialogues of the recipe: the slot is told when asked for, and the answer is then right."""
    habits = Habits(dict.fromkeys(FAMILIES, (1.0,)), dict.fromkeys(FAMILIES, (0.0,)), 0.5)
    rng = np.random.default_rng(0)
    for question in make_twins(family, rows_of(family, 20), 1).questions:
        turns, replies = teach(question, habits, rng)
        said = dialogue(question, turns)
        assert said.success
        assert all(said.grounded_thoughts)
        assert list(said.replies) == replies
        assert question.slot in said.asks or not question.needs_ask


def test_bad_rows() -> None:
    with pytest.raises(LeverlabError, match="the id 's1' of the family 'strategy' stands twice"):
        make_twins("strategy", [LAKE, LAKE], 0)
    with pytest.raises(LeverlabError, match="row 1 of the family 'strategy': answer: Input should be a valid boolean"):
        make_twins("strategy", [LAKE, LAKE | {"qid": "s2", "answer": "yes"}], 0)
    with pytest.raises(LeverlabError, match="row 0 of the family 'math': answer: Field required"):
        make_twins("math", [without(CLIPS, "answer")], 0)
    context = {"title": ["Oslo"], "sentences": []}
    with pytest.raises(LeverlabError, match=r"row 0 of the family 'multihop': context: .*1 titles beside 0 values"):
        make_twins("multihop", [FILM | {"context": context}], 0)
    with pytest.raises(LeverlabError, match=r"family 'math' can be used \(there is none\)"):
        make_twins("math", [], 0)
    with pytest.raises(LeverlabError, match="max_paragraphs is 0"):
        make_twins("multihop", [FILM], 0, COOPERATIVE, 0)
    for shares in ({"rude": 1.0}, {"terse": -1.0, "cooperative": 2.0}, {"terse": 0.0}, {}, {"terse": float("nan")}):
        with pytest.raises(LeverlabError, match="are no shares; give"):
            make_twins("math", [CLIPS], 0, shares)  # type: ignore[arg-type]


# ---- splits

SHARES: dict[Family, float] = {"multihop": 0.45, "strategy": 0.30, "math": 0.25}


@pytest.fixture(scope="module")
def twins() -> list[Question]:
    return [question for family in FAMILIES for question in make_twins(family, rows_of(family, 30), 0).questions]


def test_splits_have_exact_shares_and_keep_twins_together(twins: list[Question]) -> None:
    """Of 40 pairs 18, 12 and 10; of 7 pairs 3.15, 2.1 and 1.75, so 3, 2 and 2; of none none."""
    split = split_twins(twins, {"test": 7, "train": 40, "none": 0}, SHARES, 0)
    counts = {name: Counter(question.family for question in found) for name, found in split.items()}
    assert counts["test"] == {"multihop": 6, "strategy": 4, "math": 4}
    assert counts["train"] == {"multihop": 36, "strategy": 24, "math": 20}
    assert split["none"] == []
    ids = [{question.id for question in found} for found in split.values()]
    assert not ids[0] & ids[1]
    for found, names in zip(split.values(), ids, strict=True):
        assert len(names) == len(found)
        assert sum(question.needs_ask for question in found) == len(found) / 2
        assert all(question.twin in names for question in found if question.needs_ask)


def test_splits_depend_on_the_seed_and_on_those_before_them(twins: list[Question]) -> None:
    split = split_twins(twins, {"test": 7, "train": 40}, SHARES, 0)
    assert split_twins(twins[::-1], {"test": 7, "train": 40}, SHARES, 0) == split
    assert split_twins(twins, {"test": 7, "train": 11}, SHARES, 0)["test"] == split["test"]
    other = split_twins(twins, {"test": 7, "train": 40}, SHARES, 1)
    assert {question.id for question in other["test"]} != {question.id for question in split["test"]}
    needs_ask = [question.needs_ask for question in split["train"]]
    assert needs_ask != sorted(needs_ask)
    assert needs_ask != [False, True] * 40


def test_splits_that_cannot_be_made(twins: list[Question]) -> None:
    with pytest.raises(LeverlabError, match=r"split 'b' needs 18 pairs of the family 'multihop', but 12 are left"):
        split_twins(twins, {"a": 40, "b": 40}, SHARES, 0)
    with pytest.raises(LeverlabError, match=r"'math-\w+-plain' and its twins are 1; there must be two"):
        split_twins(twins[:-1], {"a": 1}, SHARES, 0)
    with pytest.raises(LeverlabError, match=r"splits \['a'\] have fewer than 0 pairs"):
        split_twins(twins, {"a": -1}, SHARES, 0)
    with pytest.raises(LeverlabError, match="are no shares; give"):
        split_twins(twins, {"a": 1}, {"poetry": 1.0}, 0)  # type: ignore[dict-item]
    with pytest.raises(LeverlabError, match="needs 1 pairs of the family 'math', but 0 are left"):
        split_twins(twins[:60], {"a": 1}, {"math": 1.0}, 0)
