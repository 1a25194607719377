"""Features without torch against those that the library computes with torch and transformers."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from leverlab.config.gguf import Kind
from leverlab.deploy import vision_tower
from leverlab.deploy.features import FeatureEncoder
from leverlab.deploy.gguf_tokens import read_text_tokens
from leverlab.deploy.vision_tower import VisionTower
from leverlab.errors import LeverlabError
from leverlab.export.gguf import export_text, export_vision
from leverlab.export.gguf_file import read_gguf
from leverlab.export.images import ImageLimits
from leverlab.export.vision_part import image_limits
from leverlab.records import Example
from leverlab.selector.encoders import VlmImageEncoder, compute_features_vlm
from leverlab.text_tokens import TextTokens
from leverlab.texts import normalised
from leverlab.vlm.model import Vlm, load_vlm
from leverlab.vlm.processor import ImageOnlyQwen25VLProcessor
from leverlab.vlm.tiny import CHAT_TEMPLATE, build_tokenizer
from leverlab.vlm.vision import encode_images

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "worlds/digits/vlm"
TOLERANCE = 1e-5  # of features around 1 with peaks of 7; seen: 3.4e-6
TEXTS = (
    "Which number?",
    " bazo",
    "it's 12,345.60 €",
    "Ça va, naïve Ångström? ǆ",
    "e\u0301 is é",  # the tokenizer normalises nothing, what reads texts does
    "<|im_start|>user\n<|image_pad|><|im_end|> and <|im_end |>",
    "👩‍🚀 😀日本語",
    "  two   spaces\r\n\r\n\ttab \u00a0",
    " ",
)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Exported:
    """A checkpoint in both forms."""

    vlm: Vlm
    mmproj: Path
    text: Path
    images: ImageLimits

    def encoder(self, **other: Any) -> FeatureEncoder:
        return FeatureEncoder.load(**{"mmproj": self.mmproj, "text": self.text, "images": self.images} | other)

    def wanted_image(self, image: Image.Image) -> NDArray[np.float32]:
        images = VlmImageEncoder(self.vlm)
        with torch.no_grad():
            return images.encode(images.prepare([image]))[0].numpy()

    def wanted_tokens(self, image: Image.Image) -> NDArray[np.float32]:
        inputs = self.vlm.processor.image_processor(images=[image], return_tensors="pt")
        with torch.no_grad():
            return encode_images(self.vlm.model, inputs["pixel_values"], inputs["image_grid_thw"])[0].numpy()


def export(checkpoint: Path, folder: Path) -> Exported:
    export_text(checkpoint, folder / "text.gguf", "f16")
    export_vision(checkpoint, folder / "mmproj.gguf")
    vlm = load_vlm(str(checkpoint), "float32", "cpu")
    return Exported(vlm, folder / "mmproj.gguf", folder / "text.gguf", image_limits(checkpoint))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(DIGITS, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def encoder(digits: Exported) -> FeatureEncoder:
    return digits.encoder()


def build(folder: Path, *, full: Sequence[int], frames: int, patch: int = 8, width: int = 96, out: int = 64) -> Path:
    """Return a checkpoint of four vision layers, every weight random, and such that half precision holds it."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["Which number? bazo"])
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": out,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6][: out // 16]},
        },
        vision_config={
            "depth": 4,
            "hidden_size": width,
            "intermediate_size": 160,
            "num_heads": 2,
            "patch_size": patch,
            "temporal_patch_size": frames,
            "window_size": 112,
            "out_hidden_size": out,
            "fullatt_block_indexes": list(full),
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        tie_word_embeddings=True,
    )
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            one = "norm" in name or "ln_q" in name
            scale = 0.3 if parameter.dim() == 1 else 1 / parameter[0].numel() ** 0.5
            parameter.copy_((one + scale * torch.randn_like(parameter)).half())
    model.save_pretrained(folder)
    limits = {"shortest_edge": 6 * (2 * patch) ** 2, "longest_edge": 400 * (2 * patch) ** 2}
    images = Qwen2VLImageProcessorPil(patch_size=patch, temporal_patch_size=frames, merge_size=2, size=limits)
    ImageOnlyQwen25VLProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "size",
    [(16, 16), (32, 32), (48, 16), (16, 64), (112, 112), (224, 136), (144, 16), (100, 37), (5, 9), (1, 1), (3, 599)],
)
def test_images_of_digits(digits: Exported, encoder: FeatureEncoder, size: tuple[int, int]) -> None:
    """16 x 16 pixels are a token; what has more than 49 of them, or parts of one, is resized; a window is 112 wide."""
    image = noise(*size)
    found = encoder.image(image)
    assert (found.shape, found.dtype) == ((128,), np.float32)
    np.testing.assert_allclose(found, digits.wanted_image(image), rtol=0, atol=TOLERANCE)
    assert np.abs(found - encoder.image(noise(*size, seed=1))).max() > 0.1  # so the comparison can fail


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK"])
def test_images_are_seen_as_records_reads_them(digits: Exported, encoder: FeatureEncoder, mode: str) -> None:
    image = noise(20, 30)
    if "A" in mode:
        image.putalpha(noise(20, 30, seed=1).convert("L"))
    image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    read = Example("1", buffer.getvalue(), "i", "q", "t", ("a",)).open_image()
    np.testing.assert_allclose(encoder.image(image), digits.wanted_image(read), rtol=0, atol=TOLERANCE)


def test_features_are_those_of_the_pipeline(digits: Exported, encoder: FeatureEncoder) -> None:
    examples = []
    for number, text in enumerate(TEXTS):
        buffer = io.BytesIO()
        noise(16, 16 + 16 * (number % 2), seed=number).save(buffer, "PNG")
        examples.append(Example(str(number), buffer.getvalue(), str(number), text, "t", (text.strip() or "a",)))
    table = compute_features_vlm(digits.vlm, examples)
    found = [
        (encoder.image(one.open_image()), encoder.text(one.question), encoder.text(f" {one.answer}"))
        for one in examples
    ]
    wanted = (table.image_ND, table.question_ND, table.answer_ND)
    for vectors, own, atol in zip(zip(*found, strict=True), wanted, (TOLERANCE, 1e-6, 1e-6), strict=True):
        np.testing.assert_allclose(np.stack(vectors), own, rtol=0, atol=atol)
        differences = np.abs(own[:, None] - own[None]).max(axis=2) + np.eye(len(own))
        assert differences.min() > 1e-3  # no two examples are alike, so each text can fail


@pytest.mark.parametrize(
    ("full", "frames", "patch", "width"),
    [((1, 3), 2, 8, 96), ((1, 3), 1, 8, 96), ((3,), 2, 14, 64), ((0, 1, 2, 3), 2, 8, 96), ((2,), 1, 16, 72)],
)
def test_tokens_of_other_geometries(full: tuple[int, ...], frames: int, patch: int, width: int, tmp_path: Path) -> None:
    """Windows of 7, 4 and 3 tokens a side; images of one window, of several, and with narrower ones at the edges.

    Heads are 48, 32 and 36 wide. An image has 6 to 400 tokens.
    """
    exported = export(build(tmp_path / "vlm", full=full, frames=frames, patch=patch, width=width), tmp_path)
    tower, side = VisionTower(exported.mmproj, exported.images), 2 * patch
    assert exported.images == ImageLimits(side, 6 * side**2, 400 * side**2)
    for columns, rows in [(2, 3), (7, 7), (14, 8), (8, 15), (20, 9), (1, 30), (0.6, 0.7), (13.6, 9.3), (50, 30)]:
        image = noise(round(columns * side), round(rows * side))
        tokens, wanted = tower.encode(image), exported.wanted_tokens(image)
        assert tokens.shape == wanted.shape
        np.testing.assert_allclose(tokens, wanted, rtol=0, atol=TOLERANCE)
        assert len(tokens) == 1 or wanted.std(axis=0).mean() > 0.1


def test_attention_in_chunks_is_the_same(
    digits: Exported, encoder: FeatureEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """112 x 112 pixels have 196 patches; with 4 heads, 5,000 scores are those of six queries."""
    image = noise(112, 112)
    whole, sizes, attend = encoder.image(image), [], np.exp

    def exp(scores: NDArray[np.float32], out: Any) -> Any:
        sizes.append(scores.shape)
        return attend(scores, out=out)

    monkeypatch.setattr(vision_tower, "_SCORES", 5000)
    monkeypatch.setattr(vision_tower.np, "exp", exp)
    np.testing.assert_allclose(encoder.image(image), whole, rtol=0, atol=TOLERANCE)
    assert set(sizes) == {(4, 6, 196), (4, 4, 196)}


@pytest.mark.parametrize("text", TEXTS)
def test_the_files_tokens_are_those_of_the_checkpoint(digits: Exported, encoder: FeatureEncoder, text: str) -> None:
    """None of them a control token, whatever the text spells."""
    tokens, tokenizer = read_text_tokens(digits.text), digits.vlm.processor.tokenizer
    text = normalised(text)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokens.ids(text) == TextTokens.of(tokenizer).ids(text) == ids
    assert tokens.controls == TextTokens.of(tokenizer).controls == tokenizer.get_added_vocab()
    table = digits.vlm.embed_tokens(torch.tensor(ids)).detach().numpy()
    np.testing.assert_allclose(encoder.text(text), table.mean(axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q5_0", "q4_0"])
def test_quantised_texts_are_the_decoded_ones(
    digits: Exported, encoder: FeatureEncoder, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each text decodes the rows of its tokens alone."""
    export_text(DIGITS, tmp_path / "text.gguf", kind)
    (stored,) = (one for one in gguf.GGUFReader(tmp_path / "text.gguf").tensors if one.name == "token_embd.weight")
    assert stored.tensor_type.name.lower() == kind
    table = gguf.quants.dequantize(stored.data, stored.tensor_type)
    quantised, decoded, dequantize = digits.encoder(text=tmp_path / "text.gguf"), [], gguf.quants.dequantize

    def counted(data: Any, kind: Any) -> Any:
        decoded.append(len(data))
        return dequantize(data, kind)

    monkeypatch.setattr(gguf.quants, "dequantize", counted)
    for text in TEXTS:
        ids = TextTokens.of(digits.vlm.processor.tokenizer).ids(normalised(text))
        decoded.clear()
        found = quantised.text(text)
        assert decoded == [len(ids)]
        np.testing.assert_allclose(found, table[ids].mean(axis=0), rtol=0, atol=1e-6)
        assert (np.abs(found - encoder.text(text)).max() > 1e-4) == (kind != "f16")


def test_quantised_and_bf16_vision_parts_are_read(digits: Exported, encoder: FeatureEncoder, tmp_path: Path) -> None:
    """What other tools make of the file: matrices in Q8_0, or in BF16, the checkpoint's own type."""
    image = noise(32, 48)
    for kind, atol in ((GGMLQuantizationType.Q8_0, 0.2), (GGMLQuantizationType.BF16, TOLERANCE)):

        def convert(name: str, values: NDArray[np.float32], kind: GGMLQuantizationType = kind) -> Any:
            matrix = values.ndim == 2
            return (gguf.quants.quantize(values, kind), kind) if matrix else (values, GGMLQuantizationType.F32)

        path = rewrite(digits.mmproj, tmp_path / f"{kind.name}.gguf", convert=convert)
        np.testing.assert_allclose(digits.encoder(mmproj=path).image(image), encoder.image(image), rtol=0, atol=atol)


def test_neither_torch_nor_transformers_is_needed(digits: Exported, encoder: FeatureEncoder, tmp_path: Path) -> None:
    image, question = noise(40, 24), "Which number? é"
    image.save(tmp_path / "image.png")
    code = """
import sys
from pathlib import Path

class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "transformers"}:
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Barred())
import numpy as np
from PIL import Image
from leverlab.deploy.features import FeatureEncoder
from leverlab.export.images import ImageLimits

mmproj, text, image, question, out, *limits = sys.argv[1:]
encoder = FeatureEncoder.load(Path(mmproj), Path(text), ImageLimits(*map(int, limits)))
np.save(out, np.stack([encoder.image(Image.open(image)), encoder.text(question)]))
try:
    import leverlab.selector.encoders
except AssertionError as error:
    print(error)
"""
    out, limits = tmp_path / "features.npy", map(str, astuple(digits.images))
    done = subprocess.run(
        [sys.executable, "-c", code, digits.mmproj, digits.text, tmp_path / "image.png", question, out, *limits],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch is imported\n"  # the bar does bar
    np.testing.assert_allclose(np.load(out), [encoder.image(image), encoder.text(question)], rtol=0, atol=1e-6)


# ---- what is refused ----


Convert = Callable[[str, NDArray[np.float32]], tuple[Any, GGMLQuantizationType] | None]


def rewrite(path: Path, out: Path, fields: Mapping[str, Any] | None = None, convert: Convert = lambda *_: None) -> Path:
    """Copy a GGUF file with other fields (None: without it), and tensors as `convert` gives them, value and type."""
    reader, changed = gguf.GGUFReader(path), dict(fields or {})
    architecture = changed.pop("general.architecture", reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, kind = changed.get(name, field.contents()), field.types[0]
        if value is not None:
            if name in changed and not isinstance(value, list):
                kind = GGUFValueType.get_type(value) if isinstance(value, str | bool) else kind
            writer.add_key_value(name, value, kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        data, kind = convert(tensor.name, values) or (tensor.data, tensor.tensor_type)
        if data is not None:
            writer.add_tensor(tensor.name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def only(name: str, change: Callable[[NDArray[np.float32]], Any]) -> Convert:
    """Return what gives one tensor another value, in float32."""
    return lambda found, values: (change(values.copy()), GGMLQuantizationType.F32) if found == name else None


def test_a_rewritten_file_is_the_same(digits: Exported, encoder: FeatureEncoder, tmp_path: Path) -> None:
    """So the changes of the tests below are all that is wrong with their files."""
    text, mmproj = rewrite(digits.text, tmp_path / "text.gguf"), rewrite(digits.mmproj, tmp_path / "mmproj.gguf")
    other = digits.encoder(text=text, mmproj=mmproj)
    assert np.array_equal(other.image(noise(16, 16)), encoder.image(noise(16, 16)))
    assert np.array_equal(other.text("Which number?"), encoder.text("Which number?"))


def test_texts_are_split_as_qwen2_does(digits: Exported, tmp_path: Path) -> None:
    """No merge makes one token of "12", since every digit is a piece; of "az" it does, and before the later "zy"."""
    fields = gguf.GGUFReader(digits.text).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    assert tokens[-4:] == [f"[PAD{len(tokens) - back}]" for back in (4, 3, 2, 1)]
    changes = {
        "tokenizer.ggml.tokens": [*tokens[:-3], "12", "zy", "az"],
        "tokenizer.ggml.merges": ["1 2", "a z", "z y", *merges],
    }
    values = np.zeros((len(tokens), 128), dtype=np.float32)
    values[np.arange(len(tokens)), np.arange(len(tokens)) % 128] = 1 + np.arange(len(tokens))
    encoder = digits.encoder(
        text=rewrite(digits.text, tmp_path / "text.gguf", changes, only("token_embd.weight", lambda _: values))
    )
    one, two, y = map(tokens.index, "12y")
    assert np.array_equal(encoder.text("az"), values[-1])
    assert np.array_equal(encoder.text("zy"), values[-2])
    assert np.array_equal(encoder.text("azy"), (values[-1] + values[y]) / 2)
    assert np.array_equal(encoder.text("12"), (values[one] + values[two]) / 2)
    assert not np.array_equal(encoder.text(tokens[-4]), values[-4])  # what is unused is never found in a text


@pytest.mark.parametrize("part", ["text", "mmproj"])
def test_fields_are_read_as_the_package_does(digits: Exported, part: str) -> None:
    path: Path = getattr(digits, part)
    found, wanted = read_gguf(path)[0], gguf.GGUFReader(path).fields
    assert found.keys() == {name for name in wanted if not name.startswith("GGUF.")}
    for name, field in found.items():
        assert (field.contents(), field.types) == (wanted[name].contents(), wanted[name].types)


@pytest.mark.parametrize("part", ["text", "mmproj"])
def test_files_that_are_not_whole(digits: Exported, part: str, tmp_path: Path) -> None:
    whole: Path = getattr(digits, part)
    broken = tmp_path / "broken.gguf"
    with pytest.raises(LeverlabError, match=r"broken\.gguf does not exist"):
        digits.encoder(**{part: broken})
    data = whole.read_bytes()
    for content in (b"", *(data[:size] for size in (3, 100, 2000, len(data) // 2, len(data) - 32)), data + bytes(32)):
        broken.write_bytes(content)
        with pytest.raises(LeverlabError, match=r"broken\.gguf is truncated or no GGUF file"):
            digits.encoder(**{part: broken})


def test_files_in_the_wrong_place(digits: Exported, tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match=r"text\.gguf has the architecture 'qwen2vl', not 'clip'"):
        digits.encoder(mmproj=digits.text)
    with pytest.raises(LeverlabError, match=r"mmproj\.gguf has the architecture 'clip', not 'qwen2vl'"):
        digits.encoder(text=digits.mmproj)
    other = rewrite(digits.text, tmp_path / "other.gguf", {"general.architecture": "llama"})
    with pytest.raises(LeverlabError, match=r"architecture 'llama', not 'qwen2vl'"):
        digits.encoder(text=other)


def test_files_of_two_checkpoints(digits: Exported, tmp_path: Path) -> None:
    export_vision(build(tmp_path / "vlm", full=(1, 3), frames=2), tmp_path / "narrow.gguf")
    with pytest.raises(LeverlabError, match=r"narrow\.gguf makes tokens 64 wide, and .*text\.gguf takes 128"):
        digits.encoder(mmproj=tmp_path / "narrow.gguf")


@pytest.mark.parametrize(
    ("fields", "convert", "message"),
    [
        ({"clip.projector_type": "qwen2vl_merger"}, None, "projector is 'qwen2vl_merger'"),
        ({"clip.vision.n_wa_pattern": None}, None, "'clip.vision.n_wa_pattern' is not as it must be (field required)"),
        ({"clip.vision.image_std": [0.5, 0.0, 0.5]}, None, "'clip.vision.image_std' is not as it must be"),
        ({"clip.vision.image_mean": [0.5, 0.5]}, None, "'clip.vision.image_mean' is not as it must be"),
        ({"clip.vision.patch_size": "8"}, None, "'clip.vision.patch_size' is not as it must be"),
        ({"clip.vision.patch_size": 57}, None, "no 2 x 2 patches of 57 pixels fit a window of 112"),
        ({"clip.vision.attention.head_count": 32}, None, "32 heads are no multiple of 4 wide"),
        ({"clip.vision.block_count": 2**31}, None, "too few for 2147483648 layers"),
        ({"clip.vision.block_count": 1}, None, "missing, unexpected or misshapen tensors: ['v.blk.1.attn_k.bias'"),
        ({}, only("mm.2.bias", lambda _: None), "missing, unexpected or misshapen tensors: ['mm.2.bias']"),
        ({}, only("mm.0.weight", lambda values: values[1:]), "missing, unexpected or misshapen tensors: ['mm.0.weight"),
    ],
)
def test_vision_files_that_do_not_serve(
    digits: Exported, fields: dict[str, Any], convert: Convert | None, message: str, tmp_path: Path
) -> None:
    path = rewrite(digits.mmproj, tmp_path / "mmproj.gguf", fields, convert or (lambda *_: None))
    with pytest.raises(LeverlabError, match=re.escape(message)):
        digits.encoder(mmproj=path)


def test_text_files_that_do_not_serve(digits: Exported, tmp_path: Path) -> None:
    fields = gguf.GGUFReader(digits.text).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    cases: list[tuple[dict[str, Any], Convert | None, str]] = [
        ({"tokenizer.ggml.model": "llama"}, None, "its tokenizer is 'llama' with the split 'qwen2'"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, None, "its tokenizer is 'gpt2' with the split 'llama-bpe'"),
        ({"tokenizer.ggml.merges": None}, None, "'tokenizer.ggml.merges' is not as it must be (field required)"),
        ({"tokenizer.ggml.merges": [*merges, "a"]}, None, "a merge is not sound"),
        ({"tokenizer.ggml.merges": [*merges, "a\u0394 b"]}, None, "a merge is not sound"),
        ({"tokenizer.ggml.tokens": [*tokens[:-1], tokens[9]]}, None, "it has a token twice"),
        ({"tokenizer.ggml.tokens": ["?!?" if one == "a" else one for one in tokens]}, None, "some byte has no token"),
        ({"tokenizer.ggml.token_type": [1, 2]}, None, f"it has {len(tokens)} tokens and 2 types"),
        ({"tokenizer.ggml.tokens": tokens[:-1]}, None, f"not ({len(tokens) - 1}, 128), tokens and width"),
        ({"qwen2vl.embedding_length": 64}, None, f"not ({len(tokens)}, 64), tokens and width"),
        ({}, only("token_embd.weight", lambda _: None), "token_embd.weight has shape None"),
    ]
    for fields, convert, message in cases:
        path = rewrite(digits.text, tmp_path / "text.gguf", fields, convert or (lambda *_: None))
        with pytest.raises(LeverlabError, match=re.escape(message)):
            digits.encoder(text=path)


def test_values_that_do_not_serve(digits: Exported, tmp_path: Path) -> None:
    """A type that cannot be decoded and NaN are told when a feature needs them."""
    for name in ("v.blk.1.ffn_up.bias", "token_embd.weight"):
        part, path = ("text" if "token" in name else "mmproj"), tmp_path / f"{name}.gguf"
        ask = (lambda one: one.text("a")) if part == "text" else (lambda one: one.image(noise(16, 16)))
        for convert, message in (
            (only(name, lambda values: values * np.nan), "NaN or infinite values"),
            (
                lambda found, values, name=name: (
                    (values.astype(np.int8), GGMLQuantizationType.I8) if found == name else None
                ),
                f"{name} is of type I8, which cannot be decoded",
            ),
        ):
            with pytest.raises(LeverlabError, match=re.escape(message)):
                ask(digits.encoder(**{part: rewrite(getattr(digits, part), path, convert=convert)}))


@pytest.mark.parametrize("size", [(1, 201), (603, 3), (0, 5), (5, 0), (0, 0)])
def test_images_that_transformers_refuses(encoder: FeatureEncoder, size: tuple[int, int]) -> None:
    with pytest.raises(LeverlabError, match=f"the image is {size[0]} x {size[1]} pixels"):
        encoder.image(Image.new("RGB", size))


def test_the_longest_image(digits: Exported, encoder: FeatureEncoder) -> None:
    image = noise(2, 400)
    np.testing.assert_allclose(encoder.image(image), digits.wanted_image(image), rtol=0, atol=TOLERANCE)


def test_an_image_file_that_is_truncated(encoder: FeatureEncoder) -> None:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "PNG")
    with pytest.raises(LeverlabError, match="the image cannot be decoded"):
        encoder.image(Image.open(io.BytesIO(buffer.getvalue()[:-200])))


def test_texts_without_features(encoder: FeatureEncoder) -> None:
    with pytest.raises(LeverlabError, match="a text is empty"):
        encoder.text("")
    with pytest.raises(LeverlabError, match="half a character"):
        encoder.text("a \ud83d")


def test_limits_of_another_checkpoint(digits: Exported) -> None:
    with pytest.raises(LeverlabError, match=r"a token of .*mmproj\.gguf is 16 pixels a side, and .* multiples of 28"):
        digits.encoder(images=replace(digits.images, side=28))
