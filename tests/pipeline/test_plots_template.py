"""`dvc plots diff` with the templates of this repository: both revisions, intervals, and a page that opens offline."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from leverlab.report.clarify_figures import POLICY_COLOURS
from leverlab.report.figures import COLOURS, SELECTORS
from leverlab.report.words import LABELS

REPOSITORY = Path(__file__).parents[2]
DECLARED = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["plots"]

METHODS = tuple(LABELS)
SHOTS = "method,shots,accuracy,ci_low,ci_high,n,seed_std,distinct_demos\nzero_shot,0,0.0,0.0,0.005,800,,0\n" + "".join(
    f"{method},{shots},0.5,0.4,0.6,800,,9\n"
    for method in METHODS
    if method not in {"zero_shot", "grpo"}
    for shots in (1, 4)
)
CURVES = "method,seed,epoch,val_accuracy\n" + "".join(
    f"{method},{seed},{epoch},0.{epoch}\n" for method in SELECTORS for seed in (0, 1, 2) for epoch in (1, 2)
)
MOST_LINES = 8  # of a plot, for two revisions
# The accuracy of GRPO at four shots, and of its last checkpoint, in two revisions.
ACCURACY = {"plan-5": 0.8125, "plan-6": 0.84375}


@pytest.fixture(scope="module")
def plots(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The page and the filled Vega-Lite specs that `dvc plots diff plan-5 plan-6` makes in a small repository."""
    root = tmp_path_factory.mktemp("clone")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(root),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(root / "none"),
        "DVC_SITE_CACHE_DIR": str(root / "site"),
        **{f"GIT_{role}_{key}": "leverlab@x.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")},
    }

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout

    shutil.copytree(REPOSITORY / ".dvc/plots", root / ".dvc/plots")
    for name in ("config", ".gitignore"):
        shutil.copy(REPOSITORY / ".dvc" / name, root / ".dvc" / name)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"plots": DECLARED}))
    run("git", "init", "-q")
    for revision, accuracy in ACCURACY.items():
        low, high = accuracy - 0.03125, accuracy + 0.03125
        for name, text in {
            "reports/shots.csv": f"{SHOTS}grpo,4,{accuracy},{low},{high},800,0.01,1900\n",
            "models/best/checkpoints.csv": f"{CURVES}grpo,0,30,{accuracy}\ngrpo,1,30,{accuracy}\n",
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        run("git", "add", "-A")
        run("git", "commit", "-qm", revision)
        run("git", "tag", revision)
    dvc = (sys.executable, "-m", "dvc", "plots", "diff", *ACCURACY)
    run(*dvc)
    page = (root / "dvc_plots/index.html").read_text(encoding="utf-8")
    specs = {}
    for match in re.finditer(r"var spec = (\{.*\});\n\s*vegaEmbed\('#(\w+)'", page):
        specs[match[2]] = json.loads(match[1])
    return page, specs


def test_page_opens_without_a_network(plots: tuple[str, dict[str, Any]]) -> None:
    """Every script is inlined: Vega, Vega-Lite and Vega-Embed of the major versions that DVC writes specs for."""
    page, _ = plots
    tags = re.findall(r"<[a-z][^>]*>", re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL))
    assert len(tags) > 10
    assert not [tag for tag in tags if re.search(r"(src|href)\s*=", tag)]
    packages = re.findall(r'<script data-package="([^"]+)">', page)
    assert [re.sub(r"(@\d+).*", r"\1", package) for package in packages] == ["vega@5", "vega-lite@5", "vega-embed@6"]
    assert "vegaEmbed=" in page
    assert "{plot_divs}" not in page
    assert "{refresh_tag}" not in page


def test_page_is_small(plots: tuple[str, dict[str, Any]]) -> None:
    assert len(plots[0].encode()) < 2_000_000


def test_both_revisions_are_in_both_plots(plots: tuple[str, dict[str, Any]]) -> None:
    _, specs = plots
    assert sorted(specs) == ["curves", "shots"]
    for name, field in (("shots", "accuracy"), ("curves", "val_accuracy")):
        rows = [row for row in specs[name]["data"]["values"] if row["method"] == "grpo"]
        assert {row["rev"]: float(row[field]) for row in rows} == ACCURACY


def test_shots_have_intervals_and_a_panel_per_revision(plots: tuple[str, dict[str, Any]]) -> None:
    """The rows keep the ends of the interval, and one layer draws from the lower to the upper end."""
    spec = plots[1]["shots"]
    assert spec["facet"]["column"]["field"] == "rev"
    assert spec["spec"]["encoding"]["color"]["field"] == "method"
    drawn = [
        (layer["encoding"]["y"]["field"], layer["encoding"].get("y2", {}).get("field"))
        for layer in spec["spec"]["layer"]
    ]
    assert drawn == [("accuracy", None), ("ci_low", "ci_high"), ("accuracy", None)]
    widths = {
        row["rev"]: float(row["ci_high"]) - float(row["ci_low"])
        for row in spec["data"]["values"]
        if row["method"] == "grpo"
    }
    assert widths == dict.fromkeys(ACCURACY, 0.0625)


def test_no_placeholder_is_left(plots: tuple[str, dict[str, Any]]) -> None:
    assert "<DVC_METRIC" not in json.dumps(plots[1])


def test_every_method_has_the_colour_of_the_report(plots: tuple[str, dict[str, Any]]) -> None:
    """The colour follows the method in both plots, never the revision, and no mark has another one."""
    for spec in plots[1].values():
        colour = spec["spec"]["encoding"]["color"]
        assert colour["field"] == "method"
        scale = dict(zip(colour["scale"]["domain"], colour["scale"]["range"], strict=True))
        assert scale == {method: COLOURS[method] for method in scale}
        assert {row["method"] for row in spec["data"]["values"]} == set(scale)
        assert not [
            layer for layer in spec["spec"]["layer"] if "color" in layer["encoding"] or "color" in layer["mark"]
        ]
    assert {name: POLICY_COLOURS[name] for name in ("sft", "rce", "grpo")} == {
        name: COLOURS[name] for name in ("sft", "rce", "grpo")
    }


def test_two_revisions_have_eight_lines_at_most(plots: tuple[str, dict[str, Any]]) -> None:
    """A panel of `shots` draws a line per method that its filter keeps, `curves` one per method and revision."""
    shots, curves = plots[1]["shots"], plots[1]["curves"]
    kept = quoted(shots["transform"][0]["filter"])
    assert shots["transform"][0]["filter"].startswith("every_method || indexof([")
    assert shots["params"][0]["value"] is False
    drawn = [row["method"] for row in shots["data"]["values"] if row["method"] in kept and row["rev"] == "plan-5"]
    assert set(drawn) == set(kept)
    assert len(kept) == MOST_LINES
    assert {*SELECTORS, "oracle", "random"} < set(kept)
    assert curves["facet"]["column"]["field"] == "method"
    lines = [layer["encoding"] for layer in curves["spec"]["layer"] if layer["mark"]["type"] == "line"]
    assert [(line["y"]["aggregate"], line["strokeDash"]["field"]) for line in lines] == [("mean", "rev")]
    assert len({(row["method"], row["rev"]) for row in curves["data"]["values"]}) == MOST_LINES


def test_lines_of_one_colour_have_dashes_of_their_own(plots: tuple[str, dict[str, Any]]) -> None:
    """Of the methods that are drawn by default no two have colour and dash in common; nor have five revisions."""
    shots, curves = plots[1]["shots"], plots[1]["curves"]
    dash = shots["spec"]["layer"][0]["encoding"]["strokeDash"]["scale"]
    dashes = dict(zip(dash["domain"], dash["range"], strict=True))
    looks = [(COLOURS[method], *dashes[method]) for method in quoted(shots["transform"][0]["filter"])]
    assert len(set(looks)) == len(looks)
    by_revision = curves["spec"]["layer"][1]["encoding"]["strokeDash"]["scale"]["range"]
    assert len({tuple(dash) for dash in by_revision}) == len(by_revision) >= 3


def test_epochs_and_shots_are_whole_numbers(plots: tuple[str, dict[str, Any]]) -> None:
    for name, x in (("shots", "x_dodged"), ("curves", "epoch")):
        axis = plots[1][name]["spec"]["encoding"]["x"]
        assert axis["field"] == x
        assert axis["type"] == "quantitative"
        assert axis["axis"] == {"tickMinStep": 1, "format": "d"}
        assert name == "shots" or axis["scale"]["nice"] is False  # the axis ends at an epoch


def test_methods_have_the_order_and_the_words_of_the_report(plots: tuple[str, dict[str, Any]]) -> None:
    """Methods are set apart sideways in the order of the legend, which names them as the report does."""
    shots, curves = (plots[1][name] for name in ("shots", "curves"))
    colour = shots["spec"]["encoding"]["color"]
    domain = colour["scale"]["domain"]
    assert sorted(domain) == sorted(METHODS)
    assert quoted(shots["transform"][1]["calculate"].split("indexof(")[1].split("]")[0]) == domain
    assert quoted(colour["legend"]["values"]["expr"]) == [*domain, *quoted(shots["transform"][0]["filter"])]
    for labels, named in (
        (colour["legend"]["labelExpr"], METHODS),
        (curves["facet"]["column"]["header"]["labelExpr"], SELECTORS),
    ):
        assert dict(re.findall(r"(\w+): '([^']*)'", labels)) == {method: LABELS[method] for method in named}


def test_only_the_main_pipeline_has_plots() -> None:
    """DVC shows the plots of every dvc.yaml below the root, so those of a world or a recipe would be among them."""
    declared = [
        path.relative_to(REPOSITORY).as_posix()
        for folder in (".", "recipes/*", "worlds/*")
        for path in REPOSITORY.glob(f"{folder}/dvc.yaml")
        if re.search(r"^ *plots:", path.read_text(), re.MULTILINE)
    ]
    assert declared == ["dvc.yaml"]
    assert [name for plot in DECLARED for name in plot] == ["shots", "curves"]


def quoted(expression: str) -> list[str]:
    """Return the words in quotes of a Vega expression, in order."""
    return re.findall(r"'(\w+)'", expression)


def test_configuration_works_in_any_clone() -> None:
    """The path of the page is relative to .dvc, and git does not ignore what it names."""
    config = (REPOSITORY / ".dvc/config").read_text()
    assert "html_template = plots/page.html" in config
    assert "analytics = false" in config
    ignored = subprocess.run(
        ["git", "check-ignore", ".dvc/plots/page.html", ".dvc/plots/shots.json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ignored.stdout == ""
