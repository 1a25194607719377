"""The command `leverlab`: tools on the pipeline, one function a command.

The library is imported inside the commands, so that `leverlab --help` needs none of it.
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from leverlab.errors import LeverlabError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def leverlab() -> None:
    """Tools on the leverlab pipeline. What builds it is DVC itself: `dvc repro`, `dvc exp run`."""


@app.command()
def deps(
    write: Annotated[
        bool, typer.Option("--write/--check", help="Rewrite the deps of every dvc.yaml, or only compare them.")
    ] = False,
) -> None:
    """Compare the Python deps of every stage with what it imports."""
    from leverlab.pipeline import deps as closures

    root = repository_root()
    if write:
        for path in closures.write(root):
            typer.echo(f"{path.relative_to(root)}: deps rewritten")
    problems = closures.check(root)
    if problems:
        raise LeverlabError("\n".join(problems))
    typer.echo("the deps of every stage are what it imports")


@app.command()
def params() -> None:
    """Check the whole of params.yaml."""
    from leverlab.pipeline.params import check_params_file

    check_params_file(repository_root() / "params.yaml")
    typer.echo("params.yaml is valid")


@app.command()
def readme() -> None:
    """Put the report's accuracy table into README.md."""
    from leverlab.pipeline.readme import write

    write(repository_root())
    typer.echo("README.md holds the table of reports/tables/accuracy.md")


plan = typer.Typer(no_args_is_help=True, help="Named sets of params overrides.")
app.add_typer(plan, name="plan")


@plan.command("list")
def plan_list() -> None:
    """Print the name and title of every plan."""
    from leverlab.pipeline.plans import load_plan, plan_names

    root = repository_root()
    for name in plan_names(root):
        typer.echo(f"{name}: {load_plan(root, name).title}")


@plan.command("show")
def plan_show(name: str) -> None:
    """Print a plan, and the command that runs it."""
    from leverlab.config.base import read_params
    from leverlab.pipeline.plans import experiment_command, load_plan, overridden

    root = repository_root()
    chosen = load_plan(root, name)
    overridden(read_params(root / "params.yaml"), chosen.overrides)
    typer.echo(
        f"{chosen.title}\n{chosen.hypothesis}\naccept: {chosen.accept}\n{shlex.join(experiment_command(name, chosen))}"
    )


@plan.command("run")
def plan_run(name: str) -> None:
    """Print and run the DVC experiment of a plan."""
    from leverlab.config.base import read_params
    from leverlab.pipeline.plans import experiment_command, load_plan, overridden

    root = repository_root()
    chosen = load_plan(root, name)
    overridden(read_params(root / "params.yaml"), chosen.overrides)
    command = experiment_command(name, chosen)
    typer.echo(shlex.join(command))
    raise typer.Exit(subprocess.run(command, cwd=root, check=False).returncode)


def repository_root() -> Path:
    """Return the root of the DVC repository that the working directory lies in.

    Raises `LeverlabError` outside a DVC repository.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir():
            return folder
    raise LeverlabError(f"{here} lies in no DVC repository; run the command inside a clone of leverlab")


def main() -> None:
    """Run the command line; a `LeverlabError` is printed as it is, without a traceback, with exit code 1."""
    try:
        app()
    except LeverlabError as error:
        print(f"leverlab: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
