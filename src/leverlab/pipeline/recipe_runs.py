"""What the ledger reads of the runs of a recipe: the chosen evaluation of each seed, on the validation questions."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from dvc_data.index import DataIndexDirError

from leverlab.errors import LeverlabError
from leverlab.pipeline.answers_of import commit_of, content_of, experiments, opened, stages_of, stale, yaml_of
from leverlab.pipeline.sweep import Ranked, Sweep, rank

CHOICES = "models/best/choices.csv"
QUESTIONS = "data/questions"
FIGURES = ("reward", "success", "need_success", "over_clarification")


def recipe_sweep(root: Path, recipe: Path, names: Sequence[str]) -> Sweep:
    """Return the runs of the recipe in the folder `recipe` ranked by what `select_best.by` names, and the effects of
    their params; the other figures of the chosen evaluations stand beside.

    The runs need no more stages than select-best. Raises `LeverlabError` for a folder outside of `root`, fewer than two
    runs, a name that is given twice, a run without choices, and unless all chose by the same figure on the same
    questions.
    """
    if not recipe.resolve().is_relative_to(root.resolve()):
        raise LeverlabError(f"{recipe} is no recipe of the repository {root}")
    folder = recipe.resolve().relative_to(root.resolve()).as_posix()
    if len(names) < 2 or len(set(names)) < len(names):
        raise LeverlabError(f"a ranking needs two runs or more, each once; got {', '.join(names)}")
    known = experiments(root)
    runs, warnings, marks = [], [], {}
    for name in names:
        with opened(root, name, commit_of(name, known)) as (fs, revision):
            stages = stages_of(yaml_of(fs, name, f"{folder}/dvc.lock"))
            params = yaml_of(fs, name, f"{folder}/params.yaml")
            choices = _choices(fs, name, f"{folder}/{CHOICES}")
        by = params["select_best"]["by"]
        marks[name] = (by, params["grpo"]["evaluate_on"], _digest(stages, f"{folder}/{QUESTIONS}"))
        beside = {figure: float(choices[figure].mean()) for figure in FIGURES if figure != by}
        reached = dict(zip(choices["seed"].tolist(), choices[by].astype(float).tolist(), strict=True))
        runs.append(Ranked(name, revision, params, reached, beside))
        warnings += [
            f"'{name}' says {key} = {now}, but its policies were chosen with {then}: run dvc repro"
            for key, now, then in stale(stages, params, f"{folder}/models/best", f"{folder}/params.yaml")
        ]
    first, *others = names
    for other in others:
        if marks[other] != marks[first]:
            raise LeverlabError(
                f"'{first}' and '{other}' chose by other figures or on other validation questions {marks[first]} and "
                f"{marks[other]}: they cannot be ranked; give runs with the same select_best and data"
            )
    return rank(runs, marks[first][0].replace("_", "-"), warnings)


def _choices(fs: Any, name: str, path: str) -> pd.DataFrame:
    """Return the chosen evaluations of a run, one a seed."""
    try:
        frame = pd.read_csv(io.BytesIO(content_of(fs, path)))
    except (OSError, KeyError, DataIndexDirError) as error:  # the last: the cache lost a folder's list
        raise LeverlabError(
            f"{path} of '{name}' cannot be read ({error}): run it as far as select-best, or get it with `dvc exp pull`"
        ) from None
    if missing := [column for column in ("seed", *FIGURES) if column not in frame]:
        raise LeverlabError(f"{path} of '{name}' has no column {', '.join(missing)}; run it again")
    return frame


def _digest(stages: Any, path: str) -> str | None:
    """Return DVC's digest of an out, None when the lock records none."""
    found = [out.get("md5") for stage in stages.values() for out in stage["outs"] if out["path"] == path]
    return found[0] if found else None
