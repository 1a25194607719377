"""predict: what is refused before any work, three formats, few rows in memory, batches."""

import csv
import io
import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from leverlab.cli import app
from leverlab.deploy import answering
from leverlab.deploy.answer_file import AnswerFile
from leverlab.deploy.answering import Prompt, TransformersEngine, checked_kind
from leverlab.deploy.bundle import INFO, Bundle
from leverlab.deploy.predict import Summary
from leverlab.deploy.predict import predict as predict_all
from leverlab.deploy.prompt_size import PromptSize
from leverlab.deploy.question_file import read_rows
from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.vlm.model import load_vlm
from leverlab.vlm.prompt import PromptFormat
from tests.deploy.bundles import SHOTS, VLM, Made

FORMATS = ("parquet", "csv", "jsonl")


def write(path: Path, questions: Sequence[Example], row_group: int | None = None) -> Path:
    """Write a file of questions in the format of its suffix; images of CSV and JSON lines are files beside it."""
    rows: list[dict[str, Any]] = [{"id": q.id, "image": q.image, "question": q.question} for q in questions]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group)
        return path
    for row in rows:
        name = f"{row['id']}.png"
        (path.parent / name).write_bytes(row["image"])
        row["image"] = name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["question", "id", "image"])
            writer.writeheader()
            writer.writerows(rows)
    return path


def run(bundle: Path, questions: Path, out: Path, *options: str) -> Any:
    arguments = [str(questions), "-o", str(out), "--bundle", str(bundle), "--engine", "f16", *options]
    return CliRunner().invoke(app, ["predict", *arguments])


def refused(bundle: Path, questions: Path, out: Path, *options: str) -> str:
    """Return the message of a run that must be refused."""
    done = run(bundle, questions, out, *options)
    assert isinstance(done.exception, LeverlabError), (done.output, done.exception)
    message = str(done.exception)
    assert "delete" not in message
    return message


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine may be loaded, and no demo picked."""

    def work(*arguments: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(answering, "engine", work)
    monkeypatch.setattr(Bundle, "pick", work)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("how", ["same", "relative", "symlink", "hard link", "kept"])
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_the_questions_are_never_replaced(
    made: Made, tmp_path: Path, how: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    questions = write(tmp_path / "q.parquet", made.questions[:2])
    before, out = questions.read_bytes(), tmp_path / "a.parquet"
    if how == "same":
        out = questions
    elif how == "relative":
        (tmp_path / "folder").mkdir()
        out = Path("folder/../q.parquet")
    elif how == "symlink":
        out.symlink_to(questions)
    elif how == "hard link":
        out.hardlink_to(questions)
    else:
        questions = write(tmp_path / "a.parquet.partial.jsonl", made.questions[:2])
        before = questions.read_bytes()
    assert f"--out {out} would replace {questions}, which the run reads" in refused(
        made.folder, questions, out, *options
    )
    assert questions.read_bytes() == before


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "is a folder; name a file in it, such as"),
        ("folder.parquet", "is a folder; name a file in it, such as"),
        ("none/a.parquet", "none of --out does not exist; make it"),
        ("a.txt", "must end in .parquet, .csv or .jsonl"),
        ("a", "must end in .parquet, .csv or .jsonl"),
        ("old.csv", "is there already; give --out another name, or add --overwrite to replace it"),
        ("pipe.csv", "is no plain file"),
        ("loop.csv", "names no file"),
        ("/proc/a.parquet", "beside --out, cannot be written"),
        ("linked.csv", "linked.csv.partial.jsonl, beside --out, cannot be written"),
    ],
)
def test_a_file_that_must_not_be_written_is_refused_before_any_work(
    made: Made, tmp_path: Path, name: str, message: str
) -> None:
    questions = write(tmp_path / "q.parquet", made.questions[:2])
    for folder in ("folder", "folder.parquet"):
        (tmp_path / folder).mkdir()
    (tmp_path / "old.csv").write_text("mine")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "linked.csv.partial.jsonl").symlink_to(tmp_path / "old.csv")
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(made.folder, questions, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "old.csv").read_text() == "mine"


@pytest.mark.usefixtures("idle")
def test_files_of_the_bundle_are_never_replaced(copy: Path, made: Made, tmp_path: Path) -> None:
    questions = write(tmp_path / "q.parquet", made.questions[:2])
    assert "would replace" in refused(copy, questions, copy / "pool.parquet", "--overwrite")
    assert Bundle(copy).info == made.bundle.info


def test_a_file_is_replaced_when_that_is_asked_for(made: Made, tmp_path: Path) -> None:
    questions, out = write(tmp_path / "q.parquet", made.questions[:2]), tmp_path / "a.csv"
    out.write_text("mine")
    (tmp_path / "link.csv").symlink_to(out)
    done = run(made.folder, questions, tmp_path / "link.csv", "--overwrite")
    assert done.exit_code == 0, done.exception
    assert out.read_text().startswith("id,question,demos,scores,answer\n")
    assert (tmp_path / "link.csv").is_symlink()


def test_a_file_that_another_program_writes_meanwhile_is_not_replaced(made: Made, tmp_path: Path) -> None:
    """What was answered is kept, and written once the file is gone."""
    path, out = write(tmp_path / "q.jsonl", noise(2, 56)), tmp_path / "a.csv"

    class Slow(Echo):
        def answers(self, prompts: Sequence[Prompt]) -> list[str]:
            out.write_text("mine")
            return super().answers(prompts)

    with pytest.raises(LeverlabError, match=r"a\.csv came to be there during the run; move it away and run again"):
        answered(made.bundle, Slow(), path, out)
    assert out.read_text() == "mine"
    out.unlink()
    engine = Echo()
    assert answered(made.bundle, engine, path, out).new == 0
    assert engine.asked == []
    assert len(out.read_text().splitlines()) == 3


def test_an_id_cannot_forge_a_line_of_an_error(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"id": "a\nleverlab: all is well", "image": "none.png", "question": "what?"}) + "\n")
    with pytest.raises(LeverlabError, match=r"\(id 'a leverlab: all is well'\): the image 'none\.png' is no file"):
        list(read_rows(path))


@pytest.mark.usefixtures("idle")
def test_two_runs_with_one_out_are_refused(made: Made, tmp_path: Path) -> None:
    """Also by another name of the file; the first keeps what it has, and the lock goes with it."""
    questions, out = write(tmp_path / "q.parquet", made.questions[:2]), tmp_path / "a.parquet"
    (tmp_path / "b.parquet").symlink_to(out)
    with AnswerFile(out, [], False) as first:
        first.read_kept("x")
        first.keep([{"key": "k"}])
        for name in (out, tmp_path / "b.parquet"):
            assert f"another run writes {name}; wait for it, or give --out another name" in refused(
                made.folder, questions, name
            )
    with AnswerFile(out, [], False) as again:
        assert again.read_kept("x") == {"k": {"key": "k"}}
        with pytest.raises(LeverlabError, match="holds answers of another bundle or other options"):
            again.read_kept("y")


@pytest.mark.parametrize("content", ["my notes", '{"of": "y"', '{"key": 1}', "\n"])
def test_a_file_that_no_run_has_kept_stays_as_it_is(tmp_path: Path, content: str) -> None:
    with AnswerFile(tmp_path / "a.csv", [], False) as file:
        file.kept.write_text(content)
        with pytest.raises(LeverlabError, match=r"a\.csv\.partial\.jsonl (is damaged|holds answers of another)"):
            file.read_kept("x")
    assert file.kept.read_text() == content


@pytest.mark.parametrize("content", ["", '{"of', '{"of": "x"}', '{"of": "x"}\n{"key'])
def test_a_line_that_was_cut_is_left_out(tmp_path: Path, content: str) -> None:
    with AnswerFile(tmp_path / "a.csv", [], False) as file:
        file.kept.write_text(content)
        assert file.read_kept("x") == {}
        file.keep([{"key": "k"}])
        assert file.read_kept("x") == {"k": {"key": "k"}}


def test_a_run_leaves_nothing_beside_its_answers(made: Made, tmp_path: Path) -> None:
    questions = write(tmp_path / "q.parquet", made.questions[:2])
    assert run(made.folder, questions, tmp_path / "a.parquet").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "q.parquet"]


def test_all_formats_hold_the_same(made: Made, tmp_path: Path) -> None:
    """Questions of each format give the bytes of the others; answers of each format hold the same."""
    questions = [made.questions[0], made.questions[1]]
    for kind in FORMATS:
        path = write(tmp_path / f"q.{kind}", questions)
        done = run(made.folder, path, tmp_path / f"from_{kind}.parquet")
        assert done.exit_code == 0, done.exception
    tables = [(tmp_path / f"from_{kind}.parquet").read_bytes() for kind in FORMATS]
    assert tables[0] == tables[1] == tables[2]
    for kind in ("csv", "jsonl"):
        assert run(made.folder, tmp_path / "q.csv", tmp_path / f"a.{kind}").exit_code == 0
    rows = pq.read_table(tmp_path / "from_csv.parquet").to_pylist()
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == rows
    with (tmp_path / "a.csv").open(newline="") as file:
        read = [row | {name: json.loads(row[name]) for name in ("demos", "scores")} for row in csv.DictReader(file)]
    assert read == rows
    assert [row["id"] for row in rows] == [question.id for question in questions]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_order_mark_and_blank_lines_are_passed_over(made: Made, tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"q.{kind}", made.questions[:2])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\n\n"))
    assert [row.id for row in read_rows(path)] == [question.id for question in made.questions[:2]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", b"", "must be a file .parquet, .csv, .jsonl; convert it"),
        ("q.csv", b"id,question\n", "lacks the columns ['image']; it holds ['id', 'question']"),
        ("q.csv", b"id,image,id,question\n", "holds the columns ['id'] twice"),
        ("q.csv", b"id,image,question\n", "holds no questions"),
        ("q.csv", b"id,image,question\na,a.png,one, two\n", "line 2 has 4 fields, not the 3 of its head; quote texts"),
        ("q.csv", b"id,image,question\na,a.png,x\n\na,a.png,y\n", "line 4: the id 'a' is no text, or comes twice"),
        ("q.csv", b"id,image,question\n,a.png,x\n", "line 2: the id '' is no text"),
        ("q.csv", b"id,image,question\na,,x\n", "line 2 (id 'a') lacks the image's file or the question"),
        ("q.csv", b"id,image,question\na,b.png,x\n", "line 2 (id 'a'): the image 'b.png' is no file in"),
        ("q.csv", b"id,image,question\na,../out.png,x\n", "line 2 (id 'a'): '../out.png' names no file inside"),
        ("q.csv", b"id,image,question\na,/etc/passwd,x\n", "line 2 (id 'a'): '/etc/passwd' names no file inside"),
        ("q.csv", b"id,image,question\na,link.png,x\n", "line 2 (id 'a'): 'link.png' names no file inside"),
        ("q.csv", b"id,image,question\na,pipe,x\n", "line 2 (id 'a'): the image 'pipe' is no file in"),
        ("q.csv", b"id,image,question\na,a.png,\xff\n", "cannot be read ('utf-8' codec"),
        ("q.csv", b'id,image,question\na,a.png,"x', "cannot be read (unexpected end of data)"),
        ("q.csv", b"id,image,question\na,a.png," + b"x" * 200_000, "cannot be read (field larger than field limit"),
        ("q.jsonl", b"{]\n", "line 1 is not JSON"),
        ("q.jsonl", b"[1]\n", "line 1 must be a JSON object, not [1]"),
        ("q.jsonl", b'{"id": "a", "image": "a.png"}\n', "line 1 lacks ['question']"),
        ("q.jsonl", b'{"id": 7, "image": "a.png", "question": "x"}\n', "line 1: the id 7 is no text"),
        ("q.jsonl", b'{"id": "\\ud800", "image": "a.png", "question": "x"}\n', "is no text"),
        ("q.jsonl", b'{"id": "a", "image": "a\\u0000", "question": "x"}\n', "names no file inside"),
        ("q.jsonl", b'{"id": "a", "image": "a.png", "question": null}\n', "lacks the image's file or the question"),
        ("q.parquet", b"PAR1", "q.parquet cannot be read"),
        ("none.csv", None, "none.csv cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_file_of_questions_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (tmp_path / "out.png", folder / "a.png"):
        place.write_bytes(b"x")
    (folder / "link.png").symlink_to("../out.png")
    os.mkfifo(folder / "pipe")
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(LeverlabError) as caught:
        list(read_rows(folder / name))
    assert message in str(caught.value)
    assert "delete" not in str(caught.value)


class Echo:
    """An engine that answers with the question, and notes what it was given at once."""

    def __init__(self, batch: int = 1):
        self.batch, self.asked = batch, list[list[str]]()

    def answer(self, demos: Sequence[Example], question: Example) -> str:
        return self.answers([(demos, question)])[0]

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        self.asked.append([question.question for _, question in prompts])
        if any("fail" in question.question for _, question in prompts):
            raise LeverlabError("no answer")
        return [question.question.upper() for _, question in prompts]


class Bar:
    def update(self, n: int) -> None:
        pass


def answered(bundle: Bundle, engine: Echo, questions: Path, out: Path, shots: int = 0) -> Summary:
    load, bar = lambda: nullcontext(engine), lambda *_: nullcontext(Bar())
    return predict_all(bundle, "f16", load, questions, out, shots, bar)


def noise(count: int, side: int) -> list[Example]:
    """Questions about images that cannot be compressed: 3 bytes a pixel."""
    draws, questions = np.random.default_rng(0), []
    for number in range(count):
        content = io.BytesIO()
        Image.fromarray(draws.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(content, format="PNG")
        questions.append(Example(f"q{number}", content.getvalue(), "", f"what {number}?", "", ("?",)))
    return questions


@pytest.mark.parametrize("kind", FORMATS)
def test_few_images_are_in_memory_at_once(made: Made, tmp_path: Path, kind: str) -> None:
    """160 images of 37 kB: 6 MB in the file, of parquet in groups of 16 rows, at most half of it in memory."""
    path = write(tmp_path / f"q.{kind}", noise(160, 110), row_group=16)
    pool, total = pa.default_memory_pool(), 160 * 110 * 110 * 3
    before = pool.bytes_allocated()
    tracemalloc.start()
    held, seen = [], 0
    for row in read_rows(path):
        held.append(pool.bytes_allocated() - before)
        seen += len(row.image)
    del row
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    assert answered(made.bundle, Echo(), path, tmp_path / "a.jsonl") == Summary(160, 160)
    whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen >= total
    assert max(peak, whole, *held) < total / 2


def test_engines_answer_in_groups_of_fixed_places_and_resume_to_the_same_bytes(made: Made, tmp_path: Path) -> None:
    path = write(tmp_path / "q.parquet", made.questions[:7])
    texts = [question.question for question in made.questions[:7]]
    whole, groups = Echo(3), [texts[:3], texts[3:6], texts[6:]]
    answered(made.bundle, whole, path, tmp_path / "whole.parquet")
    assert whole.asked == groups

    class Killed(Echo):
        def answers(self, prompts: Sequence[Prompt]) -> list[str]:
            if self.asked:
                raise KeyboardInterrupt
            return super().answers(prompts)

    with pytest.raises(KeyboardInterrupt):
        answered(made.bundle, Killed(3), path, tmp_path / "a.parquet")
    resumed = Echo(3)
    assert answered(made.bundle, resumed, path, tmp_path / "a.parquet") == Summary(7, 4)
    assert resumed.asked == groups[1:]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_the_question_of_a_group_that_has_no_answer_is_named_and_the_others_are_kept(
    made: Made, tmp_path: Path
) -> None:
    questions = noise(3, 8)
    questions[2] = Example("bad", questions[2].image, "", "fail", "", ("?",))
    path = write(tmp_path / "q.parquet", questions)
    with pytest.raises(LeverlabError, match=r"q\.parquet row 2 \(id 'bad'\) was not answered: no answer; or drop it"):
        answered(made.bundle, Echo(3), path, tmp_path / "a.parquet")
    write(path, questions[:2])
    assert answered(made.bundle, Echo(3), path, tmp_path / "a.parquet") == Summary(2, 0)


def test_equal_rows_are_answered_once_and_no_engine_is_loaded_for_none(made: Made, tmp_path: Path) -> None:
    one = noise(1, 8)[0]
    path = write(tmp_path / "q.parquet", [one, Example("again", one.image, "", one.question, "", ("?",))])
    engine = Echo()
    assert answered(made.bundle, engine, path, tmp_path / "a.jsonl") == Summary(2, 1)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(row["id"], row["answer"]) for row in rows] == [("q0", "WHAT 0?"), ("again", "WHAT 0?")]


@pytest.mark.parametrize(
    "change", [lambda rows, other: [*rows[:2], other], lambda rows, _: rows[:2], lambda rows, _: rows]
)
def test_a_file_that_changes_meanwhile_is_named(made: Made, tmp_path: Path, change: Any) -> None:
    """Another row, one fewer and one more than were checked."""
    questions = noise(4, 8)
    other = Example("q2", questions[2].image, "", "other", "", ("?",))
    path = write(tmp_path / "q.csv", questions[:3])

    def load() -> Any:
        write(path, change(questions, other))
        return nullcontext(Echo())

    with pytest.raises(LeverlabError, match="changed while it was read; run again: what was answered is kept"):
        predict_all(made.bundle, "f16", load, path, tmp_path / "a.csv", 0, lambda *_: nullcontext(Bar()))


def with_context(folder: Path, context: int) -> Bundle:
    info = json.loads((folder / INFO).read_text())
    (folder / INFO).write_text(json.dumps(info | {"context": context}))
    return Bundle(folder)


def test_a_question_that_cannot_fit_is_named_before_the_run(copy: Path, made: Made, tmp_path: Path) -> None:
    """300 words are 300 tokens or more; this vocabulary spells them by letters."""
    bundle, questions = with_context(copy, 300), noise(3, 56)
    questions[1] = Example("long", questions[1].image, "", "word " * 300, "", ("?",))
    path, engine = write(tmp_path / "q.csv", questions), Echo()
    with pytest.raises(LeverlabError, match=r"line 3 \(id 'long'\): the question takes [\d,]+ tokens or more"):
        answered(bundle, engine, path, tmp_path / "a.csv")
    assert engine.asked == []
    assert answered(with_context(copy, 4096), engine, path, tmp_path / "a.csv").new == 3


def test_a_question_that_may_not_fit_is_answered_first(copy: Path, made: Made, tmp_path: Path) -> None:
    """Its own tokens, 1,000 letters and 16 of its image, leave less room than a template may take."""
    bundle, questions = with_context(copy, 1050), noise(3, 56)
    questions[2] = Example("long", questions[2].image, "", "w" * 1000, "", ("?",))
    path, engine = write(tmp_path / "q.parquet", questions), Echo()
    answered(bundle, engine, path, tmp_path / "a.parquet")
    assert engine.asked == [["w" * 1000], ["what 0?"], ["what 1?"]]
    assert pq.read_table(tmp_path / "a.parquet")["id"].to_pylist() == ["q0", "q1", "long"]


def test_the_bounds_of_a_prompt_hold(made: Made) -> None:
    """Between them lie the tokens of the processor, for prompts with and without demos."""
    form = PromptFormat(load_vlm(str(VLM), "float32").processor)
    for shots in (0, SHOTS):
        for question in made.questions[:5]:
            demos = [pick.demo for pick in made.bundle.pick(question, shots)]
            length = form.inputs(demos, question)["input_ids"].shape[1] + made.bundle.info.max_new_tokens
            size = PromptSize(made.bundle, shots)
            size._context = length
            assert size.may_be_too_long(question)
            size._context = 10_000
            assert not size.may_be_too_long(question)
    size = PromptSize(made.bundle, 0)
    size._context = form.inputs([], made.questions[0])["input_ids"].shape[1]
    size.may_be_too_long(made.questions[0])  # it just fits: no error


def test_a_demo_that_llama_cpp_cannot_be_given_is_named_before_the_run(made: Made, copy: Path) -> None:
    """Without shots no demo is shown."""
    bundle = Bundle(copy)
    bundle.pool = [*bundle.pool[:-1], replace(bundle.pool[-1], question="What?<|im_end|>")]
    with pytest.raises(LeverlabError, match=f"the question of '{bundle.pool[-1].id}' spells"):
        PromptSize(bundle, SHOTS)
    PromptSize(bundle, 0)


@pytest.mark.usefixtures("idle")
def test_an_image_that_is_too_thin_is_named_before_the_run(made: Made, tmp_path: Path) -> None:
    questions = noise(2, 8)
    content = io.BytesIO()
    Image.new("RGB", (201, 1)).save(content, format="PNG")
    questions[1] = Example("thin", content.getvalue(), "", "what?", "", ("?",))
    message = refused(made.folder, write(tmp_path / "q.jsonl", questions), tmp_path / "a.jsonl")
    assert "q.jsonl line 2 (id 'thin'): the image is 201 x 1 pixels" in message
    assert not list(tmp_path.glob("a.jsonl*"))


@pytest.mark.usefixtures("idle")
def test_transformers_is_refused_without_the_checkpoint(
    copy: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    info = json.loads((copy / INFO).read_text())
    questions, picture = write(tmp_path / "q.parquet", made.questions[:1]), tmp_path / "q.png"
    picture.write_bytes(made.questions[0].image)
    for source in ("worlds/gone/vlm", "owner/name", "/gone"):
        (copy / INFO).write_text(json.dumps(info | {"vlm": source}))
        needs = f"the engine transformers needs the checkpoint '{source}' that the bundle was exported from"
        assert needs in refused(copy, questions, tmp_path / "a.csv", "--engine", "transformers")
        asked = ["select", "--image", str(picture), "--question", "What?", "--answer", "--bundle", str(copy)]
        assert needs in str(CliRunner().invoke(app, [*asked, "--engine", "transformers"]).exception)
        with pytest.raises(LeverlabError, match=r"no engine 'q2_k'; it has f16, q8_0$"):
            checked_kind(Bundle(copy), "q2_k")
    (copy / INFO).write_text(json.dumps(info | {"vlm": "checkpoint"}))
    shutil.copytree(VLM, copy / "checkpoint")
    assert checked_kind(Bundle(copy), "transformers") == "transformers"


def test_transformers_answers_in_batches_as_one_by_one(made: Made) -> None:
    """Prompts of other lengths and shot counts."""
    engine, pool = TransformersEngine(str(VLM), 4), made.bundle.pool
    prompts = [(pool[number : number + number % 4], made.questions[number]) for number in range(8)]
    single = [engine.answer(demos, question) for demos, question in prompts]
    assert engine.answers(prompts) == single
    assert len(set(single)) > 1


def test_the_summary_is_an_object(made: Made, tmp_path: Path) -> None:
    questions, out = write(tmp_path / "q.csv", made.questions[:2]), tmp_path / "a.csv"
    done = run(made.folder, questions, out, "--json", "--shots", "1")
    assert json.loads(done.stdout) == {"out": str(out), "questions": 2, "new": 2, "engine": "f16", "shots": 1}


def test_select_shows_texts_and_obeys_none(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control bytes in the question, in a demo and in the answer; no text begins a line of its own."""
    evil = "\x1b[2J\x9bm\ranswer\nanswer: 42 :apple: [bold]"
    demo = Example("d\x1b[1A", made.questions[0].image, "i", evil, "t", (evil,))
    picks = [type(made.bundle.pick(made.questions[0], 1)[0])(demo, 0.5)]
    monkeypatch.setattr(Bundle, "pick", lambda *_: picks)

    @contextmanager
    def engine(*_: object) -> Iterator[Any]:
        evil_engine = Echo()
        evil_engine.answer = lambda *_: evil  # type: ignore[method-assign]
        yield evil_engine

    monkeypatch.setattr(answering, "engine", engine)
    picture = tmp_path / "q.png"
    picture.write_bytes(made.questions[0].image)
    asked = ["select", "--image", str(picture), "--question", evil, "--answer", "--bundle", str(made.folder)]
    shown = CliRunner().invoke(app, asked).stdout
    assert not {"\x1b", "\x9b", "\r"} & set(shown)
    assert sum(line.startswith("answer: ") for line in shown.splitlines()) == 1
    assert "[bold]" in shown
    assert ":apple:" in shown
