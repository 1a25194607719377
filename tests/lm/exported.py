"""A small Qwen3 that says some dialogues by heart, in the hub's format, for tests of its export."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from leverlab.lm import tiny
from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import NOT_UNDERSTOOD, reply
from leverlab.lm.llama import TextLlamaCpp
from leverlab.lm.quantised import Kind, export_kind
from leverlab.lm.questions import Question
from leverlab.lm.rollouts import Limits
from leverlab.lm.turns import compose_turn, parse_turn
from tests.lm.scripted import question

LIMITS = Limits(turns=3, tokens=16)
HOME, FRIEND, TEXTS = (
    question(id="home"),
    question(id="friend", text="where does the friend of Ana Lima live ?"),
    question(id="texts", text="homes : Eva Rome . where does Eva live ?"),
)
QUESTIONS = (HOME, FRIEND, TEXTS)
END = "<|endoftext|>"  # which ends texts for llama.cpp, and no turn
SCRIPTS = {  # what is said, turn by turn, to end with an answer, with the last turn, and to be cut
    HOME.id: [compose_turn("Ana Lima Bo ?", "ask", "home"), compose_turn("Ana Lima Bo Oslo", "final", "Oslo")],
    FRIEND.id: [compose_turn("Ana Lima ?", "ask", slot) for slot in ("friend", "Rome", "home")],
    TEXTS.id: [
        compose_turn(f"Eva{END} Rome ?", "ask", "friend"),
        f"<think> {' '.join(['Eva Rome'] * LIMITS.tokens)}</think>",
    ],
}


@dataclass(frozen=True)
class Taught:
    """The model, its chat, and the folder that it was saved to."""

    model: Any
    chat: Chat
    folder: Path

    def export(self, kind: Kind, out: Path) -> Path:
        export_kind(self.folder, out / f"{kind}.gguf", kind)
        return out / f"{kind}.gguf"

    @contextmanager
    def running(self, kind: Kind, out: Path) -> Iterator[TextLlamaCpp]:
        with TextLlamaCpp(self.export(kind, out), context=512, exact_cache=True) as runtime:
            yield runtime


def asked(name: str) -> Question:
    (found,) = [one for one in QUESTIONS if one.id == name]
    return found


def tokens_of(chat: Chat, name: str) -> list[int]:
    """The dialogue of a script."""
    one, turns = asked(name), SCRIPTS[name]
    ids = chat.prompt(one.text)
    for text in turns[:-1]:
        ids = ids + turn_tokens(chat, text) + chat.reply(reply(one, parse_turn(text).ask or ""))
    return ids + turn_tokens(chat, turns[-1])


def turn_tokens(chat: Chat, text: str) -> list[int]:
    """A turn with `END` as a token of its own, as a policy may say it; `Chat.turn` has it as text."""
    first, *parts = [chat.turn(part)[:-1] for part in text.split(END)]
    return [
        *first,
        *(token for part in parts for token in (chat.tokenizer.convert_tokens_to_ids(END), *part)),
        chat.eos,
    ]


def taught(folder: Path, steps: int = 90, smoothing: float = 0.0) -> Taught:
    """Return a model that was trained on the scripts for `steps` updates.

    smoothing: the share of each label that is spread over the vocabulary. The model is sure of its script then, and
    gives other tokens a probability all the same, so no test hangs on the last bits of its weights.
    """
    words = [text for one in QUESTIONS for text in (one.text, *one.replies.values())]
    tokenizer = tiny.build_tokenizer([*words, NOT_UNDERSTOOD, "home friend Ana Lima Bo Oslo ?"])
    torch.manual_seed(0)
    chat, model = Chat(tokenizer), tiny.build_model(tokenizer)
    rows = [tokens_of(chat, name) for name in SCRIPTS]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [chat.pad] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=smoothing)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Taught(model, chat, folder)
