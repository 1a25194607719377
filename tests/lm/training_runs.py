"""What the tests of the trainers share: a tiny base, dialogues of scripted policies, and runs that are killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel

from leverlab.lm.adapters import Base, load_policy, new_adapter, save_adapter, weights_digest
from leverlab.lm.chat import Chat
from leverlab.lm.tokens import Tokens, dialogue_tokens
from leverlab.lm.trainers import Row
from tests.lm import tiny
from tests.lm.scripted import ask, final, question

CHAT = Chat(tiny.tokenizer())
ASKED = dialogue_tokens(CHAT, question().text, [ask("home"), final("Oslo")], ["Bo Oslo"])
GUESSED = dialogue_tokens(CHAT, question().text, [final("Rome")], [])
SPAM = dialogue_tokens(
    CHAT, question().text, [ask("friend"), ask("home"), final("Oslo")], ["I do not understand .", "Bo Oslo"]
)
EXAMPLES: list[Tokens] = [ASKED, GUESSED, SPAM, GUESSED, ASKED, SPAM, ASKED]


def base(seed: int = 0) -> Base:
    model = tiny.model(CHAT.tokenizer, seed)
    return Base("no/such/folder", model, CHAT, weights_digest(model))


Train = Callable[[PeftModel, Base, Path, Callable[[Row], None]], list[Row]]


def finished(
    train: Train, folder: Path, kills: tuple[int, ...] = (), adapter: Path | None = None
) -> tuple[dict[str, bytes], list[Row]]:
    """The files of the adapter and the rows of a run that is killed in the steps `kills`, and run again each time.

    adapter: what it starts from, instead of a new one.
    """
    for step in (*kills, None):
        one = base()
        policy = load_policy(one, adapter, trainable=True) if adapter else new_adapter(one, rank=4, alpha=8, seed=1)
        try:
            rows = train(policy, one, folder / "checkpoints", killing(step))
        except KeyboardInterrupt:
            continue
        save_adapter(policy, one, folder / "adapter")
        return {path.name: path.read_bytes() for path in sorted((folder / "adapter").iterdir())}, rows
    raise AssertionError(f"the run was not killed in step {kills}, or in all of them")


def killing(step: int | None) -> Callable[[Row], None]:
    def on_log(row: Row) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return on_log


def quiet(_: Any) -> None:
    """What a run says is not looked at."""
