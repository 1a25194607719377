"""What every fuzz test does with a mutant: read it, tell a clean refusal from a bug, and count."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from leverlab.errors import LeverlabError
from tests.fuzz.mutations import trees

MUTANTS = 2000  # of every reader, at least

settings.register_profile(
    "fuzz",
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # the others trace every line, which takes most of the time
    suppress_health_check=list(HealthCheck),
)


class Tally:
    """Counts mutants. `read` gives a value or raises; `check` fails for a value that no sound file holds."""

    def __init__(self, read: Callable[[], Any], check: Callable[[Any], None], names: Iterable[str]):
        self.read, self.check, self.names = read, check, tuple(names)
        self.tried = self.refused = 0
        check(read())  # the file as it was written

    def attempt(self, what: str) -> None:
        """Fail unless the file is refused by a `LeverlabError` that names it (or a key of it), or read rightly."""
        self.tried += 1
        try:
            value = self.read()
        except LeverlabError as error:
            if " at 0x" in str(error):
                raise AssertionError(f"{what}: {str(error)!r} holds a memory address") from error
            if not any(name in str(error) for name in self.names):
                raise AssertionError(f"{what}: {str(error)!r} names none of {self.names}") from error
            self.refused += 1
            return
        except Exception as error:
            raise AssertionError(f"{what}: {error!r} is not for a person") from error
        try:
            self.check(value)
        except Exception as error:
            raise AssertionError(f"{what}: read as if it were sound: {error!r}") from error

    def attempt_trees(self, path: Path, tree: Any, examples: int, yaml: bool = False) -> None:
        """Write and read `examples` files of JSON (or YAML) that hold `tree` with some changes."""
        sound = path.read_bytes()

        @settings(settings.get_profile("fuzz"), max_examples=examples)
        @given(trees(tree, yaml))
        def changed(text: str) -> None:
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
            self.attempt(text)

        changed()
        path.write_bytes(sound)

    def attempt_all(self, path: Path, mutants: Iterable[tuple[str, bytes]]) -> None:
        """Write and read every mutant of `path`; fail with the first failure of each kind."""
        sound = path.read_bytes()
        failures: dict[str, AssertionError] = {}
        for what, data in mutants:
            path.write_bytes(data)
            try:
                self.attempt(what)
            except AssertionError as error:
                failures.setdefault(str(error).partition(": ")[2][:25], error)
        path.write_bytes(sound)
        if failures:
            raise AssertionError("\n".join(str(error)[:1000] for error in failures.values())) from next(
                iter(failures.values())
            )


@pytest.fixture
def tally(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[Any]:
    """Make the test's `Tally`; at its end hold it against `MUTANTS` and put its counts on record."""
    made: list[Tally] = []

    def make(*arguments: Any) -> Tally:
        made.append(Tally(*arguments))
        return made[-1]

    yield make
    counts = {
        "test": request.node.name,
        "tried": sum(item.tried for item in made),
        "refused": sum(item.refused for item in made),
    }
    record_property("mutants", counts)
    if place := os.environ.get("LEVERLAB_FUZZ_COUNTS"):
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(json.dumps(counts) + "\n")
    if not request.session.testsfailed:
        assert counts["tried"] >= MUTANTS
        assert counts["refused"] > 0
