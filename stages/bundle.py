"""bundle: the selector, its pool and the exported model in one folder; it counts the picks that are the pipeline's."""

import json
import shutil
from pathlib import Path

import numpy as np

from leverlab.config.gguf import KINDS, MMPROJ, text_file
from leverlab.config.vlm import EvalParams
from leverlab.deploy.bundle import (
    FEATURES,
    INFO,
    POOL,
    SELECTOR,
    SETTINGS,
    VLM_ENCODER,
    BundledFile,
    BundleInfo,
    default_text,
    digest_of,
)
from leverlab.deploy.bundle_guide import MODELFILE, README, modelfile, readme
from leverlab.deploy.features import FeatureEncoder
from leverlab.errors import LeverlabError
from leverlab.export.vision_part import image_limits
from leverlab.files import write_text
from leverlab.selector.features import FeatureTable, read_features, write_features
from leverlab.selector.inference import InferenceSelector
from leverlab.stage import Stage, run_stage
from leverlab.training.prepared import Prepared, features_of
from leverlab.vlm.checkpoint import load_processor
from leverlab.vlm.model import checkpoint_folder
from leverlab.vlm.prompt import PromptFormat

LEAST_EQUAL = 0.9  # of the picks on validation questions: the pipeline may compute features in bfloat16
TRAINED_ENCODER = "an encoder trained with the selector"


def body(stage: Stage) -> None:
    """Write the folder, and compare its picks with the pipeline's on all validation questions."""
    prepare, vlm = stage.value("prepare"), stage.value("vlm")
    selector_folder, gguf = stage.dep("models/selector"), stage.dep("models/gguf")
    data, folder = Prepared(stage.dep("data/prepared"), ["val"]), stage.out("models/bundle")
    folder.mkdir()
    for name in (SELECTOR, SETTINGS):
        shutil.copyfile(selector_folder / name, folder / name)
    shutil.copyfile(Path("data/prepared") / POOL, folder / POOL)
    trained = features_of(selector_folder)
    table = read_features(trained or Path("data/prepared") / FEATURES)
    rows = table.rows(demo.id for demo in data.pool)
    pool = FeatureTable(
        tuple(demo.id for demo in data.pool), table.image_ND[rows], table.question_ND[rows], table.answer_ND[rows]
    )
    write_features(folder / FEATURES, pool)
    texts = [text_file(kind) for kind in KINDS if (gguf / text_file(kind)).exists()]
    for name in (*texts, MMPROJ):
        shutil.copyfile(gguf / name, folder / name)
    encoder = TRAINED_ENCODER if trained else prepare["encoder"]
    source = checkpoint_folder(vlm["source"])
    images, shots = image_limits(source), stage.section("eval", EvalParams).shots
    compared, equal = 0, 0
    if encoder == VLM_ENCODER:
        made = FeatureEncoder.load(folder / MMPROJ, folder / texts[0], images)
        compared, equal = _equal_picks(InferenceSelector.load(folder), data, made, shots)
        stage.say(f"{equal} of {compared} picks on validation questions are the pipeline's")
        if equal < LEAST_EQUAL * compared:
            raise LeverlabError(
                f"the bundle would pick other demos than the pipeline: {equal} of {compared} picks are equal; compute "
                "features in float32 (vlm.dtype), or export f16 (gguf.kinds)"
            )
    else:
        stage.say(f"new questions get no features from the bundle: the selector reads those of {encoder}")
    chosen = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    info = BundleInfo(
        **{key: chosen[key] for key in ("method", "seed", "epoch", "val_accuracy")},
        shots=shots,
        sampler=prepare["sampler"],
        candidates=prepare["candidates"],
        sampler_seed=prepare["seed"],
        encoder=encoder,
        vlm=vlm["source"],
        texts=texts,
        mmproj=MMPROJ,
        images=images,
        context=stage.value("runtime")["context"],
        max_new_tokens=vlm["max_new_tokens"],
        compared_picks=compared,
        equal_picks=equal,
        files={
            path.name: BundledFile(bytes=path.stat().st_size, sha256=digest_of(path))
            for path in sorted(folder.iterdir())
        },
        gates=json.loads(stage.dep("reports/gates.json").read_text(encoding="utf-8")),
        params=stage.declared_params(),
        inputs=stage.inputs,
    )
    form = PromptFormat(load_processor(source))
    default = default_text(texts)
    write_text(folder / INFO, info.model_dump_json(indent=2) + "\n")
    write_text(folder / README, readme(info, default))
    write_text(folder / MODELFILE, modelfile(info, default, form))


def _equal_picks(selector: InferenceSelector, data: Prepared, encoder: FeatureEncoder, shots: int) -> tuple[int, int]:
    """Return how many picks were compared, and how many are equal when the questions' features come from `encoder`."""
    compared = equal = 0
    for question in data.splits["val"]:
        vectors = [encoder.image(question.open_image())[None], encoder.text(question.question)[None]]
        for index in range(data.queries.sets(question.id)):
            batch = data.queries.batch([question.id], index)
            demos = [part.numpy() for part in batch.demos]
            theirs = selector.pick([part.numpy() for part in batch.query], demos, shots)
            ours = selector.pick(vectors, demos, shots)
            compared, equal = compared + ours.size, equal + int(np.sum(ours == theirs))
    return compared, equal


if __name__ == "__main__":
    run_stage("bundle", body)
