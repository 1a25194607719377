"""What prepare finds out about prompts, and texts that come decomposed."""

import copy
from dataclasses import replace

import pytest
from tokenizers import normalizers

from leverlab.errors import LeverlabError
from leverlab.vlm.model import Vlm
from leverlab.vlm.prompt import PromptFormat
from leverlab.vlm.tiny import CHAT_TEMPLATE
from leverlab.worlds.world import World
from stages.prepare import check_prompts

COMPOSED, DECOMPOSED = "\u00e9t\u00e9 na\u00efve", "e\u0301te\u0301 nai\u0308ve"


def test_prepare_names_the_question_whose_answer_has_no_tokens_of_its_own(vlm: Vlm, world: World) -> None:
    """'Which' is a single token, so that 'ch' right behind 'Whi' has none; in the pool that does not matter."""
    processor = copy.copy(vlm.processor)
    processor.chat_template = CHAT_TEMPLATE.replace("{{ ' ' }}", "")
    joined = replace(world.pool[0], id="odd", question="Whi", answers=("ch",))
    sound = replace(world.pool[0], id="sound", question="Which?", answers=(" zo",))
    splits = {"pool": [joined], "train": [sound], "val": [sound], "test": [sound]}
    check_prompts(replace(vlm, processor=processor), splits)
    for split in ("train", "val", "test"):
        with pytest.raises(LeverlabError, match=f"split '{split}': the tokenizer joins the answer of 'odd'"):
            check_prompts(replace(vlm, processor=processor), splits | {split: [sound, joined]})


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["plain", "NFC"])
def test_decomposed_texts_have_the_tokens_of_the_composed_ones(
    vlm: Vlm, world: World, normalizer: normalizers.Normalizer | None
) -> None:
    """A tokenizer that composes moves all offsets, and one that does not reads other tokens than the pipeline's."""
    processor = copy.copy(vlm.processor)
    processor.tokenizer = copy.deepcopy(vlm.processor.tokenizer)
    if normalizer is not None:
        processor.tokenizer.backend_tokenizer.normalizer = normalizer
    prompts = PromptFormat(processor)
    turns = [
        prompts.question_turn(replace(world.pool[0], question=f"{text}?", answers=(text,)))
        for text in (COMPOSED, DECOMPOSED)
    ]
    assert turns[0] == turns[1]
    assert prompts.decode(list(turns[1].answer_ids)) == COMPOSED


def test_what_a_model_says_decomposed_is_compared_composed(vlm: Vlm) -> None:
    ids = vlm.processor.tokenizer(DECOMPOSED, add_special_tokens=False).input_ids
    assert PromptFormat(vlm.processor).decode(ids) == COMPOSED
