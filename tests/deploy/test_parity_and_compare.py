"""What the comparison of values catches in an export, and what parity does: the table in docs/guarantees.md.

`compare` holds a file against the checkpoint, value by value and field by field, with the reader that the export uses:
it sees any change of the file, and no mistake of that reader. Parity asks llama.cpp: it sees a mistake of the reader,
and nothing that its prompts or llama.cpp make no use of.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from leverlab.config.base import parse_section
from leverlab.config.gguf import Kind
from leverlab.config.report import ReportParams
from leverlab.deploy.llama_cpp import LlamaCpp, Settings
from leverlab.deploy.parity import as_record, compare_prompts, parity_prompts, references
from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import evaluate_gates
from leverlab.export.gguf import compare, export_text, export_vision
from leverlab.export.vision_part import image_limits
from leverlab.vlm.model import load_vlm
from leverlab.worlds.digits import digits_world
from tests.deploy.test_parity import DAMAGES, LIKELIEST, NEW_TOKENS, PARAMS, VLM, broken

Change = Callable[[gguf.GGUFReader], None]  # in place, in a file that is mapped into memory


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for kind in ("f16", "q8_0"):
        export_text(VLM, folder / f"{kind}.gguf", kind)
    export_vision(VLM, folder / "mmproj.gguf")
    return folder


@pytest.fixture(scope="module")
def failed_gates() -> Callable[[Kind, Path, Path], set[str]]:
    """Return the gates of params.yaml on the parity of a kind that fail: `failed_gates(kind, text, mmproj)`."""
    limits = image_limits(VLM)
    pool = digits_world(pool=40, train=1, val=1, test=1, label_noise=0.0, seed=0).pool
    prompts = parity_prompts(pool, limits.smallest_square, 1, 0)
    expected = references(load_vlm(str(VLM), "float32", "cpu"), prompts, NEW_TOKENS)

    def measure(kind: Kind, text: Path, mmproj: Path) -> set[str]:
        with LlamaCpp(text, mmproj, Settings(limits, context=1024, exact_cache=True)) as runtime:
            found = compare_prompts(runtime, prompts, expected, NEW_TOKENS, LIKELIEST)["all"]
        gates = parse_section(ReportParams, "report", PARAMS).rules
        rules = {
            name: rule
            for name, rule in gates.items()
            if rule.metric.startswith(f"gguf.{kind}.") and rule.metric.rpartition(".")[2] in as_record(found)
        }
        assert rules
        return {gate.name for gate in evaluate_gates(rules, {"gguf": {kind: as_record(found)}}) if not gate.passed}

    return measure


def caught(checkpoint: Path, file: Path, part: Any) -> str:
    """Return what `compare` says against a file: a sentence, the names of tensors, or nothing."""
    try:
        return ", ".join(tensor.name for tensor in compare(checkpoint, file, part) if tensor.values_beyond)
    except LeverlabError as error:
        return str(error)


def number(key: str, value: float) -> Change:
    def change(reader: gguf.GGUFReader) -> None:
        field = reader.fields[key]
        field.parts[field.data[0]][...] = value

    return change


def text(key: str, value: str) -> Change:
    """Return a change of a text to one of the same length."""

    def change(reader: gguf.GGUFReader) -> None:
        field = reader.fields[key]
        field.parts[field.data[0]][...] = np.frombuffer(value.encode(), np.uint8)

    return change


def without_field(key: str) -> Change:
    """Return a change of a key's last letter: whoever asks for the key finds no value."""

    def change(reader: gguf.GGUFReader) -> None:
        reader.fields[key].parts[1][-1] = ord("x")

    return change


def swap_tokens(one: str, other: str) -> Change:
    def change(reader: gguf.GGUFReader) -> None:
        field = reader.fields["tokenizer.ggml.tokens"]
        parts = {bytes(field.parts[place]).decode(): field.parts[place] for place in field.data}
        first, second = parts[one], parts[other]
        first[...], second[...] = second.copy(), first.copy()

    return change


def swap_kernels(reader: gguf.GGUFReader) -> None:
    first, second = (tensor.data for tensor in reader.tensors if tensor.name.startswith("v.patch_embd.weight"))
    first[...], second[...] = second.copy(), first.copy()


def enlarge_row(reader: gguf.GGUFReader) -> None:
    """Multiply a row of q8_0 by 1.05: the scales of its blocks, the first two bytes of each 34."""
    matrix = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_up.weight")
    blocks = matrix.data[3].reshape(-1, 34)
    scales = blocks[:, :2].copy().view(np.float16)
    blocks[:, :2] = (scales * np.float16(1.05)).view(np.uint8)


def changed(file: Path, out: Path, change: Change) -> Path:
    shutil.copyfile(file, out)
    reader = gguf.GGUFReader(out, "r+")
    change(reader)
    reader.data.flush()
    return out


UNUSED, USED = ("Q", "X"), ("Ġnumber", "Ġcolour")  # in the prompts of the fixture


def test_both_pass_a_sound_export(exported: Path, failed_gates: Callable[[Kind, Path, Path], set[str]]) -> None:
    for kind in ("f16", "q8_0"):
        assert caught(VLM, exported / f"{kind}.gguf", "text") == ""
        assert failed_gates(kind, exported / f"{kind}.gguf", exported / "mmproj.gguf") == set()
    assert caught(VLM, exported / "mmproj.gguf", "vision") == ""


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        pytest.param(
            "f16", number("qwen2vl.attention.layer_norm_rms_epsilon", 0.01), "layer_norm_rms_epsilon", id="norm epsilon"
        ),
        pytest.param("f16", number("tokenizer.ggml.eos_token_id", 3), "eos_token_id is 3", id="eos off by one"),
        pytest.param("f16", swap_tokens(*UNUSED), "is 'X', in the checkpoint 'Q'", id="two tokens swapped"),
        pytest.param("f16", without_field("tokenizer.ggml.add_bos_token"), "add_bos_token is None", id="no add_bos"),
        pytest.param("mmproj", swap_kernels, "v.patch_embd.weight, v.patch_embd.weight.1", id="patch kernels swapped"),
        pytest.param("q8_0", enlarge_row, "blk.0.ffn_up.weight", id="one row of q8_0 x 1.05"),
    ],
)
def test_compare_sees_any_change_of_a_file_and_parity_not_these(
    exported: Path,
    failed_gates: Callable[[Kind, Path, Path], set[str]],
    tmp_path: Path,
    file: str,
    change: Change,
    said: str,
) -> None:
    damaged = changed(exported / f"{file}.gguf", tmp_path / "damaged.gguf", change)
    vision = file == "mmproj"
    assert said in caught(VLM, damaged, "vision" if vision else "text")
    files = (exported / "f16.gguf", damaged) if vision else (damaged, exported / "mmproj.gguf")
    assert failed_gates("q8_0" if file == "q8_0" else "f16", *files) == set()


def test_compare_and_parity_see_another_pre_tokenizer(
    exported: Path, failed_gates: Callable[[Kind, Path, Path], set[str]], tmp_path: Path
) -> None:
    """Parity reads the texts of its prompts with the file's own tokenizer, which it does not know then."""
    damaged = changed(exported / "f16.gguf", tmp_path / "damaged.gguf", text("tokenizer.ggml.pre", "gpt-2"))
    assert "pre is 'gpt-2'" in caught(VLM, damaged, "text")
    with pytest.raises(LeverlabError, match="'gpt2' with the split 'gpt-2', not 'gpt2' with 'qwen2'"):
        failed_gates("f16", damaged, exported / "mmproj.gguf")


def test_parity_sees_swapped_tokens_that_its_prompts_use(
    exported: Path, failed_gates: Callable[[Kind, Path, Path], set[str]], tmp_path: Path
) -> None:
    damaged = changed(exported / "f16.gguf", tmp_path / "damaged.gguf", swap_tokens(*USED))
    assert "in the checkpoint 'Ġ" in caught(VLM, damaged, "text")
    assert failed_gates("f16", damaged, exported / "mmproj.gguf") == {"f16_parity"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_parity_sees_a_wrong_reading_of_the_checkpoint_and_compare_does_not(
    failed_gates: Callable[[Kind, Path, Path], set[str]], tmp_path: Path, damage: dict[str, Any]
) -> None:
    """A reader that reads the checkpoint wrongly, as if it were the damaged one, serves the export and `compare` alike.
    Held against the sound checkpoint by a sound reader, the same file is caught."""
    misread = broken(tmp_path / "broken", **damage)
    files = {"text": tmp_path / "text.gguf", "vision": tmp_path / "mmproj.gguf"}
    export_text(misread, files["text"], "f16")
    export_vision(misread, files["vision"])
    assert [caught(misread, file, part) for part, file in files.items()] == ["", ""]
    assert any(caught(VLM, file, part) for part, file in files.items())
    assert failed_gates("f16", files["text"], files["vision"]) == {"f16_parity"}
