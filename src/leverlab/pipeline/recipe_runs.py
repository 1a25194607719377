"""What the ledger reads of the runs of a recipe: the chosen evaluation of each seed, on the validation questions."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from dvc_data.index import DataIndexDirError

from leverlab.csvfile import read_csv
from leverlab.errors import LeverlabError
from leverlab.pipeline.answers_of import commit_of, content_of, experiments, opened, recorded_stages, stale, yaml_of
from leverlab.pipeline.sweep import Ranked, Sweep, rank

CHOICES = "models/best/choices.csv"
QUESTIONS = "data/questions"
FIGURES = ("reward", "success", "need_success", "over_clarification")


def recipe_sweep(root: Path, recipe: Path, names: Sequence[str]) -> Sweep:
    """Return the runs of the recipe in the folder `recipe` ranked by what `select_best.by` names, and the effects of
    their params; the other figures of the chosen evaluations stand beside.

    The runs need no more stages than select-best. Raises `LeverlabError` for a folder outside of `root`, fewer than two
    runs, a name that is given twice, a run without choices or with damaged ones, and unless all chose by the same
    figure, with the same `reward`, on the same validation questions.
    """
    if not recipe.resolve().is_relative_to(root.resolve()):
        raise LeverlabError(f"{recipe} is no recipe of the repository {root}")
    folder = recipe.resolve().relative_to(root.resolve()).as_posix()
    if len(names) < 2 or len(set(names)) < len(names):
        raise LeverlabError(f"a ranking needs two runs or more, each once; got {', '.join(names)}")
    known = experiments(root)
    runs: list[Ranked] = []
    warnings: list[str] = []
    measures: dict[str, dict[str, Any]] = {}
    for name in names:
        with opened(root, name, commit_of(name, known)) as (repo, revision):
            stages = recorded_stages(repo, name, folder)
            params = yaml_of(repo.dvcfs, name, f"{folder}/params.yaml")
            choices, changed = _choices(repo.dvcfs, name, f"{folder}/{CHOICES}")
        measures[name] = measure = _measure(stages, folder, name)
        beside = {figure: float(choices[figure].mean()) for figure in FIGURES if figure != measure["by"]}
        reached = dict(zip(choices["seed"].tolist(), choices[measure["by"]].astype(float).tolist(), strict=True))
        runs.append(Ranked(name, revision, params, reached, beside))
        warnings += [
            f"'{name}' says {key} = {now}, but its policies were chosen with {then}: run dvc repro"
            for key, now, then in stale(stages, params, f"{folder}/models/best", f"{folder}/params.yaml")
        ]
        if changed:
            warnings.append(f"{CHOICES} of '{name}' is not what select-best wrote: run dvc repro select-best")
    first, *others = names
    for other in others:
        differ = [key for key, value in measures[first].items() if measures[other][key] != value]
        if differ:
            said = "; ".join(f"{key}: {measures[first][key]} and {measures[other][key]}" for key in differ)
            raise LeverlabError(
                f"'{first}' and '{other}' were not measured alike ({said}): they cannot be ranked; give runs that "
                "differ in what is trained alone"
            )
    return rank(runs, str(measures[first]["by"]).replace("_", "-"), warnings)


def _measure(stages: Mapping[str, Mapping[str, Any]], folder: str, name: str) -> dict[str, Any]:
    """Return what the figures of a run were measured by, from what its dvc.lock records of the stages that did so."""
    file = f"{folder}/params.yaml"
    grpo = [stage for key, stage in stages.items() if key.startswith("grpo@")]
    questions = [
        out.get("md5") for stage in stages.values() for out in stage["outs"] if out["path"] == f"{folder}/{QUESTIONS}"
    ]
    try:
        return {
            "by": stages["select-best"]["params"][file]["select_best"]["by"],
            "evaluate_on": grpo[0]["params"][file]["grpo"]["evaluate_on"],
            "reward": grpo[0]["params"][file]["reward"],
            "questions": questions[0],
        }
    except (KeyError, IndexError, TypeError):
        raise LeverlabError(
            f"{folder}/dvc.lock of '{name}' records no whole run of prepare, grpo and select-best; run it again"
        ) from None


def _choices(fs: Any, name: str, path: str) -> tuple[pd.DataFrame, bool]:
    """Return the chosen evaluations of a run, one a seed, and whether they are not those that DVC knows."""
    try:
        content = content_of(fs, path)
        entry = fs.info(f"/{path}").get("dvc_info") or {}
    except (OSError, KeyError, DataIndexDirError) as error:  # the last: the cache lost a folder's list
        raise LeverlabError(
            f"{path} of '{name}' cannot be read ({error}): run it as far as select-best, or get it with `dvc exp pull`"
        ) from None
    recorded = entry.get("md5")
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "choices.csv"
        copy.write_bytes(content)
        try:
            frame = read_csv(copy, ("seed", *FIGURES))
            frame = frame.astype(dict.fromkeys(FIGURES, float))
        except (LeverlabError, ValueError) as error:
            raise LeverlabError(f"run '{name}': {str(error).replace(str(copy), path)}") from None
    return frame, recorded is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != recorded
