"""The plan `okvqa-3b` begins: a checkpoint in the layout of the release, questions in the official files of OK-VQA."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leverlab.pipeline.plans import load_plan
from leverlab.selector.features import read_features
from tests.released import write_json, write_released
from tests.stages.clones import Clone

pytestmark = pytest.mark.slow

ANSWERS = ["pony tail"] * 6 + ["braid"] * 4
SIZES = {"data.pool": 12, "data.train": 4, "data.val": 2, "data.test": 2, "prepare.candidates": 6, "rl_data.queries": 3}
NO_LIMITS = {  # of the health of answers, which random weights do not meet
    "max_flat_groups": 1.0,
    "min_positives": 0.0,
    "min_oracle_accuracy": 0.0,
    "min_headroom": 0.0,
    "min_answer_prob_median": 0.0,
    "max_answer_prob_tiny": 1.0,
    "min_distinct_candidates": 0.0,
}


def write_okvqa(folder: Path) -> Path:
    """Write 16 images of two shapes with one question each, for the train and the val part."""
    rng = np.random.default_rng(0)
    for part, first in (("train2014", 100), ("val2014", 500)):
        (folder / part).mkdir(parents=True)
        asked: list[dict[str, Any]] = []
        annotated: list[dict[str, Any]] = []
        for image in range(first, first + 16):
            pixels = rng.integers(0, 256, (48, 64 + 40 * (image % 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / part / f"COCO_{part}_{image:012d}.jpg")
            ids = {"question_id": image * 10, "image_id": image}
            asked.append(ids | {"question": f"What hairstyle is in picture {image}?"})
            answers = [
                {"answer_id": place + 1, "raw_answer": answer, "answer_confidence": "yes", "answer": answer}
                for place, answer in enumerate(ANSWERS)
            ]
            annotated.append(ids | {"answer_type": "other", "question_type": "four", "answers": answers})
        write_json(folder / f"OpenEnded_mscoco_{part}_questions.json", {"questions": asked})
        write_json(folder / f"mscoco_{part}_annotations.json", {"annotations": annotated})
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    clone = Clone(tmp_path / "leverlab", workers=1)
    released = write_released(tmp_path / "Qwen2.5-VL-3B-Instruct")
    own = {"data.source": str(tmp_path / "okvqa"), "vlm.source": str(released)}
    health = {f"rl_data.health.{key}": value for key, value in NO_LIMITS.items()}
    clone.set_params({**load_plan(clone.root, "okvqa-3b").overrides, **own, **SIZES, **health})
    return clone


def test_the_plan_of_the_release_prepares_and_scores(clone: Clone, tmp_path: Path) -> None:
    write_okvqa(tmp_path / "okvqa")
    clone.run(sys.executable, "-m", "stages.prepare")
    features = read_features(clone.root / "data/prepared/features.parquet")
    assert len(features.ids) == 20
    assert np.isfinite(features.image_ND).all()
    assert len({row.tobytes() for row in features.image_ND}) == 20
    clone.run(sys.executable, "-m", "stages.rl_data")
    beams = pq.read_table(clone.root / "data/rl/beams.parquet").to_pandas()
    assert beams["query_id"].nunique() == 3


def test_a_checkpoint_that_cannot_serve_stops_prepare_before_it_reads_questions(clone: Clone, tmp_path: Path) -> None:
    """There are no questions here at all, and the sentence is about the checkpoint."""
    path = tmp_path / "Qwen2.5-VL-3B-Instruct/preprocessor_config.json"
    assert json.loads(path.read_text())["processor_class"] == "Qwen2_5_VLProcessor"
    path.unlink()
    process = clone.start(sys.executable, "-m", "stages.prepare")
    output, _ = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in output
    assert "Qwen2.5-VL-3B-Instruct has no image processor; restore its preprocessor_config.json" in output
