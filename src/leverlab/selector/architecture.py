"""The architecture of a selector: what decides which tensors it has and what they mean."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from leverlab.config.selector import HeadKind, SelectorParams, StateUpdate


@dataclass(frozen=True)
class Architecture:
    """Hidden width, and the variant of each part; `leverlab.selector.parts` has the formulas."""

    width: int
    state: StateUpdate
    head: HeadKind
    mmr: bool
    stop: bool

    @classmethod
    def of(cls, params: SelectorParams) -> "Architecture":
        """Return the architecture of a params section."""
        return cls(params.width, params.state, params.head, params.mmr, params.stop)

    @classmethod
    def read(cls, header: Mapping[str, Any]) -> "Architecture":
        """Return the architecture that the header of a file states; other keys are left alone.

        Raises `ValueError` for a missing key or an unknown value.
        """
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in header]:
            raise ValueError(f"it does not state its {', '.join(missing)}, as files of an older version")
        found = cls(**{name: header[name] for name in names})
        if type(found.width) is not int or found.width < 1:
            raise ValueError(f"width {found.width!r} must be a whole number from 1 on")
        for name, known in (("state", get_args(StateUpdate)), ("head", get_args(HeadKind))):
            if header[name] not in known:
                raise ValueError(f"{name} {header[name]!r} is not known; there are {', '.join(known)}")
        for name in ("mmr", "stop"):
            if type(header[name]) is not bool:
                raise ValueError(f"{name} {header[name]!r} must be true or false")
        return found

    def __str__(self) -> str:
        flags = ", ".join(f"{name} {str(value).lower()}" for name, value in (("mmr", self.mmr), ("stop", self.stop)))
        return f"state {self.state}, head {self.head}, {flags}, width {self.width}"
