"""The section `data` of params.yaml: which world, and how much of it."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from leverlab.config.base import Section, Seed


class DataParams(Section):
    """Which world is loaded, and the sizes of its splits in questions."""

    world: Literal["digits", "okvqa", "vqav2", "folder"]
    source: str | None  # a folder or a hub id; null for the embedded world
    pool: int = Field(ge=1)
    train: int = Field(ge=1)
    val: int = Field(ge=1)
    test: int = Field(ge=1)
    label_noise: float = Field(ge=0, lt=1)  # share of the pool's answers that are wrong (digits only)
    seed: Seed

    @field_validator("source")
    @classmethod
    def _source_fits_world(cls, source: str | None, info: ValidationInfo) -> str | None:
        world = info.data.get("world")
        if world == "digits" and source is not None:
            raise ValueError("World 'digits' is embedded and takes no source; set it to null")
        if world not in {"digits", None} and not (source or "").strip():
            raise ValueError(f"World '{world}' needs a source: a folder or a hub id")
        return source

    @field_validator("label_noise")
    @classmethod
    def _noise_fits_world(cls, label_noise: float, info: ValidationInfo) -> float:
        if label_noise and info.data.get("world") not in {"digits", None}:
            raise ValueError("Only world 'digits' can make wrong answers; set it to 0")
        return label_noise
