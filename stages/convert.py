"""convert: write the chosen checkpoints in the inference format, strictly, and prove that both give the same picks."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from leverlab.config.vlm import EvalParams
from leverlab.errors import LeverlabError
from leverlab.export.selector import check_equal_picks, inference_tensors
from leverlab.files import write_text
from leverlab.library_errors import reason_of
from leverlab.selector.checkpoints import load_selector
from leverlab.selector.inference import InferenceSelector, save_inference
from leverlab.stage import Stage, run_stage
from leverlab.training.prepared import FEATURES, Prepared


class Choice(BaseModel, strict=True, extra="forbid"):
    """One checkpoint that select-best chose."""

    method: str
    seed: int
    epoch: int
    val_accuracy: float = Field(ge=0, le=1)


class Best(BaseModel, strict=True):
    """What the stage reads of models/best/best.json."""

    overall: Choice
    chosen: list[Choice] = Field(min_length=1)


def read_choice(path: Path) -> Best:
    """Return what select-best chose. Raises `LeverlabError` when the file is damaged."""
    try:
        return Best.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        problem = reason_of(error)
        raise LeverlabError(f"{path} cannot be read ({problem}); run dvc repro select-best") from None


def body(stage: Stage) -> None:
    """Write one folder a chosen checkpoint under models/selectors, the overall best under models/selector."""
    shots = stage.section("eval", EvalParams).shots
    best = read_choice(stage.dep("models/best") / "best.json")
    data = Prepared(stage.dep("data/prepared"), ["val"])
    questions = [question.id for question in data.splits["val"]]
    pool_digest = hashlib.sha256("\n".join(sorted(demo.id for demo in data.pool)).encode()).hexdigest()
    proofs = {}
    for choice in best.chosen:
        name = f"{choice.method}-{choice.seed}"
        selector = load_selector(Path("models/best") / f"{name}.safetensors")
        trained = Path("models/best") / f"{choice.seed}-{FEATURES}"  # there is one where SFT trained the encoder
        features = trained if trained.exists() else None
        queries = data.queries_with(features)
        batches = [queries.batch(questions, index) for index in range(queries.sets(questions[0]))]
        config = {
            **choice.model_dump(),
            "shots": shots,
            "widths": list(selector.widths),
            **asdict(selector.architecture),
            "pool": pool_digest,
        }
        folders = [stage.out("models/selectors") / name]
        if choice == best.overall:
            folders.append(stage.out("models/selector"))
        for folder in folders:
            save_inference(folder, inference_tensors(selector), config)
            if features:
                shutil.copyfile(features, folder / FEATURES)
            proofs[name] = check_equal_picks(selector, InferenceSelector.load(folder), batches, shots)
    write_text(stage.out("models/selectors") / "proof.json", json.dumps({"equal_picks": proofs}, indent=2) + "\n")
    stage.say(f"{len(proofs)} selectors converted; all {sum(proofs.values())} picks on validation questions equal")


if __name__ == "__main__":
    run_stage("convert", body)
