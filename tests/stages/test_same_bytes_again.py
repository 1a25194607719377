"""Every stage of the profile `tiny`, run again where nothing but its declared inputs is, gives the same bytes."""

import re

import pytest

from tests.stages.clones import Cold

pytestmark = pytest.mark.slow


def test_verify_finds_the_same_bytes_for_every_stage(both: tuple[Cold, Cold]) -> None:
    output = both[1].clone.run("leverlab", "verify")
    same = re.findall(r"^(\S+): same bytes \(", output, flags=re.MULTILINE)
    assert sorted([*same, "benchmark"]) == sorted(both[1].ran)
    assert "benchmark: runs; not deterministic, not compared (" in output
