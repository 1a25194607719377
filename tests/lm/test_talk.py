"""Talking to a policy at the terminal: what is said, who replies, what it was worth, and which adapter speaks."""

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from leverlab.cli import app
from leverlab.errors import LeverlabError
from leverlab.lm.adapters import load_base, new_adapter, save_adapter, weights_digest
from leverlab.lm.chat import Chat
from leverlab.lm.questions import UNKNOWN, Question, write_questions
from leverlab.lm.rollouts import Limits
from leverlab.lm.talk import (
    POLICIES,
    Speaker,
    Talk,
    adapter_folder,
    load_speaker,
    own_question,
    parts,
    questions_file,
    read_recipe,
)
from leverlab.lm.turns import parse_turn
from tests.lm import tiny
from tests.lm.scripted import TOLD, ask, final, question

LIMITS = Limits(turns=3, tokens=40)
HOME = question(id="home")
FRIEND = question(id="friend", text="where does the friend of Ana Lima live ?", slot="friend")
PLAIN = question(id="plain", text="Bo lives in Oslo , where ?", **TOLD)


class Scripted:
    """A model that says the turns of its script, whatever it is told in between; sampled words are not its own."""

    device = torch.device("cpu")

    def __init__(self, chat: Chat, turns: list[str]):
        self.turns = [chat.turn(text) for text in turns]
        prompt = chat.prompt("a")
        self.header = prompt[max(n for n, token in enumerate(prompt) if token == prompt[0]) :]
        self.pad, self.size, self.seen = chat.pad, len(chat.tokenizer), list[int]()

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        fed = input_ids[0].tolist()
        self.seen = fed if len(fed) > 1 else [*self.seen, *fed]
        width = len(self.header)
        begun = [n + width for n in range(len(self.seen)) if self.seen[n : n + width] == self.header]
        turn, said = self.turns[len(begun) - 1], len(self.seen) - begun[-1]
        logits = torch.zeros(1, 1, self.size)
        logits[0, 0, turn[said] if said < len(turn) else self.pad] = 50.0
        nothing = SimpleNamespace(
            layers=[], batch_repeat_interleave=lambda _: None, batch_select_indices=lambda _: None
        )
        return SimpleNamespace(logits=logits, past_key_values=nothing)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tiny.tokenizer())


Say = Callable[..., str]


@pytest.fixture
def say(chat: Chat) -> Say:
    """A function that types lines to scripted policies, and returns what stands on the terminal."""

    def run(lines: list[str], seed: int = 0, **scripts: list[str]) -> str:
        shown, left = io.StringIO(), iter(lines)
        console = Console(file=shown, width=200, markup=False, emoji=False, highlight=False)

        def read(prompt: str) -> str:
            shown.write(prompt)
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        def load(policy: str) -> Speaker:
            if policy not in scripts:
                raise LeverlabError(f"no {policy} here")
            return Speaker(policy, Scripted(chat, scripts[policy]), chat)

        Talk([HOME, FRIEND, PLAIN], load, next(iter(scripts)), LIMITS, 0.05, 0.0, seed, read, console).run()
        return shown.getvalue()

    return run


def rows(shown: str) -> dict[str, list[str]]:
    """Rows of tables by their first cell; of a row that stands twice, the last."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in cells}


def test_a_dialogue_in_which_the_simulated_user_replies(say: Say) -> None:
    """.8 + .1 + .1 - .05 x 0 = 1.00: it asks once, for what is missing, and is right."""
    shown = say(["/question home", "", "/quit"], grpo=[ask("home"), final("Oslo")])
    lines = shown.splitlines()
    start = next(n for n, line in enumerate(lines) if line.endswith(f"question home: {HOME.text}"))
    assert lines[start + 1 : start + 8] == [
        "grpo thinks: Bo ?",
        "grpo asks: home",
        "reply [Bo Oslo]: user: Bo Oslo",
        "grpo thinks: Bo",
        "grpo answers: Oslo",
        "the dialogue ends with an answer; asks: 1",
        "success",
    ]
    assert rows(shown) == {
        "correct": ["1", "0.8", "0.80", "the answer is Oslo, as it should be"],
        "parses": ["1", "0.1", "0.10", "every turn parses"],
        "thought": ["1", "0.1", "0.10", "every turn has a grounded thought"],
        "needless": ["0", "-0.05", "0.00", "asked for just what is missing"],
        "total": ["", "", "1.00", "at alpha 0.05"],
    }
    assert "otherwise" not in shown


def test_needless_asks_cost(say: Say) -> None:
    """.8 x 0 + .1 + .1 - .05 x 2 = .10: wrong, after two asks for what the user does not know."""
    shown = say(["/question plain", "", ""], grpo=[ask("weather"), ask("weather"), final("Rome")])
    table = rows(shown)
    assert "no success" in shown
    assert (table["correct"][2], table["needless"][0], table["needless"][2]) == ("0.00", "2", "-0.10")
    assert table["total"][2] == "0.10"
    assert shown.count("user: I do not understand .") == 2


def test_the_user_at_the_keyboard_replies(say: Say) -> None:
    """The words typed are those that the policy reads; that they are not the simulated user's is said."""
    shown = say(["/question home", "  Bo   Rome "], grpo=[ask("home"), final("Rome")])
    assert "user: Bo Rome\n" in shown
    assert "no success" in shown
    assert "you replied otherwise than the simulated user" in shown


def test_what_is_typed_is_what_the_policy_reads(chat: Chat, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    whole = Scripted.__init__

    def remember(self: Scripted, *arguments: Any) -> None:
        whole(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Scripted, "__init__", remember)
    say(["where is Bo ?", "in Rome"], grpo=[ask("home"), final("Rome")])
    (model,) = made
    read = chat.prompt("where is Bo ?") + chat.turn(ask("home")) + chat.reply("in Rome") + chat.turn(final("Rome"))[:-1]
    assert model.seen == read


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        (["no tags"], ["grpo says: no tags", "its last turn is neither an ask nor an answer"]),
        ([ask("home"), ask("home"), ask("home")], ["turn 3 is the last one, and it asks"]),
        ([final("x" * 60)], ["was too long and was cut"]),
    ],
)
def test_dialogues_that_end_without_an_answer(say: Say, turns: list[str], told: list[str]) -> None:
    shown = say(["/question home", "", ""], grpo=turns)
    assert all(part in shown for part in told)
    assert "no success" in shown
    assert rows(shown)["correct"][0] == "0"


def test_a_question_of_your_own_has_no_reward(say: Say) -> None:
    shown = say(["how are you ?", "", "/quit"], grpo=[ask("mood"), final("not known")])
    assert "question typed: how are you ?" in shown
    assert "reply [I do not understand .]: " in shown
    assert "the right answer is not known: there is no reward" in shown
    assert "success" not in shown.partition("question typed")[2]
    assert not rows(shown)


def test_the_text_of_a_known_question_is_that_question(say: Say) -> None:
    assert "question plain: " in say([PLAIN.text], grpo=[final("Oslo")])


def test_what_is_typed_decomposed_is_read_composed(say: Say) -> None:
    shown = say(["is it e\u0301te\u0301 ?", "in Orle\u0301ans"], grpo=[ask("home"), final("Oslo")])
    assert "question typed: is it \u00e9t\u00e9 ?" in shown
    assert "user: in Orl\u00e9ans\n" in shown


def test_policies_take_turns(say: Say) -> None:
    """One that cannot be loaded leaves the one that speaks; a policy speaks under its own name."""
    scripts = {"sft": [ask("home"), final("Oslo")], "grpo": [final("Rome")]}
    lines = ["/question plain", "", "/policy dpo", "/question plain", "", "/policy grpo", "/question plain"]
    shown = say(lines, **scripts)
    assert shown.count("sft asks: home") == 2
    assert shown.count("grpo answers: Rome") == 1
    assert "leverlab: no dpo here" in shown


def test_draws_are_those_of_the_seed(say: Say) -> None:
    def drawn(seed: int) -> list[str]:
        shown = say(["", "/new", "", "", "", ""], seed, grpo=[final("Oslo")])
        return [line.split()[5].rstrip(":") for line in shown.splitlines() if ": question " in line]

    assert len(drawn(0)) == 6
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert set(drawn(0)) <= {"home", "friend", "plain"}


def test_a_command_in_the_place_of_a_reply(say: Say) -> None:
    """/help and an unknown one leave the dialogue where it is, the others leave it; what follows is not read twice."""
    script = [ask("home"), final("Oslo")]
    shown = say(["/question home", "/help", "/nonsense", "/question plain", "/quit", "/new"], grpo=script)
    assert shown.count("reply [Bo Oslo]: ") == 4
    assert shown.count("an empty line or /new") == 2
    assert "there is no command '/nonsense'" in shown
    assert [part.split()[0] for part in shown.split("question ")[1:] if ": " in part[:8]] == ["home:", "plain:"]
    assert not rows(shown)


@pytest.mark.parametrize(("line", "told"), [("/question x", "no question 'x'"), ("/qest", "no command '/qest'")])
def test_a_mistake_is_told_and_the_talk_goes_on(say: Say, line: str, told: str) -> None:
    shown = say([line, "/question plain"], grpo=[final("Oslo")])
    assert told in shown
    assert shown.rstrip().splitlines()[-1].startswith("grpo, question")
    assert rows(shown)["total"][2] == "1.00"


def test_words_are_shown_as_they_stand(say: Say) -> None:
    """No markup of rich, no picture for a word between colons."""
    shown = say(["what is [red]this[/red] :apple: \x1b[2J ?"], grpo=[final("[bold]")])
    assert "what is [red]this[/red] :apple: \N{REPLACEMENT CHARACTER}[2J ?" in shown
    assert "grpo answers: [bold]" in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think> a b</think><ask> home</ask>", [("thinks", "a b"), ("asks", "home")]),
        ("<think> a b</think>\n<final>yes</final>", [("thinks", "a b"), ("answers", "yes")]),
        ("<think></think><final>yes</final>", [("answers", "yes")]),
        ("<final>yes</final>", [("answers", "yes")]),
        ("<think>a</think><final>yes</final>!", [("says", "<think>a</think><final>yes</final>!")]),
    ],
)
def test_parts_of_a_turn(text: str, expected: list[tuple[str, str]]) -> None:
    assert parts(parse_turn(text)) == expected


def test_nobody_knows_the_answer_to_an_own_question() -> None:
    """Its answer is not the one that is right when a fact cannot be had."""
    assert own_question("a").answer != UNKNOWN


PARAMS = """\
base: {source: worlds/base, dtype: float32}
dialogues: {turns: 3, tokens: 40}
reward: {alpha: 0.04, high: 0.9}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with a base that has learnt two dialogues, and adapters: grpo changes nothing, sft breaks it."""
    root = tmp_path_factory.mktemp("clone")
    (root / ".dvc").mkdir()
    folder = root / "recipes" / "clarify"
    (folder / "data" / "questions").mkdir(parents=True)
    (folder / "params.yaml").write_text(PARAMS)
    write_questions(questions_file(folder, "test"), [HOME])
    chat = Chat(tiny.tokenizer())
    model = taught(chat, HOME, [ask("home"), final("Oslo")])
    model.save_pretrained(root / "worlds" / "base")
    chat.tokenizer.save_pretrained(root / "worlds" / "base")
    for name, noise in (("best", 0.0), ("sft", 1.0)):
        base = load_base(str(root / "worlds" / "base"))
        policy = new_adapter(base, rank=2, alpha=4, seed=0)
        with torch.no_grad():
            for key, weight in policy.named_parameters():
                if "lora_B" in key:
                    weight.fill_(noise)
        save_adapter(policy, base, folder / "models" / name / "0" / "adapter")
    yield folder
    shutil.rmtree(root)


def taught(chat: Chat, asked: Question, turns: list[str]) -> Any:
    """A model that says `turns` by heart."""
    ids = chat.prompt(asked.text)
    for n, turn in enumerate(turns):
        ids = [*ids, *chat.turn(turn), *(chat.reply(asked.replies[asked.slot]) if n < len(turns) - 1 else [])]
    model, batch = tiny.model(chat.tokenizer).train(), torch.tensor([ids])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimiser.step()
    return model.eval()


def test_a_whole_dialogue_through_a_pipe(recipe: Path) -> None:
    """Of grpo the adapter that was chosen speaks. A byte that is no text does not stop the talk."""
    typed = b"/new\n\n/policy sft\n/question home\n/policy base\n/question home\n\n\xff\n/quit\n"
    done = CliRunner().invoke(app, ["chat", str(recipe)], input=typed)
    assert done.exit_code == 0, done.output
    by_policy = {name: done.stdout.count(f"{name} answers: Oslo") for name in ("grpo", "sft", "base")}
    assert by_policy == {"grpo": 1, "sft": 0, "base": 1}
    assert "sft " in done.stdout
    assert "reply [Bo Oslo]: \nuser: Bo Oslo" in done.stdout
    assert "question typed: \N{REPLACEMENT CHARACTER}" in done.stdout
    assert rows(done.stdout)["total"][2:] == ["1.00", "at alpha 0.04"]


def test_a_warm_policy_is_drawn_from_the_seed(recipe: Path) -> None:
    """At temperature 3 the words of a policy that knows its lines differ from seed to seed, and from the likeliest."""

    def said(seed: int, temperature: float) -> str:
        arguments = ["chat", str(recipe), "--stage", "base", "--seed", str(seed)]
        return CliRunner().invoke(app, [*arguments, "--temperature", str(temperature)], input="\n\n").stdout

    assert said(0, 3) == said(0, 3)
    assert len({said(0, 0), said(0, 3), said(1, 3)}) == 3
    assert said(0, 0) == said(1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "ppo"], "there is no policy 'ppo'; name one of base, sft, rce, grpo, dpo"),
        (["--stage", "gpro"], "did you mean 'grpo'?"),
        (["--stage", "rce"], "holds no adapter"),
        (["--seed", "1"], "holds no adapter"),
        (["--split", "ood"], "ood.jsonl does not exist; the splits there are test"),
        (["--split", "tset"], "the splits there are test; did you mean 'test'?"),
    ],
)
def test_what_is_not_there_is_told_at_the_start(recipe: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["chat", str(recipe), *arguments], input="/quit\n")
    assert done.exit_code == 1
    assert isinstance(done.exception, LeverlabError)
    assert message in str(done.exception)


@pytest.mark.parametrize("temperature", ["-1", "nan", "inf"])
def test_temperatures_that_are_none(recipe: Path, temperature: str) -> None:
    assert CliRunner().invoke(app, ["chat", str(recipe), "--temperature", temperature]).exit_code == 2


def test_policies_are_loaded_one_by_one(recipe: Path) -> None:
    """An adapter changes the base in place; each policy gets a base of its own, whose weights are those on disk."""
    found = read_recipe(recipe)
    before = weights_digest(load_speaker(found, "base", 0).model)
    load_speaker(found, "sft", 0)
    assert weights_digest(load_speaker(found, "base", 0).model) == before


def test_the_base_is_in_the_dtype_of_the_params(recipe: Path) -> None:
    """In another it would have another digest, and no adapter of the recipe would fit."""
    half = load_speaker(replace(read_recipe(recipe), dtype="bfloat16"), "base", 0)
    assert half.model.dtype == torch.bfloat16


def test_what_a_talk_takes_from_the_params(recipe: Path, tmp_path: Path) -> None:
    """A base that is no folder is a hub id. A needless ask costs what it does at the end: .07 → .04."""
    found = read_recipe(recipe)
    assert found.source == str(recipe.parents[1].resolve() / "worlds" / "base")
    assert (found.dtype, found.limits, found.alpha) == ("float32", LIMITS, 0.04)
    (tmp_path / "params.yaml").write_text(PARAMS.replace("worlds/base", "Qwen/Qwen3-4B"))
    assert read_recipe(tmp_path).source == "Qwen/Qwen3-4B"


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("source: worlds/base", "source: ''", r"params\.yaml: 'base\.source' = '' is not allowed"),
        ("base:", "bass:", "params.yaml has no section 'base'"),
        ("turns: 3", "turns: 0", "'dialogues.turns' = 0"),
        ("alpha: 0.04", "alpha: -1", "'reward.alpha'"),
    ],
)
def test_params_that_are_not_valid(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS.replace(right, wrong))
    with pytest.raises(LeverlabError, match=message):
        read_recipe(tmp_path)


def test_where_adapters_lie() -> None:
    assert {name: adapter_folder(Path("r"), name, 2) for name in POLICIES} == {
        "base": None,
        "sft": Path("r/models/sft/2/adapter"),
        "rce": Path("r/models/rce/2/adapter"),
        "grpo": Path("r/models/best/2/adapter"),
        "dpo": Path("r/models/dpo/2/adapter"),
    }
