"""The answers and the params of a run, read through DVC where they lie: nothing is checked out."""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from dvc.repo import Repo
from dvc.repo.experiments.utils import exp_refs
from dvc.scm import RevError, resolve_rev
from dvc.utils.serialize import parse_yaml
from dvc_data.index import DataIndexDirError

from leverlab.errors import LeverlabError
from leverlab.evaluation.summary import ANSWER_SCHEMA
from leverlab.nearest import did_you_mean
from leverlab.pipeline.resolved import dvc_errors

ANSWERS = "data/answers.parquet"
TEST_SET = "data/prepared/test.parquet"
PARAMS = "params.yaml"
WORKSPACE = "workspace"


@dataclass(frozen=True)
class Run:
    """What one run answered, and with which params.

    `revision` is the whole commit id, None for the workspace. `answers` has the columns of `ANSWER_SCHEMA`. `test_set`
    is a digest of the test questions themselves, None when they cannot be read. `warnings` are sentences. `files` holds
    the other files that were asked for, by path; those that cannot be read are left out.
    """

    name: str
    revision: str | None
    params: Mapping[str, Any]
    answers: pd.DataFrame
    test_set: str | None
    warnings: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


def experiments(root: Path) -> dict[str, list[str]]:
    """Return the commits of every DVC experiment of the repository at `root`, by name.

    Raises `LeverlabError` when DVC cannot read them: outside of Git, say.
    """
    found: dict[str, list[str]] = {}
    with dvc_errors("DVC cannot read the experiments"), Repo(str(root)) as repo:
        for info in exp_refs(repo.scm):
            found.setdefault(info.name, []).append(str(repo.scm.get_ref(str(info))))
    return found


def commit_of(name: str, known: Mapping[str, Sequence[str]]) -> str | None:
    """Return the commit of the experiment `name`, or None when there is none; `known` is what `experiments` gave.

    Raises `LeverlabError` for the name of several experiments.
    """
    commits = known.get(name, [])
    if len(commits) > 1:
        raise LeverlabError(
            f"'{name}' names {len(commits)} experiments (commits {', '.join(sorted(one[:7] for one in commits))}); "
            "remove those that are out of date with `dvc exp remove COMMIT`"
        )
    return commits[0] if commits else None


def params_of(root: Path, revision: str) -> dict[str, Any]:
    """Return params.yaml of a Git revision. Raises `LeverlabError` when it cannot be read."""
    with dvc_errors(f"DVC cannot read {PARAMS} of '{revision}'"), Repo.open(str(root), rev=revision) as repo:
        return yaml_of(repo.dvcfs, revision, PARAMS)


def read_run(root: Path, name: str, revision: str | None = None, files: Sequence[str] = ()) -> Run:
    """Return the run `name` of the DVC repository at `root`: an experiment, a Git revision, or `workspace`.

    Git revisions (branch, tag, commit, `HEAD~1`) go before experiments of the same name, as in DVC itself; `revision`,
    a commit, goes before both. Outs are read from the cache, else from the remote; the workspace's own from the disk.
    files: paths of more files to read; `{seed}` in a path stands for each of the run's `seeds`.
    Raises `LeverlabError` for an unknown name, and when params or answers are not there or cannot be read.
    """
    with opened(root, name, revision) as (repo, found):
        return _read(repo, name, found, files)


@contextlib.contextmanager
def opened(root: Path, name: str, revision: str | None = None) -> Iterator[tuple[Any, str | None]]:
    """Open DVC's repository at a run, with the run's commit; None for the workspace. Raises as `read_run`."""
    with dvc_errors(f"DVC cannot read the run '{name}'"):
        if revision is None and name != WORKSPACE:
            revision = _revision(root, name)
        with Repo(str(root)) as here:
            remote = here.config["core"].get("remote")  # the revision may be older than the setting
        with Repo.open(str(root), rev=revision, remote=remote) as repo:
            yield repo, revision


def _revision(root: Path, name: str) -> str:
    """Return the commit that `name` stands for."""
    if not name.strip():  # Git would take it for HEAD
        raise LeverlabError("the name of a run is empty; give an experiment, a Git revision or 'workspace'")
    with Repo(str(root)) as repo:
        try:
            return str(resolve_rev(repo.scm, name))
        except RevError as error:
            if "ambiguous" in str(error):
                raise LeverlabError(
                    f"'{name}' names more than one experiment or commit; `dvc exp list -A --sha-only` gives the commits"
                ) from None
            of_dvc = [info.name for info in exp_refs(repo.scm)]
            known = sorted({WORKSPACE, *repo.scm.list_branches(), *repo.scm.list_tags(), *of_dvc})
    hint = did_you_mean(name, known, "`dvc exp list -A`")
    raise LeverlabError(
        f"there is no experiment or Git revision '{name}'{hint}, `dvc queue status` those that have not run"
    )


def _read(repo: Any, name: str, revision: str | None, files: Sequence[str]) -> Run:
    fs = repo.dvcfs
    params = yaml_of(fs, name, PARAMS)  # before DVC reads it, whose message names no run
    stages = recorded_stages(repo, name)
    recorded = [out.get("md5") for stage in stages.values() for out in stage["outs"] if out["path"] == ANSWERS]
    try:
        content = content_of(fs, ANSWERS)
    except FileNotFoundError:
        if recorded:
            raise LeverlabError(
                f"the answers of '{name}' ({ANSWERS}) are not in DVC's cache, and no remote has them: get them with "
                f"`dvc pull` or `dvc exp pull`, or run '{name}' again"
            ) from None
        raise LeverlabError(f"'{name}' has no answers: its dvc.lock records no run that wrote {ANSWERS}") from None
    except OSError as error:
        raise LeverlabError(f"the answers of '{name}' ({ANSWERS}) cannot be read: {error}") from None
    warnings = [
        f"{PARAMS} of '{name}' says {key} = {now}, but its answers were computed with {then}: run dvc repro"
        for key, now, then in stale(stages, params, ANSWERS, PARAMS)
    ]
    if hashlib.md5(content, usedforsecurity=False).hexdigest() not in recorded:
        warnings.append(f"the answers of '{name}' are not those that its dvc.lock records: run dvc repro")
    more = _more(fs, [path.format(seed=seed) for path in files for seed in _seeds(params, path)])
    return Run(name, revision, params, _answers(content, name), _test_set(fs), tuple(warnings), more)


def _seeds(params: Mapping[str, Any], path: str) -> Sequence[Any]:
    return params.get("seeds", []) if "{seed}" in path else [None]


def _more(fs: Any, paths: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for path in paths:
        with contextlib.suppress(OSError, KeyError, DataIndexDirError):  # the last: the cache lost a folder's list
            found[path] = content_of(fs, path)
    return found


def content_of(fs: Any, path: str) -> bytes:
    """Return a file of an opened run. path: from the repository's root."""
    with fs.open(f"/{path}", mode="rb") as file:  # "/" is the repository's root, whatever the working directory is
        return bytes(file.read())


def yaml_of(fs: Any, name: str, path: str) -> dict[str, Any]:
    """Return a YAML file of the opened run `name`, as DVC reads it. Raises `LeverlabError` when it cannot."""
    try:
        data = parse_yaml(content_of(fs, path).decode(), path)
    except FileNotFoundError:
        raise LeverlabError(f"'{name}' has no {path}: nothing ran at that revision") from None
    except UnicodeDecodeError as error:
        raise LeverlabError(f"{path} of '{name}' is not UTF-8 text: {error}") from None
    if not isinstance(data, dict):
        raise LeverlabError(f"{path} of '{name}' must hold a mapping, not {type(data).__name__}")
    return data


def recorded_stages(repo: Any, name: str, folder: str = "") -> dict[str, dict[str, Any]]:
    """Return what dvc.lock records of the stages of the opened run `name`, each with its deps, outs and params.

    Only stages that dvc.yaml declares at that revision count: DVC leaves entries of other seeds and of renamed stages
    in dvc.lock. folder: that of dvc.yaml, from the repository's root. Raises the same errors as `yaml_of`.
    """
    lock = yaml_of(repo.dvcfs, name, f"{folder}/dvc.lock".lstrip("/"))
    declared = {stage.name for stage in repo.stage.load_all(repo.fs.join(repo.root_dir, folder, "dvc.yaml"))}
    empty: dict[str, Any] = {"deps": [], "outs": [], "params": {}}
    return {stage: empty | entry for stage, entry in lock.get("stages", {}).items() if stage in declared}


def stale(
    stages: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any], out: str, file: str
) -> list[tuple[str, Any, Any]]:
    """Return the params of `file` that are not those of the runs behind `out`: (dotted key, value now, value then)."""
    pending: list[str] = [out]
    seen: list[str] = []
    while pending:
        path = pending.pop()
        for name, stage in stages.items():
            if name not in seen and any(_related(out["path"], path) for out in stage["outs"]):
                seen.append(name)
                pending += [dep["path"] for dep in stage["deps"]]
    now = flat(params)
    used = [item for name in seen for item in flat(stages[name]["params"].get(file, {})).items()]
    stale = {key: value for key, value in used if now.get(key) != value}
    return [(key, now.get(key, "nothing"), value) for key, value in sorted(stale.items())]


def _related(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of nested params by dotted key; an empty mapping is a leaf."""
    return dict(_leaves(params, ""))


def _leaves(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _answers(content: bytes, name: str) -> pd.DataFrame:
    try:
        return pq.read_table(io.BytesIO(content)).select(ANSWER_SCHEMA.names).cast(ANSWER_SCHEMA).to_pandas()
    except (ValueError, KeyError, OSError) as error:  # pyarrow's errors derive from these
        raise LeverlabError(f"{ANSWERS} of '{name}' holds no answers of infer-800: {error}") from None


def _test_set(fs: Any) -> str | None:
    content = _more(fs, [TEST_SET])
    return questions_digest(content[TEST_SET]) if content else None


def questions_digest(content: bytes) -> str | None:
    """Return a digest of the questions of a Parquet file, whatever their order, or None when it cannot be read."""
    try:
        questions = pq.read_table(io.BytesIO(content)).sort_by("id").to_pylist()
    except (ValueError, KeyError, OSError):  # pyarrow's errors derive from these
        return None
    return hashlib.sha256(repr(questions).encode()).hexdigest()
