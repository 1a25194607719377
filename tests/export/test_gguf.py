"""The GGUF export against the checkpoint, hand-worked blocks, the `gguf` package's names and transformers' loader."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from leverlab.config.gguf import KINDS, Kind
from leverlab.errors import LeverlabError
from leverlab.export.gguf import compare, export_text
from leverlab.vlm.tiny import CHAT_TEMPLATE, build_model, build_processor, build_tokenizer

Edit = Callable[[dict[str, torch.Tensor]], None]
LAYER = "model.layers.1.self_attn"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(["Which number? bazo", "What colour? divi", "it's 12 naïve tests"])


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL in bf16, every weight random: norms and biases start as constants, which would hide a swap."""
    torch.manual_seed(0)
    model = build_model(tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    folder = tmp_path_factory.mktemp("vlm")
    model.to(torch.bfloat16).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    for kind in KINDS:
        export_text(checkpoint, folder / f"{kind}.gguf", kind)
    return {kind: folder / f"{kind}.gguf" for kind in KINDS}


def variant(checkpoint: Path, folder: Path, edit: Edit | None = None) -> Path:
    """Return a copy of the checkpoint in `folder`, its tensors changed by `edit`."""
    shutil.copytree(checkpoint, folder)
    if edit is not None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file in place (or a text file, whose text `change` then returns)."""
    if path.suffix == ".json":
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        path.write_text(json.dumps(data), encoding="utf-8")
    else:
        path.write_text(str(change(path.read_text(encoding="utf-8"))), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_lies_within_the_bound_of_its_type(
    checkpoint: Path, exported: dict[Kind, Path], kind: Kind
) -> None:
    records = compare(checkpoint, exported[kind])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, 4)
    text = [name for name in load_file(checkpoint / "model.safetensors") if not name.startswith("visual.")]
    assert sorted(record.name for record in records) == sorted(
        str(names.get_name(name, try_suffixes=(".weight", ".bias"))) for name in text
    )
    for record in records:
        matrix = len(record.shape) == 2
        assert record.type == (kind.upper() if matrix else "F32")
        assert record.values_beyond == 0
        if not matrix:
            assert record.max_abs_error == 0
        elif kind != "f16":  # not vacuous: rounding did cost something (few bf16 weights are inexact in f16)
            assert record.max_abs_error > 0
        assert record.max_abs_error <= record.max_allowed_error
        assert (record.max_allowed_error > 0) == matrix


def test_f32_weights_are_rounded_to_the_nearest_half(checkpoint: Path, tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(1)
        tensors["model.embed_tokens.weight"] = torch.randn(tensors["model.embed_tokens.weight"].shape) * 1e-4

    folder = variant(checkpoint, tmp_path / "f32", widen)
    export_text(folder, tmp_path / "f16.gguf", "f16")
    embedding = compare(folder, tmp_path / "f16.gguf")[0]
    assert embedding.values_beyond == 0
    assert 2**-27 < embedding.max_abs_error <= 2**-25 * 1.0001 + 4e-4 * 2**-11  # subnormal halves are 2^-24 apart


def test_fields_are_those_of_the_model(exported: dict[Kind, Path], tokenizer: PreTrainedTokenizerFast) -> None:
    """Mrope sections are padded to four; token 0 is <|endoftext|>, 2 <|im_end|>; file type 7 is ggml's MOSTLY_Q8_0."""
    text = build_model(tokenizer).config.text_config
    reader = gguf.GGUFReader(exported["q8_0"])
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tokens, types = fields.pop("tokenizer.ggml.tokens"), fields.pop("tokenizer.ggml.token_type")
    merges = fields.pop("tokenizer.ggml.merges")
    assert fields == {
        "general.architecture": "qwen2vl",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "qwen2vl.block_count": text.num_hidden_layers,
        "qwen2vl.context_length": text.max_position_embeddings,
        "qwen2vl.embedding_length": text.hidden_size,
        "qwen2vl.feed_forward_length": text.intermediate_size,
        "qwen2vl.attention.head_count": text.num_attention_heads,
        "qwen2vl.attention.head_count_kv": text.num_key_value_heads,
        "qwen2vl.attention.layer_norm_rms_epsilon": np.float32(text.rms_norm_eps),
        "qwen2vl.rope.freq_base": text.rope_parameters["rope_theta"],
        "qwen2vl.rope.dimension_sections": [*text.rope_parameters["mrope_section"], 0],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    size = len(tokenizer)
    assert tokens[:size] == tokenizer.convert_ids_to_tokens(list(range(size)))
    assert tokens[size:] == [f"[PAD{index}]" for index in range(size, len(tokens))]
    assert len(tokens) % 32 == 0
    assert types == [3] * 7 + [1] * (size - 7) + [5] * (len(tokens) - size)  # control, normal, unused
    assert merges[0].count(" ") == 1
    assert len(merges) == size - 7 - 256  # every token but the special ones and the single bytes is made by one merge


def test_bytes_depend_on_the_contents_alone(checkpoint: Path, exported: dict[Kind, Path], tmp_path: Path) -> None:
    """A second run, another path, and the same tensors in three shards in reverse order give the same file."""
    sharded = variant(checkpoint, tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(tensors, reverse=True)
    weight_map: dict[str, str] = {}
    for shard in range(3):
        file = f"model-{shard + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[shard::3]}, sharded / file)
        weight_map |= dict.fromkeys(names[shard::3], file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for kind in KINDS:
        for number, folder in enumerate((checkpoint, sharded)):
            export_text(folder, tmp_path / f"{number}.gguf", kind)
            assert (tmp_path / f"{number}.gguf").read_bytes() == exported[kind].read_bytes()
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(LeverlabError, match=r"model-00002-of-00003.safetensors does not exist"):
        export_text(sharded, tmp_path / "lost.gguf", "f16")


def test_both_layouts_of_the_config_and_of_the_names_give_the_same_file(
    checkpoint: Path, exported: dict[Kind, Path], tmp_path: Path
) -> None:
    """The published Qwen2.5-VL keeps its text keys on the top floor, and transformers has used three name prefixes."""

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            new = f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
            tensors[new] = tensors.pop(name)

    folder = variant(checkpoint, tmp_path / "flat", rename)
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    config |= text | {
        "model_type": "qwen2_5_vl",
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    export_text(folder, tmp_path / "flat.gguf", "f16")
    assert (tmp_path / "flat.gguf").read_bytes() == exported["f16"].read_bytes()


def test_q8_0_block_by_hand(checkpoint: Path, tmp_path: Path) -> None:
    """The largest magnitude 63.5 makes the scale 63.5 / 127 = 0.5, in half precision 0x3800.

    In steps of 0.5: 63.5 → 127, -63.5 → -127, 1 → 2, 0.25 → 0.5 → 1 and -0.25 → -1 (halves go away from zero),
    0.2 → 0.4 → 0, -0.4 → -0.8 → -1, zeros stay. The largest error is that of ±0.25: half a step.
    """
    block = torch.tensor([63.5, -63.5, 1.0, 0.25, -0.25, 0.2, -0.4] + [0.0] * 25)

    def put(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = torch.zeros(tensors["model.embed_tokens.weight"].shape)
        tensors["model.embed_tokens.weight"][0, :32] = block

    folder = variant(checkpoint, tmp_path / "block", put)
    export_text(folder, tmp_path / "q8_0.gguf", "q8_0")
    row = gguf.GGUFReader(tmp_path / "q8_0.gguf").tensors[0].data[0]
    assert bytes(row[:2]) == b"\x00\x38"
    assert row[2:34].view(np.int8).tolist() == [127, -127, 2, 1, -1, 0, -1] + [0] * 25
    assert not row[34:].any()
    embedding = compare(folder, tmp_path / "q8_0.gguf")[0]
    assert (embedding.max_abs_error, embedding.values_beyond) == (0.25, 0)
    # Half a step of 0.5, and the rounding of the scale (2^-12) for up to 127.5 steps.
    assert embedding.max_allowed_error == pytest.approx(0.25 + 127.5 * 2**-12, rel=1e-3)


def swap_keys_and_values(tensors: dict[str, torch.Tensor]) -> None:
    for part in ("weight", "bias"):
        key, value = f"{LAYER}.k_proj.{part}", f"{LAYER}.v_proj.{part}"
        tensors[key], tensors[value] = tensors[value], tensors[key]


def scale_one_matrix(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.02


def shift_one_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][5] += 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("edit", "broken"),
    [
        (swap_keys_and_values, [f"blk.1.attn_{letter}.{part}" for letter in "kv" for part in ("bias", "weight")]),
        (scale_one_matrix, ["blk.1.ffn_up.weight"]),
        (shift_one_norm, ["output_norm.weight"]),
    ],
)
def test_a_broken_export_is_caught(checkpoint: Path, tmp_path: Path, kind: Kind, edit: Edit, broken: list[str]) -> None:
    export_text(variant(checkpoint, tmp_path / "broken", edit), tmp_path / "broken.gguf", kind)
    records = compare(checkpoint, tmp_path / "broken.gguf")
    assert sorted(record.name for record in records if record.values_beyond) == broken


def test_missing_and_unexpected_tensors_are_errors(
    checkpoint: Path, exported: dict[Kind, Path], tmp_path: Path
) -> None:
    def untie(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    untied = variant(checkpoint, tmp_path / "untied", untie)
    with pytest.raises(LeverlabError, match=r"lacks 1 tensor.*output\.weight"):
        compare(untied, exported["f16"])
    export_text(untied, tmp_path / "untied.gguf", "f16")
    assert all(record.values_beyond == 0 for record in compare(untied, tmp_path / "untied.gguf"))
    with pytest.raises(LeverlabError, match=r"has 1 tensor.*output\.weight"):
        compare(checkpoint, tmp_path / "untied.gguf")


def respell(old: str, new: str) -> Callable[[Any], object]:
    """Return a change of tokenizer.json that renames a token and keeps its id."""

    def change(data: Any) -> None:
        vocab = data["model"]["vocab"]
        vocab[new] = vocab.pop(old)

    return change


def swap(one: str, other: str) -> Callable[[Any], object]:
    """Return a change of tokenizer.json that gives two tokens each other's id."""

    def change(data: Any) -> None:
        vocab = data["model"]["vocab"]
        vocab[one], vocab[other] = vocab[other], vocab[one]

    return change


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "config.json",
            lambda c: c["text_config"]["rope_parameters"].update(rope_theta=500.0),
            "rope.freq_base is .* in the checkpoint 500.0",
        ),
        (
            "config.json",
            lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[8, 4, 4]),
            r"dimension_sections\[0\] is 4, in the checkpoint 8",
        ),
        ("config.json", lambda c: c["text_config"].update(rms_norm_eps=1e-5), "layer_norm_rms_epsilon"),
        ("tokenizer.json", swap("Which", "What"), r"tokens\[\d+\] is 'Wh(ich|at)', in the checkpoint 'Wh(at|ich)'"),
        ("tokenizer.json", lambda t: t["model"]["merges"].reverse(), r"merges\[0\]"),
        ("tokenizer.json", lambda t: t["model"]["merges"].pop(), r"merges has \d+ entries"),
        (
            "tokenizer_config.json",
            lambda t: t.update(eos_token="<|im_start|>"),
            "eos_token_id is 2, in the checkpoint 1",
        ),
        ("tokenizer_config.json", lambda t: t.update(pad_token=None), "padding_token_id is 0, in the checkpoint None"),
        ("chat_template.jinja", lambda text: text + " ", "chat_template"),
    ],
)
def test_a_field_that_differs_is_named(
    checkpoint: Path,
    exported: dict[Kind, Path],
    tmp_path: Path,
    file: str,
    change: Callable[[Any], object],
    message: str,
) -> None:
    folder = variant(checkpoint, tmp_path / "other")
    rewrite(folder / file, change)
    with pytest.raises(LeverlabError, match=message):
        compare(folder, exported["f16"])


def test_a_truncated_gguf_is_an_error(checkpoint: Path, exported: dict[Kind, Path], tmp_path: Path) -> None:
    whole = exported["f16"].read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 10, 23, 24, 60, 500, 5_000, 20_000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(LeverlabError, match=r"cut\.gguf is truncated or no GGUF file"):
            compare(checkpoint, cut)
    cut.write_bytes(b"GG" + whole[2:4] + b"xx" + whole)
    with pytest.raises(LeverlabError, match="truncated or no GGUF"):
        compare(checkpoint, cut)
    with pytest.raises(LeverlabError, match="does not exist; export it first"):
        compare(checkpoint, tmp_path / "none.gguf")


def test_a_truncated_checkpoint_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    folder = variant(checkpoint, tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(LeverlabError, match=r"model\.safetensors is truncated or damaged"):
            export_text(folder, tmp_path / "cut.gguf", "f16")
    for file, problem in (("config.json", "not valid JSON"), ("tokenizer.json", "not valid JSON")):
        folder = variant(checkpoint, tmp_path / file)
        (folder / file).write_text((folder / file).read_text()[:-20])
        with pytest.raises(LeverlabError, match=problem):
            export_text(folder, tmp_path / "cut.gguf", "f16")
        (folder / file).unlink()
        with pytest.raises(LeverlabError, match=r"does not exist|has no tokenizer"):
            export_text(folder, tmp_path / "cut.gguf", "f16")
    assert not (tmp_path / "cut.gguf").exists()


def spoil(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"lacks 1 tensor.*norm\.weight"),
        (lambda tensors: tensors.update({"model.extra": torch.ones(2)}), r"has 1 tensor.*first extra"),
        (
            spoil(f"{LAYER}.q_proj.weight", lambda t: t[:64]),
            r"q_proj\.weight has shape \(64, 128\), not the \(128, 128\)",
        ),
        (spoil("model.norm.weight", lambda t: t / 0), r"model\.norm\.weight holds NaN or infinite values"),
        (
            spoil(f"{LAYER}.o_proj.weight", lambda t: t.float() * 1e7),
            r"o_proj\.weight holds values up to .* F16 only up",
        ),
    ],
)
def test_tensors_that_cannot_be_exported_are_refused(
    checkpoint: Path, tmp_path: Path, edit: Edit, message: str
) -> None:
    """And the file that stood in the place of the new one is still there, with nothing beside it."""
    out = tmp_path / "out" / "text.gguf"
    out.parent.mkdir()
    out.write_text("earlier export")
    with pytest.raises(LeverlabError, match=message):
        export_text(variant(checkpoint, tmp_path / "bad", edit), out, "f16")
    assert [file.name for file in out.parent.iterdir()] == ["text.gguf"]
    assert out.read_text() == "earlier export"


def rope(**keys: object) -> Callable[[Any], object]:
    return lambda config: config["text_config"]["rope_parameters"].update(keys)


def split_digits_in_threes(tokenizer: Any) -> None:
    pattern = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = pattern["Regex"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda c: c.update(model_type="gpt_neox"), "model_type 'gpt_neox' cannot be"),
        ("config.json", rope(rope_type="yarn"), "rope type 'yarn'"),
        ("config.json", rope(mrope_section=[4, 6, 5]), r"mrope_section \[4, 6, 5\] for heads 32 wide"),
        ("config.json", lambda c: c["text_config"].pop("hidden_size"), "key 'hidden_size' of the text model"),
        ("config.json", lambda c: c["text_config"].update(use_sliding_window=True), "sliding-window attention"),
        ("config.json", lambda c: c["text_config"].update(hidden_act="gelu"), "activation 'gelu'"),
        ("config.json", lambda c: c.update(tie_word_embeddings=False), "has no lm_head.weight"),
        ("tokenizer.json", lambda t: t["model"].update(type="WordLevel"), "model is WordLevel, not BPE"),
        ("tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "it is not byte-level"),
        ("tokenizer.json", split_digits_in_threes, "it does not split text as Qwen2 does"),
        (
            "tokenizer.json",
            lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "puts a space first",
        ),
        ("tokenizer.json", lambda t: t["model"].update(ignore_merges=True), "ignores merges for whole words"),
        ("tokenizer.json", lambda t: t["model"].update(merges=[]), "it has no merges"),
        ("tokenizer.json", respell("Ġ", "xx"), "some byte has no token"),
        ("tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"}), r"normalises text \(Lowercase\)"),
        (
            "tokenizer.json",
            lambda t: t["post_processor"].update(special_tokens={"<|im_start|>": {"ids": [1]}}),
            "adds special tokens around a text",
        ),
        ("tokenizer.json", lambda t: t["model"]["vocab"].update(zzz=100_000), "token 'zzz' has id 100000"),
        ("tokenizer.json", lambda t: t.pop("added_tokens"), "is not a whole tokenizer"),
        ("tokenizer_config.json", lambda t: t.update(eos_token="</s>"), "eos_token is '</s>', which is no token"),
    ],
)
def test_models_that_gguf_cannot_express_are_refused(
    checkpoint: Path, tmp_path: Path, file: str, change: Callable[[Any], object], message: str
) -> None:
    folder = variant(checkpoint, tmp_path / "other")
    rewrite(folder / file, change)
    with pytest.raises(LeverlabError, match=message):
        export_text(folder, tmp_path / "text.gguf", "f16")


def test_a_full_disk_is_one_sentence(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(LeverlabError, match=r"text\.gguf cannot be written .*No space left on device.*free space"):
        export_text(checkpoint, tmp_path / "new" / "text.gguf", "f16")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("config_class", [Qwen2Config, Qwen3Config, LlamaConfig])
def test_plain_text_models_answer_alike_when_transformers_loads_the_file(
    checkpoint: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, config_class: type
) -> None:
    """transformers' own GGUF loader undoes the rotary rearrangement of llama; rows of 100 values stay f16 in q8_0."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, **({"head_dim": 128} if config_class is Qwen3Config else {})}
    config = config_class(vocab_size=-(-len(tokenizer) // 32) * 32, tie_word_embeddings=False, **sizes, **heads)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for kind, tolerance in (("f16", 2e-3), ("q8_0", 3e-2)):
        export_text(tmp_path, tmp_path / "text.gguf", kind)  # type: ignore[arg-type]
        records = compare(tmp_path, tmp_path / "text.gguf")
        assert all(record.values_beyond == 0 for record in records)
        types = {record.name: record.type for record in records}
        assert (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]) == ("F16", kind.upper())
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="text.gguf", dtype=torch.float32).eval()
        ids = torch.arange(1, 40)[None]
        with torch.no_grad():
            expected, got = model(ids).logits, loaded(ids).logits
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()
