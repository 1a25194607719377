"""The command `leverlab`: tools on the pipeline, one function a command.

The library is imported inside the commands, so that `leverlab --help` needs none of it.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leverlab.deploy import commands
from leverlab.errors import LeverlabError
from leverlab.lm import commands as lm_commands
from leverlab.terminal import echo

if TYPE_CHECKING:
    from rich.console import Console


app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(commands.select)
app.command()(commands.predict)
app.command()(commands.demo)
app.command()(lm_commands.chat)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        try:
            echo(f"leverlab {metadata.version('leverlab')}")
        except metadata.PackageNotFoundError:
            echo("leverlab (not installed as a package)")
        raise typer.Exit


@app.callback()
def leverlab(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
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
            echo(f"{path.relative_to(root)}: deps rewritten")
    problems = closures.check(root)
    if problems:
        raise LeverlabError("\n".join(problems))
    echo("the deps of every stage are what it imports")


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Recipe = Annotated[
    Path | None, typer.Argument(help="Folder of a recipe, such as recipes/clarify; without one, the main pipeline.")
]


@app.command()
def params(folder: Recipe = None, as_json: AsJson = False) -> None:
    """Check the whole of params.yaml, or that of a recipe."""
    if folder is None:
        from leverlab.pipeline.params import check_params_file

        file = Path("params.yaml")
        check_params_file(repository_root() / file)
    else:
        from leverlab.pipeline.recipe_params import check_recipe

        _check_recipe_folder(folder)
        file = folder / "params.yaml"
        check_recipe(folder)
    if as_json:
        _print_json({"file": str(file), "valid": True})
    else:
        echo(f"{file} is valid")


@app.command()
def blast(
    key: Annotated[
        str | None, typer.Argument(help="Dotted key or section; FILE:KEY where several params files have it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
    every_key: Annotated[bool, typer.Option("--all", help="Write docs/blast_radius.md.")] = False,
) -> None:
    """Tell which stages a change of a parameter re-runs, at what cost, and why."""
    if (key is None) != every_key or (every_key and as_json):
        raise typer.BadParameter("give one KEY, or --all alone")
    import dataclasses
    import json

    from leverlab.pipeline import blast as radius

    root = repository_root()
    if key is None:
        echo(f"{radius.write(root)} is written")
        return
    reruns = radius.blast(root, key)
    if as_json:
        echo(json.dumps([dataclasses.asdict(rerun) for rerun in reruns], indent=2))
    elif reruns:
        _console(200).print(radius.table(key, reruns))
    else:
        echo(f"no stage reads {key}: a change of it re-runs nothing")


@app.command()
def readme(
    folder: Annotated[Path | None, typer.Argument(help="The folder of a recipe; the root by default.")] = None,
    experiments: Annotated[
        tuple[str, str] | None, typer.Option(help="Two experiments of this clone, whose comparison is shown.")
    ] = None,
) -> None:
    """Put the tables of the report, and what DVC prints, into README.md."""
    from leverlab.pipeline.readme import write

    place = folder or repository_root()
    write(place, experiments or ())
    echo(f"{place / 'README.md'} holds the tables of {place / 'reports/tables'}")


@app.command()
def lineage(
    file: Annotated[str, typer.Argument(help="An out of a stage, or a file below one.")],
    code: Annotated[bool, typer.Option("--code", help="Name the modules of each stage one by one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tree as JSON.")] = False,
) -> None:
    """Print the tree from a file, a figure of the report say, back to the raw rows."""
    import dataclasses
    import json
    import os

    from leverlab.pipeline import lineage as origins

    root = repository_root()
    origin = origins.lineage(root, Path(os.path.relpath(file, root)).as_posix())
    if as_json:
        echo(json.dumps(dataclasses.asdict(origin), indent=2))
    else:
        _console(1000, markup=True).print(origins.render(origin, code))


Method = Annotated[str, typer.Option(help="The method whose answers are compared.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
Html = Annotated[Path | None, typer.Option(help="Write a page to this file, too.")]


@app.command()
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Experiments, Git revisions, or 'workspace'; two or more.")
    ],
    method: Method = "grpo",
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
    html: Html = None,
) -> None:
    """Compare runs question by question: params, accuracy, paired differences, tests, agreement of picks."""
    _compare([(name, None) for name in names], method, as_json, as_markdown, html)


def _compare(
    runs: list[tuple[str, str | None]], method: str, as_json: bool, as_markdown: bool, html: Path | None
) -> None:
    """Compare runs, given by name and, where the name is not to be looked up, commit."""
    if as_json and as_markdown:
        raise typer.BadParameter("give --json or --markdown, not both")
    import json

    from leverlab.files import write_text
    from leverlab.pipeline import compare_runs_report as shown
    from leverlab.pipeline.answers_of import read_run
    from leverlab.pipeline.compare_runs import compare as compared

    root = repository_root()
    comparison = compared([read_run(root, name, commit) for name, commit in runs], method)
    if html:
        write_text(html, shown.to_html(comparison))
    if as_json:
        echo(json.dumps(shown.as_dict(comparison), indent=2))
    elif as_markdown:
        echo(shown.to_markdown(comparison).removesuffix("\n"))
    else:
        console = _console(200)
        for table in shown.tables(comparison):
            console.print(table)
        for line in (*comparison.warnings, *shown.sentences(comparison)):
            console.print(line, soft_wrap=True)


@app.command()
def health(
    file: Annotated[Path, typer.Argument(help="A groups file, such as data/rl/groups.parquet.")],
    prepared: Annotated[
        Path | None,
        typer.Option(help="The prepared data that the groups were made from; data/prepared when none is given."),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Leave out the checks on candidates and pool.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as reports/health.json has them.")
    ] = False,
) -> None:
    """Check a groups file against the health limits of params.yaml; code 1 when one is broken."""
    if alone and prepared is not None:
        raise typer.BadParameter("give --prepared or --alone, not both")
    import dataclasses
    import json
    import os

    from leverlab.evaluation.health import failures
    from leverlab.pipeline.groups_health import groups_health, render

    root = repository_root()
    of_the_repository = Path(os.path.relpath(root / "data/prepared"))
    findings = groups_health(root, file, None if alone else prepared or of_the_repository)
    if as_json:
        echo(json.dumps({"findings": [dataclasses.asdict(finding) for finding in findings]}, indent=2))
    else:
        _console(1000, markup=True).print(render(file, findings))
    raise typer.Exit(1 if failures(findings) else 0)


@app.command()
def verify(
    stages: Annotated[
        list[str] | None,
        typer.Argument(help="Stages as DVC names them; all of the root's dvc.yaml when none is given."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest difference of numbers; a stage states its own in dvc.yaml.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run stages again in a temporary folder and compare what they write with dvc.lock."""
    from leverlab.pipeline import verify as again

    root = repository_root()
    console = _console(200, stderr=as_json)
    verdicts = []
    for name in again.select(root, stages or []):
        with console.status(f"{name} runs again"):
            verdicts.append(again.verify_stage(root, name, tolerance))
        console.print(f"{name}: {verdicts[-1].result} ({verdicts[-1].seconds:.1f} s)", soft_wrap=True)
        if verdicts[-1].tail:
            console.print(verdicts[-1].tail, soft_wrap=True)
    if as_json:
        _print_json(again.as_list(verdicts))
    else:
        console.print(again.table(verdicts))
    raise typer.Exit(0 if all(verdict.passed for verdict in verdicts) else 1)


@app.command()
def gate(folder: Recipe = None, as_json: AsJson = False) -> None:
    """Print the acceptance rules of the last report, and which are off; fail when one of them failed."""
    from leverlab.pipeline import gate as acceptance

    if folder is not None:
        _check_recipe_folder(folder)
    gates = acceptance.read_gates(repository_root() if folder is None else folder)
    if as_json:
        _print_json(acceptance.as_list(gates))
    else:
        _console(200).print(acceptance.table(gates))
    raise typer.Exit(0 if acceptance.all_passed(gates) else 1)


@app.command()
def watch(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of a recipe, such as recipes/clarify; without one, all pipelines.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once; so does a pipe or a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the trainings that run now, and those that were killed: epoch, loss, validation, best, seconds an epoch."""
    from leverlab.pipeline import watch as trainings

    root = repository_root()
    if folder is not None:
        _check_recipe_folder(folder)
    home = None if folder is None else trainings.home_of(root, folder)
    if as_json:
        _print_json(trainings.as_list(trainings.read_progress(root, home)))
    elif once or not sys.stdout.isatty():
        _console(160).print(trainings.table(trainings.read_progress(root, home)))
    else:
        trainings.follow(_console(160), root, home)


plan = typer.Typer(no_args_is_help=True, help="Named sets of params overrides.")
app.add_typer(plan, name="plan")


def _complete_plan(incomplete: str) -> list[str]:
    """Return the plans whose names begin so, for the completion of a shell."""
    try:
        plans = repository_root() / "plans"
    except LeverlabError:
        return []
    return sorted(path.stem for path in plans.glob("*.yaml") if path.stem.startswith(incomplete))


Base = Annotated[
    str | None,
    typer.Option(help="Another plan to put under this one: the same idea at its size.", autocompletion=_complete_plan),
]
PlanName = Annotated[str, typer.Argument(help="A plan of `leverlab plan list`.", autocompletion=_complete_plan)]


@plan.command("list")
def plan_list(base: Base = None, as_json: AsJson = False) -> None:
    """Print all plans by what they change, each with its state and verdict."""
    import dataclasses

    from leverlab.pipeline import plan_list as listing
    from leverlab.pipeline.plans import load_plan

    root = repository_root()
    if base is not None:
        load_plan(root, base)
    plans = listing.list_plans(root, base)
    if as_json:
        _print_json([dataclasses.asdict(listed) for listed in plans])
    else:
        _console(200).print(listing.table(plans))


@plan.command("show")
def plan_show(name: PlanName, base: Base = None, as_json: AsJson = False) -> None:
    """Print a plan, and the command that runs it."""
    from leverlab.pipeline.plans import as_dict, load_experiment, render

    found = load_experiment(repository_root(), name, base)
    if as_json:
        _print_json(as_dict(found))
    else:
        echo(render(found))


@plan.command("run")
def plan_run(
    name: PlanName,
    base: Base = None,
    again: Annotated[bool, typer.Option("--again", help="Remove the experiment of this name on HEAD first.")] = False,
) -> None:
    """Print and run the DVC experiment of a plan."""
    raise typer.Exit(_run_plan(name, base, again=again))


@plan.command("queue")
def plan_queue(
    names: Annotated[list[str], typer.Argument(metavar="PLAN...", autocompletion=_complete_plan)], base: Base = None
) -> None:
    """Put the DVC experiments of plans into DVC's queue; `dvc queue start` works it off."""
    for name in names:
        code = _run_plan(name, base, queue=True)
        if code != 0:
            raise typer.Exit(code)
    echo("start the queue with: dvc queue start")


@plan.command("compare")
def plan_compare(
    names: Annotated[list[str], typer.Argument(metavar="PLAN...", help="Plans that ran; one alone with its parent.")],
    base: Base = None,
    method: Method = "grpo",
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
    html: Html = None,
) -> None:
    """Compare the experiments of plans as `leverlab compare` does."""
    from leverlab.pipeline.answers_of import commit_of, experiments, params_of
    from leverlab.pipeline.ledger_inputs import HEAD
    from leverlab.pipeline.plans import load_experiment

    root = repository_root()
    params, known = params_of(root, HEAD), experiments(root)
    found = [load_experiment(root, name, base, params) for name in names]
    runs = [experiment.name for experiment in found]
    if len(runs) == 1:
        runs.append(found[0].parent or HEAD)
    _compare([(run, commit_of(run, known)) for run in runs], method, as_json, as_markdown, html)


@plan.command("ledger")
def plan_ledger(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Experiments or Git revisions to rank; all plans when none is given."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="The plan that lies under the plans.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write docs/plans.md.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the ranks as CSV, Markdown and picture to this folder.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Folder of the recipe whose runs these are.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge all plans that ran, or rank experiments on validation questions and tell the effects of their params."""
    if (names and (base is not None or write)) or (not names and (out or recipe) is not None):
        raise typer.BadParameter("--base and --write are for all plans, --out and --recipe are for given runs")
    from leverlab.files import write_text
    from leverlab.pipeline import ledger_inputs, ledger_report, sweep_report
    from leverlab.pipeline.ledger import plan_ledger
    from leverlab.pipeline.recipe_runs import recipe_sweep
    from leverlab.pipeline.sweep import sweep

    root = repository_root()
    if names:
        found = recipe_sweep(root, recipe, names) if recipe else sweep(ledger_inputs.read_outcomes(root, names))
        tables, lines, data = sweep_report.tables(found), sweep_report.sentences(found), sweep_report.as_dict(found)
        written = sweep_report.write(found, out) if out else []
    else:
        ledger = plan_ledger(ledger_inputs.read_plans(root, base))
        tables, lines = ledger_report.tables(ledger), ledger_report.remarks(ledger)
        data = ledger_report.as_dict(ledger)
        written = [root / "docs/plans.md"] if write else []
        for path in written:
            write_text(path, ledger_report.to_markdown(ledger))
    if as_json:
        _print_json(data)
        return
    console = _console(200)
    for table in tables:
        console.print(table)
    for line in (*lines, *(f"{path} is written" for path in written)):
        console.print(line, soft_wrap=True)


def _run_plan(name: str, base: str | None, queue: bool = False, again: bool = False) -> int:
    from leverlab.pipeline.plans import check_identity, experiment_command, load_experiment, ran_on_head

    root = repository_root()
    found = load_experiment(root, name, base)
    check_identity(root, queue)
    if ran_on_head(root, found):
        if not again:
            raise LeverlabError(
                f"the experiment '{found.name}' of this commit ran before; see it with `dvc exp show`, bring its "
                f"results into the workspace with `dvc exp apply {found.name}`, or run it anew with "
                "`leverlab plan run --again`"
            )
        subprocess.run(["dvc", "exp", "remove", found.name], cwd=root, check=True)
    if found.warning:
        echo(f"leverlab: warning: {found.warning}", err=True)
    command = experiment_command(found, queue)
    echo(shlex.join(command))
    return subprocess.run(command, cwd=root, check=False).returncode


def _console(width: int, markup: bool = False, stderr: bool = False) -> "Console":
    """Return where to print: a terminal is as wide as it is, a file or a pipe gets whole lines of up to `width`."""
    from leverlab.console import SafeConsole

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return SafeConsole(width=None if terminal else width, markup=markup, highlight=markup, stderr=stderr)


def _print_json(data: object) -> None:
    import json

    echo(json.dumps(data, indent=2, allow_nan=False))


def _check_recipe_folder(folder: Path) -> None:
    """Raise `LeverlabError` when there is no such folder, with the nearest recipes."""
    if folder.is_dir():
        return
    from leverlab.nearest import did_you_mean

    known = [os.path.relpath(path.parent) for path in repository_root().glob("recipes/*/dvc.yaml")]
    raise LeverlabError(f"there is no recipe '{folder}'{did_you_mean(str(folder), known, '`ls recipes`')}")


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
        echo(f"leverlab: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
