"""The sections `gguf` and `runtime` of params.yaml: exported files, their names, and how llama.cpp runs them."""

from typing import Literal, get_args

from pydantic import Field, field_validator

from leverlab.config.base import Section, Seed

Kind = Literal["f16", "q8_0", "q5_0", "q4_0"]  # of the text part's matrices, the most exact first
KINDS: tuple[Kind, ...] = get_args(Kind)
MMPROJ = "mmproj-f16.gguf"  # the vision part


def text_file(kind: str) -> str:
    """Return the name of the text part's file of type `kind`."""
    return f"text-{kind}.gguf"


def kind_of(file: str) -> str:
    """Return the type of the text part's file of this name."""
    return file.removeprefix("text-").removesuffix(".gguf")


class ParityParams(Section):
    """The comparison of exported files with transformers."""

    prompts: int = Field(ge=1, le=1000)  # for each of four image sizes and one to three images
    likeliest: int = Field(ge=1, le=1_000_000)  # tokens of each distribution that are compared
    seed: Seed  # of the draws of images and questions


class GgufKinds(Section):
    """Which files are written: all that a stage needs that runs them."""

    kinds: tuple[Kind, ...] = Field(min_length=1)

    @field_validator("kinds")
    @classmethod
    def _kinds_differ(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if len(set(kinds)) < len(kinds):
            raise ValueError("a kind stands twice")
        return kinds


class GgufParams(GgufKinds):
    """Which files are written, and how they are compared: the whole section."""

    parity: ParityParams


class RuntimeParams(Section):
    """How llama.cpp runs an exported model."""

    context: int = Field(ge=64, le=1_048_576)  # tokens of the longest prompt with its answer
    threads: int = Field(ge=1, le=1024)  # of the computation
    seconds: float = Field(gt=0)  # that loading a file, or one answer, may take
