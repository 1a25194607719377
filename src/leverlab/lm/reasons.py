"""Why the verified reward of a dialogue is what it is: a sentence for each of its terms, for people who read files."""

from collections.abc import Sequence

from leverlab.lm.answers import plain_answer
from leverlab.lm.dialogues import Dialogue
from leverlab.lm.questions import UNKNOWN


def reasons(dialogue: Dialogue) -> dict[str, str]:
    """Return a sentence for each term of `dialogues.Terms`: correct, parses, thought, needless."""
    turns = dialogue.turns
    return {
        "correct": _correct(dialogue),
        "parses": _turns([turn.parses for turn in turns], "parses", "parse"),
        "thought": _turns(dialogue.grounded_thoughts, "has a grounded thought", "have a grounded thought"),
        "needless": _needless(dialogue),
    }


def _correct(dialogue: Dialogue) -> str:
    question, final = dialogue.question, dialogue.final
    if final is None:
        why = {
            "cut": "the last turn was cut at its limit",
            "turns": "it asked in its last turn",
            "unparsed": "the last turn does not parse",
        }.get(dialogue.end, "there is no turn")
        return f"there is no final answer, as {why}; it should be {question.answer}"
    if dialogue.success:
        return f"the answer is {final}, as it should be"
    if plain_answer(final) == question.answer == UNKNOWN:
        return f"the answer is {final}, as it should be, but '{question.slot}' was never asked for"
    return f"the answer is {final}; it should be {question.answer}"


def _turns(held: Sequence[bool], yes: str, no: str) -> str:
    if not held:
        return "there is no turn"
    failed = [str(number) for number, holds in enumerate(held, 1) if not holds]
    if not failed:
        return f"every turn {yes}"
    return f"turn {failed[0]} does not {no}" if len(failed) == 1 else f"turns {', '.join(failed)} do not {no}"


def _needless(dialogue: Dialogue) -> str:
    question, seen, found = dialogue.question, set[str](), []
    for ask in dialogue.asks:
        if ask in seen:
            found.append(f"asked for '{ask}' again")
        elif ask == question.slot:
            if not question.needs_ask:
                found.append(f"asked for '{ask}', which is missing but changes nothing")
        elif ask in question.replies:
            found.append(f"asked for '{ask}', which the question tells")
        else:
            found.append(f"asked for '{ask}', which the user does not understand")
        seen.add(ask)
    return "; ".join(found) or ("asked for just what is missing" if dialogue.asks else "nothing was asked")
