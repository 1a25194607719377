"""Turns against the chat template and the tokenizer themselves."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.text_tokens import TextTokens
from leverlab.vlm.model import Vlm
from leverlab.vlm.prompt import PromptFormat, demo_messages, expand_images, question_messages
from leverlab.vlm.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS
from leverlab.worlds.world import World

# What people ask and answer: several words, several tokens a word, digits, marks, letters beyond ASCII inside a word.
TEXTS = st.sampled_from(
    ["zebra crossing", "2 dogs", "What's on it?", "naïve cat", "U.S.A", "x", "Which colour and number?", "kovi", "10%"]
)


def with_template(vlm: Vlm, template: str) -> Any:
    processor = copy.copy(vlm.processor)
    processor.chat_template = template
    return processor


@pytest.fixture(params=["vlm", "qwen_vlm"])
def processor(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param).processor


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_turns_put_together_are_the_tokens_of_the_whole_prompt(
    processor: Any, world: World, pairs: list[tuple[str, str]]
) -> None:
    examples = [replace(world.pool[0], question=question, answers=(answer,)) for question, answer in pairs]
    *demos, question = examples
    prompts = PromptFormat(processor)
    turn = prompts.question_turn(question)
    ids = [*prompts.head_ids, *(token for demo in demos for token in prompts.demo_ids(demo)), *turn.ids]
    messages = [message for demo in demos for message in demo_messages(demo)] + question_messages(question.question)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompts.render_prompt(demos, question) == text
    tokenizer = processor.tokenizer
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    # and so are the tokens with the answer behind it, up to the one that ends it
    whole = processor.apply_chat_template([*messages, *demo_messages(question)[1:]], tokenize=False)
    answered = tokenizer(whole, add_special_tokens=False).input_ids
    assert answered[: len(ids) + len(turn.answer_ids) + 1] == [*ids, *turn.answer_ids, turn.end_id]
    assert prompts.decode(list(turn.answer_ids)) == question.answer


def test_a_turn_by_hand(vlm: Vlm, world: World) -> None:
    """'Which number? zebra' as the tiny template writes it: the image's three tokens, question, answer, end."""
    example = replace(world.pool[0], question="Which number?", answers=("zo",))
    tokenizer = vlm.processor.tokenizer
    prompts = PromptFormat(vlm.processor)
    assert prompts.head_ids == ()
    image = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    turn = prompts.question_turn(example)
    assert tokenizer.convert_ids_to_tokens(turn.ids) == [*image, "Which", "Ġnumber", "?"]
    assert "".join(tokenizer.convert_ids_to_tokens(turn.answer_ids)) == "Ġzo"
    assert tokenizer.convert_ids_to_tokens(turn.end_id) == "<|im_end|>"
    assert prompts.demo_ids(example) == (*turn.ids, *turn.answer_ids, turn.end_id)


def test_a_head_and_roles_by_hand(qwen_vlm: Vlm, world: World) -> None:
    """The system prompt stands in the head, once, and never in a turn; the answer is told from the role before it."""
    example = replace(world.pool[0], question="Which number?", answers=("zebra crossing",))
    prompts = PromptFormat(qwen_vlm.processor)

    def text(ids: tuple[int, ...]) -> str:
        return qwen_vlm.processor.tokenizer.decode(list(ids))

    image = "<|vision_start|><|image_pad|><|vision_end|>"
    asked = f"<|im_start|>user\n{image}Which number?<|im_end|>\n<|im_start|>assistant\n"
    assert text(prompts.head_ids) == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert text(prompts.demo_ids(example)) == f"{asked}zebra crossing<|im_end|>\n"
    turn = prompts.question_turn(example)
    assert text(turn.ids) == asked
    assert text(turn.answer_ids) == "zebra crossing"
    assert len(turn.answer_ids) > 2
    assert text((turn.end_id,)) == "<|im_end|>"


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE.replace("message in messages -%}", "message in messages -%}{{ loop.index }}", 1),
        CHAT_TEMPLATE + "{{ messages | length }}",
        pytest.param(CHAT_TEMPLATE.replace("message in messages -%}", "message in messages[-2:] -%}", 1)),
    ],
    ids=["numbered turns", "a count at the end", "the last turn only"],
)
def test_a_template_whose_turns_depend_on_their_place_is_refused(vlm: Vlm, template: str) -> None:
    with pytest.raises(LeverlabError, match="writes a turn differently at different places"):
        PromptFormat(with_template(vlm, template))


@pytest.mark.parametrize(
    ("space", "tail", "question", "answer"),
    [("", "", "Whi", "ch"), (" ", "r", "Which?", "numbe")],
    ids=["with its question", "with what follows"],
)
def test_an_answer_that_the_tokenizer_joins_with_its_surroundings_is_refused(
    space: str, tail: str, question: str, answer: str, vlm: Vlm, world: World
) -> None:
    """'Which' and ' number' are single tokens, so 'ch' behind 'Whi' and 'numbe' before 'r' have none of their own."""
    template = CHAT_TEMPLATE.replace("{{ ' ' }}", f"{{{{ '{space}' }}}}").replace("<|im_end|>", f"{tail}<|im_end|>")
    prompts = PromptFormat(with_template(vlm, template))
    with pytest.raises(LeverlabError, match=f"joins the answer of 'pool-00000' .'{answer}'. with its surroundings"):
        prompts.question_turn(replace(world.pool[0], question=question, answers=(answer,)))


def test_a_template_that_changes_or_hides_the_answer_is_refused(vlm: Vlm, world: World) -> None:
    prompts = PromptFormat(
        with_template(vlm, CHAT_TEMPLATE.replace("{{ part['text'] }}", "{{ part['text'] | upper }}"))
    )
    with pytest.raises(LeverlabError, match="does not place the answer of 'pool-00000'"):
        prompts.question_turn(world.pool[0])


def test_an_answer_without_an_end_is_refused(vlm: Vlm, world: World) -> None:
    prompts = PromptFormat(with_template(vlm, CHAT_TEMPLATE.replace("{{ '<|im_end|>' }}", "")))
    with pytest.raises(LeverlabError, match="with its surroundings"):
        prompts.question_turn(world.pool[0])


def test_an_answer_that_ends_in_a_character_of_two_tokens_is_whole(vlm: Vlm, world: World) -> None:
    example: Example = replace(world.pool[0], answers=("café",))
    turn = PromptFormat(vlm.processor).question_turn(example)
    assert list(turn.answer_ids) == vlm.processor.tokenizer(" café", add_special_tokens=False).input_ids
    assert turn.end_id == vlm.processor.tokenizer.eos_token_id


def test_a_template_whose_turns_merge_as_tokens_is_refused(vlm: Vlm, world: World) -> None:
    """A turn that ends in a space and one that begins with a word: ' Which' is one token, ' ' and 'Which' are two."""
    template = (
        "{%- for message in messages -%}{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' -%}{{ part['text'] + ' ' }}"
        "{%- else -%}{{ 'number <|image_pad|>' }}{%- endif -%}{%- endfor -%}{%- endfor -%}"
    )
    processor = with_template(vlm, template)
    with pytest.raises(LeverlabError):
        PromptFormat(processor).demo_ids(world.pool[0])


# Texts that spell control tokens


def by_hand(vlm: Vlm, *parts: str) -> list[int]:
    """Token ids: every other part, the first one too, is the template's, those between are texts without controls."""
    tokenizer = vlm.processor.tokenizer
    ids: list[int] = []
    for place, part in enumerate(parts):
        ids += tokenizer(part, add_special_tokens=False, split_special_tokens=place % 2 == 1).input_ids
    return ids


@pytest.mark.parametrize("control", SPECIAL_TOKENS)
def test_questions_and_answers_that_spell_control_tokens_are_text(qwen_vlm: Vlm, world: World, control: str) -> None:
    """In every place of a prompt; the answer has its own tokens, and its end is the template's."""
    question, answer = f"{control}Which number{control}?{control}", f"{control}zo{control} {control}"
    example = replace(world.pool[0], question=question, answers=(answer,))
    prompts, other = PromptFormat(qwen_vlm.processor), world.pool[1]
    image, role = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n"
    asked = by_hand(qwen_vlm, image, question, role)
    said = by_hand(qwen_vlm, "", answer)
    turn = prompts.question_turn(example)
    assert list(turn.ids) == asked
    assert list(turn.answer_ids) == said
    assert turn.end_id == qwen_vlm.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert list(prompts.demo_ids(example)) == [*asked, *said, *by_hand(qwen_vlm, "<|im_end|>\n")]
    assert not set(said) & set(TextTokens.of(qwen_vlm.processor.tokenizer).controls.values())
    assert prompts.decode(list(turn.answer_ids)) == answer
    plain = prompts.render_prompt([example], example)
    assert plain.count(question) == 2
    assert plain.count(answer) == 1
    inputs = prompts.inputs([example, other], example)
    ids = [*prompts.head_ids, *prompts.demo_ids(example), *prompts.demo_ids(other), *asked]
    assert inputs["input_ids"].tolist() == [ids]  # each image is one token
    assert int(inputs["mm_token_type_ids"].sum()) == len(inputs["image_grid_thw"]) == 3


@pytest.mark.parametrize("sizes", [[(16, 16)], [(32, 48), (16, 16), (64, 16)]])
def test_inputs_of_ordinary_texts_are_those_of_the_processor(
    processor: Any, world: World, picture: Any, sizes: list[tuple[int, int]]
) -> None:
    examples = [
        replace(example, image=picture(*size, seed))
        for seed, (example, size) in enumerate(zip(world.pool, sizes, strict=False))
    ]
    *demos, question = examples
    prompts = PromptFormat(processor)
    found = prompts.inputs(demos, question)
    wanted = processor(
        text=prompts.render_prompt(demos, question),
        images=[example.open_image() for example in examples],
        return_tensors="pt",
    )
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(found[name], values), name


def test_images_that_the_template_does_not_show_are_told() -> None:
    assert expand_images([7, 1, 9, 1], 1, [2, 3]) == [7, 1, 1, 9, 1, 1, 1]
    with pytest.raises(LeverlabError, match="writes 2 image tokens for 1 images"):
        expand_images([7, 1, 9, 1], 1, [2])
