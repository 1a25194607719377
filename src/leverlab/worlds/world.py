"""A world: the pool of demos and the train, val and test questions, and the promises that hold between them."""

from dataclasses import dataclass

from leverlab.errors import LeverlabError
from leverlab.records import Example

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
    """Raise `LeverlabError` unless ids are unique over all splits, no `image_id` is in two splits, no text is empty."""
    split_of_id: dict[str, str] = {}
    split_of_image: dict[str, str] = {}
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
            other = split_of_image.setdefault(example.image_id, split)
            if other != split:
                raise LeverlabError(
                    f"{where}: image '{example.image_id}' is in split '{other}' too; an image may be in one split "
                    "only, or the questions are not held out"
                )
            if not example.answers or not all(answer.strip() for answer in example.answers):
                raise LeverlabError(f"{where}: answers must hold at least one text and no empty one")
            if not example.question.strip() or not example.question_type.strip():
                raise LeverlabError(f"{where}: question and question_type must not be empty")
