"""The recipe `clarify`, every stage once on small numbers, in one process: what its files say is what happened."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from leverlab.files import digest
from leverlab.lm import acceptance, summary
from leverlab.lm.dialogues import reply, terms, verified_reward
from leverlab.lm.proxy import proxy_reward
from leverlab.lm.questions import Question, read_questions
from leverlab.lm.reasons import reasons
from leverlab.lm.records import DialogueRecord, RewardRecord, read_records
from leverlab.lm.validation import figures
from leverlab.stage import run_stage

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
HOME = "recipes/clarify"
SEEDS = (0, 1)
SMALL: dict[str, dict[str, Any]] = {
    "data": {"train": 48, "val": 12, "test": 24, "ood": 12, "red_team": 10, "shadow": 12, "calib": 12},
    "reward": {"alpha": 0.04, "high": 0.3},  # so low that who thinks is paid well
    "sft": {"epochs": 1, "batch": 16, "save_every": 2},
    "rl_data": {"questions": 16, "group": 4, "batch": 8, "min_live": 0.0},
    "rce": {"steps": 2, "batch": 8, "save_every": 1},
    "grpo": {"steps": 2, "questions": 4, "group": 4, "evaluate_every": 2, "evaluate_on": 8},
    "dpo": {"epochs": 1, "batch": 8, "save_every": 2, "margin": 0.05},  # an ask less makes a pair
    "infer": {"batch": 12},
    "shadow": {"members": 2, "tie_breaks": 2, "resamples": 100},
    "hack_probe": {"steps": 2, "evaluate_every": 2, "examples": 2},
    "gguf": {"kinds": ["f16", "q8_0"], "parity": {"prompts": 6, "likeliest": 50}},
    "benchmark": {"questions": 2, "runs": 1},
}
LOOSE = {"kl": 1e6, "spam": 1.0, "format_exploit": 1.0}  # a guard that lets everything pass
OF_SEED = ("sft", "rl-data", "rce", "grpo", "dpo")
AFTER = ("select-best", "convert", "infer-800", "shadow", "hack-probe", "gguf", "benchmark", "report")


def run(stage: str, seed: int | None = None) -> None:
    module = import_module(f"stages.clarify.{stage.replace('-', '_')}")
    if seed is None:
        run_stage(stage, module.body, home=HOME)
    else:
        run_stage(stage, lambda one: module.body(one, seed), {"seed": str(seed)}, HOME)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the recipe after all stages."""
    root = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("src", "stages", "worlds/clarify"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignored)
    (root / HOME).mkdir(parents=True)
    yaml = YAML()
    params = yaml.load((REPOSITORY / HOME / "params.yaml").read_text())
    params["seeds"] = list(SEEDS)
    for section, changes in SMALL.items():
        params[section].update(changes)
    params["grpo"]["guard"].update(LOOSE)
    with (root / HOME / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    shutil.copyfile(REPOSITORY / HOME / "dvc.yaml", root / HOME / "dvc.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("LEVERLAB_WORKERS", "1")
        patch.setattr(sys, "argv", ["stage"])
        patch.setenv("LEVERLAB_REPORT_TO", "dvclive")
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (root / "src", REPOSITORY / "tests/live_packages"))))
        run("prepare")
        for seed in SEEDS:
            for stage in OF_SEED:
                run(stage, seed)
        for stage in AFTER:
            run(stage)
        yield root / HOME


def questions_of(recipe: Path, *splits: str) -> dict[str, Question]:
    return {q.id: q for split in splits for q in read_questions(recipe / f"data/questions/{split}.jsonl")}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_of_every_trained_stage_differ_from_their_parent(recipe: Path, seed: int) -> None:
    models = recipe / "models"
    sft, rce, dpo = (adapter(models / name / str(seed) / "adapter") for name in ("sft", "rce", "dpo"))
    steps = {int(path.name): adapter(path) for path in (models / "grpo" / str(seed) / "steps").iterdir()}
    assert any(bool(weight.any()) for name, weight in sft.items() if "lora_B" in name)  # fresh ones are zero
    assert sorted(steps) == [0, 2]
    assert all(torch.equal(rce[name], steps[0][name]) for name in rce)
    for child, parent in ((rce, sft), (dpo, sft), (steps[2], rce)):
        assert any(not torch.equal(child[name], parent[name]) for name in parent)
    best = adapter(models / "best" / str(seed) / "adapter")
    assert all(torch.equal(best[name], steps[2][name]) for name in best)


def test_every_training_leaves_its_curves_beside_its_outs(recipe: Path) -> None:
    found = []
    for path in (recipe / "live").rglob("plots/metrics/loss.tsv"):
        stage, run = path.relative_to(recipe / "live").parts[:2]
        found.append((stage, run.rpartition("-")[0]))
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        assert [int(step) for step, _ in lines[1:]] == [*range(1, len(lines))]
        assert (path.parent / "val/success.tsv").exists() == (stage in {"grpo", "hack-probe"})
    of_seeds = [(stage, str(seed)) for stage in ("dpo", "grpo", "rce", "sft") for seed in SEEDS]
    assert sorted(found) == sorted([*of_seeds, ("hack-probe", "")])


def test_the_proxy_arm_learns_from_another_reward(recipe: Path) -> None:
    start, end = (adapter(recipe / f"models/hack_probe/steps/{step}") for step in (0, 2))
    sft = adapter(recipe / "models/sft/0/adapter")
    assert all(torch.equal(start[name], sft[name]) for name in sft)
    assert any(not torch.equal(start[name], end[name]) for name in sft)
    train = questions_of(recipe, "train")
    for record in read_records(recipe / "models/hack_probe/rollouts.jsonl", RewardRecord):
        assert record.total == pytest.approx(proxy_reward(record.dialogue(train[record.question])).total)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("path", ["data/rl/{seed}/groups.jsonl", "models/grpo/{seed}/rollouts.jsonl"])
def test_logged_rewards_are_those_of_the_dialogues(recipe: Path, path: str, seed: int) -> None:
    train = questions_of(recipe, "train")
    records = read_records(recipe / path.format(seed=seed), RewardRecord)
    assert len(records) == {"d": 16 * 4, "m": 2 * 4 * 4}[path[0]]
    for record in records:
        dialogue = record.dialogue(train[record.question])
        found = terms(dialogue)
        assert record.terms == vars(found)
        assert record.reasons == reasons(dialogue)
        assert record.total == pytest.approx(verified_reward(found, record.alpha))
        assert record.prompt == train[record.question].text
        answered = dialogue.asks[: len(record.replies)]  # nobody answers an ask in the last turn
        assert record.replies == [reply(dialogue.question, ask) for ask in answered]
    costs = {record.alpha for record in records}
    assert costs == ({0.07, 0.07 - 0.02 / 6} if "grpo" in path else {0.07})  # a sixth of the way from .4 to 1 at step 1
    if "grpo" in path:
        steps = pd.read_csv(recipe / f"models/grpo/{seed}/steps.csv")
        for step, row in enumerate(steps.itertuples()):
            of_step = [record.total for record in records if record.step == step]
            assert sum(of_step) / len(of_step) == pytest.approx(row.reward, abs=1e-5)


def test_every_metric_comes_from_the_stored_answers(recipe: Path) -> None:
    splits = {split: list(questions_of(recipe, split).values()) for split in ("test", "ood", "red_team")}
    records = read_records(recipe / "data/answers/answers.jsonl", DialogueRecord)
    assert len(records) == 4 * len(SEEDS) * 2 * (24 + 12 + 10)
    found = summary.outcomes(records, splits)
    compared = acceptance.comparisons(found)
    test = {q.id: q for q in splits["test"]}
    greedy = [one for one in records if one.policy == "grpo" and one.temperature == 0 and one.question in test]
    exploit = figures([one.dialogue(test[one.question]) for one in greedy], 0.04, 0.3)["format_exploit"]
    expected = summary.plain(acceptance.metrics(found, compared, exploit))
    assert json.loads((recipe / "reports/metrics.json").read_text()) == expected


def test_evaluations_come_from_the_policy(recipe: Path) -> None:
    """The validation figures of the last evaluation are those of the adapter that was kept with it."""
    from leverlab.lm.adapters import load_base, load_policy
    from leverlab.lm.rollouts import Limits
    from leverlab.lm.validation import Validator

    base = load_base("worlds/clarify/base")
    policy = load_policy(base, recipe / "models/grpo/1/steps/2")
    validator = Validator(
        base.chat, list(questions_of(recipe, "val").values())[:8], Limits(4, 32), alpha=0.04, high=0.3, seed=1
    )
    row = pd.read_csv(recipe / "models/grpo/1/evaluations.csv").iloc[-1]
    for name, value in validator.greedy(policy).items():
        assert row[name] == pytest.approx(value, nan_ok=True, rel=1e-5), name


def test_the_merge_is_held_against_the_adapter_beside_the_weights(recipe: Path) -> None:
    """They differ by rounding; were it folded in, the merged policy would be held against itself."""
    proof = json.loads((recipe / "models/merged/proof.json").read_text())
    assert proof["equal"] == proof["dialogues"] == 12
    assert 0 < proof["max_logp_difference"] < 1e-3


def test_exported_answers_are_stored_and_counted(recipe: Path) -> None:
    written = json.loads((recipe / "reports/gguf.json").read_text())
    test = questions_of(recipe, "test")
    lines = [json.loads(line) for line in (recipe / "data/gguf_answers.jsonl").read_text().splitlines()]
    for kind in ("f16", "q8_0"):
        assert written["files"][kind]["values_beyond"] == 0
        of_kind = [{k: v for k, v in line.items() if k != "engine"} for line in lines if line["engine"] == kind]
        dialogues = [DialogueRecord.model_validate(line).dialogue(test[line["question"]]) for line in of_kind]
        assert len(dialogues) == 24
        expected = figures(dialogues, 0.0, 1.0)
        assert written["answers"][kind]["success"] == pytest.approx(expected["success"], abs=1e-6)
    assert written["parity"]["f16"]["max_delta"] < 0.1


def test_no_question_of_the_test_is_seen_before(recipe: Path) -> None:
    """Neither its id nor its text stands in what is learnt from or chosen by."""
    kept = {
        split: questions_of(recipe, split) for split in ("train", "val", "test", "ood", "red_team", "shadow", "calib")
    }
    texts = [question.text for questions in kept.values() for question in questions.values()]
    assert len(set(texts)) == len(texts)
    for path in ("data/rl/0/groups.jsonl", "models/grpo/0/rollouts.jsonl"):
        assert {record.question for record in read_records(recipe / path, RewardRecord)} <= set(kept["train"])


def test_gates_are_judged_on_what_was_measured(recipe: Path) -> None:
    gates = {gate["name"]: gate for gate in json.loads((recipe / "reports/gates.json").read_text())}
    measured = json.loads((recipe / "reports/metrics.json").read_text())
    shadow = json.loads((recipe / "reports/shadow.json").read_text())
    probe = json.loads((recipe / "reports/hack_probe.json").read_text())["arms"]
    assert gates["target_need_success"]["value"] == measured["grpo"]["test"]["need_success"]
    assert gates["shadow_spearman"]["value"] == shadow["spearman"]["value"]
    assert gates["alarms_on_the_verified_arm"]["value"] == probe["verified"]["alarms"]
    final = json.loads((recipe / "reports/rc1_final_report.json").read_text())
    assert final["accepted"] == all(gate["passed"] for gate in gates.values())
    page = (recipe / "reports/report.html").read_text()
    assert all(gate["name"].split("_")[0] in page for gate in gates.values())


def test_a_stage_gives_the_same_bytes_again(recipe: Path) -> None:
    outs = [recipe / "models/rce/0", recipe / "models/grpo/0", recipe / "reports/shadow.json"]
    before = [digest(out) for out in outs]
    run("rce", 0)
    run("grpo", 0)
    run("shadow")
    assert [digest(out) for out in outs] == before


def test_every_stage_left_its_record_and_no_state(recipe: Path) -> None:
    names = {path.stem for path in (recipe / "provenance").glob("*.json")}
    assert names == {f"{stage}@{seed}" for stage in OF_SEED for seed in SEEDS} | {"prepare", *AFTER}
    state = recipe.parents[1] / ".leverlab/state"
    assert not [path for path in state.rglob("*") if path.is_file() and path.suffix != ".lock"]
