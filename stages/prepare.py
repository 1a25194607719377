"""prepare: load the world, check every row, draw candidates, compute features, write the data card."""

from collections.abc import Iterator, Mapping, Sequence

from leverlab.config.data import DataParams
from leverlab.config.prepare import PrepareParams
from leverlab.config.vlm import VlmModel
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.records import Example, write_examples
from leverlab.selector.candidates import draw_candidates, write_candidates
from leverlab.selector.encoders import compute_features_clip, compute_features_vlm
from leverlab.selector.features import write_features
from leverlab.stage import Stage, run_stage
from leverlab.vlm.model import Vlm, check_vlm, load_vlm
from leverlab.vlm.prompt import PromptFormat
from leverlab.worlds.data_card import data_card
from leverlab.worlds.load import load_world


def body(stage: Stage) -> None:
    """Write the splits, their candidates and features."""
    data = stage.section("data", DataParams)
    params = stage.section("prepare", PrepareParams)
    vlm = stage.section("vlm", VlmModel)
    check_vlm(vlm.source)
    world = load_world(data.world, data.source, data.pool, data.train, data.val, data.test, data.label_noise, data.seed)
    splits = world.splits()
    for name, examples in splits.items():
        write_examples(stage.out(f"data/prepared/{name}.parquet"), examples)
    everything = [example for examples in splits.values() for example in examples]

    def track(batches: list[list[bytes]]) -> Iterator[list[bytes]]:
        return stage.progress(batches, "batches of images", total=len(batches))

    if params.encoder == "vlm":
        model = load_vlm(vlm.source, vlm.dtype)
        check_prompts(model, splits)
        features = compute_features_vlm(model, everything, stage.state_dir, track)
    else:
        features = compute_features_clip(params.encoder, everything, stage.state_dir, track)
    write_features(stage.out("data/prepared/features.parquet"), features)
    drawn = [
        candidates
        for split, sets in (("train", params.train_sets), ("val", params.val_sets), ("test", 1))
        for candidates in draw_candidates(
            params.sampler, split, splits[split], world.pool, features, params.candidates, sets, params.seed
        )
    ]
    write_candidates(stage.out("data/prepared/candidates.parquet"), drawn)
    card = data_card(
        world,
        data.label_noise,
        data.seed,
        params.sampler,
        params.candidates,
        params.train_sets,
        params.val_sets,
        params.encoder,
    )
    write_text(stage.out("reports/data_card.md"), card)
    stage.say(", ".join(f"{len(examples)} {name}" for name, examples in splits.items()))


def check_prompts(vlm: Vlm, splits: Mapping[str, Sequence[Example]]) -> None:
    """Raise `LeverlabError` naming split and id when the answer to a question has no tokens of its own in its prompt.

    Later stages need them for its probability, on the questions of every split but the pool.
    """
    prompts = PromptFormat(vlm.processor)
    for split in ("train", "val", "test"):
        for question in splits[split]:
            try:
                prompts.question_turn(question)
            except LeverlabError as error:
                raise LeverlabError(f"split '{split}': {error}; change or remove the row") from None


if __name__ == "__main__":
    run_stage("prepare", body)
