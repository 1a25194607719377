"""A bundle in use: picks equal to the network's without torch, and every damage told in a sentence."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from leverlab.cli import app
from leverlab.deploy.answering import engine
from leverlab.deploy.bundle import INFO, Bundle, digest_of
from leverlab.deploy.bundle_guide import markers, readme
from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.selector.batches import QueryData
from leverlab.selector.candidates import read_candidates
from leverlab.selector.features import read_features
from leverlab.selector.inference import InferenceSelector
from leverlab.vlm.model import load_vlm
from leverlab.vlm.prompt import PromptFormat
from tests.deploy.bundles import CANDIDATES, SHOTS, VLM, Made, make_bundle

WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())
from leverlab.cli import main
sys.argv = ["leverlab", *sys.argv[1:]]
main()
"""


def image_file(question: Example, folder: Path) -> Path:
    path = folder / "q.png"
    path.write_bytes(question.image)
    return path


def test_picks_on_all_validation_questions_are_those_of_the_network(made: Made) -> None:
    """Features from the GGUF files against features from the torch model, in float32."""
    prepared = made.root / "data/prepared"
    ids = [demo.id for demo in made.bundle.pool]
    data = QueryData(
        read_features(prepared / "features.parquet"), read_candidates(prepared / "candidates.parquet", ids)
    )
    selector = InferenceSelector.load(made.root / "models/selector")
    for question in made.questions:
        batch = data.batch([question.id])
        theirs = selector.pick([p.numpy() for p in batch.query], [p.numpy() for p in batch.demos], SHOTS)[0]
        offered = list(batch.candidate_ids[0])
        ours = made.bundle.selector.pick(made.bundle.vectors(question), offered, SHOTS)
        assert [demo for demo, _ in ours] == [offered[place] for place in theirs]
    info = made.bundle.info
    assert info.equal_picks == info.compared_picks == SHOTS * len(made.questions)


def test_scores_are_the_probabilities_of_the_picks(made: Made) -> None:
    """Those of the torch network after the picks before; the last candidate is all that is left."""
    vectors = made.bundle.vectors(made.questions[0])
    offered = made.bundle.candidates(made.questions[0], vectors)
    found = made.bundle.selector.pick(vectors, offered, len(offered))
    assert len({demo for demo, _ in found}) == len(offered)
    assert found[-1][1] == pytest.approx(1)  # the last one is all that is left
    rows, table = made.bundle.features.rows(offered), made.bundle.features
    demos = (table.image_ND[rows], table.question_ND[rows], table.answer_ND[rows])
    picks = torch.tensor([[[offered.index(demo) for demo, _ in found]]])
    with torch.no_grad():
        encoded = made.network.encode(
            (torch.from_numpy(vectors[0]), torch.from_numpy(vectors[1])),
            (torch.from_numpy(demos[0])[None], torch.from_numpy(demos[1])[None], torch.from_numpy(demos[2])[None]),
        )
        expected = made.network.list_logp(encoded, picks).exp()[0, 0].tolist()
    assert [score for _, score in found] == pytest.approx(expected, rel=1e-4)


def test_the_same_question_gets_the_same_demos(made: Made) -> None:
    question = made.bundle.question(made.questions[0].image, "Which number?")
    first, second = (made.bundle.pick(question, SHOTS) for _ in range(2))
    assert first == second
    assert len(made.bundle.candidates(question, made.bundle.vectors(question))) == CANDIDATES
    assert [pick.demo.id for pick in made.bundle.pick(question, 2)] == [pick.demo.id for pick in first[:2]]
    assert made.bundle.pick(question, 0) == []


def test_a_demo_is_never_shown_for_its_own_image(made: Made) -> None:
    demo = made.bundle.pool[0]
    question = made.bundle.question(demo.image, "What?")
    offered = made.bundle.candidates(question, made.bundle.vectors(question))
    assert demo.image_id not in {made.bundle.demos[other].image_id for other in offered}


def test_a_demo_is_never_shown_for_its_own_pixels_in_another_file(made: Made) -> None:
    """The picture of a demo, saved again with an orientation and turned back: other bytes, the same image."""
    demo, exif, content = made.bundle.pool[0], Image.Exif(), io.BytesIO()
    exif[0x0112] = 3
    demo.open_image().transpose(Image.Transpose.ROTATE_180).save(content, format="PNG", exif=exif)
    question = made.bundle.question(content.getvalue(), "What?")
    assert question.image_id == demo.image_id
    assert question.id == made.bundle.question(demo.image, "What?").id
    offered = made.bundle.candidates(question, made.bundle.vectors(question))
    assert demo.image_id not in {made.bundle.demos[other].image_id for other in offered}


def test_a_photo_and_its_turned_twin_get_the_same_demos(made: Made) -> None:
    asked, exif, content = made.questions[0], Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    asked.open_image().transpose(Image.Transpose.ROTATE_90).save(content, format="PNG", exif=exif)
    plain, turned = (made.bundle.question(image, "Cafe\u0301?") for image in (asked.image, content.getvalue()))
    assert made.bundle.pick(turned, SHOTS) == made.bundle.pick(plain, SHOTS)
    assert plain == made.bundle.question(asked.image, "Caf\u00e9?")


def test_select_runs_without_torch(made: Made, tmp_path: Path) -> None:
    asked = made.questions[0]
    arguments = ["select", "--bundle", str(made.folder), "--image", str(image_file(asked, tmp_path))]
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments, "--question", asked.question, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    picks = made.bundle.pick(made.bundle.question(asked.image, asked.question), SHOTS)
    assert [pick["id"] for pick in said["picks"]] == [pick.demo.id for pick in picks]
    assert [pick["score"] for pick in said["picks"]] == pytest.approx([pick.score for pick in picks])
    assert [turn["role"] for turn in said["messages"]] == ["user", "assistant"] * SHOTS + ["user"]
    assert said["messages"][-1]["content"][1]["text"] == asked.question


@pytest.mark.parametrize("engine", ["f16", "transformers"])
def test_select_answers_with_either_engine(made: Made, tmp_path: Path, engine: str) -> None:
    asked = made.questions[0]
    arguments = ["select", "--bundle", str(made.folder), "--image", str(image_file(asked, tmp_path))]
    done = CliRunner().invoke(app, [*arguments, "--question", asked.question, "--answer", "--engine", engine])
    assert done.exit_code == 0, done.output
    picks = made.bundle.pick(made.bundle.question(asked.image, asked.question), SHOTS)
    assert all(pick.demo.id in done.output for pick in picks)
    assert done.output.rstrip().splitlines()[-1] == f"answer: {greedy(asked, [pick.demo for pick in picks])}"


def greedy(question: Example, demos: list[Example]) -> str:
    """The answer of the checkpoint in float32, token by token."""
    vlm = load_vlm(str(VLM), "float32")
    form = PromptFormat(vlm.processor)
    images = [example.open_image() for example in (*demos, question)]
    ids: list[int] = []
    for _ in range(4):
        text = form.render_prompt(demos, question) + vlm.processor.tokenizer.decode(ids)
        inputs = vlm.processor(text=text, images=images, return_tensors="pt")
        ids.append(int(vlm.model(**inputs).logits[0, -1].argmax()))
        if ids[-1] == vlm.model.generation_config.eos_token_id:
            break
    return form.decode(ids)


def write_questions(path: Path, made: Made, count: int = 8) -> Path:
    rows = made.questions[:count]
    columns = {"id": [q.id for q in rows], "image": [q.image for q in rows], "question": [q.question for q in rows]}
    pq.write_table(pa.table(columns), path)
    return path


def arguments_of(made: Made, questions: Path, out: Path) -> list[str]:
    return ["predict", str(questions), "-o", str(out), "--bundle", str(made.folder), "--engine", "f16"]


def predict(made: Made, questions: Path, out: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments_of(made, questions, out))
    return done.exit_code, done.output + str(done.exception or "")


def test_predict_answers_all_and_goes_on_where_it_was_stopped(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = write_questions(tmp_path / "questions.parquet", made)
    assert predict(made, questions, tmp_path / "whole.parquet")[0] == 0
    whole = pq.read_table(tmp_path / "whole.parquet").to_pylist()
    assert [row["id"] for row in whole] == [question.id for question in made.questions[:8]]
    for row, question in zip(whole, made.questions, strict=False):
        picks = made.bundle.pick(made.bundle.question(question.image, question.question), SHOTS)
        assert row["demos"] == [pick.demo.id for pick in picks]
    stop_after(monkeypatch, 3)
    assert "stopped" in predict(made, questions, tmp_path / "a.parquet")[1]
    assert not (tmp_path / "a.parquet").exists()
    kept = tmp_path / "a.parquet.partial.jsonl"
    kept.write_bytes(kept.read_bytes()[:-5])  # the last line is cut, as by a kill
    monkeypatch.undo()
    asked = stop_after(monkeypatch, 100)
    code, said = predict(made, questions, tmp_path / "a.parquet")
    assert (code, len(asked)) == (0, 6), said
    assert "6 answers are new" in said
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not kept.exists()


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Interrupt the run at the question behind `count`; return the ids that were asked."""
    asked: list[str] = []
    pick = Bundle.pick

    def counted(self: Bundle, question: Example, shots: int) -> object:
        if len(asked) == count:
            raise RuntimeError("stopped")
        asked.append(question.id)
        return pick(self, question, shots)

    monkeypatch.setattr(Bundle, "pick", counted)
    return asked


def test_a_question_that_cannot_be_answered_is_named_and_the_others_are_kept(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its row, and with another one, the run goes on."""
    path, pick = write_questions(tmp_path / "questions.parquet", made), Bundle.pick
    rows, bad = pq.read_table(path), made.questions[3]

    def refused(self: Bundle, question: Example, shots: int) -> object:
        if question.question == bad.question and question.image == bad.image:
            raise LeverlabError("the prompt is too long")
        return pick(self, question, shots)

    monkeypatch.setattr(Bundle, "pick", refused)
    code, said = predict(made, path, tmp_path / "a.parquet")
    assert code == 1
    assert f"{path} row 3 (id '{bad.id}') was not answered: the prompt is too long; or drop it" in said
    pq.write_table(pa.concat_tables([rows.slice(0, 3), rows.slice(4)]), path)
    code, said = predict(made, path, tmp_path / "a.parquet")
    assert (code, "4 answers are new" in said) == (0, True), said
    ids = [question.id for question in made.questions[:8] if question is not bad]
    assert pq.read_table(tmp_path / "a.parquet")["id"].to_pylist() == ids


def test_a_folder_that_is_not_there_is_told_before_anything_is_answered(made: Made, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions.parquet", made)
    code, said = predict(made, questions, tmp_path / "none/a.parquet")
    assert code == 1
    assert "none of --out does not exist; make it" in said


def test_what_is_kept_of_another_run_is_refused(made: Made, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions.parquet", made)
    (tmp_path / "a.parquet.partial.jsonl").write_text('{"of": "another"}\n')
    code, said = predict(made, questions, tmp_path / "a.parquet")
    assert code == 1
    assert "holds answers of another bundle or other options" in said
    (tmp_path / "a.parquet.partial.jsonl").write_text("no json\n")
    assert "is damaged" in predict(made, questions, tmp_path / "a.parquet")[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows["question"].__setitem__(2, " "), r"row 2 \(id 'val-\d+'\): the question is empty"),
        (
            lambda rows: rows["image"].__setitem__(3, b"no image"),
            r"row 3 \(id 'val-\d+'\): the image cannot be decoded",
        ),
        (lambda rows: rows["id"].__setitem__(1, rows["id"][0]), r"row 1: the id 'val-\d+' is no text, or comes twice"),
        (lambda rows: rows["image"].__setitem__(0, None), r"row 0 \(id 'val-\d+'\) lacks the image's bytes"),
        (lambda rows: rows.pop("question"), r"lacks the columns \['question'\]"),
        (lambda rows: [column.clear() for column in rows.values()], "holds no questions"),
    ],
)
def test_a_wrong_row_is_named_before_anything_is_answered(
    made: Made, tmp_path: Path, change: Callable[[dict[str, list[object]]], object], message: str
) -> None:
    path = write_questions(tmp_path / "questions.parquet", made)
    schema = pq.read_schema(path)
    rows = pq.read_table(path).to_pydict()
    change(rows)
    pq.write_table(pa.table(rows, schema=pa.schema([schema.field(name) for name in rows])), path)
    code, said = predict(made, path, tmp_path / "a.parquet")
    assert code == 1
    assert re.search(message, said), said
    assert not list(tmp_path.glob("a.parquet*"))


def test_a_question_that_llama_cpp_cannot_be_given_is_named_before_anything_is_answered(
    made: Made, tmp_path: Path
) -> None:
    """transformers answers it, as the text that it is."""
    path = write_questions(tmp_path / "questions.parquet", made, 2)
    rows = pq.read_table(path).to_pydict()
    rows["question"][1] = "Which number?<|im_end|><|image_pad|>"
    pq.write_table(pa.table(rows), path)
    code, said = predict(made, path, tmp_path / "a.parquet")
    assert code == 1
    assert f"{path} row 1 (id '{rows['id'][1]}'): the question of" in said
    assert "spells '<|im_end|>', which llama.cpp would read as a control token" in said
    assert not list(tmp_path.glob("a.parquet*"))
    arguments = [*arguments_of(made, path, tmp_path / "a.parquet")[:-1], "transformers"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (INFO, "is no bundle: bundle.json is missing"),
        ("text-q8_0.gguf", "lacks .*text-q8_0.gguf"),
        ("selector.safetensors", "lacks .*selector.safetensors"),
    ],
)
def test_a_missing_file_is_named(copy: Path, name: str, message: str) -> None:
    (copy / name).unlink()
    with pytest.raises(LeverlabError, match=message):
        Bundle(copy)


def test_a_cut_or_changed_file_is_named(copy: Path) -> None:
    gguf = copy / "text-f16.gguf"
    gguf.chmod(0o644)
    gguf.write_bytes(gguf.read_bytes()[:-100])
    with pytest.raises(LeverlabError, match=r"text-f16\.gguf has .* bytes, not the .*: it is cut"):
        Bundle(copy)


def test_another_pool_of_the_same_size_is_refused(copy: Path) -> None:
    pool = copy / "pool.parquet"
    data = bytearray(pool.read_bytes())
    data[len(data) // 2] ^= 1
    pool.write_bytes(bytes(data))
    with pytest.raises(LeverlabError, match=r"pool\.parquet is not the file that bundle\.json lists"):
        Bundle(copy)


@pytest.mark.parametrize("name", ["mmproj-f16.gguf", "text-f16.gguf"])
def test_a_gguf_file_of_another_training_is_refused_on_its_use(copy: Path, made: Made, name: str) -> None:
    """Equal in size and in all of its fields."""
    path = copy / name
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    bundle = Bundle(copy)
    with pytest.raises(LeverlabError, match=rf"{re.escape(name)} is not the file that bundle\.json lists"):
        bundle.pick(made.questions[0], 1)
    with pytest.raises(LeverlabError, match="is not the file"), engine(bundle, "f16", 1, 60.0):
        pass


def test_an_empty_pool_is_refused(copy: Path) -> None:
    pool = copy / "pool.parquet"
    pq.write_table(pq.read_table(pool).slice(0, 0), pool)
    edit_info(
        copy, lambda info: info["files"].update({pool.name: {"bytes": pool.stat().st_size, "sha256": digest_of(pool)}})
    )
    with pytest.raises(LeverlabError, match=f"holds 0 demos, fewer than the {CANDIDATES} candidates"):
        Bundle(copy)


def edit_info(folder: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    info = json.loads((folder / INFO).read_text())
    change(info)
    (folder / INFO).write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(shots="4"), "cannot be read"),
        (lambda info: info.update(extra=1), "cannot be read"),
        (lambda info: info.update(format="leverlab-bundle-0"), "cannot be read"),
        (lambda info: info.update(sampler="best"), "unknown sampler"),
        (lambda info: info.update(texts=["text-f32.gguf"]), "files that it does not list"),
    ],
)
def test_a_wrong_bundle_json_is_refused(
    copy: Path, change: Callable[[dict[str, dict[str, object]]], object], message: str
) -> None:
    edit_info(copy, change)
    with pytest.raises(LeverlabError, match=message):
        Bundle(copy)


@pytest.mark.parametrize("key", ["texts", "mmproj"])
@pytest.mark.parametrize("name", ["../outside.gguf", "{outside}", "link.gguf", "folder/../../outside.gguf", "a\0b"])
def test_a_file_outside_of_the_bundle_is_refused(copy: Path, key: str, name: str) -> None:
    """By its name or through a link; size and digest fit."""
    outside = copy.parent / "outside.gguf"
    outside.write_bytes((copy / "text-f16.gguf").read_bytes())
    (copy / "link.gguf").symlink_to(outside)
    (copy / "folder").mkdir()
    name = name.format(outside=outside)
    listed = {name: {"bytes": outside.stat().st_size, "sha256": digest_of(outside)}}
    named: dict[str, object] = {"texts": [name]} if key == "texts" else {"mmproj": name}
    edit_info(copy, lambda info: (info["files"].update(listed), info.update(named)))  # type: ignore[arg-type]
    with pytest.raises(LeverlabError, match=r"names no file inside .*bundle; copy the file itself into the folder"):
        Bundle(copy)


def test_a_bundle_that_is_a_link_with_links_inside_opens(copy: Path, made: Made) -> None:
    (copy / "text-f16.gguf").rename(copy / "real.gguf")
    (copy / "text-f16.gguf").symlink_to("real.gguf")
    (copy.parent / "other").symlink_to(copy)
    assert Bundle(copy.parent / "other").info == made.bundle.info


def test_an_encoder_that_is_not_there_is_told(copy: Path, made: Made) -> None:
    edit_info(copy, lambda info: info.update(encoder="openai/clip"))
    with pytest.raises(LeverlabError, match="reads features of 'openai/clip', which the bundle does not hold"):
        Bundle(copy).pick(made.questions[0], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shots", "5"], "5 shots were asked for; this selector picks 0 to 4"),
        (["--answer", "--engine", "q2_k"], "the bundle has no engine 'q2_k'; it has f16, q8_0 and transformers"),
        (["--answer", "--engine", "transfomers"], "q8_0 and transformers; did you mean 'transformers'?"),
        (["--answer", "--engine", "q8-0"], "did you mean 'q8_0'?"),
        (["--question", "What\udcff?"], "holds half a character"),
        (["--image", "none.png"], "the image none.png cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_option_is_told(made: Made, tmp_path: Path, arguments: list[str], message: str) -> None:
    plain = ["select", "--bundle", str(made.folder), "--image", str(image_file(made.questions[0], tmp_path))]
    done = CliRunner().invoke(app, [*plain, "--question", "What?", *arguments])
    assert isinstance(done.exception, LeverlabError)
    assert message in str(done.exception)


def test_an_image_of_odd_size_gets_demos(made: Made) -> None:
    """Any size that transformers takes: it is resized to whole tokens."""
    content = io.BytesIO()
    Image.fromarray(np.arange(15 * 37 * 3, dtype=np.uint8).reshape(15, 37, 3)).save(content, format="PNG")
    assert len(made.bundle.pick(made.bundle.question(content.getvalue(), "What?"), SHOTS)) == SHOTS


def test_readme_and_modelfile_fit_the_files(made: Made) -> None:
    text = (made.folder / "README.md").read_text()
    assert "llama-server -m text-q8_0.gguf --mmproj mmproj-f16.gguf --image-min-tokens 1 --image-max-tokens 49" in text
    for name in made.bundle.info.files:
        assert (made.folder / name).is_file()
        assert name in text
    model = (made.folder / "Modelfile").read_text()
    assert model.startswith("FROM ./text-q8_0.gguf\nFROM ./mmproj-f16.gguf\n")
    found = markers(PromptFormat(load_vlm(str(VLM), "float32").processor))
    assert (found.head, found.user, found.assistant, found.end, found.generation) == ("", "", " ", "<|im_end|>", "")


def test_the_readme_names_a_gate_that_is_off(made: Made) -> None:
    info = made.bundle.info
    off = info.model_copy(update={"gates": [*info.gates, {"name": "parity", "off": True}]})
    assert "| g | m | 0.6 | pass |\n| parity | | | off |\n" in readme(off, info.texts[0])


def test_a_second_run_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    again = make_bundle(tmp_path / "again")
    for path in sorted(made.folder.iterdir()):
        assert (again.folder / path.name).read_bytes() == path.read_bytes(), path.name
