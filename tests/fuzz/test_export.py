"""What the GGUF export reads: config.json, safetensors and their index, and the tokenizer's files."""

import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from leverlab.errors import LeverlabError
from leverlab.export.checkpoint import Part
from leverlab.export.text_part import read_text_part
from leverlab.export.tokenizer_fields import QWEN2_SPLIT, tokenizer_fields
from tests.fuzz.conftest import Tally
from tests.fuzz.mutations import Raw, byte_mutants
from tests.fuzz.test_checkpoints import tensor_mutants
from tests.fuzz.tiny_text import (
    CONFIG,
    FF,
    HEAD,
    HEADS,
    ROWS,
    SETTINGS,
    SHAPES,
    SPECIAL,
    WIDTH,
    make_tensors,
    make_tokenizer,
    write_checkpoint,
)

Maker = Callable[..., Tally]
UNUSED = 5  # GGUF's type of a token that stands for no text
TEXT = "ab cab  xcabab<|im_end|>é <tool> 12"

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def parsed(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file, by the format's definition."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, item in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = item["data_offsets"]
            kind = {"F32": "<f4", "F16": "<f2"}[item["dtype"]]
            tensors[name] = np.frombuffer(data[start + begin : start + end], kind).reshape(item["shape"])
    return tensors


def read_whole(folder: Path) -> tuple[Part, dict[str, Any]]:
    text = read_text_part(folder)
    return text, {name: tensor.load() for name, tensor in text.tensors.items()}


def check_whole(found: tuple[Part, dict[str, Any]], folder: Path) -> None:
    """Fields agree with the shapes, and values with the bytes in the files of the folder."""
    text, values = found
    assert text.architecture == "qwen2vl"
    fields: dict[str, Any] = {key.removeprefix("qwen2vl."): value for key, value in text.fields.items()}
    check_tokenizer(fields)
    heads, groups = fields["attention.head_count"], fields["attention.head_count_kv"]
    sections = fields["rope.dimension_sections"]
    assert type(heads) is type(groups) is int
    assert heads % groups == 0
    assert [type(size) for size in sections] == [int] * 4
    assert min(sections[:3]) > 0
    assert sections[3] == 0
    assert (heads, groups, 2 * sum(sections)) == (HEADS, 1, HEAD)
    assert (fields["block_count"], fields["embedding_length"], fields["feed_forward_length"]) == (1, WIDTH, FF)
    assert type(fields["context_length"]) is int
    assert 0 < fields["context_length"] < 2**32
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
        assert type(fields[key]) is float
        assert 0 < np.float32(fields[key]) < np.inf
    assert len(fields["tokenizer.ggml.tokens"]) == ROWS
    assert set(values) == set(SHAPES)
    for name, (source, shape) in SHAPES.items():
        tensor = text.tensors[name]
        assert tensor.file.parent == folder
        assert values[name].dtype == np.float32
        assert values[name].shape == tensor.shape == shape
        assert np.isfinite(values[name]).all()
        assert tensor.source.removeprefix("model.") == source.removeprefix("model.")
        assert np.array_equal(values[name], parsed(tensor.file)[tensor.source])


def check_tokenizer(fields: dict[str, Any]) -> None:
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert len(tokens) == len(types) == len(set(tokens)) == ROWS
    assert all(type(token) is str and token.encode() for token in tokens)
    assert set(types) <= {1, 3, 4, 5}  # normal, control, user-defined, unused
    assert set(ByteLevel.alphabet()) <= set(tokens)
    pairs = [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]]
    assert len({tuple(pair) for pair in pairs}) == len(pairs) > 0
    for pair in pairs:
        assert len(pair) == 2
        assert set(pair) <= set(tokens)
    for role in ("eos", "padding"):
        index = fields.get(f"tokenizer.ggml.{role}_token_id")
        assert type(index) is int if role == "eos" else index is None or type(index) is int
        assert index is None or (0 <= index < ROWS and types[index] != 5)
    template = fields.get("tokenizer.chat_template", "x")
    assert type(template) is str
    assert template.encode()


def check_ids(fields: dict[str, Any], path: Path) -> None:
    """Where the tokenizers library reads the file at all, it gives the ids that the fields give."""
    try:
        original = Tokenizer.from_file(str(path))
    except Exception:  # it has no other; what it refuses (a decoder, say) need not bear on the ids
        return
    kinds = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    vocab = {token: index for index, (token, kind) in enumerate(kinds.items()) if kind != UNUSED}
    merges = [(left, right) for left, right in (merge.split(" ") for merge in fields["tokenizer.ggml.merges"])]
    exported = Tokenizer(models.BPE(vocab, merges))
    split = [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), ByteLevel(False, use_regex=False)]
    exported.pre_tokenizer = pre_tokenizers.Sequence(split)
    exported.add_special_tokens([AddedToken(token) for token, kind in kinds.items() if kind in (3, 4)])
    assert original.get_vocab() == exported.get_vocab() == vocab
    assert original.encode(TEXT).ids == exported.encode(TEXT).ids


DEEP = b'{"a":' * 100_000  # deeper than any limit: hypothesis raises that of the interpreter for its own tests


def refuse(count: Tally, path: Path, mutants: Iterable[tuple[str, bytes]]) -> None:
    """Fail unless every mutant is refused."""
    for what, data in mutants:
        before = count.refused
        count.attempt_all(path, [(what, data)])
        assert count.refused == before + 1, f"{what} was read"


def test_config(folder: Path, tally: Maker) -> None:
    path = folder / "config.json"
    count = tally(lambda: read_whole(folder), lambda found: check_whole(found, folder), [str(folder)])
    count.attempt_trees(path, CONFIG, 1500)
    text = CONFIG["text_config"]
    older = {key: value for key, value in (CONFIG | text).items() if key not in ("text_config", "rope_parameters")}
    older |= {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    count.attempt_trees(path, older, 400)
    count.attempt_all(path, byte_mutants(path.read_bytes(), 300, seed=0))
    keys: list[tuple[str, Any]] = [("vocab_size", 10**12), ("num_hidden_layers", 10**9), ("hidden_size", 10**30)]
    keys += [("num_hidden_layers", True), ("hidden_size", "32"), ("use_sliding_window", "no"), ("rope_parameters", 5)]
    keys += [("head_dim", 15), ("num_key_value_heads", 2), ("max_position_embeddings", 2**32), ("rms_norm_eps", 1e-46)]
    changed: list[tuple[str, Any]] = [(f"{key} {size}", {"text_config": text | {key: size}}) for key, size in keys]
    changed += [(f"tied {tied}", {"tie_word_embeddings": tied}) for tied in ("false", 1, None, [0])]
    kinds: list[Any] = [["qwen2"], {}, None, 5]
    changed += [(f"{key} {value}", {key: value}) for key in ("model_type", "text_config") for value in kinds]
    refuse(count, path, ((what, json.dumps(CONFIG | tree).encode()) for what, tree in changed))
    refuse(count, path, [("deep", DEEP)])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_attention_heads": 32}, "heads 1 wide"),
        ({"num_attention_heads": 2, "num_key_value_heads": 3}, "2 heads that cannot share 3"),
    ],
)
def test_heads(folder: Path, change: dict[str, int], problem: str) -> None:
    """Of a plain Qwen2, whose shapes alone would let them pass."""
    rope = {"rope_theta": 1e6, "rope_parameters": None, "model_type": "qwen2"}
    config = CONFIG["text_config"] | rope | {"num_key_value_heads": 16} | change | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LeverlabError, match=problem):
        read_text_part(folder)


@pytest.mark.parametrize(("key", "size"), [("vocab_size", 10**6), ("num_hidden_layers", 10**5)])
def test_memory(folder: Path, key: str, size: int) -> None:
    """A number is held against the stored tensors before anything of its size is made."""
    text = CONFIG["text_config"] | {key: size}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"text_config": text}))
    tracemalloc.start()
    try:
        with pytest.raises(LeverlabError, match=r"config\.json"):
            read_text_part(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_tensors(folder: Path, tally: Maker) -> None:
    path = folder / "model.safetensors"
    count = tally(lambda: read_whole(folder), lambda found: check_whole(found, folder), [str(path), str(folder)])
    whole, tensors = path.read_bytes(), make_tensors()
    start = 8 + int.from_bytes(whole[:8], "little")
    count.attempt_all(path, byte_mutants(whole, 800, seed=0))
    count.attempt_all(path, ((what, head + whole[start:]) for what, head in byte_mutants(whole[:start], 800, seed=1)))
    count.attempt_all(path, ((what, save(changed)) for what, changed in tensor_mutants(tensors, 700, seed=2)))
    norm = tensors["model.norm.weight"]
    twice = {"model.language_model.norm.weight": norm + 1, "norm.weight": norm - 1}
    refuse(count, path, ((f"{name} beside it", save(tensors | {name: twice[name]})) for name in twice))


def test_shards(folder: Path, tally: Maker) -> None:
    """A name that leaves the folder is refused, although a fitting file lies there."""
    tensors, files = make_tensors(), ("model-1.safetensors", "model-2.safetensors")
    weight_map = {name: files[index % 2] for index, name in enumerate(sorted(tensors))}
    (folder / "model.safetensors").unlink()
    for file in files:
        (folder / file).write_bytes(save({name: tensors[name] for name in tensors if weight_map[name] == file}))
    path, outside = folder / "model.safetensors.index.json", folder.parent / "x"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    for copy in (outside, folder.parent / "model-2.safetensors", folder / "again.safetensors"):
        copy.write_bytes((folder / files[1]).read_bytes())
    count = tally(lambda: read_whole(folder), lambda found: check_whole(found, folder), [str(path), str(folder)])
    count.attempt_trees(path, json.loads(path.read_text()), 1000)
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=0))
    names = ("../x", str(outside), "../model-2.safetensors", "./../checkpoint/../x", "..", ".")
    maps = [(name, {**dict.fromkeys(tensors, files[0]), "model.norm.weight": name}) for name in names]
    refuse(count, path, ((what, json.dumps({"weight_map": names}).encode()) for what, names in maps))
    maps = [("again", weight_map | {"x": "again.safetensors"})]
    refuse(count, path, ((what, json.dumps({"weight_map": names}).encode()) for what, names in maps))
    refuse(count, path, [("deep", DEEP)])


def tally_fields(folder: Path, tally: Maker) -> Tally:
    def check(fields: dict[str, Any]) -> None:
        check_tokenizer(fields)
        check_ids(fields, folder / "tokenizer.json")

    return tally(lambda: tokenizer_fields(folder, ROWS), check, [str(folder)])


def nested(depth: int) -> dict[str, Any]:
    step: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


def tokenizer_changes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield keys of tokenizer.json with values that are refused."""
    vocab, merges, added = tree["model"]["vocab"], tree["model"]["merges"], tree["added_tokens"]
    entries: list[dict[str, Any]] = [{"x": True}, {"x": 270.0}, {"x": "270"}, {"ab": 5}, {"x": 10**12}]
    for entry in [*entries, {"": 270}, {"\ud800": 270}, {"[PAD271]": 270}]:
        yield {"model": tree["model"] | {"vocab": vocab | entry}}
    texts: list[Any] = ["a b", "a", "a b c", "a  b", " a", "no such"]
    for merge in [
        *texts,
        merges[0],
        ["a"],
        ["a", "b", "c"],
        ["a b", "c"],
        ["a", None],
        ["no", "such"],
        ["a", "a"],
        {},
        5,
    ]:
        yield {"model": tree["model"] | {"merges": [*merges, merge]}}
    for change in ({"continuing_subword_prefix": "x"}, {"end_of_word_suffix": "x"}, {"dropout": 0.5}, {"type": "x"}):
        yield {"model": tree["model"] | change}
    sequence = tree["post_processor"]["single"][0]
    for single in ([], [sequence] * 2, [sequence, {"SpecialToken": {"id": "ab", "type_id": 0}}]):
        yield {"post_processor": {"type": "TemplateProcessing", "single": single, "special_tokens": {}}}
    for kind in ("RobertaProcessing", "BertProcessing"):
        options = {"trim_offsets": True, "add_prefix_space": False}
        yield {"post_processor": {"type": kind, "sep": ["ab", 258], "cls": ["a", 66], **options}}
    flags: list[dict[str, Any]] = [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"content": ""}]
    for flag in [*flags, {"content": "ab"}, {"id": 5}]:
        yield {"added_tokens": [*added[:2], added[2] | flag]}
    split, level = tree["pre_tokenizer"]["pretokenizers"]
    yield {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split | {"type": "Punctuation"}, level]}}
    wrong: list[Any] = [None, {}, "x", [added[2], added[2] | {"id": 270}]]
    for other in wrong:
        yield {"added_tokens": other}


def test_tokenizer(folder: Path, tally: Maker) -> None:
    path, tree = folder / "tokenizer.json", make_tokenizer()
    around = tree | {"model": tree["model"] | {"vocab": Raw(json.dumps(tree["model"]["vocab"]))}}
    count = tally_fields(folder, tally)
    count.attempt_trees(path, around, 1500)
    count.attempt_trees(path, tree, 300)
    count.attempt_all(path, byte_mutants(path.read_bytes(), 500, seed=0))
    changes = enumerate(tokenizer_changes(tree))
    refuse(count, path, ((f"change {index}", json.dumps(tree | change).encode()) for index, change in changes))
    refuse(count, path, [("deep", DEEP)])
    steps = [(f"depth {depth}", tree | {"normalizer": nested(depth)}) for depth in (1, 100, 300, 450)]
    count.attempt_all(path, ((what, json.dumps(changed).encode()) for what, changed in steps))


def test_tokenizer_settings(folder: Path, tally: Maker) -> None:
    path, count = folder / "tokenizer_config.json", tally_fields(folder, tally)
    count.attempt_trees(path, SETTINGS, 1300)
    count.attempt_all(path, byte_mutants(path.read_bytes(), 700, seed=0))
    tokens: list[Any] = [*SPECIAL, "ab", "[PAD271]", "[PAD5]", {"content": ["x"]}, {"content": "<|im_end|>"}, [], 0]
    changed = [(f"{role} {token}", SETTINGS | {role: token}) for role in SETTINGS for token in tokens]
    count.attempt_all(path, ((what, json.dumps(tree).encode()) for what, tree in changed))
    half = SETTINGS | {"chat_template": "half a character \ud800"}
    refuse(count, path, [("half", json.dumps(half).encode()), ("deep", DEEP)])


def test_chat_template(folder: Path, tally: Maker) -> None:
    """The templates of chat_template.json and of chat_template.jinja go before that of tokenizer_config.json."""
    older, newest = folder / "chat_template.json", folder / "chat_template.jinja"
    tree = {"chat_template": "{{ older }}"}
    older.write_text(json.dumps(tree))

    def check(fields: dict[str, Any]) -> None:
        file = newest if newest.exists() else older
        text = file.read_bytes().decode().replace("\r\n", "\n").replace("\r", "\n")
        expected = text if newest.exists() else json.loads(text)["chat_template"]
        assert fields.get("tokenizer.chat_template", "") == expected
        assert expected.encode() is not None

    count = tally(lambda: tokenizer_fields(folder, ROWS), check, [str(folder)])
    count.attempt_trees(older, tree, 1000)
    count.attempt_all(older, byte_mutants(older.read_bytes(), 500, seed=0))
    older.unlink()
    newest.write_text("{{ newest }} \U0001d518 é", encoding="utf-8")
    count.attempt_all(newest, byte_mutants(newest.read_bytes(), 500, seed=1))
