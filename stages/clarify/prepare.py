"""prepare: make or load the questions of every split, let the teacher speak on the training questions, write a data
card."""

import numpy as np

from leverlab.config.clarify_data import ClarifyDataParams, TeacherParams
from leverlab.files import write_text
from leverlab.lm.questions import check_questions, write_questions
from leverlab.lm.records import Taught, write_records
from leverlab.stage import Stage, run_stage
from leverlab.worlds.clarify_card import data_card
from leverlab.worlds.clarify_splits import make_splits
from leverlab.worlds.clarify_teacher import Habits, teach


def body(stage: Stage) -> None:
    """Write one file a split, the teacher's dialogues, and the card."""
    params, teacher = stage.section("data", ClarifyDataParams), stage.section("teacher", TeacherParams)
    splits, notes = make_splits(params)
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


if __name__ == "__main__":
    run_stage("prepare", body, home="recipes/clarify")
