"""A world: the pool of demos and the train, val and test questions, and the promises that hold between them."""

from dataclasses import dataclass

from leverlab.errors import LeverlabError
from leverlab.records import UNSCORABLE, Example

SPLITS = ("pool", "train", "val", "test")


@dataclass(frozen=True)
class World:
    """A data set, split by image. The pool's examples serve as demos, all others as questions."""

    name: str
    pool: tuple[Example, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    licence: str
    description: str

    def splits(self) -> dict[str, tuple[Example, ...]]:
        """Return the examples of each split, in the order of `SPLITS`."""
        return {"pool": self.pool, "train": self.train, "val": self.val, "test": self.test}


def check_world(world: World) -> None:
    """Raise `LeverlabError` naming split and id, unless every split has examples and all of them keep the promises.

    Ids are unique over all splits. No image is in two splits, by its `image_id` or by its pixels. No text is empty, and
    every question has a number of answers with which VQA accuracy can reach 1.
    """
    split_of_id: dict[str, str] = {}
    first_of_image: dict[tuple[str, str], tuple[str, str]] = {}  # its image_id or pixels → split and id
    for split, examples in world.splits().items():
        if not examples:
            raise LeverlabError(f"world '{world.name}': split '{split}' is empty; every split needs an example")
        for example in examples:
            where = f"world '{world.name}', split '{split}', id '{example.id}'"
            if example.id in split_of_id:
                raise LeverlabError(
                    f"{where}: split '{split_of_id[example.id]}' holds this id already; ids must be unique over all "
                    "splits"
                )
            split_of_id[example.id] = split
            for kind, value, name in (
                ("image_id", example.image_id, f"image '{example.image_id}'"),
                ("pixels", example.pixels, "an image with the same pixels"),
            ):
                other, row = first_of_image.setdefault((kind, value), (split, example.id))
                if other != split:
                    raise LeverlabError(
                        f"{where}: {name} is in split '{other}' too (id '{row}'); an image may be in one split only, "
                        "or the questions are not held out: move or remove one of the two rows"
                    )
            _check_texts(example, split, where)


def _check_texts(example: Example, split: str, where: str) -> None:
    if not example.answers or not all(answer.strip() for answer in example.answers):
        raise LeverlabError(f"{where}: answers must hold at least one text and no empty one")
    if split != "pool" and len(example.answers) in UNSCORABLE:
        raise LeverlabError(
            f"{where} has {len(example.answers)} answers, with which VQA accuracy cannot reach 1; give one answer per "
            "question, or at least four annotators' answers (ten is the standard)"
        )
    if not example.question.strip() or not example.question_type.strip():
        raise LeverlabError(f"{where}: question and question_type must not be empty")
