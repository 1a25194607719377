"""`dvc plots diff` with the templates of this repository: both revisions, intervals, and a page that opens offline."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]

# The definitions that dvc.yaml uses, on a small file each.
PIPELINE = """\
plots:
  - shots:
      x: shots
      y:
        reports/shots.csv: accuracy
      template: shots
  - curves:
      x: epoch
      y:
        models/best/checkpoints.csv: val_accuracy
      template: curves
"""
SHOTS = "method,shots,accuracy,ci_low,ci_high,n,seed_std,distinct_demos\nzero_shot,0,0.0,0.0,0.005,800,,0\n"
CURVES = "method,seed,epoch,val_accuracy\nsft,0,1,0.4\n"
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
    (root / "dvc.yaml").write_text(PIPELINE)
    run("git", "init", "-q")
    for revision, accuracy in ACCURACY.items():
        low, high = accuracy - 0.03125, accuracy + 0.03125
        for name, text in {
            "reports/shots.csv": f"{SHOTS}grpo,4,{accuracy},{low},{high},800,0.01,1900\n",
            "models/best/checkpoints.csv": f"{CURVES}grpo,0,30,{accuracy}\n",
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
    """Colours of the curves follow the revisions; nothing of the templates' anchors remains."""
    _, specs = plots
    assert specs["curves"]["spec"]["encoding"]["color"]["scale"]["domain"] == list(ACCURACY)
    assert "<DVC_METRIC" not in json.dumps(specs)


def test_methods_are_ordered_and_coloured_alike() -> None:
    """Methods are set apart sideways in the order of the legend, and every method has a colour of its own."""
    spec = json.loads((REPOSITORY / ".dvc/plots/shots.json").read_text())["spec"]
    scale = spec["encoding"]["color"]["scale"]
    assert re.findall(r"'(\w+)'", spec["transform"][0]["calculate"].split("indexof(")[1]) == scale["domain"]
    assert len(set(scale["range"])) == len(scale["domain"]) == 12


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
