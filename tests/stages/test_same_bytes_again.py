"""Every stage of the profile `tiny`, run again where nothing but its declared inputs is, gives the same bytes."""

import re

import pytest

from tests.stages.clones import Cold

pytestmark = pytest.mark.slow


def test_verify_finds_the_same_bytes_for_every_stage(finished: Cold) -> None:
    output = finished.clone.run("leverlab", "verify")
    same = re.findall(r"^(\S+): same bytes \(", output, flags=re.MULTILINE)
    assert sorted([*same, "benchmark"]) == sorted(finished.ran)
    assert "benchmark: runs; not deterministic, not compared (" in output


def test_online_rollouts_again_ask_the_vlm_nothing(finished: Cold) -> None:
    """All lists that the policies sample, and the validation questions of every epoch, are in the score cache."""
    output = finished.clone.run("python", "-m", "stages.grpo", "0")
    assert re.findall(r"^grpo@0: (\d+) prompts went through the VLM", output, flags=re.MULTILINE) == ["0"]
