"""shadow: is the scorer that was calibrated on verified success fit to take the place of the old one?"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from leverlab.config.clarify_shadow import ShadowParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams
from leverlab.files import write_text
from leverlab.lm import scorers
from leverlab.lm.adapters import load_base, load_policy
from leverlab.lm.calibration import choose_strength, cross_validate
from leverlab.lm.questions import Question, read_questions
from leverlab.lm.records import DialogueRecord, read_records, write_records
from leverlab.lm.shadow import pick_transcripts, shadow_gate
from leverlab.lm.stages import limits_of, seeds_of
from leverlab.lm.summary import plain
from leverlab.lm.transcripts import sample_transcripts
from leverlab.stage import Stage, run_stage

POLICIES = {"sft": "sft/{seed}", "rce": "rce/{seed}", "grpo": "best/{seed}"}


def body(stage: Stage) -> None:
    """Sample transcripts on both splits, calibrate on one, compare on the other."""
    source, params = stage.section("base", BaseModelParams), stage.section("shadow", ShadowParams)
    limits, seeds = limits_of(stage.section("dialogues", DialogueParams)), seeds_of(stage.value("seeds"))
    data = stage.dep("recipes/clarify/data/questions")
    splits = {name: read_questions(data / f"{name}.jsonl") for name in ("calib", "shadow")}
    for models in ("sft", "rce", "best"):
        stage.dep(f"recipes/clarify/models/{models}")
    found: dict[str, list[DialogueRecord]] = {name: [] for name in splits}
    for policy, where in POLICIES.items():
        base = load_base(source.source, source.dtype)
        folder = Path("recipes/clarify/models") / where.format(seed=seeds[0]) / "adapter"
        model = load_policy(base, folder)
        for name, questions in splits.items():
            kept = stage.state_dir / f"{policy}-{name}.jsonl"  # so that a kill costs no more than one of them
            if not kept.exists():
                write_records(
                    kept,
                    sample_transcripts(
                        base, model, policy, seeds[0], questions, params.temperatures, limits, params.seed
                    ),
                )
            found[name] += read_records(kept, DialogueRecord)
    known = {question.id: question for questions in splits.values() for question in questions}
    picked = pick_transcripts(found["calib"], found["shadow"], known, len(splits["shadow"]), params.seed)
    features_NF, success_N = table(found["calib"], known)
    prior_F = scorers.as_vector(scorers.PRIOR)
    groups = [known[record.question].twin or record.question for record in found["calib"]]
    tried = cross_validate(
        features_NF, success_N, groups, prior_F, params.strengths, params.folds, params.seed, params.tie_breaks
    )
    strength, faithful = choose_strength(tried, params.least_spearman, params.least_overlap)
    new_F = scorers.calibrate(features_NF, success_N, prior_F, strength)
    members_MF = scorers.ensemble(
        features_NF, success_N, prior_F, strength, params.members, params.member_features, params.seed
    )
    shown_NF, right_N = table(picked, known)
    result = shadow_gate(
        scorers.scores(shown_NF, prior_F),
        scorers.scores(shown_NF, new_F),
        right_N,
        params.seed,
        params.tie_breaks,
        params.resamples,
    )
    weights = {
        "old": dict(scorers.PRIOR),
        "new": scorers.named(new_F),
        "ensemble": [scorers.named(member_F) for member_F in members_MF],
        "strength": strength,
        "faithful": faithful,
        "strengths": [plain(row._asdict()) for row in tried],
    }
    out = stage.out("recipes/clarify/models/scorers")
    write_text(out / "scorers.json", json.dumps(weights, indent=2) + "\n")
    write_records(stage.out("recipes/clarify/data/shadow/transcripts.jsonl"), picked)
    write_records(stage.out("recipes/clarify/data/shadow/calibration.jsonl"), found["calib"])
    report = plain(asdict(result))
    write_text(stage.out("recipes/clarify/reports/shadow.json"), json.dumps(report, indent=2) + "\n")
    remark = "" if faithful else ", the greatest, for none is faithful in every fold"
    stage.say(
        f"strength {strength:g}{remark}; {result.n} transcripts, {right_N.mean():.1%} right: "
        f"Spearman {result.spearman.value:.3f}, top-10 overlap {result.overlap.value:.3f}, gain {result.gain.value:.1%}"
    )


def table(records: list[DialogueRecord], known: dict[str, Question]) -> tuple[np.ndarray, np.ndarray]:
    """Return features and verified success of transcripts."""
    dialogues = [record.dialogue(known[record.question]) for record in records]
    features_NF = scorers.table(dialogues, [record.confidence for record in records])
    return features_NF, np.array([float(dialogue.success) for dialogue in dialogues])


if __name__ == "__main__":
    run_stage("shadow", body, home="recipes/clarify")
