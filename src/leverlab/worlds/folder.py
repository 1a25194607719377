"""A world of one's own: a folder with `pool`, `train`, `val` and `test`, each as parquet or as JSON lines.

Parquet files have the schema of `leverlab.records`. A line of a JSON-lines file is an object with `id`, `image` (an
image file, relative to the folder), `image_id`, `question`, `question_type` and `answers`.
"""

from pathlib import Path

import numpy as np

from leverlab.errors import LeverlabError
from leverlab.records import Example, parse_example, read_examples
from leverlab.worlds.json_rows import json_rows
from leverlab.worlds.world import SPLITS, World


def folder_world(source: str, pool: int, train: int, val: int, test: int, seed: int) -> World:
    """Return the world in folder `source`: a random choice of the given size from each file, in the file's order.

    Raises `LeverlabError` for a missing file, a bad row, or fewer rows than asked for.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise LeverlabError(
            f"data.source = '{source}' is no folder; name one that holds {', '.join(SPLITS)} as .parquet or .jsonl"
        )
    examples = {}
    for index, (split, size) in enumerate(zip(SPLITS, (pool, train, val, test), strict=True)):
        rows = _read_split(folder, split)
        if size > len(rows):
            raise LeverlabError(f"data.{split} = {size}, but '{split}' in '{source}' holds {len(rows)} rows; lower it")
        chosen = np.sort(np.random.default_rng([seed, index]).permutation(len(rows))[:size])
        examples[split] = tuple(rows[row] for row in chosen)
    return World(
        name="folder",
        **examples,
        licence="that of the data's owner",
        description="Examples from a folder of files, split as the files are.",
    )


def _read_split(folder: Path, split: str) -> list[Example]:
    parquet, lines = folder / f"{split}.parquet", folder / f"{split}.jsonl"
    if parquet.exists() == lines.exists():
        what = "both" if parquet.exists() else "neither"
        raise LeverlabError(f"{folder} holds {what} of {parquet.name} and {lines.name}; it must hold one of them")
    return read_examples(parquet, with_pixels=True) if parquet.exists() else _read_lines(lines)


def _read_lines(path: Path) -> list[Example]:
    return [
        parse_example(row | {"image": _read_image(path.parent, row.get("image"), where)}, where, with_pixels=True)
        for where, row in json_rows(path)
    ]


def _read_image(folder: Path, name: object, where: str) -> bytes | None:
    """Return the bytes of an image file, None where the row names none."""
    if name is None:
        return None
    outside = f"{where}: 'image' must name a file inside {folder}, not {name!r}"
    if not isinstance(name, str):
        raise LeverlabError(outside)
    try:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise LeverlabError(outside)
        return (folder / name).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise LeverlabError(f"{where}: the image {name!r} cannot be read ({error}); add it or remove the row") from None
