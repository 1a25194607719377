"""The stage report of the recipe `clarify` on a small made-up run: the numbers of the page are those of a slow loop
over the dialogues."""

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from leverlab.config.base import read_params
from leverlab.dvcfile import read_declaration
from leverlab.errors import LeverlabError
from leverlab.lm import acceptance, summary
from leverlab.lm.dialogues import Dialogue
from leverlab.lm.questions import Question, write_questions
from leverlab.lm.records import DialogueRecord, write_records
from leverlab.pipeline.gate import read_gates
from leverlab.report.clarify_dialogues import changes
from leverlab.report.clarify_export import gguf_metrics, read_export
from leverlab.report.clarify_figures import curves_figure
from leverlab.report.clarify_gates import guard_events, max_kl
from leverlab.report.clarify_headline import headline
from leverlab.report.clarify_inputs import POLICIES, Runs
from leverlab.report.clarify_tables import signed
from leverlab.stage import Stage
from stages.clarify.report import body
from tests.lm.scripted import TOLD, ask, dialogue, final, question
from tests.report.test_stage import Page

HOME = "recipes/clarify"
SEEDS = (3, 8)
FAMILIES = ("math", "multihop", "strategy")
ASKED, DIRECT, WRONG = [ask("home"), final("Oslo")], [final("Oslo")], [final("Rome <b>")]
NEEDLESS, SPAM = [ask("friend"), final("Oslo")], [ask("friend"), ask("friend"), final("Rome")]
GATES = {
    "gain": {"metric": "lift.need_success", "at_least": 0.07},
    "reduction": {"metric": "lift.over_clarification_reduction", "at_least": 0.25},
    "too_much": {"metric": "grpo.test.success", "at_least": 0.99},
    "kl": {"metric": "grpo.max_kl", "at_most": 0.12},
    "events": {"metric": "grpo.seeds_with_events", "at_most": 1},
    "variance": {"metric": "hack_probe.verified.variance_spike", "at_most": 0.1},
    "all_alarms": {"metric": "hack_probe.proxy.silent", "at_most": 0},
    "no_alarm": {"metric": "hack_probe.verified.alarms", "at_most": 0},
    "overlap": {"metric": "shadow.overlap", "at_least": 0.72},
    "shadow_gain": {"metric": "shadow.gain", "at_least": 0.12},
    "q4": {"metric": "gguf.q4_0.need_success", "at_least": 0.9},
}
DEPS = (
    *(f"{HOME}/data/{name}" for name in ("questions", "answers")),
    *(f"{HOME}/models/{name}" for name in ("sft", "rce", "grpo", "dpo", "best", "scorers")),
    *(f"{HOME}/reports/{name}" for name in ("answers", "metrics.json", "health", "data_card.md")),
    *(f"{HOME}/reports/{name}.json" for name in ("hack_probe", "shadow", "gguf", "benchmark")),
    "src/leverlab/report/clarify_page.html.jinja",
)
OUTS = [
    f"{HOME}/reports/{name}"
    for name in ("report.html", "gates.json", "headline.json", "rc1_final_report.json", "tables", "figures")
]
PARAMS = Path(__file__).parents[2] / HOME / "params.yaml"


def made(split: str, number: int) -> Question:
    """Question `number` of a split: the even ones need an ask, families in turn; ids are unique, texts too."""
    changes = {} if number % 2 == 0 else TOLD
    name = f"{split}-{number:02d}"
    return question(id=name, family=FAMILIES[number // 2 % 3], text=f"{name} : where does Bo live ?", **changes)


QUESTIONS = {split: [made(split, i) for i in range(n)] for split, n in (("test", 12), ("ood", 4), ("red_team", 4))}
BY_ID = {asked.id: asked for questions in QUESTIONS.values() for asked in questions}


def said(policy: str, seed: int, temperature: float, asked: Question) -> list[str]:
    """What a policy says: SFT guesses and asks much, RCE less, GRPO hardly; DPO spams once."""
    number = int(asked.id[-2:]) + (temperature > 0) + seed
    if asked.needs_ask:
        wrong = {
            "sft": number % 3 < 2,
            "rce": number % 4 == 0,
            "grpo": asked.id == "test-06" and seed == 8,
            "dpo": False,
        }
        return WRONG if wrong[policy] else ASKED
    if policy == "dpo" and asked.id == "test-05":
        return SPAM
    needless = {"sft": number % 4 != 0, "rce": number % 3 == 0, "grpo": asked.id == "test-07", "dpo": number % 5 == 0}
    return NEEDLESS if needless[policy] else DIRECT


def record(policy: str, seed: int, temperature: float, asked: Question) -> DialogueRecord:
    turns = said(policy, seed, temperature, asked)
    held = dialogue(asked, turns)
    fields = {"question": asked.id, "policy": policy, "seed": seed, "step": 0, "temperature": temperature}
    return DialogueRecord(**fields, turns=turns, replies=list(held.replies), end=held.end, confidence=0.5, tokens=7)


RECORDS = [
    record(policy, seed, temperature, asked)
    for policy in POLICIES
    for seed in SEEDS
    for temperature in (0.0, 1.0)
    for asked in BY_ID.values()
]


def evaluations(kls: list[float], **columns: list[Any]) -> pd.DataFrame:
    """Evaluations of GRPO at the steps 0, 10, …, nothing but KL and the given columns differing."""
    n = len(kls)
    fixed = {"beta": 0.02, "alpha": 0.07, "reward": 0.5, "success": 0.5, "need_success": 0.4, "over_clarification": 0.3}
    rows = {
        "step": range(0, 10 * n, 10),
        **fixed,
        "entropy": 0.1,
        "kl": kls,
        "action": "none",
        "guard": None,
        "sound": True,
    }
    return pd.DataFrame(rows | columns)


EVALUATIONS = {
    3: evaluations(
        [0.0, 0.02, 0.2, 0.06], action=["none", "none", "back", "none"], guard=[None, None, "back <to> 10", None]
    ),
    8: evaluations([0.0, 0.01, 0.03, 0.9]),
}
CHOSEN = {3: 30, 8: 20}
FIGURES = {"ask_spam": 0.4, "format_exploit": 0.3, "variance_spike": 0.2, "kl": 0.5, "proxy": 0.9, "verified": 0.4}
EXAMPLE = {
    "question": "proxied ?",
    "turns": [ask("home")],
    "replies": ["Bo Oslo"],
    "answer": "Oslo",
    "proxy": 0.7,
    "verified": 0.1,
}
ESTIMATE = {"value": 0.9, "low": 0.8, "high": 0.95, "reason": ""}


def write_measured(root: Path) -> None:
    """Write what hack-probe, shadow, gguf, benchmark and rl-data would."""
    calm = dict.fromkeys(FIGURES, 0.01) | {"variance_spike": 0.05, "over_clarification": None}
    arms = {
        "proxy": {"figures": FIGURES, "alarms": 4, "raised": ["kl is 0.5, above 0.12"], "examples": [EXAMPLE]},
        "verified": {"figures": calm, "alarms": 0, "raised": [], "examples": []},
    }
    limits = {"ask_spam": 0.05, "format_exploit": 0.03, "variance_spike": 0.1, "kl": 0.12}
    first = {"ask_spam": 10, "format_exploit": 20, "variance_spike": None, "kl": 10}
    names = ("spearman", "overlap", "correlation_old", "correlation_new")
    blind = {"value": None, "low": None, "high": None, "reason": "the old scorer is blind"}
    answered = {"need_success": 0.95, "over_clarification": 0.05, "success": 0.96, "same_dialogues": 0.99}
    engine = {"file_mib": 1.5, "resident_mib": 40.0, "prompt_per_second": 800.0, "predicted_per_second": 400.0}
    for name, content in {
        "hack_probe": {"limits": limits, "arms": arms, "first_alarm_step": first},
        "shadow": {"n": 245} | dict.fromkeys(names, ESTIMATE) | {"gain": blind},
        "gguf": {
            "files": {"f16": {"bytes": 1234567, "tensors": 20, "max_abs_error": 0.001, "values_beyond": 0}},
            "parity": {"f16": {"max_delta": 0.0123, "greedy": 0.975}},
            "answers": {
                "transformers float32": answered,
                "f16": answered,
                "q4_0": {"error": "llama.cpp was ended by SIGABRT"},
            },
        },
        "benchmark": {"engines": {"f16": engine | {"latency_ms": {"p50": 3.5, "p95": 4.5}}}},
        **{f"health/{seed}": {"live_groups": 0.5, "asked_in_need": None} for seed in SEEDS},
    }.items():
        write(root / f"{HOME}/reports/{name}.json", json.dumps(content))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_repository(root: Path, gates: Mapping[str, Any] = GATES) -> None:
    """Write all inputs of the stage below `root`, as the other stages would."""
    params = {name: read_params(PARAMS)[name] for name in ("data", "grpo")} | {
        "seeds": SEEDS,
        "report": {"gates": gates, "headline": {"need": "grpo.test.need_success", "overlap": "shadow.overlap"}},
    }
    write(root / f"{HOME}/params.yaml", json.dumps(params))
    declared = [{f"{HOME}/params.yaml": ["seeds", "data", "grpo", "report"]}]
    stage = {"cmd": "x", "wdir": "../..", "deps": list(DEPS), "params": declared, "outs": OUTS}
    write(root / f"{HOME}/dvc.yaml", json.dumps({"stages": {"report": stage}}))
    write(root / "src/leverlab/report/clarify_page.html.jinja", "declared")
    write(root / f"{HOME}/reports/data_card.md", "# Data card: toy\n\n<script>alert(1)</script>\n")
    for split, questions in QUESTIONS.items():
        write_questions(root / f"{HOME}/data/questions/{split}.jsonl", questions)
    write_records(root / f"{HOME}/data/answers/answers.jsonl", RECORDS)
    found = summary.outcomes(RECORDS, QUESTIONS)
    compared = acceptance.comparisons(found, resamples=100)
    tables = {
        "splits": summary.table(found, resamples=50),
        "families": summary.table(found, ("policy", "temperature", "split", "family"), resamples=50),
        "comparisons": compared,
    }
    for name, frame in tables.items():
        write(root / f"{HOME}/reports/answers/{name}.csv", frame.to_csv(index=False, float_format="%.6g"))
    wins = summary.plain(asdict(acceptance.dpo_win_rate(found, resamples=100)))
    write(root / f"{HOME}/reports/answers/win_rate.json", json.dumps(wins))
    measured = summary.plain(acceptance.metrics(found, compared, 0.0))
    write(root / f"{HOME}/reports/metrics.json", json.dumps(measured))
    write_measured(root)
    for seed in SEEDS:
        steps = pd.DataFrame({"step": [1, 2], "loss": [0.5, 0.4], "reward": 0.5, "kl": 0.1, "entropy": 0.2})
        steps = steps.assign(alpha=0.07, beta=0.02, **{"terms/correct": [0.5, 0.6]})
        for policy in POLICIES:
            rows = EVALUATIONS[seed] if policy == "grpo" else EVALUATIONS[8].head(1)
            write(root / f"{HOME}/models/{policy}/{seed}/steps.csv", steps.to_csv(index=False))
            write(root / f"{HOME}/models/{policy}/{seed}/evaluations.csv", rows.to_csv(index=False))
    chosen = pd.concat(EVALUATIONS[seed].query("step == @CHOSEN[@seed]").assign(seed=seed) for seed in SEEDS)
    write(root / f"{HOME}/models/best/choices.csv", chosen.to_csv(index=False))
    write(
        root / f"{HOME}/models/scorers/scorers.json",
        json.dumps(
            {"old": {"parses": 0.15}, "new": {"parses": 0.25}, "ensemble": [], "strength": 30.0, "faithful": True}
        ),
    )


def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the stage in `root`; return the page."""
    monkeypatch.chdir(root)
    stage = Stage(read_declaration(Path(HOME) / "dvc.yaml", "report", {}), HOME)
    stage.prepare()
    body(stage)
    stage.check_inputs()
    stage.publish()
    return Path(f"{HOME}/reports/report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The small repository after the stage: its folder and its page."""
    root = tmp_path_factory.mktemp("clone")
    make_repository(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return root, run(root, monkeypatch)


@pytest.fixture
def copied(built: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the repository to damage."""
    return shutil.copytree(built[0], tmp_path / "copy")


def held(policy: str, temperature: float = 0.0, split: str = "test", **fields: Any) -> list[Dialogue]:
    """The dialogues that match, by a plain loop over the records."""
    found = []
    for one in RECORDS:
        asked = BY_ID[one.question]
        here = one.policy == policy and one.temperature == temperature and one.question.startswith(f"{split}-")
        if here and all(getattr(one if name == "seed" else asked, name) == value for name, value in fields.items()):
            found.append(one.dialogue(asked))
    return found


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def need_success(found: list[Dialogue]) -> float:
    return share([one.success for one in found if one.question.needs_ask])


def over_clarification(found: list[Dialogue]) -> float:
    return share([bool(one.asks) for one in found if not one.question.needs_ask])


def text(value: float, sign: bool = False) -> str:
    return f"{100 * value:{'+' if sign else ''}.1f}".replace("-", "−")


def test_the_main_table_is_that_of_the_dialogues(built: tuple[Path, str]) -> None:
    rows = [row for row in Page(built[1]).rows["policies"] if len(row) == 12]
    assert len(rows) == 2 * 5
    for temperature, part in ((0.0, rows[1:5]), (1.0, rows[6:])):
        assert [row[0] for row in part] == list(POLICIES.values())
        for policy, row in zip(POLICIES, part, strict=True):
            found = held(policy, temperature)
            asks = sum(len(one.asks) for one in found)
            needed = sum(one.question.needs_ask and one.question.slot in one.asks for one in found)
            over_all = share([bool(one.asks) and not one.question.needs_ask for one in found])
            for place, value in {
                1: need_success(found),
                2: over_clarification(found),
                3: over_all,
                4: share([one.success for one in found]),
                6: needed / sum(one.question.needs_ask for one in found),
                9: share([all(turn.parses and turn.thought for turn in one.turns) for one in found]),
                10: share([all(one.grounded_thoughts) for one in found]),
                11: share([one.spam for one in found]),
            }.items():
                assert re.match(rf"{text(value)}\[\d+\.\d, \d+\.\d\]$", row[place]), (policy, place, row[place], value)
            assert row[5] == text(needed / asks)
            assert row[7] == f"{(asks - needed) / len(found):.3f}"
            assert row[8] == f"{sum(len(one.turns) for one in found) / len(found):.3f}"
    main = (built[0] / f"{HOME}/reports/tables/main.md").read_text()
    assert f" {text(need_success(held('grpo', 1.0)))} [" in next(
        line for line in main.splitlines() if line.startswith("| GRPO") and "temperature 1" in line
    )


def test_families_and_kinds_are_those_of_the_dialogues(built: tuple[Path, str]) -> None:
    page = Page(built[1])
    rows = {(row[0], row[1]): row[2:] for row in page.rows["families"] if len(row) == 6}
    for family in FAMILIES:
        for policy, label in POLICIES.items():
            found = held(policy, family=family)
            assert rows[family, label][0].startswith(f"{text(need_success(found))}[")
            assert rows[family, label][1].startswith(f"{text(over_clarification(found))}[")
    for split in ("ood", "red_team"):
        kinds = (built[0] / f"{HOME}/reports/tables/{split}_kinds.md").read_text()
        line = next(line for line in kinds.splitlines() if re.match(r"\| plain +\| +2 \| +SFT", line))
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        assert cells[3:5] == ["–", text(over_clarification(held("sft", split=split)))]


def test_the_headline_is_that_of_the_dialogues(built: tuple[Path, str]) -> None:
    """Twelve questions show nothing after Holm's correction, and the headline says so."""
    page = Page(built[1])
    gain = need_success(held("grpo")) - need_success(held("sft"))
    less = over_clarification(held("grpo")) - over_clarification(held("sft"))
    assert page.title.startswith(
        f"On 12 test questions, GRPO is right on {text(need_success(held('grpo')))} % of those that need an ask, "
        f"no difference shown from SFT ({text(gain, sign=True)} points ["
    )
    assert f"and asks needlessly on {text(over_clarification(held('grpo')))} % of the others" in page.title
    assert f"({text(less, sign=True)} points [" in page.title
    by_rce = need_success(held("rce")) - need_success(held("sft"))
    on_top = over_clarification(held("grpo")) - over_clarification(held("rce"))
    credit = page.header.replace("\u00a0", " ")
    assert f"RCE over SFT: need-success no difference shown, {text(by_rce, sign=True)} points [" in credit
    assert (
        f"over-clarification no difference shown, {text(on_top, sign=True)} points ["
        in credit.split("GRPO over RCE")[1]
    )
    assert "6 of which need an ask · 2 seeds" in page.header


def test_the_headline_tells_what_was_shown_and_where() -> None:
    """By hand: GRPO is 10 points above SFT, and 30 points below; RCE brought the first, GRPO the second."""
    first = {"n": 800, "needed": 416, "split": "test", "temperature": 0.0, "policy": "grpo"}
    figures = {"need_success": 0.975, "over_clarification": 0.051}
    splits = pd.DataFrame([first | figures | {"seed": seed} for seed in ("0", "1", "all")])
    rows = []
    for a, b, measure, difference, shown in (
        ("grpo", "sft", "need_success", 0.1, "A above B"),
        ("grpo", "sft", "over_clarification", -0.3, "A below B"),
        ("rce", "sft", "need_success", 0.099, "A above B"),
        ("rce", "sft", "over_clarification", -0.01, "no difference shown"),
        ("grpo", "rce", "need_success", 0.001, "no difference shown"),
        ("grpo", "rce", "over_clarification", -0.29, "A below B"),
    ):
        ends = {"difference": difference, "ci_low": difference - 0.02, "ci_high": difference + 0.02, "verdict": shown}
        rows.append({"policy_a": a, "policy_b": b, "measure": measure, "seed": "all"} | ends)
    found = headline(splits, pd.DataFrame(rows))
    assert found.sentence.replace("\u00a0", " ") == (
        "On 800 test questions, GRPO is right on 97.5 % of those that need an ask, 10.0 points above SFT "
        "[+8.0, +12.0], and asks needlessly on 5.1 % of the others, 30.0 points below SFT [−32.0, −28.0]."
    )
    assert found.credit.replace("\u00a0", " ") == (
        "RCE over SFT: need-success +9.9 points [+7.9, +11.9], over-clarification no difference shown, "
        "−1.0 points [−3.0, +1.0]; GRPO over RCE: need-success no difference shown, +0.1 points [−1.9, +2.1], "
        "over-clarification −29.0 points [−31.0, −27.0]."
    )
    with pytest.raises(LeverlabError, match="lack grpo over rce"):
        headline(splits, pd.DataFrame(rows[:-1]))


def test_gates_are_those_of_the_dialogues_and_files(built: tuple[Path, str]) -> None:
    """max_kl by hand, over a window of 3: seed 3 went back at step 20, so its window at step 30 holds that step alone
    (.06); seed 8 was chosen at step 20: (.01 + .03) / 2 = .02. One seed had an event."""
    root, _ = built
    gains = [
        need_success(held("grpo", family=family, seed=seed)) - need_success(held("sft", family=family, seed=seed))
        for family in FAMILIES
        for seed in SEEDS
    ]
    gain = (sorted(gains)[2] + sorted(gains)[3]) / 2
    reduction = 1 - over_clarification(held("grpo")) / over_clarification(held("sft"))
    expected = {
        "gain": (gain, gain >= 0.07),
        "reduction": (reduction, reduction >= 0.25),
        "too_much": (share([one.success for one in held("grpo")]), False),
        "kl": (0.06, True),
        "events": (1, True),
        "variance": (0.05, True),
        "all_alarms": (0, True),
        "no_alarm": (0, True),
        "overlap": (0.9, True),
        "shadow_gain": (None, False),
        "q4": (None, False),
    }
    gates = {gate.name: gate for gate in read_gates(root / HOME)}
    assert set(gates) == set(GATES)
    for name, (value, passed) in expected.items():
        assert gates[name].value == (None if value is None else pytest.approx(value, abs=1e-6)), name
        assert gates[name].passed == passed, name
    need = need_success(held("grpo"))
    assert json.loads((root / f"{HOME}/reports/headline.json").read_text()) == {
        "need": pytest.approx(need, abs=1e-4),
        "overlap": 0.9,
        "red": 3,
    }
    accepted = json.loads((root / f"{HOME}/reports/rc1_final_report.json").read_text())
    assert not accepted["accepted"]
    assert accepted["failed"] == ["q4", "shadow_gain", "too_much"]
    assert accepted["win_rate"]["policy_a"] == "dpo"
    assert accepted["stages"]["grpo over sft"]["need_success"]["difference"] == pytest.approx(
        need_success(held("grpo")) - need_success(held("sft")), abs=1e-5
    )


def test_the_answer_is_first_and_what_failed_follows_it(built: tuple[Path, str]) -> None:
    page = Page(built[1])
    before, answer = page.header.split("On 12 test questions")
    assert "failed" not in before
    alerts = answer.split("Greedy dialogues on test questions")[0]
    assert "4 checks failed" in alerts  # three gates, and the kind that llama.cpp did not run
    assert re.search(r"Gate failed\.\s+too_much: grpo\.test\.success is 0\.\d+, must be at least 0\.99\.", alerts)
    assert "shadow_gain: shadow.gain is –, must be at least 0.12." in alerts
    assert "answers of q4_0: llama.cpp was ended by SIGABRT; fix it and measure again: dvc repro -f -s gguf." in alerts
    assert "overlap" not in alerts
    assert "8 of 11 gates passed" in page.header
    assert [row[-1] for row in page.rows["gates"][1:]] == ["✗ FAIL"] * 3 + ["✓ pass"] * 8


def test_the_page_needs_nothing_else(built: tuple[Path, str]) -> None:
    html = built[1]
    for word in ("http", "src=", "@import", "<script", "<link"):
        assert word not in html
    page = Page(html)
    assert page.open == []
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag in {"a", "use"} and attrs.get("href")} <= targets
    assert "Rome &lt;b&gt;" in html
    assert "prefers-color-scheme: dark" in html
    assert html.count("<svg") >= 6


def test_dialogues_that_changed_are_those_of_a_loop(built: tuple[Path, str]) -> None:
    improved, worse = [], []
    for seed in SEEDS:
        for before, after in zip(held("sft", seed=seed), held("grpo", seed=seed), strict=True):
            good = [one.success and one.needless_asks == 0 for one in (before, after)]
            if good != good[::-1]:
                (improved if good[1] else worse).append((seed, before.question))
    assert improved
    assert worse
    found = changes(RECORDS[::-1], {asked.id: asked for asked in QUESTIONS["test"]}, 3)
    assert (found.pairs, found.improved, found.worse) == (24, len(improved), len(worse))
    first = {family: next(one for one in improved if one[1].family == family) for family in FAMILIES}
    assert [(pair.seed, pair.question) for pair in found.shown_improved] == [first[family] for family in FAMILIES]
    flat = " ".join(built[1].split())
    part = flat[flat.index('id="improved"') : flat.index('id="worse"')]
    seed, asked = first["math"]
    assert part.index(f"{asked.id}, seed {seed}, math") < part.index(f"{first['strategy'][1].id}, seed")
    assert f"{len(improved)} improved from SFT to GRPO and {len(worse)} got worse" in flat


def test_events_probe_shadow_and_speed_stand_on_the_page(built: tuple[Path, str]) -> None:
    page = Page(built[1])
    assert page.rows["curves"][1:3] == [["3", "20", "back", "back <to> 10"], ["8", "–", "none", "–"]]
    probe = {row[0]: row[1:] for row in page.rows["probe"]}
    assert probe["kl"] == ["≤ 0.12", "0.5", "0.01", "step 10"]
    assert probe["variance_spike"] == ["≤ 0.1", "0.2", "0.05", "never"]
    assert probe["proxy"] == ["–", "0.9", "0.01", "–"]
    assert "the proxy pays 0.7, the verified reward is 0.1" in built[1]
    assert page.rows["shadow"][2][:3] == ["overlap", "0.900", "[0.800, 0.950]"]
    assert page.rows["shadow"][5][1:] == [
        "–",
        "[–, –]",
        "how far the second is above the first, as a share of it; the old scorer is blind",
    ]
    assert ["parses", "0.150", "0.250"] in page.rows["shadow"]
    head, reference, of_f16 = page.rows["export"][:3]
    exported = dict(zip(head, of_f16, strict=True))
    assert reference[:5] == ["transformers float32", "95.0", "5.0", "96.0", "99.0"]
    assert exported["type"] == "f16"
    assert exported["need-success (%)"] == "95.0"
    assert exported["largest Δ log-prob"] == "0.0123"
    assert exported["ms of a turn, median"] == "3.5"
    wins = json.loads((built[0] / f"{HOME}/reports/answers/win_rate.json").read_text())
    assert page.rows["dpo"][1][1].startswith(f"{text(wins['win_rate'])}[")
    assert page.rows["dpo"][1][2:5] == [str(wins[name]) for name in ("wins", "ties", "losses")]
    assert page.rows["health"][1] == ["live_groups", "0.5", "0.5"]


def test_signed_numbers_have_a_sign_only_beside_zero() -> None:
    assert [signed(value) for value in (0.0004, -0.0004, 0.0, 0.12, -0.1, math.nan)] == [
        *["0.000"] * 3,
        "+0.120",
        "−0.100",
        "–",
    ]


def test_the_largest_kl_is_that_of_the_chosen_evaluations() -> None:
    """By hand, window 2: (.02 + .04) / 2 = .03 at step 20; what comes after the choice (.9) does not count."""
    choices = pd.DataFrame({"seed": [0], "step": [20]})
    runs = Runs({}, {"grpo": {0: evaluations([5.0, 0.02, 0.04, 0.9])}}, choices)
    assert max_kl(runs, 2) == pytest.approx(0.03)
    assert max_kl(runs, 1) == pytest.approx(0.04)
    assert guard_events(runs).empty


def test_curves_show_the_rows_rings_and_crosses() -> None:
    """The panel of the KL: a line a seed as in its file, rings at chosen steps, a cross where it went back."""
    steps = pd.DataFrame({"step": [1], "loss": [0.5]})
    choices = pd.DataFrame({"seed": [3, 8], "step": [30, 20]})
    figure = curves_figure(Runs({"grpo": {3: steps, 8: steps}}, {"grpo": EVALUATIONS}, choices))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert "term: correct (%)" not in titles  # no run has it
    drawn = figure.axes[titles.index("KL (nats a token)")].lines
    for seed, (line, ring, cross) in zip((3, 8), (drawn[:3], drawn[3:]), strict=True):
        rows = EVALUATIONS[seed]
        assert line.get_xydata().tolist() == rows[["step", "kl"]].to_numpy(float).tolist()
        assert (
            ring.get_xydata().tolist() == rows.query("step == @CHOSEN[@seed]")[["step", "kl"]].to_numpy(float).tolist()
        )
        assert cross.get_xydata().tolist() == ([[20.0, 0.2]] if seed == 3 else [])


def test_an_unmeasured_kind_is_nan_and_every_known_figure_stays(built: tuple[Path, str]) -> None:
    reports = built[0] / HOME / "reports"
    found = gguf_metrics(read_export(reports / "gguf.json", reports / "benchmark.json"), ("q8_0",))
    assert found["f16"]["need_success"] == 0.95
    assert found["f16"]["greedy"] == 0.975
    assert all(math.isnan(found[kind][name]) for kind in ("q4_0", "q8_0") for name in ("success", "max_delta"))


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("params.yaml", "grpo.test.success", "grpo.test.sucess", r"gate 'too_much' asks for the metric"),
        ("params.yaml", "[3, 8]", "[3, 9]", r"models/sft/9/steps.csv does not exist"),
        ("models/best/choices.csv", "20,", "25,", "chooses step 25 of seed 8, which was not evaluated"),
        ("models/grpo/8/evaluations.csv", "entropy", "entrophy", r"lacks the columns \['entropy'\]"),
        ("reports/answers/splits.csv", ",all,", ",0,", "holds no row over all seeds"),
        ("reports/hack_probe.json", '"ask_spam": 0.05', '"spam": 0.05', "lacks spam of the proxy arm"),
        ("reports/shadow.json", '"overlap"', '"overlaps"', "shadow.json: overlap: field required"),
        ("reports/gguf.json", '"answers"', '"answer"', "must hold answers, an object of objects"),
        ("reports/health/3.json", "0.5", '"half"', "health/3.json: live_groups"),
        ("dvc.yaml", ', "src/leverlab/report/clarify_page.html.jinja"', "", "without declaring it"),
    ],
)
def test_bad_input_is_named(
    path: str, old: str, new: str, message: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copied / HOME / path
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    monkeypatch.setattr("stages.clarify.report.write_pictures", lambda *_: {})
    with pytest.raises(LeverlabError, match=message):
        run(copied, monkeypatch)
