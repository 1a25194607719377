"""What the report of the recipe `clarify` reads, checked: a file that another stage wrote differently is an error that
names it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from leverlab.csvfile import read_csv
from leverlab.errors import LeverlabError
from leverlab.lm.acceptance import WinRate
from leverlab.lm.shadow import ShadowResult
from leverlab.lm.summary import ALL_SEEDS, PROPORTIONS, unplain
from leverlab.report.inputs import read_json

POLICIES = {"sft": "SFT", "rce": "RCE", "grpo": "GRPO", "dpo": "DPO"}  # policy → its label
COUNTS = ("redundant_asks", "turns")  # per dialogue; all other figures are shares
FIGURES = (*PROPORTIONS, "ask_precision", *COUNTS)
INTERVALS = tuple(f"{name}_{end}" for name in PROPORTIONS for end in ("low", "high"))
SPLIT_COLUMNS = ("policy", "temperature", "split", "seed", "n", "needed", *FIGURES, *INTERVALS)
COMPARISON_COLUMNS = (
    *("policy_a", "policy_b", "measure", "seed", "n", "difference", "ci_low", "ci_high", "p_value", "p_holm"),
    *("least_detectable_difference", "verdict", "test"),
)
VALIDATION = ("step", "reward", "success", "need_success", "over_clarification")
EVALUATION_COLUMNS = (*VALIDATION, "beta", "alpha", "kl", "entropy", "action", "guard", "sound")
STEP_COLUMNS = ("step", "loss")
GRPO_STEP_COLUMNS = (*STEP_COLUMNS, "reward", "kl", "entropy", "alpha", "beta")

ModelT = TypeVar("ModelT")
Table = Mapping[int, pd.DataFrame]  # seed → rows


def _number(value: object) -> object:
    return math.nan if value is None else value


Figure = Annotated[float, BeforeValidator(_number)]  # null in a file is NaN again


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Example(_Record):
    """A dialogue of an arm of the hack probe: texts, the right answer, and what both rewards pay for it."""

    question: str
    turns: list[str]
    replies: list[str]
    answer: str
    proxy: float
    verified: float


class Arm(_Record):
    """What one arm of the hack probe came to: its figures, how many alarms it raised, and a sentence for each."""

    figures: dict[str, Figure]
    alarms: int
    raised: list[str]
    examples: list[Example]


class HackProbe(_Record):
    """Both arms, the limits of the alarms, and the step of the proxy arm's first evaluation past each of them."""

    limits: dict[str, float]
    arms: dict[Literal["proxy", "verified"], Arm]
    first_alarm_step: dict[str, int | None]


class Scorers(_Record):
    """Weights of the old and of the new scorer, by feature.

    strength: of the prior that holds the new one; faithful: whether it was so in every fold of the cross-validation.
    """

    old: dict[str, float]
    new: dict[str, float]
    strength: float
    faithful: bool


@dataclass(frozen=True)
class Runs:
    """The rows of all trainings: optimiser steps and evaluations by policy and seed, and what select-best chose.

    The evaluations of GRPO stand on its grid of steps, those of the other policies hold one row, after training.
    """

    steps: Mapping[str, Table]
    evaluations: Mapping[str, Table]
    choices: pd.DataFrame


def read_runs(models: Path, seeds: Sequence[int]) -> Runs:
    """Return the rows of the trainings below `models`, of just these seeds.

    Raises `LeverlabError` as `read_csv`, and unless one step of each seed of GRPO is chosen, and was evaluated.
    """
    steps: dict[str, dict[int, pd.DataFrame]] = {}
    evaluations: dict[str, dict[int, pd.DataFrame]] = {}
    for policy in POLICIES:
        of_steps, of_evaluations = (
            (GRPO_STEP_COLUMNS, EVALUATION_COLUMNS) if policy == "grpo" else (STEP_COLUMNS, VALIDATION)
        )
        for seed in seeds:
            folder = models / policy / str(seed)
            steps.setdefault(policy, {})[seed] = read_csv(folder / "steps.csv", of_steps)
            evaluations.setdefault(policy, {})[seed] = read_csv(folder / "evaluations.csv", of_evaluations)
    path = models / "best" / "choices.csv"
    choices = read_csv(path, ("seed", *VALIDATION))
    if sorted(choices["seed"]) != sorted(seeds):
        raise LeverlabError(
            f"{path} chooses of the seeds {choices['seed'].tolist()}, params.yaml has {list(seeds)}; run dvc repro"
        )
    for seed, step in zip(choices["seed"], choices["step"], strict=True):
        if step not in set(evaluations["grpo"][seed]["step"]):
            raise LeverlabError(f"{path} chooses step {step} of seed {seed}, which was not evaluated; run dvc repro")
    return Runs(steps, evaluations, choices)


def read_figures(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return a table of infer-800, whose seeds are texts. Raises `LeverlabError` as `read_csv`, and when no row is over
    all seeds."""
    rows = read_csv(path, columns)
    rows["seed"] = rows["seed"].astype(str)
    if ALL_SEEDS not in set(rows["seed"]):
        raise LeverlabError(f"{path} holds no row over all seeds; run dvc repro infer-800")
    return rows


def read_metrics(path: Path) -> dict[str, Any]:
    """Return reports/metrics.json, null as NaN. Raises `LeverlabError` as `read_json`."""
    found: dict[str, Any] = unplain(read_json(path))
    return found


def read_win_rate(path: Path) -> WinRate:
    """Return reports/answers/win_rate.json. Raises `LeverlabError` when it is missing or damaged."""
    return _parsed(path, WinRate, unplain(read_json(path)))


def read_shadow(path: Path) -> ShadowResult:
    """Return reports/shadow.json. Raises `LeverlabError` when it is missing or damaged."""
    return _parsed(path, ShadowResult, unplain(read_json(path)))


def read_hack_probe(path: Path) -> HackProbe:
    """Return reports/hack_probe.json. Raises `LeverlabError` when it is missing or damaged, or lacks an arm or a
    figure that has a limit."""
    found = _parsed(path, HackProbe, read_json(path))
    for arm in ("proxy", "verified"):
        lacking = [name for name in found.limits if arm not in found.arms or name not in found.arms[arm].figures]
        if lacking:
            raise LeverlabError(f"{path} lacks {', '.join(lacking)} of the {arm} arm; run dvc repro hack-probe")
    return found


def read_scorers(folder: Path) -> Scorers:
    """Return the weights in models/scorers. Raises `LeverlabError` when they are missing or damaged."""
    path = folder / "scorers.json"
    return _parsed(path, Scorers, read_json(path))


def read_health(path: Path) -> dict[str, float]:
    """Return the figures of the groups of one seed. Raises `LeverlabError` when the file is missing or damaged."""
    found: dict[str, float] = _parsed(path, dict[str, Figure], read_json(path))
    return found


def _parsed(path: Path, model: type[ModelT], data: Any) -> ModelT:
    try:
        return TypeAdapter(model).validate_python(data)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise LeverlabError(
            f"{path}: {place}: {problem['msg'].lower()}; delete it and run the stage that writes it again (dvc repro)"
        ) from None
