"""Typed parameters: what every section of `params.yaml` is made of, and how sections are read.

A section is a frozen pydantic model; an unknown, missing, mistyped or out-of-range key is a `LeverlabError` that names
the key, the value and what was expected. Files are read as YAML 1.2, because `dvc exp run -S grpo.lr=5e-5` writes
`5e-05`, which a YAML 1.1 reader takes for text.
"""

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from ruamel.yaml import YAML

from leverlab.errors import LeverlabError


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should not be true or false")
    return value


class Section(BaseModel):
    """One section of `params.yaml`: immutable, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        return value if cls.model_fields[str(info.field_name)].annotation is bool else _no_boolean(value)


SectionT = TypeVar("SectionT", bound=Section)
LARGEST_SEED = 2**32 - 1  # the generators of numpy and transformers take no larger one
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Number = Annotated[float, BeforeValidator(_no_boolean)]  # a number in a list or mapping


def read_yaml(path: Path) -> Any:
    """Return the plain data of a YAML 1.2 file.

    Raises `LeverlabError` when the file is missing, is not UTF-8 text, is not YAML, or holds more than plain data: an
    alias of a list or mapping (it may hold itself), a date, a set, bytes, a whole number of more than 64 bits.
    """
    try:
        data = YAML(typ="safe").load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; run the command from the root of the repository") from None
    except UnicodeDecodeError as error:
        raise LeverlabError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except Exception as error:  # the library raises TypeError, RecursionError and more beside its own errors
        problem = " ".join(str(error).split()) or type(error).__name__
        raise LeverlabError(f"{path} is not valid YAML: {problem}") from None
    _check_plain(data, path)
    return data


def _check_plain(data: Any, path: Path) -> None:
    seen, pending = set(), [data]
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list):
            if id(value) in seen:
                raise LeverlabError(f"{path} uses an alias (*) of a list or mapping; write it out")
            seen.add(id(value))
            pending += [*value, *value.values()] if isinstance(value, dict) else value
        elif not isinstance(value, str | int | float | None):
            raise LeverlabError(f"{path} holds a {type(value).__name__}; only lists, mappings, texts and numbers fit")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise LeverlabError(f"{path} holds a whole number of more than 64 bits, {reprlib.repr(value)}; lower it")


def read_params(path: Path) -> dict[str, Any]:
    """Return the sections of a params file as plain data. Raises `LeverlabError` unless it is a mapping."""
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise LeverlabError(f"{path} must hold a mapping of sections, not {type(data).__name__}")
    return data


def read_param(path: Path, key: str) -> Any:
    """Return the value of a dotted key of a params file, mappings in it in alphabetical order: DVC does not see theirs.

    Raises `LeverlabError` as `read_params`, and when the file has no such key.
    """
    value: Any = read_params(path)
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise LeverlabError(f"{path} has no '{key}', which dvc.yaml declares")
        value = value[part]
    return _sorted(value)


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value, key=str)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def parse_section(model: type[SectionT], name: str, data: Mapping[str, Any], where: str = "params.yaml") -> SectionT:
    """Return section `name` of `data` as a `model`.

    Raises `LeverlabError` with one line per problem: the dotted key, the value, what was expected, and for an unknown
    key the closest known one.
    """
    if name not in data:
        raise LeverlabError(
            f"{where} has no section '{name}'; known sections there: {', '.join(sorted(map(str, data)))}"
        )
    if not isinstance(data[name], Mapping):
        raise LeverlabError(f"{where}: section '{name}' must be a mapping of keys, not {reprlib.repr(data[name])}")
    try:
        return model.model_validate(dict(data[name]))
    except ValidationError as error:
        raise LeverlabError("\n".join(_explain(model, name, item, where) for item in error.errors())) from None


def _explain(model: type[Section], section: str, problem: Mapping[str, Any], where: str) -> str:
    path = [str(part) for part in problem["loc"]]
    key = ".".join([section, *path])
    if problem["type"] == "extra_forbidden":
        inner = _section_at(model, path[:-1])
        close = difflib.get_close_matches(path[-1], inner.model_fields, n=1)
        full = ".".join([section, *path[:-1], *close])
        hint = f"; did you mean '{full}'?" if close else f"; known keys: {', '.join(inner.model_fields)}"
        return f"{where}: unknown key '{key}'{hint}"
    if problem["type"] == "missing":
        return f"{where}: key '{key}' is missing; add it (its meaning and range stand in the committed params.yaml)"
    expected = problem["msg"].removeprefix("Value error, ")
    return f"{where}: '{key}' = {reprlib.repr(problem['input'])} is not allowed: {expected[0].lower()}{expected[1:]}"


def _section_at(model: type[Section], path: list[str]) -> type[Section]:
    """Return the section that `path` leads to inside `model`, through sections and mappings of sections."""
    for part in path:
        if part not in model.model_fields:
            continue  # the name of an entry in a mapping
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Section)), model)
    return model
