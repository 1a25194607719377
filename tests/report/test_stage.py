"""The stage on a small repository: the numbers of the page and the tables are those of a slow loop over the answers."""

import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from leverlab.dvcfile import read_declaration
from leverlab.errors import LeverlabError
from leverlab.evaluation.summary import ANSWER_SCHEMA, metrics, shots_table
from leverlab.records import write_table
from leverlab.report.words import LABELS
from leverlab.stage import Stage
from stages.report import body

ACCURACY = {
    "zero_shot": 0.1,
    "random": 0.2,
    "image_sim": 0.4,
    "type_sim": 0.45,
    "sft": 0.5,
    "sft_control": 0.6,
    "grpo": 0.85,
}
SHOTS = (1, 4)
# Odd numbers of questions: no share of them ends in a 5 that could be rounded both ways.
TYPES = ["colour"] * 13 + ["number <b>&"] * 11 + ["texture"] * 13
QUESTIONS = [f"q{i:02d}" for i in range(len(TYPES))]
DEPS = (
    "data/answers.parquet",
    "reports/shots.csv",
    "reports/metrics.json",
    "reports/health.json",
    "models/best",
    "models/sft",
    "models/rce",
    "models/grpo",
    "reports/gguf.json",
    "reports/gguf_accuracy.csv",
    "reports/gguf_differences.csv",
    "reports/gguf_metrics.json",
    "reports/benchmark.json",
    "reports/data_card.md",
    "src/leverlab/report/page.html.jinja",
)
RUNS = (
    ("sft", "sft/{seed}"),
    ("rce", "rce/{seed}"),
    ("grpo", "grpo/{seed}/grpo"),
    ("sft_control", "grpo/{seed}/sft_control"),
)
OUTS = ("reports/report.html", "reports/gates.json", "reports/headline.json", "reports/tables", "reports/figures")
HEADLINE = {"acc": "grpo.shots_4", "entropy": "chosen.grpo.entropy", "gguf": "gguf.f16.max_delta"}
GATES = {
    "over_sft": {"metric": "lift.over_sft", "at_least": 0.1},
    "shown": {"metric": "comparisons.sft.shots_4.ci_low", "at_least": 0.0},
}
VOID = {"meta", "br", "img", "link", "input", "hr", "use", "path", "line", "circle", "rect", "wbr"}


def make_answers(methods: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for method in methods:
        for seed in seeds if method in {"sft", "sft_control", "grpo"} else [0]:
            for shots in (0,) if method == "zero_shot" else SHOTS:
                for i, question in enumerate(QUESTIONS):
                    rows.append(
                        {
                            "method": method,
                            "seed": seed,
                            "shots": shots,
                            "question_id": question,
                            "question_type": TYPES[i],
                            "demos": [f"d{rng.integers(30)}" for _ in range(shots)],
                            "prediction": "p",
                            "vqa_accuracy": float(
                                rng.choice([0, 0.3, 1], p=[1 - ACCURACY[method], 0.05, ACCURACY[method] - 0.05])
                            ),
                            "answer_prob": 0.5,
                        }
                    )
    return pd.DataFrame(rows)


PARITY = {
    "prompts": 12,
    "decided": 10,
    "equal_tokens": 1.0,
    "max_delta": 0.0123,
    "max_delta_any": 0.045,
    "mean_kl": 3e-7,
    "greedy": 0.975,
    "greedy_decided": 1.0,
}
ENGINE = {
    "file_mib": 1.5,
    "load_seconds": 0.25,
    "resident_mib": 41.5,
    "prompt_per_second": 8000.0,
    "predicted_per_second": 4000.0,
    "latency_ms": {f"shots_{shots}": {"p50": 1.5 + shots, "p95": 2.5 + shots} for shots in (0, *SHOTS)},
}


def write_export(root: Path, second_runs: bool) -> None:
    """Write what gguf, gguf-800 and benchmark would: two kinds, of which llama.cpp may not run the second."""
    file = {"bytes": 1234567, "tensors": 51, "max_abs_error": 6e-5, "values_beyond": 0}
    broken = {"error": "llama.cpp was ended by SIGABRT"}
    exported = {
        "files": {"text-f16.gguf": file, "text-q8_0.gguf": file},
        "parity": {
            "f16": {"all": PARITY, "1x1": PARITY | {"max_delta": None}},
            "q8_0": {"all": PARITY} if second_runs else broken,
        },
    }
    rows = [
        (kind, method, shots, accuracy, accuracy - 0.05, accuracy + 0.05, 37)
        for kind in ("transformers", "f16")
        for method, shots, accuracy in (
            ("zero_shot", 0, 0.1),
            ("random", 4, 0.2),
            ("selector", 1, 0.8),
            ("selector", 4, 0.85),
        )
    ]
    accuracy = pd.DataFrame(rows, columns=["kind", "method", "shots", "accuracy", "ci_low", "ci_high", "n"])
    differences = pd.DataFrame(
        [
            ("f16", "transformers", 4, -0.01, -0.03, 0.01, 0.5, 1.0, "no difference shown"),
            ("f16", "random", 4, 0.65, 0.6, 0.7, 0, 0, "A above B"),
        ],
        columns=["kind", "against", "shots", "difference", "ci_low", "ci_high", "p_value", "p_holm", "verdict"],
    )
    over = {"difference": -0.01, "ci_low": -0.03, "ci_high": 0.01}
    answered = {"f16": {"shots_4": 0.85, "agreement": 0.99, "over_transformers": over}}
    answered |= {} if second_runs else {"q8_0": broken}
    for name, content in {
        "gguf.json": json.dumps(exported),
        "gguf_metrics.json": json.dumps(answered),
        "gguf_accuracy.csv": accuracy.to_csv(index=False),
        "gguf_differences.csv": differences.to_csv(index=False),
        "benchmark.json": json.dumps({"engines": {"f16": ENGINE, "q8_0": ENGINE if second_runs else broken}}),
    }.items():
        (root / "reports").mkdir(parents=True, exist_ok=True)
        (root / "reports" / name).write_text(content)


def make_repository(
    root: Path,
    methods: Sequence[str] = tuple(ACCURACY),
    seeds: Sequence[int] = (3, 8),
    gates: Any = GATES,
    head: Any = HEADLINE,
) -> pd.DataFrame:
    """Write all inputs of the stage below `root`, as the other stages would; return the answers."""
    answers = make_answers(methods, seeds)

    def write(path: str, content: str) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)

    write(
        "params.yaml",
        json.dumps({"seeds": list(seeds), "grpo": {"lr": 5e-5}, "report": {"gates": gates, "headline": head}}),
    )
    stage = {"cmd": "x", "deps": list(DEPS), "params": ["seeds", "grpo", "report"], "outs": list(OUTS)}
    write("dvc.yaml", json.dumps({"stages": {"report": stage}}))
    write("src/leverlab/report/page.html.jinja", "declared")
    card = "# Data card: toy\n\n<script>alert(1)</script> [x](//e.com) <a@e>\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    write("reports/data_card.md", card)
    (root / "data").mkdir()
    write_table(root / "data/answers.parquet", answers.to_dict("records"), ANSWER_SCHEMA)
    shots = shots_table(answers, resamples=50)
    write("reports/shots.csv", shots.to_csv(index=False))
    write("reports/metrics.json", json.dumps(metrics(answers)))
    finding = {"name": "headroom", "value": 0.5, "limit": 0.1, "direction": "at_least", "ok": True, "meaning": "room"}
    write("reports/health.json", json.dumps({"findings": [finding]}))
    write_export(root, second_runs=True)
    checkpoints = []
    for method, run_folder in RUNS:
        for seed in seeds:
            rows = pd.DataFrame({"epoch": [1, 2], "val_accuracy": [0.3, 0.4 + seed / 100], "entropy": [2.0, 1.0]})
            write(f"models/{run_folder.format(seed=seed)}/metrics.csv", rows.to_csv(index=False))
            checkpoints.append(rows.assign(distinct_demos=70.6, method=method, seed=seed, val_loss=1.5, kl=np.nan))
    table = pd.concat(checkpoints).assign(val_accuracy_1=0.2, val_accuracy_4=0.5)
    write("models/best/checkpoints.csv", table.assign(chosen=table["epoch"] == 2).to_csv(index=False))
    return answers


def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the stage in `root`; return the page."""
    monkeypatch.chdir(root)
    stage = Stage(read_declaration(Path("dvc.yaml"), "report", {}))
    stage.prepare()
    body(stage)
    stage.check_inputs()
    stage.publish()
    return Path("reports/report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """The page as tags, as the text of <header>, and as rows of cells by the id of the section they stand in."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.header, self.title, self.section = "", "", "header"
        self.rows: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["aria-labelledby"] or ""
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in {"td", "th"}:
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if "header" in self.open:
            self.header += data
        if "h1" in self.open:
            self.title += data.replace("\u00a0", " ")
        if {"td", "th"} & set(self.open):
            self.rows[self.section][-1][-1] += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small repository after the stage: its folder, its answers and its page."""
    root = tmp_path_factory.mktemp("clone")
    answers = make_repository(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        html = run(root, monkeypatch)
    return root, answers, html


def mean(answers: pd.DataFrame, **where: Any) -> float:
    """The mean accuracy of the rows that match, by a plain loop."""
    total, count = 0.0, 0
    for row in answers.to_dict("records"):
        if all(row[key] == value for key, value in where.items()):
            total, count = total + row["vqa_accuracy"], count + 1
    return total / count


def text(share: float, sign: bool = False) -> str:
    return f"{100 * share:{'+' if sign else ''}.1f}".replace("-", "−")


def test_every_accuracy_is_that_of_the_answers(built: Any) -> None:
    root, answers, html = built
    rows = {row[0]: row[1:] for row in Page(html).rows["accuracy"][1:]}
    assert list(rows) == [LABELS[method] for method in ACCURACY]
    csv = pd.read_csv(root / "reports/tables/accuracy.csv").set_index(["method", "shots"])
    markdown = (root / "reports/tables/accuracy.md").read_text()
    for method in ACCURACY:
        for place, shots in enumerate((0, *SHOTS)):
            if (method == "zero_shot") != (shots == 0):
                assert rows[LABELS[method]][place] == ""
                continue
            value = mean(answers, method=method, shots=shots)
            assert rows[LABELS[method]][place].startswith(f"{text(value)}[")
            assert csv.loc[(method, shots), "accuracy"] == pytest.approx(value, abs=1e-6)
            assert f" {text(value)} [" in next(line for line in markdown.splitlines() if f"| {LABELS[method]} " in line)


def test_distinct_demos_and_seed_spread_stand_beside_the_accuracy(built: Any) -> None:
    _, answers, html = built
    seeds = [mean(answers, method="grpo", shots=4, seed=seed) for seed in (3, 8)]
    spread = abs(seeds[0] - seeds[1]) / 2**0.5  # the standard deviation of two numbers
    demos = [
        len(
            {
                demo
                for row in answers.to_dict("records")
                if (row["method"], row["seed"], row["shots"]) == ("grpo", seed, 4)
                for demo in row["demos"]
            }
        )
        for seed in (3, 8)
    ]
    cell = next(row for row in Page(html).rows["accuracy"] if row[0] == "GRPO")[-1]
    assert cell.endswith(f"σ {text(spread)}, {round(sum(demos) / 2)} demos")


def test_every_difference_is_that_of_the_answers(built: Any) -> None:
    root, answers, html = built
    csv = pd.read_csv(root / "reports/tables/comparisons.csv")
    assert len(csv) == 6 * 2
    for row in csv.to_dict("records"):
        other = 0 if row["method_b"] == "zero_shot" else row["shots"]
        difference = mean(answers, method="grpo", shots=row["shots"]) - mean(
            answers, method=row["method_b"], shots=other
        )
        assert row["difference"] == pytest.approx(difference, abs=1e-6)
    page = Page(html)
    shown = {row[0]: row[1] for row in page.rows["paired"][1:7]}
    for method in set(ACCURACY) - {"grpo"}:
        other = 0 if method == "zero_shot" else 4
        difference = mean(answers, method="grpo", shots=4) - mean(answers, method=method, shots=other)
        assert shown[LABELS[method]] == text(difference, sign=True)
    all_pairs = page.rows["paired"][8:]
    assert [(row[0], row[1], row[2]) for row in all_pairs] == [
        (LABELS[row["method_b"]], str(row["shots"]), text(row["difference"], sign=True))
        for row in csv.to_dict("records")
    ]


def test_headline_says_what_the_numbers_say(built: Any) -> None:
    root, answers, html = built
    page = Page(html)
    lift = mean(answers, method="grpo", shots=4) - mean(answers, method="sft", shots=4)
    best = max(mean(answers, method=name, shots=4) for name in ("image_sim", "type_sim"))
    over_best = mean(answers, method="grpo", shots=4) - best
    assert page.title.startswith(f"With 4 demos, GRPO reaches {text(mean(answers, method='grpo', shots=4))} % accuracy")
    assert f"{text(lift)} points above SFT" in page.title
    assert f"{text(over_best)} points above the best retrieval baseline" in page.title
    row = pd.read_csv(root / "reports/tables/comparisons.csv").query("method_b == 'sft' and shots == 4").iloc[0]
    cells = next(row for row in page.rows["header"] if row[0] == "SFT")
    assert cells[3] == f"[{text(row['ci_low'], sign=True)}, {text(row['ci_high'], sign=True)}]"
    assert cells[4] == f"{row['p_holm']:.3f}"
    assert "2 seeds × 37 questions" in page.header
    assert "Holm-corrected over 12 comparisons" in page.header


def test_question_types_are_those_of_the_answers(built: Any) -> None:
    _, answers, html = built
    rows = Page(html).rows["types"]
    assert rows[0] == ["method", "colour (n = 13)", "number <b>& (n = 11)", "texture (n = 13)"]
    for row, method in zip(rows[1:], ACCURACY, strict=True):
        shots = 0 if method == "zero_shot" else 4
        kinds = ("colour", "number <b>&", "texture")
        assert row == [
            LABELS[method],
            *(text(mean(answers, method=method, shots=shots, question_type=kind)) for kind in kinds),
        ]


def test_the_page_needs_nothing_else(built: Any) -> None:
    root, _, html = built
    page = Page(html)
    assert "http" not in html
    assert str(root) not in html
    assert not [tag for tag, _ in page.tags if tag in {"script", "link", "img", "iframe", "object"}]
    links = [value for _, attrs in page.tags for key in ("src", "href") if (value := attrs.get(key)) is not None]
    assert links
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link for link in links if not link.startswith("#")} == set()
    assert {link[1:] for link in links} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


def test_the_page_can_be_read_by_all(built: Any) -> None:
    page = Page(built[2])
    assert ("html", {"lang": "en"}) in page.tags
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(attrs.get("aria-hidden") or re.search("GRPO|selector", attrs["aria-label"] or "") for attrs in pictures)
    assert [tag for tag, _ in page.tags if re.fullmatch("h[1-3]", tag)][:2] == ["h1", "h2"]
    assert "prefers-color-scheme: dark" in built[2]


def test_findings_gates_export_and_lineage_are_shown(built: Any) -> None:
    root, _, html = built
    page = Page(html)
    assert page.rows["gates"][1][-1] == "✓ pass"
    assert page.rows["health"][1] == ["headroomroom", "0.5", "≥ 0.1", "✓ kept"]
    export = page.rows["export"]
    assert ["f16", "all", "12", "100.0", "0.0123", "0.045", "3e−07", "97.5", "100.0"] in export
    assert ["f16", "1x1", "12", "100.0", "–", "0.045", "3e−07", "97.5", "100.0"] in export
    shots = ["10.0 [5.0, 15.0]", "80.0 [75.0, 85.0]", "85.0 [80.0, 90.0]"]
    assert ["f16", *shots, "−1.0 [−3.0, +1.0]", "–", "+65.0 [+60.0, +70.0]", "99.0"] in export
    assert ["f16", "1.5", "85.0 [80.0, 90.0]", "5.5"] in export  # size, accuracy and speed in one row; no picture
    assert not list((root / "reports/figures").glob("export*"))
    speed = ["f16", "1.5", "0.25", "41.5", "8000", "4000", "1.5 / 2.5", "2.5 / 3.5", "5.5 / 6.5"]
    assert speed in export
    assert ["text-q8_0.gguf", "1,234,567", "51", "6e−05", "0"] in export
    short = page.rows["checkpoints"][1 : 1 + len(RUNS) * 2]  # the one chosen of every method and seed; all follow
    assert ["GRPO", "3", "2", "43.0", "20.0", "50.0", "1.5", "–", "1", "71"] in short
    chosen = [row for row in page.rows["checkpoints"] if row[-1] == "chosen"][1:]
    assert chosen == [[*row, "chosen"] for row in short]
    assert ["grpo.lr", "5e-05"] in page.rows["lineage"]
    assert "<script>" not in html
    assert "[x](//e.com) &lt;a@e&gt;" in html
    assert json.loads((root / "reports/gates.json").read_text())[0] == {
        "name": "over_sft",
        "metric": "lift.over_sft",
        "threshold": 0.1,
        "direction": "at_least",
        "value": json.loads((root / "reports/metrics.json").read_text())["lift"]["over_sft"],
        "passed": True,
    }


def test_headline_metrics_are_what_dvc_shows(built: Any) -> None:
    """The entropy is the mean over seeds; no gate failed."""
    root, answers, _ = built
    assert json.loads((root / "reports/headline.json").read_text()) == {
        "acc": pytest.approx(mean(answers, method="grpo", shots=4), abs=1e-4),
        "entropy": 1.0,
        "gguf": 0.0123,
        "red": 0,
    }


def test_two_clones_make_the_same_bytes(built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second runs under another path and with another matplotlibrc."""
    root, clone = built[0], tmp_path / "elsewhere" / "clone"
    shutil.copytree(
        root, clone, ignore=shutil.ignore_patterns("report.html", "gates.json", "headline.json", "tables", "figures")
    )
    import matplotlib

    with matplotlib.rc_context({"axes.facecolor": "red", "xtick.major.size": 12, "font.size": 20}):
        run(clone, monkeypatch)
    files = [file.relative_to(root) for out in OUTS for file in sorted((root / out).rglob("*")) or [root / out]]
    assert len(files) == 3 + 11 + 4
    for file in files:
        assert (clone / file).read_bytes() == (root / file).read_bytes(), file


def test_what_fails_is_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = {
        "too_much": {"metric": "sft.shots_4", "at_least": 0.99},
        "fine": {"metric": "sft.shots_4", "at_least": 0},
        "no_rule": None,
    }
    make_repository(tmp_path, methods=("zero_shot", "random", "sft"), seeds=[5], gates=gates, head={})
    health = {"name": "flat", "value": 0.9, "limit": 0.5, "direction": "at_most", "ok": False, "meaning": "no signal"}
    (tmp_path / "reports/health.json").write_text(json.dumps({"findings": [health]}))
    write_export(tmp_path, second_runs=False)
    page = Page(run(tmp_path, monkeypatch))
    before = page.header.split("With 4 demos")[0]
    assert "5 checks failed" in before  # with the three that the second kind lacks
    assert [row[0] for row in page.rows["export"][1:3]] == ["f16", "type"]  # one row in the table of sizes
    assert re.search(r"Gate failed\.\s+too_much: sft.shots_4 is 0\.\d+, must be at least 0.99\.", before)
    assert "flat is 0.9, must be at most 0.5: no signal." in before
    for what, stage in (("parity", "gguf"), ("answers", "gguf-800"), ("engines", "benchmark")):
        again = f"fix it and measure again: dvc repro -f -s {stage}."
        assert f"{what} of q8_0: llama.cpp was ended by SIGABRT; {again}" in before
    assert "fine" not in before
    assert "1 of 2 gates passed · 1 gate off · 0 of 1 health check kept" in page.header
    assert json.loads((tmp_path / "reports/gates.json").read_text())[2:] == [{"name": "no_rule", "off": True}]
    assert [row[-1] for row in page.rows["gates"][1:]] == ["✓ pass", "✗ FAIL", "off"]  # in alphabetical order


def test_one_method_and_one_seed_make_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = make_repository(tmp_path, methods=["random"], seeds=[5], gates={}, head={})
    page = Page(run(tmp_path, monkeypatch))
    assert (
        page.title
        == f"With 4 demos, Random demos reach {text(mean(answers, shots=4))} % accuracy on 37 test questions."
    )
    assert "failed" not in page.header
    assert "1 seed × 37 questions; one seed says nothing" in page.header
    assert [row[0] for row in page.rows["accuracy"][1:]] == ["Random demos"]
    assert "paired" not in page.rows


def edit(root: Path, path: str, old: str, new: str) -> None:
    before = (root / path).read_text()
    assert old in before
    (root / path).write_text(before.replace(old, new))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of two methods and two seeds."""
    root = tmp_path_factory.mktemp("small")
    make_repository(
        root, ("random", "grpo"), seeds=[5, 6], gates={"g": {"metric": "grpo.shots_4", "at_least": 0}}, head={}
    )
    return root


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("params.yaml", "grpo.shots_4", "grpo.shot_4", r"gate 'g' asks for the metric 'grpo\.shot_4'"),
        ("models/best/checkpoints.csv", "True", "False", "chooses 0 epochs of grpo, seed 5, not one"),
        ("models/best/checkpoints.csv", "True", "yes", r"has the damaged columns \['chosen'\]"),
        ("models/best/checkpoints.csv", "sft_control", "sft_contol", "unknown methods"),
        ("reports/shots.csv", "grpo", "rce", "both come from infer-800"),
        ("reports/shots.csv", "seed_std", "std", r"shots.csv lacks the columns \['seed_std'\]"),
        ("reports/health.json", '"limit"', '"limits"', "health finding"),
        ("reports/gguf.json", '"files"', '"file"', "must hold files, an object of objects"),
        ("reports/gguf.json", '"tensors"', '"tensor"', "lacks a figure"),
        ("reports/benchmark.json", '"engines"', '"engine"', "must hold engines"),
        ("reports/gguf_accuracy.csv", "accuracy", "score", r"lacks the columns \['accuracy'\]"),
        ("reports/metrics.json", "{", "[", "damaged or no JSON"),
        ("params.yaml", "[5, 6]", "5", "'seeds' must be a list of whole numbers, not 5"),
        ("params.yaml", '"at_least": 0', '"at_least": 0, "at_most": 1', "exactly one of at_least and at_most"),
        ("dvc.yaml", ', "src/leverlab/report/page.html.jinja"', "", "page.html.jinja' without declaring it"),
    ],
)
def test_bad_input_is_named(
    path: str, old: str, new: str, message: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(small, tmp_path / "clone")
    edit(root, path, old, new)
    with pytest.raises(LeverlabError, match=message):
        run(root, monkeypatch)


def test_a_missing_curve_is_an_error(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds come from params, not from the folders that are there."""
    root = shutil.copytree(small, tmp_path / "clone")
    (root / "models/grpo/6/sft_control/metrics.csv").unlink()
    with pytest.raises(LeverlabError, match=r"models/grpo/6/sft_control/metrics.csv does not exist"):
        run(root, monkeypatch)


def test_where_the_guard_stepped_in_is_told(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch that was undone stands on top of the page; an alarm stands with the learning curves alone."""
    root = shutil.copytree(small, tmp_path / "clone")
    path = root / "models/grpo/6/grpo/metrics.csv"
    guard = {"action": ["back", "alarm"], "guard": ["back to epoch 0: KL 9", "alarm: KL 0"], "sound": [False, True]}
    pd.read_csv(path).assign(**guard).to_csv(path, index=False)
    page = run(root, monkeypatch)
    top, rest = page.split("<h1>")
    assert "GRPO, seed 6, epoch 1: back to epoch 0: KL 9." in top
    assert "alarm" not in top
    assert "GRPO, seed 6, epoch 1: back to epoch 0: KL 9" in rest
    assert "GRPO, seed 6, epoch 2: alarm: KL 0" in rest
