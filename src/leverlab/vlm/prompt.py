"""Prompts as turns: what a demo and a question become in the VLM's own chat template and tokens.

A prompt is `head + demo turn … + question turn`, and every turn's tokens are the same wherever the turn stands, so
prompts that share demos share tokens. Both facts hold for turn-wise chat templates; they are checked here against the
template itself, never assumed. The answer's tokens are the ones that the tokenizer reports for the answer's characters
(a hand-made label mask that ignored the template once made every answer probability 1e-6). Questions and answers stay
text, whatever control token they spell (`leverlab.text_tokens`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature

from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.text_tokens import Encoded, TextTokens
from leverlab.texts import normalised

Message = dict[str, Any]
_PROBE_QUESTION, _PROBE_ANSWER = "What is this?", "it"


@dataclass(frozen=True)
class QuestionTurn:
    """The tokens of a question, up to where the answer begins, and of its reference answer."""

    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    end_id: int  # the token that follows a complete answer


def demo_messages(example: Example) -> list[Message]:
    """Return the chat messages of `example` with its reference answer."""
    return [*question_messages(example.question), _assistant(example.answer)]


def question_messages(question: str) -> list[Message]:
    """Return the chat message that shows an image and asks `question`."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def _assistant(answer: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


class PromptFormat:
    """The turns of one processor's chat template, tokenised. Image placeholders stand as one token an image."""

    def __init__(self, processor: Any):
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._text_tokens = TextTokens.of(processor.tokenizer)
        probe = [*question_messages(_PROBE_QUESTION), _assistant(_PROBE_ANSWER)]
        one, two = self._render(probe), self._render([*probe, *probe])
        turn = two.removeprefix(one)
        head = one.removesuffix(turn)
        head_ids, turn_ids = self._encode(head).ids, self._encode(turn).ids
        if not turn or turn == two or not one.endswith(turn) or self._encode(two).ids != head_ids + 2 * turn_ids:
            raise LeverlabError(
                "the VLM's chat template writes a turn differently at different places, so prompts cannot share turns; "
                "use a VLM with a turn-wise template"
            )
        self._before = one  # a conversation to continue, so that the head is not written again
        self._probe = probe
        self.head_ids = tuple(head_ids)

    def demo_ids(self, example: Example) -> tuple[int, ...]:
        """Return the token ids of `example` as a demo turn."""
        text = self._continue(demo_messages(example), generation=False)
        return tuple(self._encode(text).ids)

    def question_turn(self, example: Example) -> QuestionTurn:
        """Return the tokens of `example` as the question to answer. Raises `LeverlabError` when the answer has no span
        of its own."""
        prompt = self._continue(question_messages(example.question), generation=True)
        whole = self._continue(demo_messages(example), generation=False)
        completion, answer = whole.removeprefix(prompt), self._text_tokens.marked(example.answer)
        if completion == whole or answer not in completion:
            raise LeverlabError(
                f"the chat template does not place the answer of '{example.id}' right after its question"
            )
        stop = len(prompt) + completion.index(answer) + len(answer)
        encoded = self._encode(whole)
        ids, spans = encoded.ids, encoded.spans
        first = next((i for i, (start, _) in enumerate(spans) if start == len(prompt)), None)
        last = next(
            (i for i in reversed(range(len(ids))) if spans[i][1] == stop), None
        )  # a character may be many tokens
        if first is None or last is None or last + 1 >= len(ids):
            raise LeverlabError(
                f"the tokenizer joins the answer of '{example.id}' ({example.answer!r}) with its surroundings; "
                "its probability cannot be told from theirs"
            )
        return QuestionTurn(tuple(ids[:first]), tuple(ids[first : last + 1]), ids[last + 1])

    def render_prompt(self, demos: list[Example], question: Example) -> str:
        """Return the whole prompt as text, for people and for checks against the processor."""
        return self._text_tokens.unmarked(self._prompt(demos, question))

    def inputs(self, demos: Sequence[Example], question: Example) -> BatchFeature:
        """Return what the model takes for a prompt, of one row: what the processor gives for texts that spell no
        control token."""
        images = self._processor.image_processor(
            [example.open_image() for example in (*demos, question)], return_tensors="pt"
        )
        counts = images["image_grid_thw"].prod(1) // self._processor.image_processor.merge_size**2
        image_id = self._processor.image_token_id
        ids = torch.tensor([expand_images(self._encode(self._prompt(demos, question)).ids, image_id, counts.tolist())])
        return BatchFeature(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "mm_token_type_ids": (ids == image_id).to(ids.dtype),
                **images,
            }
        )

    def decode(self, ids: list[int]) -> str:
        """Return the text of answer tokens, without special tokens and surrounding space."""
        return normalised(str(self._tokenizer.decode(ids, skip_special_tokens=True))).strip()

    def _prompt(self, demos: Sequence[Example], question: Example) -> str:
        messages = [message for demo in demos for message in demo_messages(demo)]
        return self._render([*messages, *question_messages(question.question)], generation=True)

    def _continue(self, messages: list[Message], generation: bool) -> str:
        return self._render([*self._probe, *messages], generation).removeprefix(self._before)

    def _render(self, messages: list[Message], generation: bool = False) -> str:
        """Return messages in the chat template, for `_encode`: what users wrote in them is marked."""
        marked = [
            message
            | {
                "content": [
                    part | {"text": self._text_tokens.marked(part["text"])} if "text" in part else part
                    for part in message["content"]
                ]
            }
            for message in messages
        ]
        return str(self._processor.apply_chat_template(marked, tokenize=False, add_generation_prompt=generation))

    def _encode(self, prompt: str) -> Encoded:
        return self._text_tokens.encode(prompt)


def expand_images(ids: Sequence[int], image_id: int, counts: Sequence[int]) -> list[int]:
    """Return `ids` with the token of each image as often as it has merged tokens: `counts`, one number an image.

    Raises `LeverlabError` when `ids` has another number of images.
    """
    if list(ids).count(image_id) != len(counts):
        raise LeverlabError(
            f"the chat template writes {list(ids).count(image_id)} image tokens for {len(counts)} images; use a VLM "
            "whose template shows every image once"
        )
    left = iter(counts)
    return [token for id_ in ids for token in ([id_] * next(left) if id_ == image_id else [id_])]
