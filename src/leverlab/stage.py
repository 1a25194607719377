"""The run-time contract of every stage.

A stage gets only the params and inputs that `dvc.yaml` declares for it, writes its outs aside and publishes them whole,
continues after a kill from a state folder that no other run can reach, fails when an input changes under it, and
leaves a provenance record. `run_stage` is all that an entry point in `stages/` calls.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

from leverlab.config.base import SectionT, parse_section, read_param
from leverlab.dvcfile import Declaration, read_declaration
from leverlab.errors import LeverlabError
from leverlab.files import digest, stamp, write_text
from leverlab.terminal import echo, printable
from leverlab.worktree import edited_among, git, is_edited, left_detached

PACKAGES = (
    "torch",
    "numpy",
    "transformers",
    "peft",
    "trl",
    "tokenizers",
    "datasets",
    "pyarrow",
    "scipy",
    "pillow",
    "gguf",
    "xllamacpp",
)
CHECK = "leverlab.pipeline.check_params"
ItemT = TypeVar("ItemT")


def workspace_store() -> Path:
    """Return the folder for caches and resume states, shared by the workspace and its `dvc exp run --temp` copies.

    Nothing in it is ever an out: it may be deleted at any time, at the cost of computing again.
    """
    # DVC names the main workspace in DVC_ROOT, also to a stage that runs in a temporary copy of it
    return Path(os.environ.get("DVC_ROOT", ".")).absolute() / ".leverlab"


class Stage:
    """One run of a stage: its declared params and paths, its state folder and its progress."""

    def __init__(self, declaration: Declaration, home: str = "."):
        self.name = declaration.name
        self._declaration = declaration
        self._params = {(file, key): read_param(Path(file), key) for file, key in declaration.params}
        self._input_stamps = {dep: stamp(Path(dep)) for dep in declaration.deps}
        self.inputs = {dep: _input_digest(dep) for dep in declaration.deps}
        self.versions = {package: _version(package) for package in PACKAGES}
        identity = {"inputs": self.inputs, "params": self.declared_params(), "versions": self.versions}
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
        self.state_dir = workspace_store() / "state" / home / self.name / self.key
        self._forgotten = self.state_dir.with_suffix(".forgotten")
        self._staging = Path(".leverlab") / "staging" / home / self.name

    def declared_params(self) -> dict[str, Any]:
        """Return the declared params as plain data, keyed 'file:key'."""
        return {f"{file}:{key}": value for (file, key), value in self._params.items()}

    def section(self, name: str, model: type[SectionT]) -> SectionT:
        """Return section `name`, checked: the whole of it, or those of its keys that are declared ('vlm.source').

        Raises `LeverlabError` when nothing of it is declared, and when it is not valid.
        """
        parts = {
            key.removeprefix(f"{name}."): (file, value)
            for (file, key), value in self._params.items()
            if key.startswith(f"{name}.")
        }
        if parts:
            file = next(iter(parts.values()))[0]
            return parse_section(model, name, {name: {key: value for key, (_, value) in parts.items()}}, file)
        file, value = self._find(name)
        return parse_section(model, name, {name: value}, file)

    def value(self, name: str) -> Any:
        """Return the declared value `name` as plain data. Raises `LeverlabError` when it is not declared."""
        return self._find(name)[1]

    def _find(self, name: str) -> tuple[str, Any]:
        for (file, key), value in self._params.items():
            if key == name:
                return file, value
        raise LeverlabError(
            f"stage '{self.name}' reads the params '{name}' without declaring them; add them to dvc.yaml"
        )

    def dep(self, path: str) -> Path:
        """Return `path`, which must be a declared dependency or lie below one."""
        if not _lies_in(path, self._declaration.deps):
            raise LeverlabError(
                f"stage '{self.name}' reads '{path}' without declaring it; add it to its deps in dvc.yaml"
            )
        return Path(path)

    def out(self, path: str) -> Path:
        """Return where to write the declared out `path` (or a file below a declared folder): aside, until the stage
        ends."""
        if not _lies_in(path, self._declaration.outs):
            raise LeverlabError(
                f"stage '{self.name}' writes '{path}' without declaring it; add it to its outs in dvc.yaml"
            )
        target = self._staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def progress(
        self, items: Iterable[ItemT], label: str, total: int | None = None, initial: int = 0
    ) -> Iterator[ItemT]:
        """Yield `items` with a bar on a terminal, and with a line every half minute elsewhere."""
        terminal = sys.stderr.isatty()
        yield from tqdm(
            items,
            desc=f"{self.name} {label}",
            total=total,
            initial=initial,
            file=sys.stderr if terminal else _Lines(),
            mininterval=0.1 if terminal else 30,
            maxinterval=10 if terminal else 60,
            ncols=None if terminal else 100,
        )

    def say(self, text: str) -> None:
        """Print one line about what the stage found."""
        echo(f"{self.name}: {text}")

    def prepare(self) -> None:
        """Empty the staging folder and make the state folder."""
        shutil.rmtree(self._staging, ignore_errors=True)
        shutil.rmtree(self._forgotten, ignore_errors=True)
        self.state_dir.mkdir(parents=True, exist_ok=True)

    def check_inputs(self) -> None:
        """Raise `LeverlabError` when an input or a declared param is no longer what it was when the stage began."""
        for dep, before in self._input_stamps.items():
            if not Path(dep).exists() or (stamp(Path(dep)) != before and digest(Path(dep)) != self.inputs[dep]):
                raise LeverlabError(
                    f"'{dep}' changed while the stage ran, so its outs belong to no state of the repository; "
                    "leave inputs alone and run dvc repro again"
                )
        for (file, key), before in self._params.items():
            with contextlib.suppress(LeverlabError):  # a key that cannot be read any more has changed too
                if read_param(Path(file), key) == before:
                    continue
            raise LeverlabError(f"'{key}' of {file} changed while the stage ran; run dvc repro again")

    def publish(self) -> None:
        """Move every declared out to its place. Raises `LeverlabError` when one was not written."""
        absent = [out for out in self._declaration.outs if not (self._staging / out).exists()]
        if absent:
            raise LeverlabError(f"stage '{self.name}' ended without writing {absent}; this is a bug in the stage")
        for out in self._declaration.outs:
            target = Path(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            (self._staging / out).replace(target)
        shutil.rmtree(self._staging, ignore_errors=True)

    def forget(self) -> None:
        """Remove the state folder: a run that is killed meanwhile leaves all of it or none, never a half."""
        self.state_dir.rename(self._forgotten)
        shutil.rmtree(self._forgotten, ignore_errors=True)

    def provenance(self, seconds: float) -> dict[str, Any]:
        """Return the record of this run: what went in, with what, on what, and at what cost."""
        peak_kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return {
            "stage": self.name,
            "revision": git("rev-parse", "HEAD"),
            "dirty": is_edited(),
            "params": self.declared_params(),
            "inputs": self.inputs,
            "outs": {out: digest(Path(out)) for out in self._declaration.outs},
            "versions": {"python": platform.python_version(), **self.versions},
            "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "gpu": _gpu()},
            "seconds": round(seconds, 1),
            "peak_mib": round(peak_kib / 1024),
        }


def run_stage(stage: str, body: Callable[[Stage], None], item: dict[str, str] | None = None, home: str = ".") -> None:
    """Run `body` under the contract, and end the process with code 1 and one clear message when it fails.

    `item` holds the matrix values of this run, `home` the folder of the `dvc.yaml` that declares the stage. `body`
    reads through `Stage.section` and `Stage.dep`, writes through `Stage.out`, and keeps what it needs to resume in
    `Stage.state_dir`.
    """
    start = time.monotonic()
    declaration = None
    try:
        declaration = read_declaration(Path(home) / "dvc.yaml", stage, item or {})
        check_all_params(home)
        locks = Path(".leverlab") / "locks" / home
        locks.mkdir(parents=True, exist_ok=True)
        with _own_workspace(locks / f"{declaration.name}.lock", declaration.name):
            run = Stage(declaration, home)
            run.state_dir.parent.mkdir(parents=True, exist_ok=True)
            with _own_state(run.state_dir.with_suffix(".lock"), run):
                run.prepare()
                if (remark := left_detached()) is not None:
                    run.say(remark)
                body(run)
                run.check_inputs()
                run.publish()
                record = run.provenance(time.monotonic() - start)
                path = Path(home) / "provenance" / f"{run.name}.json"
                write_text(path, json.dumps(record, indent=2, sort_keys=True) + "\n")
                run.forget()  # last of all: until here a failure costs no work
    except LeverlabError as error:
        sys.exit(printable(f"leverlab: stage {stage}: {error}{_where_params_differ(str(error), declaration)}"))
    except Exception as error:
        if not _is_disk_full(error):
            raise
        traceback.print_exc()
        sys.exit(
            printable(
                f"leverlab: stage {stage}: no space left on the disk ({error}); free some and run dvc repro again: "
                "what was finished is kept"
            )
        )


def check_all_params(home: str) -> None:
    """Raise `LeverlabError` when any section of the params file in `home` is not valid, declared by the stage or not.

    A bad value of a late section stops the first stage that runs, not the last one after hours of training. The check
    is a process of its own that can only say no: what it reads reaches no out, so it is neither dep nor param of a
    stage. A place that has only what a stage declares (`leverlab verify`) lacks it, and sections too: nothing is
    checked there.
    """
    if not Path("src", *CHECK.split(".")).with_suffix(".py").exists():
        return
    done = subprocess.run([sys.executable, "-m", CHECK, home], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LeverlabError(done.stderr.strip() or f"the check of the params ended with status {done.returncode}")


def _where_params_differ(message: str, declaration: Declaration | None) -> str:
    """Return how to restore the params files that an error is about, where they differ from HEAD."""
    files = {file for file, _ in declaration.params} if declaration else set()
    blamed = [file for file in files if re.search(rf"(?<![\w/.-]){re.escape(file)}(?![\w/-])", message)]
    edited = " ".join(edited_among(blamed)) if blamed else ""
    if not edited:
        return ""
    separator = "\n" if "\n" in message else "; "
    return (
        f"{separator}{edited} differs from HEAD: edited, or left by the run before, since `dvc exp run -S` keeps its "
        f"values there when it fails; `git diff HEAD -- {edited}` shows them, "
        f"`git restore --staged --worktree {edited}` restores the committed ones"
    )


def _lies_in(path: str, declared: Sequence[str]) -> bool:
    """Return whether `path` is a declared path or below one."""
    inside = any(path == known or path.startswith(f"{known}/") for known in declared)
    return inside and ".." not in Path(path).parts


def _input_digest(dep: str) -> str:
    try:
        return digest(Path(dep))
    except FileNotFoundError:
        raise LeverlabError(f"the input '{dep}' does not exist; run the stage that makes it (dvc repro)") from None


def _own_workspace(path: Path, name: str) -> AcquireReturnProxy[Any]:
    """Return the lock of the stage's outs in this workspace, or refuse."""
    try:
        return FileLock(path).acquire(timeout=0)
    except Timeout:
        raise LeverlabError(
            f"'{name}' is already running in another process, perhaps left over by a killed dvc; "
            f"wait for it or end it (it holds {path})"
        ) from None


def _own_state(path: Path, run: Stage) -> AcquireReturnProxy[Any]:
    """Return the lock of the run's state. Queued experiments share it and meet in equal stages: the later one waits."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        run.say(f"waiting for another process that runs the same '{run.name}'; if it is left over, end it ({path})")
        return lock.acquire()


def _is_disk_full(error: BaseException) -> bool:
    full = "no space left" in str(error).lower() or "disk is full" in str(error).lower()
    return full or (isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package).split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # only stages that compute with torch have a GPU to name
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


class _Lines:
    """A file for tqdm that turns the redrawing of one line into lines, for logs."""

    def write(self, text: str) -> None:
        if line := text.strip():
            echo(line, err=True)

    def flush(self) -> None:
        sys.stderr.flush()
