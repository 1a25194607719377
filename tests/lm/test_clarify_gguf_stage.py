"""The stages gguf and benchmark of the recipe `clarify` on a model that says three dialogues by heart: figures by hand,
kills, runtimes that fail, exports that are wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from leverlab.config import clarify_gguf
from leverlab.config.clarify_gguf import PolicyGgufKinds, policy_file
from leverlab.deploy.benchmark import Run, Timing
from leverlab.deploy.llama_cpp import LlamaCppError
from leverlab.files import write_text
from leverlab.lm.quantised import KINDS, export_kind
from leverlab.lm.questions import Question
from leverlab.lm.records import read_records, write_records
from leverlab.lm.rollouts import roll_out
from leverlab.stage import run_stage
from stages.clarify import benchmark, gguf
from stages.clarify.gguf import TRANSFORMERS, ExportedRecord, engine_figures
from tests.lm.exported import FRIEND, HOME, LIMITS, SCRIPTS, TEXTS, Taught, taught
from tests.lm.scripted import TOLD, ask, final, question

# the friend need not be asked for; the others need an ask
ASKED = (
    HOME,
    FRIEND.model_copy(update={**TOLD, "family": "strategy"}),
    TEXTS.model_copy(update={"family": "math"}),
)
FOLDER = "recipes/clarify"
TEST = [f"{FOLDER}/data/questions", gguf.MERGED]
PIPELINE = {
    "stages": {
        "gguf": {
            "deps": [*TEST, gguf.BEST],
            "params": ["dialogues", "gguf", "runtime"],
            "outs": [f"{FOLDER}/data/gguf_answers.jsonl", gguf.FILES],
            "metrics": [f"{FOLDER}/reports/gguf.json"],
        },
        "benchmark": {
            "deps": [*TEST, gguf.FILES],
            "params": ["benchmark", "dialogues", "gguf.kinds", "runtime"],
            "metrics": [f"{FOLDER}/reports/benchmark.json"],
        },
    }
}
PARAMS = {
    "dialogues": {"turns": LIMITS.turns, "tokens": LIMITS.tokens},
    "gguf": {"kinds": ["f16", "q4_0"], "parity": {"prompts": 5, "likeliest": 1000}},
    "runtime": {"context": 256, "threads": 1, "seconds": 60.0},
    "benchmark": {"questions": 2, "runs": 2},
}


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERLAB_WORKERS", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    return taught(tmp_path_factory.mktemp("taught"))


Workspace = Callable[[Path], Path]


@pytest.fixture(scope="module")
def workspace(policy: Taught) -> Workspace:
    """Make `root` a repository with the merged policy, its questions, and what select-best chose."""

    def make(root: Path) -> Path:
        home = root / FOLDER
        shutil.copytree(policy.folder, root / gguf.MERGED)
        for split in ("val", "test"):
            write_records(home / f"data/questions/{split}.jsonl", ASKED)
        write_text(root / gguf.BEST / "best.json", json.dumps({"seed": 2, "step": 40}))
        stages = json.loads(json.dumps(PIPELINE))
        for body in stages["stages"].values():
            body |= {"wdir": "../..", "cmd": "true", "params": [{f"{FOLDER}/params.yaml": body["params"]}]}
        write_text(home / "dvc.yaml", json.dumps(stages))
        write_text(home / "params.yaml", json.dumps(PARAMS))
        return root

    return make


def run(root: Path, stage: str = "gguf") -> Path:
    """Run a stage there and return its home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_stage(stage, {"gguf": gguf.body, "benchmark": benchmark.body}[stage], home=FOLDER)
    return root / FOLDER


@pytest.fixture(scope="module")
def done(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEVERLAB_WORKERS", "1")
        return run(workspace(tmp_path_factory.mktemp("done")))


def measured(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "reports/gguf.json").read_text(encoding="utf-8"))
    return found


# Figures


def record(question: Question, turns: list[str], end: str, engine: str = "f16") -> ExportedRecord:
    return ExportedRecord.model_validate(
        {"question": question.id, "policy": "grpo", "seed": 0, "step": 1, "temperature": 0.0, "turns": turns}
        | {"replies": [], "end": end, "confidence": 1.0, "tokens": 1, "engine": engine}
    )


def test_figures_by_hand() -> None:
    """One question of each sort in `math`, two that need an ask in `multihop`.

    math: `a` is asked about and right, `b` needs no ask, gets one, and is wrong. multihop: `c` is right, `d` is wrong
    without an ask. Of 4: 2 right; of a, c, d 2; of b alone 1 asked; 2 + 2 + 2 + 1 = 7 turns. The turns of `c` are
    others than the expected ones; those of `d` are the same, but were cut there.
    """
    asked = [
        question(id="a", family="math"),
        question(id="b", family="math", **TOLD),
        question(id="c"),
        question(id="d"),
    ]
    both, wrong = [ask("home"), final("Oslo")], [ask("home"), final("Rome")]
    found = [
        record(asked[0], both, "final"),
        record(asked[1], wrong, "final"),
        record(asked[2], both, "final"),
        record(asked[3], [final("Rome")], "final"),
    ]
    expected = [
        record(asked[0], both, "final"),
        record(asked[1], wrong, "final"),
        record(asked[2], [ask("friend"), final("Oslo")], "final"),
        record(asked[3], [final("Rome")], "cut"),
    ]
    assert engine_figures(found, expected, asked) == {
        "n": 4,
        "success": 0.5,
        "need_success": pytest.approx(2 / 3, abs=1e-6),
        "over_clarification": 1.0,
        "turns": 1.75,
        "same_dialogues": 0.5,
        "families": {
            "math": {
                "n": 2,
                "success": 0.5,
                "need_success": 1.0,
                "over_clarification": 1.0,
                "turns": 2.0,
                "same_dialogues": 1.0,
            },
            "multihop": {
                "n": 2,
                "success": 0.5,
                "need_success": 0.5,
                "over_clarification": None,  # no question that needs no ask: null, which no gate takes for 0
                "turns": 1.5,
                "same_dialogues": 0.0,
            },
        },
    }


def test_a_policy_that_knows_its_dialogues(done: Path) -> None:
    """home: asked, right, 2 turns. friend: 3 asks that it does not need. texts: an ask, then a turn that is cut.

    So 1 of 3 is right, 1 of the 2 that need an ask, and the one that needs none is asked about; 7 turns.
    """
    found = measured(done)["answers"]
    assert list(found) == [TRANSFORMERS, "f16", "q4_0"]
    for engine in (TRANSFORMERS, "f16"):
        figures = {name: value for name, value in found[engine].items() if name != "families"}
        assert figures == pytest.approx(
            {"n": 3, "success": 1 / 3, "need_success": 0.5, "over_clarification": 1, "turns": 7 / 3}
            | {"same_dialogues": 1.0},
            abs=1e-6,
        )
        by_family = {family: of["success"] for family, of in found[engine]["families"].items()}
        assert by_family == {"math": 0.0, "multihop": 1.0, "strategy": 0.0}


def test_every_figure_is_that_of_the_stored_dialogues(done: Path) -> None:
    """Success and agreement of each kind, counted in a loop."""
    records = read_records(done / "data/gguf_answers.jsonl", ExportedRecord)
    said = {(one.engine, one.question): one for one in records}
    assert len(said) == len(records) == 9
    for engine, figures in measured(done)["answers"].items():
        right = same = 0
        for one in ASKED:
            found, wanted = said[engine, one.id], said[TRANSFORMERS, one.id]
            right += found.dialogue(one).success
            same += found.turns == wanted.turns and found.end == wanted.end
        assert (figures["success"], figures["same_dialogues"]) == pytest.approx((right / 3, same / 3), abs=1e-6)


def test_dialogues_are_those_of_the_model(done: Path, policy: Taught) -> None:
    records = read_records(done / "data/gguf_answers.jsonl", ExportedRecord)
    assert {(one.policy, one.seed, one.step, one.temperature) for one in records} == {("grpo", 2, 40, 0.0)}
    wanted = roll_out(policy.model, policy.chat, ASKED, 1, LIMITS, 0.0)
    for engine in (TRANSFORMERS, "f16"):
        found = [one for one in records if one.engine == engine]
        assert [one.turns for one in found] == [[turn.text for turn in one.dialogue.turns] for one in wanted]
        assert [one.end for one in found] == ["final", "turns", "cut"]
    assert records[0].turns == SCRIPTS["home"]


# Files and parity


def test_files_are_the_exported_ones(done: Path, policy: Taught, tmp_path: Path) -> None:
    found = measured(done)["files"]
    for kind in ("f16", "q4_0"):
        file = policy.export(kind, tmp_path)
        assert (done / f"models/gguf/{policy_file(kind)}").read_bytes() == file.read_bytes()
        assert found[kind]["bytes"] == file.stat().st_size
        # the output layer is the embedding's
        assert (found[kind]["tensors"], found[kind]["values_beyond"]) == (len(policy.model.state_dict()) - 1, 0)
    assert found["f16"]["max_abs_error"] < found["q4_0"]["max_abs_error"] / 10


def test_parity_is_on_turns_of_dialogues(done: Path) -> None:
    found = measured(done)["parity"]
    assert [of["prompts"] for of in found.values()] == [5, 5]  # of seven turns
    assert found["f16"]["greedy"] == 1.0
    assert found["f16"]["mean_kl"] < found["q4_0"]["mean_kl"] / 10


def test_an_export_that_is_not_exact_fails(
    workspace: Workspace, policy: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The gate of one layer holds the values of another's."""
    shutil.copytree(policy.folder, tmp_path / "wrong")
    path = tmp_path / "wrong/model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.gate_proj.weight"] = tensors["model.layers.2.mlp.gate_proj.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    monkeypatch.setattr(gguf, "export_kind", lambda _, out, kind: export_kind(tmp_path / "wrong", out, kind))
    with pytest.raises(SystemExit, match=r"\['f16', 'q4_0'\] differ from the checkpoint by more than their types"):
        run(workspace(tmp_path / "work"))


# Kills and runtimes that fail


def test_a_kill_repeats_nothing_and_changes_no_byte(
    workspace: Workspace, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third of four tasks of two questions: two of parity and three of dialogues load a file before.

    After it, the third and the fourth are left: nothing is exported or said in transformers again.
    """
    root, loaded, llama = workspace(tmp_path), list[str](), gguf.TextLlamaCpp

    def load(file: Path, *arguments: Any, **named: Any) -> Any:
        if len(loaded) == 4 and not again:
            raise KeyboardInterrupt
        loaded.append(file.name)
        return llama(file, *arguments, **named)

    def refuse(*_: object) -> None:
        raise AssertionError("done again")

    again = False
    monkeypatch.setattr(gguf, "TextLlamaCpp", load)
    monkeypatch.setattr(gguf, "QUESTIONS_A_TASK", 2)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    assert loaded == ["policy-f16.gguf", "policy-q4_0.gguf", "policy-f16.gguf", "policy-f16.gguf"]
    again, loaded = True, []
    for name in ("export_kind", "roll_out", "references"):
        monkeypatch.setattr(gguf, name, refuse)
    home = run(root)
    assert loaded == ["policy-q4_0.gguf", "policy-q4_0.gguf"]
    for name in ("reports/gguf.json", "data/gguf_answers.jsonl", "models/gguf/policy-q4_0.gguf"):
        assert (home / name).read_bytes() == (done / name).read_bytes()


def test_a_runtime_that_fails_is_told(
    workspace: Workspace, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Without the state folder, which another run has elsewhere; of the other kind all is measured."""
    llama = gguf.TextLlamaCpp

    def load(file: Path, *arguments: Any, **named: Any) -> Any:
        if "f16" in file.name:
            raise LlamaCppError(f"llama.cpp refused loading {file}: no")
        return llama(file, *arguments, **named)

    monkeypatch.setattr(gguf, "TextLlamaCpp", load)
    home = run(workspace(tmp_path))
    found, undisturbed = measured(home), measured(done)
    error = {"error": "llama.cpp refused loading policy-f16.gguf: no"}
    assert found == undisturbed | {
        "parity": undisturbed["parity"] | {"f16": error},
        "answers": undisturbed["answers"] | {"f16": error},
    }
    records = read_records(home / "data/gguf_answers.jsonl", ExportedRecord)
    assert [one.engine for one in records] == [TRANSFORMERS] * 3 + ["q4_0"] * 3
    assert capsys.readouterr().out.count("NOT MEASURED: f16: llama.cpp refused") == 2


# Benchmark


def test_engines_take_turns(
    workspace: Workspace, policy: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of three engines on the two first questions; medians of 10 and 20, 5 and 7 ms. q4_0 fails at once."""
    root, asked, times = workspace(tmp_path), list[str](), iter((10.0, 5.0, 20.0, 7.0))
    (root / gguf.FILES).mkdir()
    for kind in ("f16", "q4_0"):
        write_text(root / gguf.FILES / policy_file(kind), "x" * 2**20)

    def said(name: str, prompts: Any, tokens: int) -> Run:
        asked.append(name)
        assert prompts == [policy.chat.prompt(one.text) for one in ASKED[:2]]
        assert tokens == LIMITS.tokens
        return Run(1.0, 50.0, {0: [Timing(next(times) / 1000, 100.0, 200.0)]})

    def llama_cpp(file: Path, context: int, threads: int, seconds: float, prompts: Any, tokens: int) -> Run:
        if "q4_0" in file.name:
            asked.append(file.name)
            raise LlamaCppError("llama.cpp is not there")
        assert (context, threads, seconds) == (256, 1, 60.0)
        return said(file.name, prompts, tokens)

    def transformers(source: str, dtype: str, threads: int, prompts: Any, tokens: int) -> Run:
        assert (source, threads) == (gguf.MERGED, 1)
        return said(dtype, prompts, tokens)

    monkeypatch.setattr(benchmark, "run_llama_cpp", llama_cpp)
    monkeypatch.setattr(benchmark, "run_transformers", transformers)
    home = run(root, "benchmark")
    assert asked == ["float32", "policy-f16.gguf", "policy-q4_0.gguf", "float32", "policy-f16.gguf"]
    found = json.loads((home / "reports/benchmark.json").read_text(encoding="utf-8"))
    assert found["deterministic"] is False
    assert (found["questions"], found["runs"]) == (2, 2)
    assert list(found["engines"]) == [TRANSFORMERS, "f16", "q4_0"]
    assert found["engines"][TRANSFORMERS]["latency_ms"] == {"p50": 15.0, "p95": 15.0}
    assert found["engines"]["f16"]["latency_ms"]["p50"] == 6.0
    assert found["engines"]["f16"]["file_mib"] == 1.0
    assert found["engines"][TRANSFORMERS]["file_mib"] == pytest.approx(
        (policy.folder / "model.safetensors").stat().st_size / 2**20, abs=1e-3
    )
    assert found["engines"]["q4_0"] == {"error": "llama.cpp is not there"}


# Params


def test_kinds_are_those_that_are_exported() -> None:
    assert get_args(clarify_gguf.Kind) == KINDS
    assert PolicyGgufKinds.model_validate({"kinds": ["q4_1", "f16"]}).kinds == ("q4_1", "f16")


@pytest.mark.parametrize(
    ("kinds", "problem"), [([], "at least 1"), (["f16", "f16"], "a kind stands twice"), (["q2_k"], "Input should be")]
)
def test_kinds_that_make_no_sense(kinds: list[str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        PolicyGgufKinds.model_validate({"kinds": kinds})
