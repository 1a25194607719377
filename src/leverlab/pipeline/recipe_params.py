"""The whole of a recipe's `params.yaml`, checked before anything runs."""

from pathlib import Path

from leverlab.config.base import Section, read_params
from leverlab.pipeline.params import check_sections

SECTIONS: dict[str, type[Section]] = {}


def check_recipe(folder: Path) -> None:
    """Raise `LeverlabError` with one line per problem unless `folder` holds valid params of the recipe."""
    path = folder / "params.yaml"
    check_sections(read_params(path), str(path), SECTIONS)
