"""prepare: make or load the questions of every split, let the teacher speak on the training questions, write a data
card."""

import numpy as np

from leverlab.config.clarify_data import ClarifyDataParams, TeacherParams
from leverlab.files import write_text
from leverlab.lm.questions import Question, check_questions, write_questions
from leverlab.lm.records import Taught, write_records
from leverlab.stage import Stage, run_stage
from leverlab.worlds import clarify
from leverlab.worlds.clarify import Words
from leverlab.worlds.clarify_card import data_card
from leverlab.worlds.clarify_teacher import Habits, teach


def body(stage: Stage) -> None:
    """Write one file a split, the teacher's dialogues, and the card."""
    params, teacher = stage.section("data", ClarifyDataParams), stage.section("teacher", TeacherParams)
    splits, notes = embedded(params)
    for name, questions in splits.items():
        check_questions(questions, f"the split '{name}'")
        write_questions(stage.out(f"recipes/clarify/data/questions/{name}.jsonl"), questions)
    habits = Habits(teacher.needless, teacher.guess, teacher.wrong_slot)
    rng = np.random.default_rng(teacher.seed)
    taught = []
    for question in splits["train"]:
        turns, replies = teach(question, habits, rng)
        taught.append(Taught(question=question.id, turns=turns, replies=replies))
    write_records(stage.out("recipes/clarify/data/questions/taught.jsonl"), taught)
    write_text(stage.out("recipes/clarify/reports/data_card.md"), data_card(params.world, splits, taught, notes))
    stage.say(", ".join(f"{name} {len(questions)}" for name, questions in splits.items()))


def embedded(params: ClarifyDataParams) -> tuple[dict[str, list[Question]], list[str]]:
    """Return the splits of the embedded world, whose texts are all different, and what the card says of them."""
    seen: set[str] = set()
    usual, held_out = Words.usual(), Words.held_out()
    counts = {"train": params.train, "val": params.val, "test": params.test}
    counts |= {"shadow": params.shadow, "calib": params.calib}
    splits = {name: clarify.make_split(name, count, usual, params.seed, seen) for name, count in counts.items()}
    splits["ood"] = clarify.make_split("ood", params.ood, held_out, params.seed, seen)
    splits["red_team"] = clarify.make_red_team(params.red_team, usual, params.seed, seen)
    return splits, [
        "Generated questions about facts, of which one may be missing. Whether it must be asked for is decided by brute "
        "force: more than one answer is possible without it. Names, cities and wordings of `ood` stand in no other split."
    ]


if __name__ == "__main__":
    run_stage("prepare", body, home="recipes/clarify")
