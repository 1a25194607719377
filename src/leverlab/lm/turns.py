"""What a policy says in a turn: `<think>…</think>`, then `<ask>slot</ask>` or `<final>answer</final>`."""

import re
from dataclasses import dataclass

from leverlab.texts import normalised

TAGS = ("think", "ask", "final")
MARKUP = tuple(tag for name in TAGS for tag in (f"<{name}>", f"</{name}>"))
_TAG = re.compile(rf"</?(?:{'|'.join(TAGS)})>")
_TURN = re.compile(
    r"\s*(?:<think>(?P<think>.*?)</think>)?\s*<(?P<act>ask|final)>(?P<said>.*?)</(?P=act)>\s*", re.DOTALL
)


@dataclass(frozen=True)
class Turn:
    """A turn of the policy, read strictly.

    text: as it was said. ask, final: what is between their tags, in the form of `leverlab.texts`. Exactly one is set
    when the turn parses, none otherwise.
    think: what the think part before it says, opened and closed once; empty when there is none.
    """

    text: str
    ask: str | None = None
    final: str | None = None
    think: str = ""

    @property
    def thought(self) -> bool:
        """Whether there is a think part with something in it."""
        return bool(self.think)

    @property
    def parses(self) -> bool:
        """Whether the turn is a single ask or a single final answer, with nothing after it."""
        return self.ask is not None or self.final is not None


def parse_turn(text: str) -> Turn:
    """Return the turn that `text` is.

    A turn with a tag inside of another, two acts, text after its act, or an empty act does not parse.
    """
    match = _TURN.fullmatch(text)
    if match is None or any(_TAG.search(part or "") for part in match.group("think", "said")):
        return Turn(text)
    act, said = match["act"], normalised(" ".join(match["said"].split()))
    think = normalised(match["think"] or "").strip()
    if not said:
        return Turn(text)
    return Turn(text, said if act == "ask" else None, said if act == "final" else None, think)


def tag_in(text: str) -> str | None:
    """Return the first tag that `text` spells, which a turn that says the text could not be read with; or None."""
    found = _TAG.search(text)
    return found[0] if found else None


def compose_turn(think: str, act: str, said: str) -> str:
    """Return the text of a turn.

    A space stands before every word, the first one of a part too: so a word is the same token wherever it stands.
    """
    return f"<think> {think}</think><{act}> {said}</{act}>"
