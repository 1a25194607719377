"""The data card: what a prepared world holds, as Markdown that is the same for the same data."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from leverlab.markdown import code, inline, paragraph
from leverlab.records import Example
from leverlab.worlds.world import World

EXAMPLES_SHOWN = 3


def split_digest(examples: Sequence[Example]) -> str:
    """Return the SHA-256 over ids, questions, answers and image bytes of `examples`, in their order."""
    sha = hashlib.sha256()
    for example in examples:
        for text in (example.id, example.image_id, example.question, example.question_type, *example.answers):
            data = text.encode()
            sha.update(len(data).to_bytes(8, "little") + data)  # lengths keep neighbouring texts apart
        sha.update(len(example.answers).to_bytes(8, "little"))
        sha.update(len(example.image).to_bytes(8, "little") + example.image)
    return sha.hexdigest()


def data_card(
    world: World,
    label_noise: float,
    seed: int,
    sampler: str,
    candidates: int,
    train_sets: int,
    val_sets: int,
    encoder: str,
) -> str:
    """Return the data card of `world` and its candidates: licence, counts, digests and examples. No time, no path."""
    splits = world.splits()
    types = sorted({example.question_type for examples in splits.values() for example in examples})
    parts = [
        f"# Data card: {inline(world.name)}",
        paragraph(world.description),
        f"- Licence: {inline(world.licence)}\n"
        f"- Seed {seed}; label noise in the pool: {label_noise:g}\n"
        f"- Candidates: {candidates} demos of the pool a set, sampler `{sampler}`, features of {code(encoder)}; sets "
        f"for a train question {train_sets}, for a val question {val_sets}, for a test question 1. A demo that shows "
        "the question's own image is never a candidate.",
        "## Splits",
        _table(
            ["split", "questions", "distinct images", "distinct answers", "answers a question"],
            [_split_row(name, examples) for name, examples in splits.items()],
        ),
        "## Questions by type",
        _table(["type", *splits], _type_rows(types, splits)),
        "## Digests",
        "SHA-256 over the ids, questions, answers and image bytes of each split.",
        _table(["split", "sha256"], [[name, f"`{split_digest(examples)}`"] for name, examples in splits.items()]),
        "## Examples",
    ]
    for name, examples in splits.items():
        rows = [
            [
                *map(inline, (example.id, example.image_id, example.question_type, example.question)),
                inline(", ".join(example.answers)),
            ]
            for example in examples[:EXAMPLES_SHOWN]
        ]
        parts += [f"### {name}", _table(["id", "image", "type", "question", "answers"], rows)]
    return "\n\n".join(parts) + "\n"


def _split_row(name: str, examples: Sequence[Example]) -> list[str]:
    counts = sorted({len(example.answers) for example in examples})
    answers = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    images = len({example.image_id for example in examples})
    return [name, str(len(examples)), str(images), str(len({example.answer for example in examples})), answers]


def _type_rows(types: Sequence[str], splits: dict[str, tuple[Example, ...]]) -> list[list[str]]:
    counts = {name: Counter(example.question_type for example in examples) for name, examples in splits.items()}
    return [[inline(question_type), *(str(counts[name][question_type]) for name in splits)] for question_type in types]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
