"""A checkpoint in the layout of the released Qwen2.5-VL-3B-Instruct, and in those of other days: loaded and exported.

`reference_*` know nothing of leverlab: they are transformers' model on transformers' own tokenizer, image processor and
template of the release.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from leverlab.errors import LeverlabError
from leverlab.export.gguf import compare, export_text, export_vision
from leverlab.export.vision_part import image_limits
from leverlab.records import Example
from leverlab.vlm.model import GREEDY, Vlm, check_vlm, checkpoint_folder, load_vlm
from leverlab.vlm.processor import ImageOnlyQwen25VLProcessor
from leverlab.vlm.prompt import PromptFormat
from leverlab.worlds.digits import digits_world
from leverlab.worlds.world import World
from tests.released import OPENAI_MEAN, TEMPLATE, edit_json, write_json, write_released

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def world() -> World:
    return digits_world(pool=6, train=24, val=1, test=1, label_noise=0.0, seed=7)


def texts(world: World) -> list[str]:
    shown = [*world.pool, *world.train]
    return [
        "You are a helpful assistant.",
        "system user",
        *(f"{example.question} {example.answer}" for example in shown),
    ]


@pytest.fixture(scope="module")
def released(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("released"), texts=texts(world))


@pytest.fixture(scope="module")
def vlm(released: Path) -> Vlm:
    return load_vlm(str(released), "float32", "cpu")


@pytest.fixture
def folder(released: Path, tmp_path: Path) -> Path:
    """The release, to be changed; the files of the weights are links."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in released.iterdir():
        if file.suffix == ".safetensors":
            (copy / file.name).hardlink_to(file)
        else:
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def reference_inputs(released: Path, demos: tuple[Example, ...], question: Example, answer: str = "") -> dict[str, Any]:
    """Return the inputs of a prompt, its text written by hand."""
    tokenizer = AutoTokenizer.from_pretrained(released)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(released)
    images = image_processor([shown.open_image() for shown in (*demos, question)], return_tensors="pt")
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    for shown, grid in zip((*demos, question), images["image_grid_thw"], strict=True):
        pads = "<|image_pad|>" * (int(grid.prod()) // 4)
        text += f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{shown.question}<|im_end|>\n"
        text += f"<|im_start|>assistant\n{answer if shown is question else f'{shown.answer}<|im_end|>{chr(10)}'}"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    types = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **images}


def reference_model(released: Path) -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(released, dtype=torch.float32).eval()


def test_the_weights_are_those_of_the_files(vlm: Vlm, released: Path) -> None:
    """All of them under their old names, in the shards that the index names, the rows without a token included."""
    model, seen = vlm.model, 0
    for file in released.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                new = f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.")
                assert torch.equal(model.get_parameter(new), opened.get_tensor(name).float())
                seen += 1
    assert seen == len(list(model.parameters()))
    assert isinstance(vlm.processor, ImageOnlyQwen25VLProcessor)
    assert model.config.text_config.vocab_size > len(vlm.processor.tokenizer)
    assert model.config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]


def test_prompts_are_those_of_the_released_processor(vlm: Vlm, released: Path, world: World) -> None:
    expected = reference_inputs(released, world.pool[:2], world.train[0])
    inputs = PromptFormat(vlm.processor).inputs(world.pool[:2], world.train[0])
    assert inputs.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(torch.as_tensor(inputs[name]), values), name


def test_scores_are_those_of_a_plain_forward(
    vlm: Vlm, released: Path, world: World, make_scorer: Callable[..., Any]
) -> None:
    questions = world.train[:3]
    scorer = make_scorer(world.pool, questions, of=load_vlm(str(released), "float32", "cpu"))
    names = [demo.id for demo in world.pool]
    scores = scorer.score([question.id for question in questions], [tuple(names[:3])] * 3, [0, 1, 3])
    model, tokenizer = reference_model(released), vlm.processor.tokenizer
    for question, row in zip(questions, scores.answer_prob_NM, strict=True):
        answer = tokenizer(question.answer)["input_ids"]
        for shots, score in zip((0, 1, 3), row, strict=True):
            inputs = reference_inputs(released, world.pool[:shots], question, question.answer)
            assert inputs["input_ids"][0, -len(answer) :].tolist() == answer
            with torch.no_grad():
                logp = model(**inputs).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            expected = logp.gather(1, torch.tensor(answer)[:, None]).mean()
            np.testing.assert_allclose(np.log(score), expected, atol=2e-5)


def test_either_end_token_of_the_generation_config_ends_an_answer(
    world: World, make_scorer: Callable[..., Any], tmp_path: Path
) -> None:
    """With this seed both end answers that are not empty."""
    released = write_released(tmp_path, texts=texts(world), seed=4)
    model, tokenizer = reference_model(released), AutoTokenizer.from_pretrained(released)
    ends = json.loads((released / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]
    expected, last = [], []
    for question in world.train:
        inputs = reference_inputs(released, (), question)
        new = model.generate(**inputs, **GREEDY, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :].tolist()
        last.append(new[-1])
        expected.append([str(tokenizer.decode(new, skip_special_tokens=True)).strip()])
    assert all(any(text for (text,), end in zip(expected, last, strict=True) if end == one) for one in ends)
    scorer = make_scorer([], world.train, of=load_vlm(str(released), "float32", "cpu"), max_new_tokens=6)
    scores = scorer.score([question.id for question in world.train], [()] * len(world.train), [0], texts=True)
    assert scores.text_NM == expected


def test_loading_needs_no_video_processor(vlm: Vlm, released: Path) -> None:
    """The class that the folder names cannot be made here: it wants torchvision."""
    assert json.loads((released / "preprocessor_config.json").read_text())["processor_class"] == "Qwen2_5_VLProcessor"
    assert not hasattr(vlm.processor, "video_processor")


def one_file(folder: Path, rename: Callable[[str], str]) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {rename(name): values for name, values in load_file(file).items()}
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def nested_config(folder: Path) -> None:
    """config.json as transformers 4.52 to 4.57 wrote it: the text keys in text_config and on the top floor."""
    config = json.loads((folder / "config.json").read_text())
    vision = config.pop("vision_config") | {"model_type": "qwen2_5_vl", "in_channels": 3, "torch_dtype": "bfloat16"}
    config["rope_scaling"] = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}
    text = config | {"model_type": "qwen2_5_vl_text", "image_token_id": None, "sliding_window": None}
    text["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    write_json(folder / "config.json", config | {"text_config": text, "vision_config": vision})


def newest_config(folder: Path) -> None:
    """config.json as transformers 5 writes it: text keys in text_config alone, rope_parameters, dtype."""
    nested_config(folder)
    config = json.loads((folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    text["dtype"] = text.pop("torch_dtype")
    kept = {key: config[key] for key in ("architectures", "model_type", "tie_word_embeddings")}
    kept |= {key: value for key, value in config.items() if key.endswith("token_id")}
    vision |= {"model_type": "qwen2_5_vl_vision"}
    write_json(folder / "config.json", kept | {"text_config": text, "vision_config": vision, "dtype": "bfloat16"})


def template_as_text(folder: Path) -> None:
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    edit_json(folder / "tokenizer_config.json", chat_template=None)


def merges_as_pairs(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [merge.split(" ") for merge in tokenizer["model"]["merges"]]
    write_json(folder / "tokenizer.json", tokenizer)


def image_processor_in_processor_config(folder: Path) -> None:
    keys = json.loads((folder / "preprocessor_config.json").read_text())
    size = {"shortest_edge": keys.pop("min_pixels"), "longest_edge": keys.pop("max_pixels")}
    (folder / "preprocessor_config.json").unlink()
    nested = {"image_processor": keys | {"size": size}, "processor_class": "Qwen2_5_VLProcessor"}
    write_json(folder / "processor_config.json", nested | {"video_processor": {"video_processor_type": "any"}})


def tokenizer_json_alone(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()


LAYOUTS: dict[str, Change] = {
    "the processor class in tokenizer_config.json": lambda folder: edit_json(
        folder / "tokenizer_config.json", processor_class="Qwen2_5_VLProcessor"
    ),
    "the first release's image processor": lambda folder: edit_json(
        folder / "preprocessor_config.json", image_processor_type="Qwen2_5_VLImageProcessor"
    ),
    "a fast image processor": lambda folder: edit_json(
        folder / "preprocessor_config.json", image_processor_type="Qwen2VLImageProcessorFast"
    ),
    "an image processor without a type": lambda folder: edit_json(
        folder / "preprocessor_config.json", image_processor_type=None, processor_class=None
    ),
    "the image processor in processor_config.json": image_processor_in_processor_config,
    "a processor_config.json without an image processor": lambda folder: write_json(
        folder / "processor_config.json", {"processor_class": "Qwen2_5_VLProcessor"}
    ),
    "the template in chat_template.jinja": template_as_text,
    "the template in tokenizer_config.json": lambda folder: (folder / "chat_template.json").unlink(),
    "a text template in tokenizer_config.json": lambda folder: edit_json(
        folder / "tokenizer_config.json", chat_template="{{ 'text only' }}"
    ),
    "merges as pairs": merges_as_pairs,
    "vocab.json and merges.txt alone": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer.json alone": tokenizer_json_alone,
    "names under model.language_model": lambda folder: one_file(
        folder,
        lambda name: f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model."),
    ),
    "one file": lambda folder: one_file(folder, str),
    "text_config and the top floor": nested_config,
    "text_config alone": newest_config,
    "rope_scaling of the default type": lambda folder: edit_json(
        folder / "config.json", rope_scaling={"rope_type": "default", "mrope_section": [16, 24, 24]}
    ),
    "dtype": lambda folder: edit_json(folder / "config.json", torch_dtype=None, dtype="bfloat16"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(layout: str, vlm: Vlm, folder: Path, world: World) -> None:
    LAYOUTS[layout](folder)
    check_vlm(str(folder))
    other = load_vlm(str(folder), "float32", "cpu")
    inputs, expected = (PromptFormat(one.processor).inputs(world.pool[:2], world.train[0]) for one in (other, vlm))
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert torch.equal(other.model(**inputs).logits, vlm.model(**expected).logits)


@pytest.fixture(scope="module")
def exported(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    export_text(released, out / "text.gguf", "f16")
    export_vision(released, out / "mmproj.gguf")
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_exported_to_the_same_bytes(layout: str, exported: Path, folder: Path, tmp_path: Path) -> None:
    LAYOUTS[layout](folder)
    export_text(folder, tmp_path / "text.gguf", "f16")
    export_vision(folder, tmp_path / "mmproj.gguf")
    for name in ("text.gguf", "mmproj.gguf"):
        assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()


def test_the_export_has_what_the_release_says(exported: Path, released: Path, vlm: Vlm) -> None:
    for part, name in (("text", "text.gguf"), ("vision", "mmproj.gguf")):
        assert not any(record.values_beyond for record in compare(released, exported / name, part))  # type: ignore[arg-type]
    reader = GGUFReader(exported / "text.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = vlm.processor.tokenizer
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert tokens[len(tokenizer) :] == [f"[PAD{index}]" for index in range(len(tokenizer), len(tokens))] != []
    assert tokens[fields["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert tokens[fields["tokenizer.ggml.padding_token_id"]] == "<|endoftext|>"
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert fields["qwen2vl.rope.dimension_sections"] == [16, 24, 24, 0]
    assert fields["qwen2vl.context_length"] == 128000


@pytest.mark.parametrize("place", ["top floor", "text_config"])
def test_a_tied_embedding_is_the_output(place: str, world: World, tmp_path: Path) -> None:
    """Before transformers 5 the key could be in text_config alone."""
    tied = write_released(tmp_path / "tied", tied=True, texts=texts(world))
    if place == "text_config":
        nested_config(tied)
        edit_json(tied / "config.json", tie_word_embeddings=None)
    model = load_vlm(str(tied), "float32", "cpu").model
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    export_text(tied, tmp_path / "text.gguf", "f16")
    assert "output.weight" not in {tensor.name for tensor in GGUFReader(tmp_path / "text.gguf").tensors}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"min_pixels": None},
        {"max_pixels": None},
        {"min_pixels": None, "max_pixels": None},
        {"size": {"shortest_edge": 784, "longest_edge": 78400}},
        {"max_pixels": None, "size": {"shortest_edge": 784, "longest_edge": 78400}},
        {"size": {"min_pixels": 3136, "max_pixels": 12845056}},  # transformers 4.45 to 4.48
    ],
)
def test_limits_of_images_are_those_that_transformers_reads(changes: dict[str, Any], folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    edit_json(path, **changes)
    expected = Qwen2VLImageProcessorPil.from_pretrained(folder).size
    limits = image_limits(folder)
    assert (limits.fewest, limits.most) == (expected["shortest_edge"], expected["longest_edge"])
    used = load_vlm(str(folder), "float32", "cpu").processor.image_processor
    assert (used.size, list(used.image_mean)) == (expected, OPENAI_MEAN)


def without_template(folder: Path) -> None:
    (folder / "chat_template.json").unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=None)


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()


def other_split(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), r"checkpoint has no image processor; restore"),
        (without_template, r"checkpoint has no chat template; restore its chat_template\.jinja"),
        (without_tokenizer, r"checkpoint has no tokenizer; restore its tokenizer\.json"),
        (other_split, r"vocab\.json belongs to a GPT2Tokenizer, which does not say how text is split"),
        (lambda folder: (folder / "merges.txt").write_text("a\n") and (folder / "tokenizer.json").unlink(), r"restore"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ 'another' }}"),
            r"different chat templates in chat_template\.jinja and chat_template\.json; keep one of them",
        ),
        (
            lambda folder: edit_json(folder / "chat_template.json", chat_template=[{"name": "default"}]),
            r"chat_template\.json: chat_template is a list, where one text is needed",
        ),
        (
            lambda folder: edit_json(folder / "chat_template.json", chat_template="{{ messages[0]['role'] }}"),
            "writes a turn differently at different places",
        ),
        (lambda folder: write_json(folder / "preprocessor_config.json", []), r"preprocessor_config\.json must hold"),
        (
            lambda folder: edit_json(folder / "config.json", model_type="llava"),
            r"config\.json: model_type is 'llava'; set vlm\.source to a Qwen2\.5-VL",
        ),
        (
            lambda folder: edit_json(folder / "config.json", use_sliding_window=True, max_window_layers=0),
            r"config\.json: sliding windows \(use_sliding_window\) are not supported",
        ),
        (lambda folder: edit_json(folder / "config.json", hidden_size="wide"), r"config\.json is no config of a Qwen"),
        (
            lambda folder: edit_json(folder / "config.json", image_token_id=7),
            r"config\.json: image_token_id is 7, but the tokenizer's <\|image_pad\|> has id \d+",
        ),
        (
            lambda folder: edit_json(folder / "config.json", vocab_size=300),
            r"config\.json: vocab_size 300 is too small for the tokenizer, whose largest id is \d+",
        ),
        (
            lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
            r"model-00002-of-00002\.safetensors does not exist; restore the missing part",
        ),
    ],
)
def test_a_checkpoint_that_cannot_serve_is_one_sentence_before_the_weights_are_read(
    change: Change, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_vlm(str(folder))
    change(folder)
    monkeypatch.setattr("leverlab.vlm.model.AutoModelForImageTextToText", None)
    with pytest.raises(LeverlabError, match=message) as caught:
        check_vlm(str(folder))
    assert "\n" not in str(caught.value)


def test_the_digest_names_the_files_of_the_tokenizer(vlm: Vlm, folder: Path) -> None:
    assert load_vlm(str(folder), "float32", "cpu").digest == vlm.digest
    lines = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2], ""]))
    assert load_vlm(str(folder), "float32", "cpu").digest != vlm.digest


def test_a_hub_id_is_loaded_from_its_snapshot(
    vlm: Vlm, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's library keeps what it fetched; nothing is fetched here. The commit names the weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--Qwen--tiny"
    (kept / "refs").mkdir(parents=True)
    digests = set()
    for commit in ("0123abc", "4567def"):
        (kept / "refs/main").write_text(commit)
        (kept / "snapshots" / commit).mkdir(parents=True)
        for file in released.iterdir():
            (kept / "snapshots" / commit / file.name).symlink_to(file)
        assert checkpoint_folder("Qwen/tiny") == kept / "snapshots" / commit
        loaded = load_vlm("Qwen/tiny", "float32", "cpu")
        assert torch.equal(loaded.model.lm_head.weight, vlm.model.lm_head.weight)
        digests.add(loaded.digest)
    assert len(digests - {vlm.digest}) == 2
