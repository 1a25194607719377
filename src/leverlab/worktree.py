"""What Git says of the work tree that a stage runs in: real edits, and what a killed `dvc exp run` left behind."""

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Collection
from pathlib import Path

from leverlab.dvcfile import declared_outs
from leverlab.errors import LeverlabError

DVC_YAML = "dvc.yaml"
RUN_RECORDS = Path(".dvc/tmp/exps/run")  # one a `dvc exp run`, written just before it detaches HEAD, never removed
SECONDS_TO_DETACH = 60  # at most, from the record to the detached HEAD


def git(*arguments: str) -> str | None:
    """Return what a git command prints, None when it fails: outside of a repository, say."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def is_edited() -> bool:
    """Return whether a tracked file below the working directory that can go into a run differs from HEAD.

    Files that runs themselves write do not count: declared outs of every dvc.yaml, dvc.lock, `provenance/`, and
    .gitignore, to which DVC adds outs.
    """
    changed = _differing_from_head()
    if not changed:
        return False
    pipelines = _paths("ls-files", "-z", "--", DVC_YAML, f":(glob)**/{DVC_YAML}")
    homes = {os.path.dirname(pipeline) for pipeline in pipelines}
    written = {os.path.join(home, name) for home in homes for name in ("dvc.lock", "provenance")}
    for pipeline in pipelines:
        with contextlib.suppress(LeverlabError):  # the stages of a damaged dvc.yaml write nothing
            written |= declared_outs(Path(pipeline))
    runs_write = re.compile("|".join(f"(?:{_pattern(path)})(?:/.*)?" for path in sorted(written)), re.DOTALL)
    return any(os.path.basename(path) != ".gitignore" and not runs_write.fullmatch(path) for path in changed)


def edited_among(files: Collection[str]) -> list[str]:
    """Return those of the tracked `files`, paths from the working directory, that differ from HEAD, sorted."""
    return sorted(_differing_from_head() & set(files))


def left_detached() -> str | None:
    """Return a sentence when HEAD is detached since an experiment that ran in this work tree was killed, else None.

    DVC detaches HEAD while `dvc exp run` runs in the workspace; killed, it cannot go back to the branch. So the killed
    run is the one whose record is as old as the last checkout, unless it is the present run.
    """
    if git("symbolic-ref", "-q", "HEAD") is not None:
        return None
    moves = (git("reflog", "show", "--date=unix", "--format=%gd %gs", "HEAD") or "").splitlines()
    last_checkout = next((move for move in moves if " checkout: " in move), "")
    detached = re.fullmatch(r"HEAD@\{(\d+)\} checkout: moving from (\S+) to ([0-9a-f]{40})", last_checkout)
    if not detached:
        return None
    records = _experiment_records(detached[3])
    second = int(detached[1])
    killed = [record for record in records if second - SECONDS_TO_DETACH <= record[0] < second + 1]
    if not killed or ("DVC_EXP_NAME" in os.environ and killed[-1] == records[-1]):
        return None
    return (
        f"HEAD is detached, because `dvc exp run` of {killed[-1][1]} was killed: commits would be on no branch. "
        f"Return with `git switch {detached[2]}`; `git diff HEAD` shows the params that it left"
    )


def _differing_from_head() -> set[str]:
    return _paths("diff", "--name-only", "--no-renames", "--relative", "-z", "HEAD")


def _paths(*arguments: str) -> set[str]:
    """Return the paths that a git command prints with -z; none when it fails."""
    return set(filter(None, (git(*arguments) or "").split("\0")))


def _pattern(path: str) -> str:
    """Return a regular expression of a declared path; `${…}` in it is any name."""
    return "[^/]+".join(map(re.escape, re.split(r"\$\{.*?\}", path)))


def _experiment_records(baseline: str) -> list[tuple[float, str]]:
    """Return when each experiment on the commit `baseline` began in this work tree, and its name; the newest last."""
    found = []
    for record in RUN_RECORDS.glob("*/*.run"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            data = json.loads(record.read_text(encoding="utf-8"))
            if (data["location"], data["baseline_rev"]) == ("workspace", baseline) and record.stem != "workspace":
                found.append((record.stat().st_mtime, str(data["name"])))
    return sorted(found)
