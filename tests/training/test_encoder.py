"""Training of the image encoder against slow loops, its resume and its files, on a tiny VLM and a tiny CLIP."""

import copy
import io
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from leverlab.config.sft import EncoderParams, SftParams
from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.selector.architecture import Architecture
from leverlab.selector.batches import QueryData
from leverlab.selector.candidates import Candidates, CandidateSet
from leverlab.selector.encoders import ClipImageEncoder, ImageEncoder, VlmImageEncoder, image_features
from leverlab.selector.features import FeatureTable
from leverlab.selector.network import Selector
from leverlab.training.encoder import (
    ImageTable,
    describe_encoder,
    make_trainable,
    save_encoder,
    train_encoder,
    trained_weights,
)
from leverlab.training.loop import NotFiniteError
from leverlab.vlm.model import Vlm
from leverlab.vlm.tiny import build_model, build_processor, build_tokenizer
from leverlab.worlds.digits import digits_world

REPOSITORY = Path(__file__).parents[2]
WORLD = digits_world(pool=8, train=4, val=1, test=1, label_noise=0.0, seed=0)
SHOTS, CANDIDATES = 2, 5
KINDS, WAYS = ("vlm", "clip"), ("lora", "full")


@dataclass
class Subject:
    """An encoder and the whole model that it is part of."""

    encoder: ImageEncoder
    model: Any


def clip_model() -> Any:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": 20, "bos_token_id": 18, "eos_token_id": 19, "pad_token_id": 19}
    vision = small | {"image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


@pytest.fixture(scope="module")
def make() -> Callable[[str], Subject]:
    """Make one more copy of the same frozen model."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([text for demo in WORLD.pool for text in (demo.question, f" {demo.answer}")])
    vlm = Vlm(build_model(tokenizer).requires_grad_(False).eval(), build_processor(tokenizer), "digest")
    clip = clip_model().requires_grad_(False).eval()
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)

    def copied(kind: str) -> Subject:
        model = copy.deepcopy(vlm.model if kind == "vlm" else clip)
        return Subject(
            VlmImageEncoder(replace(vlm, model=model)) if kind == "vlm" else ClipImageEncoder(model, pixels), model
        )

    return copied


def encoder_params(train: str, rank: int = 4, epochs: int = 2, lr: float = 0.01) -> EncoderParams:
    return EncoderParams.model_validate({"train": train, "epochs": epochs, "lr": lr, "rank": rank, "alpha": 8})


def sft_params(encoder: EncoderParams, batch: int = 2) -> SftParams:
    optimisation = {"epochs": 1, "batch": batch, "lr": 0.003, "weight_decay": 0.05, "warmup": 0.3, "grad_clip": 1.0}
    return SftParams.model_validate({"encoder": encoder, **optimisation})


def resized(example: Example, width: int, height: int, name: str) -> Example:
    buffer = io.BytesIO()
    example.open_image().resize((width, height)).save(buffer, format="PNG")
    return replace(example, id=name, image=buffer.getvalue())


POOL = [*WORLD.pool, replace(WORLD.pool[0], id="again"), resized(WORLD.pool[1], 32, 48, "large")]
TRAIN = [*WORLD.train, replace(WORLD.train[0], id="twice", image=WORLD.pool[2].image)]
BY_ID = {example.id: example for example in [*POOL, *TRAIN]}
LISTS = {}  # two lists a query, the second of one demo, which ends with STOP
for number, query in enumerate(TRAIN):
    order = np.random.default_rng(number).permutation([demo.id for demo in POOL])[:CANDIDATES].tolist()
    LISTS[query.id] = (order, [(order[3], order[number % 3]), (order[4],)])


def make_data(encoder: ImageEncoder) -> QueryData:
    examples, rng = [*POOL, *TRAIN], np.random.default_rng(0)
    question, answer = (rng.normal(size=(len(examples), width)).astype(np.float32) for width in (3, 2))
    table = FeatureTable(tuple(example.id for example in examples), image_features(encoder, examples), question, answer)
    drawn = [CandidateSet("train", query, 0, tuple(candidates)) for query, (candidates, _) in LISTS.items()]
    return QueryData(table, Candidates(drawn, [demo.id for demo in POOL], "here"))


def make_selector(data: QueryData, dropout: float = 0.0, width: int = 16) -> Selector:
    torch.manual_seed(0)
    selector = Selector(data.widths, Architecture(width, "gru", "dot", False, True), dropout)
    data.standardise(selector, [demo.id for demo in POOL], [query.id for query in TRAIN])
    return selector


class Run:
    """One training of one copy of an encoder; the same arguments give the same start."""

    def __init__(
        self,
        subject: Subject,
        folder: Path,
        encoder: EncoderParams,
        batch: int = 2,
        seed: int = 3,
        dropout: float = 0.0,
        width: int = 16,
    ):
        self.subject, self.params, self.seed, self.folder = subject, sft_params(encoder, batch), seed, folder
        self.data = make_data(subject.encoder)
        self.selector = make_selector(self.data, dropout, width)
        torch.manual_seed(1)
        self.config = make_trainable(subject.encoder.module, encoder, "the-source")
        self.images = ImageTable.of(subject.encoder, [*POOL, *TRAIN])
        self.lists = {query: lists for query, (_, lists) in LISTS.items()}
        self.said: list[str] = []

    def train(self, on_epoch: Callable[[dict[str, float]], None] | None = None) -> None:
        self.said = []
        train_encoder(
            self.subject.encoder,
            self.selector,
            self.data,
            self.images,
            self.lists,
            SHOTS,
            self.params,
            self.seed,
            self.folder,
            on_epoch or (lambda row: self.said.append(describe_encoder(row, self.params.encoder.epochs))),
        )

    def trained(self) -> dict[str, Tensor]:
        return trained_weights(self.subject.encoder.module)

    def everything(self) -> dict[str, Tensor]:
        """A copy of all that the model and the selector hold."""
        states = {"model": self.subject.model.state_dict(), "selector": self.selector.state_dict()}
        return {f"{part}.{name}": value.clone() for part, state in states.items() for name, value in state.items()}

    def gradients(self) -> dict[str, Tensor]:
        parts = {"model": self.subject.model, "selector": self.selector}
        named = {f"{part}.{name}": weight for part, of in parts.items() for name, weight in of.named_parameters()}
        return {name: weight.grad for name, weight in named.items() if weight.grad is not None}

    def losses(self) -> list[float]:
        return [float(line.rpartition(" ")[2]) for line in self.said]


def vectors_of(encoder: ImageEncoder) -> Tensor:
    with torch.no_grad():
        return torch.stack([one_vector(encoder, example) for example in [*POOL, *TRAIN]])


def one_vector(encoder: ImageEncoder, example: Example) -> Tensor:
    return encoder.encode(encoder.prepare([example.open_image()]))[0]


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in trained_weights(module).values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


def slow_logp(encoder: ImageEncoder, selector: Selector, data: QueryData, query: str, demos: Sequence[str]) -> Tensor:
    """Log-probability of one list: one image at a time, one pick at a time; what could be picked is kept by name."""
    names = LISTS[query][0]

    def text(name: str, example: str) -> Tensor:
        return torch.from_numpy(data.vectors(name, [example]))

    shown = (
        torch.stack([one_vector(encoder, BY_ID[name]) for name in names])[None],
        torch.stack([text("question", name)[0] for name in names])[None],
        torch.stack([text("answer", name)[0] for name in names])[None],
    )
    encoded = selector.encode((one_vector(encoder, BY_ID[query])[None], text("question", query)), shown)
    state, left, total = encoded.state_BW[:, None], [*names], torch.zeros(())
    for place, demo in enumerate([*demos, "STOP"][:SHOTS]):
        logits = selector.score(selector.read(selector.norm(state)), encoded.key_BKW)[0, 0]
        scores = dict(zip([*names, "STOP"], logits, strict=True))
        offered = left if place == 0 else [*left, "STOP"]
        total = total + scores[demo] - torch.stack([scores[name] for name in offered]).logsumexp(0)
        if demo != "STOP":
            state = selector.advance(encoded, state, torch.tensor([[names.index(demo)]]))
            left.remove(demo)
    return total


def slow_loss(encoder: ImageEncoder, selector: Selector, data: QueryData, queries: Sequence[str]) -> Tensor:
    terms = [-slow_logp(encoder, selector, data, query, demos) for query in queries for demos in LISTS[query][1]]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_starts_as_nothing_and_takes_all_gradients(make: Any, kind: str) -> None:
    subject = make(kind)
    linear = [name for name, layer in subject.encoder.module.named_modules() if isinstance(layer, torch.nn.Linear)]
    before = vectors_of(subject.encoder)
    config = make_trainable(subject.encoder.module, encoder_params("lora"), "the-source")
    assert torch.equal(vectors_of(subject.encoder), before)
    weights = trained_weights(subject.encoder.module)
    assert sorted(weights) == sorted(f"{name}.lora_{half}.default.weight" for name in linear for half in "AB")
    assert len(linear) == {"vlm": 12, "clip": 6}[kind]
    in_the_model = [weight for weight in subject.model.parameters() if weight.requires_grad]
    assert {id(weight) for weight in in_the_model} == {id(weight) for weight in weights.values()}
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, "the-source")
    assert config["target_modules"] == sorted(linear)
    randomise(subject.encoder.module)
    assert (vectors_of(subject.encoder) - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_in_full_all_of_the_encoder_takes_gradients_and_nothing_else(make: Any, kind: str) -> None:
    subject = make(kind)
    assert trained_weights(subject.encoder.module) == {}
    assert make_trainable(subject.encoder.module, encoder_params("full"), "the-source") == {}
    weights = trained_weights(subject.encoder.module)
    assert list(weights) == [name for name, _ in subject.encoder.module.named_parameters()]
    taking = [weight for weight in subject.model.parameters() if weight.requires_grad]
    assert {id(weight) for weight in taking} == {id(weight) for weight in weights.values()}
    assert len(taking) < len(list(subject.model.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_a_batch_equal_those_of_one_image_at_a_time(make: Any, kind: str) -> None:
    """The encoder is another one than that of the features, so that no vector can come from there."""
    subject = make(kind)
    data, images = make_data(subject.encoder), ImageTable.of(subject.encoder, [*POOL, *TRAIN])
    make_trainable(subject.encoder.module, encoder_params("full"), "the-source")
    randomise(subject.encoder.module)
    queries = [TRAIN[index].id for index in (4, 0, 2)]
    batch = data.batch(queries)
    now = images.encoded(subject.encoder, batch)
    assert now.query[0].shape == batch.query[0].shape
    assert now.demos[0].shape == batch.demos[0].shape == (3, CANDIDATES, batch.query[0].shape[1])
    for row, query in enumerate(queries):
        expected = one_vector(subject.encoder, BY_ID[query])
        torch.testing.assert_close(now.query[0][row], expected, atol=1e-5, rtol=1e-4)
        assert (now.query[0][row] - batch.query[0][row]).abs().max() > 1e-2
        for place, demo in enumerate(LISTS[query][0]):
            expected = one_vector(subject.encoder, BY_ID[demo])
            torch.testing.assert_close(now.demos[0][row, place], expected, atol=1e-5, rtol=1e-4)
    assert (now.query_ids, now.candidate_ids) == (batch.query_ids, batch.candidate_ids)
    assert torch.equal(now.query[1], batch.query[1])
    assert torch.equal(now.demos[1], batch.demos[1])
    assert torch.equal(now.demos[2], batch.demos[2])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_images_are_held_once_and_encoded_once(make: Any, kind: str) -> None:
    subject = make(kind)
    examples = [*POOL, *TRAIN]
    images, encode, asked = ImageTable.of(subject.encoder, examples), subject.encoder.encode, []
    assert len(images.inputs) == len({example.image for example in examples}) == len(examples) - 2
    assert set(images.row_of) == {example.id for example in examples}
    assert images.row_of["again"] == images.row_of[POOL[0].id] != images.row_of[POOL[1].id]
    assert images.row_of["twice"] == images.row_of[POOL[2].id]
    batch = make_data(subject.encoder).batch([query.id for query in TRAIN])
    subject.encoder.encode = lambda inputs: asked.append(len(inputs)) or encode(inputs)
    images.encoded(subject.encoder, batch)
    shown = {BY_ID[name].image for query in TRAIN for name in (query.id, *LISTS[query.id][0])}
    assert asked == [len(shown)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_a_slow_loop(make: Any, tmp_path: Path, kind: str, way: str) -> None:
    """Two epochs of three updates (2 + 2 + 1 queries), of which the first two of six warm up; one AdamW a part."""
    run = Run(make(kind), tmp_path / "ours", encoder_params(way, lr=0.002))
    slow = Run(make(kind), tmp_path / "slow", encoder_params(way, lr=0.002))
    start = {name: weight.clone() for name, weight in slow.everything().items()}
    run.train()
    weights, queries = list(slow.trained().values()), sorted(LISTS)
    adams = [
        (torch.optim.AdamW(slow.selector.parameters(), weight_decay=0.05), 0.003),
        (torch.optim.AdamW(weights, weight_decay=0.05), 0.002),
    ]
    blurred = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in start.items()}
    factors = iter([1 / 2, 1.0, *((1 + math.cos(math.pi * past / 4)) / 2 for past in range(4))])
    means = []
    for epoch in (1, 2):
        shuffled = np.random.default_rng(np.random.SeedSequence([3, epoch])).permutation(5)
        losses = []
        for rows in (shuffled[:2], shuffled[2:4], shuffled[4:]):
            slow.selector.zero_grad()
            slow.subject.model.zero_grad()
            loss = slow_loss(slow.subject.encoder, slow.selector, slow.data, [queries[row] for row in rows])
            loss.backward()
            moved = [weight for weight in [*slow.selector.parameters(), *weights] if weight.grad is not None]
            norm = math.sqrt(sum(float(weight.grad.double().square().sum()) for weight in moved))
            factor = next(factors)
            for weight in moved:
                weight.grad *= min(1.0, 1.0 / norm)
            for name, weight in slow.gradients().items():
                blurred[name] |= (weight != 0) & (weight.abs() < 1e-6)
            for adam, peak in adams:
                adam.param_groups[0]["lr"] = peak * factor
                adam.step()
            losses.append(float(loss.detach()))
        means.append(sum(losses) / 3)
    assert [line.rpartition(" ")[0] for line in run.said] == [f"encoder epoch {epoch} of 2: loss" for epoch in (1, 2)]
    assert run.losses() == pytest.approx(means, abs=1e-3)
    ours, theirs = run.everything(), slow.everything()
    moved_far = 0
    for name, weight in ours.items():  # where a gradient is almost 0, AdamW makes steps of its rounding
        clear = ~blurred[name]
        step = (theirs[name] - start[name])[clear].float().norm()
        assert (weight - theirs[name])[clear].float().norm() <= 0.01 * step + 1e-6, name
        moved_far += bool(step > 1e-3)
    assert moved_far > len(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_that_of_sft_on_the_features_of_the_encoder(make: Any, tmp_path: Path, kind: str) -> None:
    run = Run(make(kind), tmp_path, encoder_params("lora", epochs=1), batch=5)
    with torch.no_grad():
        expected = float(slow_loss(run.subject.encoder, run.selector, run.data, sorted(LISTS)))
    run.train()
    assert run.losses() == [pytest.approx(expected, abs=1e-4)]


def test_dropout_is_on(make: Any, tmp_path: Path) -> None:
    losses = []
    for dropout in (0.0, 0.5):
        run = Run(make("clip"), tmp_path / str(dropout), encoder_params("lora", epochs=1), batch=5, dropout=dropout)
        run.selector.eval()
        run.train()
        losses += run.losses()
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_lists_are_learned_and_what_is_frozen_stays(make: Any, tmp_path: Path, kind: str, way: str) -> None:
    run = Run(make(kind), tmp_path, encoder_params(way, epochs=15), batch=5)
    trained = {id(weight) for weight in run.trained().values()}
    before = {name: weight.detach().clone() for name, weight in run.subject.model.named_parameters()}
    vectors = vectors_of(run.subject.encoder)
    with torch.no_grad():
        first = slow_loss(run.subject.encoder, run.selector, run.data, sorted(LISTS))
    run.train()
    with torch.no_grad():
        last = slow_loss(run.subject.encoder, run.selector, run.data, sorted(LISTS))
    assert last < first - 0.5
    for name, weight in run.subject.model.named_parameters():
        assert torch.equal(weight, before[name]) is not (id(weight) in trained), name
    assert (vectors_of(run.subject.encoder) - vectors).abs().max() > 1e-3
    assert not run.subject.encoder.module.training


class KilledError(Exception):
    pass


def dies(_: str) -> None:
    raise KilledError


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_after_every_epoch_it_ends_with_the_same_bits(make: Any, tmp_path: Path, kind: str, way: str) -> None:
    params = encoder_params(way, epochs=3)
    whole = Run(make(kind), tmp_path / "whole", params, dropout=0.3)
    whole.train()
    assert len(whole.said) == 3
    for epoch in range(3):
        run = Run(make(kind), tmp_path / "killed", params, dropout=0.3)
        if epoch > 0:
            randomise(run.subject.encoder.module)  # once there is a state, where a run starts does not matter
        with pytest.raises(KilledError):
            run.train(dies)
    last = Run(make(kind), tmp_path / "killed", params, dropout=0.3)
    last.train()
    assert last.said == []  # all three epochs were kept
    for name, weight in whole.everything().items():
        assert torch.equal(last.everything()[name], weight), name
    assert (tmp_path / "killed/encoder.pt").read_bytes() == (tmp_path / "whole/encoder.pt").read_bytes()
    other = Run(make(kind), tmp_path / "other", params, dropout=0.3, seed=4)
    other.train()
    assert other.losses() != whole.losses()


def test_a_resumed_run_repeats_no_epoch(make: Any, tmp_path: Path) -> None:
    params = encoder_params("lora", epochs=3)
    with pytest.raises(KilledError):
        Run(make("clip"), tmp_path, params).train(dies)
    run = Run(make("clip"), tmp_path, params)
    run.train()
    assert [line.split(":")[0] for line in run.said] == ["encoder epoch 2 of 3", "encoder epoch 3 of 3"]


@pytest.fixture
def kept(make: Any, tmp_path: Path) -> Path:
    """A state folder after one epoch of LoRA."""
    Run(make("clip"), tmp_path, encoder_params("lora", epochs=1)).train()
    return tmp_path


def refused(run: Run) -> None:
    with pytest.raises(LeverlabError, match=r"encoder\.pt is damaged \(.+\); delete its folder and run again"):
        run.train()


def test_a_damaged_state_is_refused(make: Any, kept: Path) -> None:
    path, run = kept / "encoder.pt", Run(make("clip"), kept, encoder_params("lora", epochs=1))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damage in (content[:-100], b"", b"nothing", bytes(flipped)):
        path.write_bytes(damage)
        refused(run)
    path.write_bytes(content)
    run.train()


@pytest.mark.parametrize("rank", [1, 3])
def test_the_state_of_an_adapter_of_another_rank_is_refused(make: Any, kept: Path, rank: int) -> None:
    """Weights of rank 1 could be broadcast to rank 4, and the state of AdamW is not compared by torch."""
    (kept / "encoder.pt").unlink()
    Run(make("clip"), kept, encoder_params("lora", rank=rank, epochs=1)).train()
    refused(Run(make("clip"), kept, encoder_params("lora", epochs=1)))


def test_the_state_of_other_weights_is_refused(make: Any, kept: Path) -> None:
    refused(Run(make("clip"), kept, encoder_params("full", epochs=1)))
    refused(Run(make("vlm"), kept, encoder_params("lora", epochs=1)))
    refused(Run(make("clip"), kept, encoder_params("lora", epochs=1), width=8))


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 0},
        {"epoch": 1.0},
        {"epoch": True},
        {"weights": [1, 2]},
        {"weights": {}},
        {"selector": {}},
        {"optimizer": {}},
    ],
)
def test_a_state_of_another_form_is_refused(make: Any, kept: Path, change: dict[str, Any]) -> None:
    state = torch.load(kept / "encoder.pt")
    torch.save(state | change, kept / "encoder.pt")
    refused(Run(make("clip"), kept, encoder_params("lora", epochs=1)))


@pytest.mark.parametrize("name", ["epoch", "weights", "selector", "optimizer"])
def test_a_state_that_lacks_a_part_is_refused(make: Any, kept: Path, name: str) -> None:
    state = torch.load(kept / "encoder.pt")
    del state[name]
    torch.save(state, kept / "encoder.pt")
    refused(Run(make("clip"), kept, encoder_params("lora", epochs=1)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_a_number_ends_the_run(make: Any, tmp_path: Path, kind: str) -> None:
    run = Run(make(kind), tmp_path, encoder_params("full"))
    with torch.no_grad():
        next(iter(run.trained().values())).fill_(math.nan)
    with pytest.raises(NotFiniteError, match=r"at update 1; lower sft\.encoder\.lr"):
        run.train()
    assert not (tmp_path / "encoder.pt").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_a_number_ends_the_run_before_a_weight_moves(
    make: Any, tmp_path: Path, value: float
) -> None:
    run = Run(make("clip"), tmp_path, encoder_params("full"))
    next(iter(run.trained().values())).register_hook(lambda gradient: gradient * 0 + value)
    before = run.everything()
    with pytest.raises(NotFiniteError, match="update 1"):
        run.train()
    for name, weight in run.everything().items():
        assert torch.equal(weight, before[name]), name
    assert not (tmp_path / "encoder.pt").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_a_saved_adapter_onto_a_fresh_encoder(make: Any, tmp_path: Path, kind: str) -> None:
    subject, fresh = make(kind), make(kind)
    config = make_trainable(subject.encoder.module, encoder_params("lora"), "the-source")
    randomise(subject.encoder.module)
    save_encoder(tmp_path, subject.encoder.module, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not torch.equal(vectors_of(fresh.encoder), vectors_of(subject.encoder))
    loaded = PeftModel.from_pretrained(fresh.encoder.module, tmp_path)
    theirs = {name: weight for name, weight in loaded.named_parameters() if "lora_" in name}
    ours = trained_weights(subject.encoder.module)
    assert {name.removeprefix("base_model.model.") for name in theirs} == set(ours)
    for name, weight in theirs.items():
        assert torch.equal(weight, ours[name.removeprefix("base_model.model.")]), name
    assert torch.equal(vectors_of(fresh.encoder), vectors_of(subject.encoder))
    assert loaded.peft_config["default"].base_model_name_or_path == "the-source"
    assert (loaded.peft_config["default"].r, loaded.peft_config["default"].lora_alpha) == (4, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fully_trained_encoder_loads_strictly(make: Any, tmp_path: Path, kind: str) -> None:
    subject, fresh = make(kind), make(kind)
    config = make_trainable(subject.encoder.module, encoder_params("full"), "the-source")
    randomise(subject.encoder.module)
    save_encoder(tmp_path, subject.encoder.module, config)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert not torch.equal(vectors_of(fresh.encoder), vectors_of(subject.encoder))
    fresh.encoder.module.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(vectors_of(fresh.encoder), vectors_of(subject.encoder))


SAVE = """\
import sys
from pathlib import Path

import torch
from torch import nn

from leverlab.config.sft import EncoderParams
from leverlab.training.encoder import make_trainable, save_encoder

torch.manual_seed(0)
names = ("query", "key", "value", "out", "up", "down")
layers = [nn.ModuleDict({"norm": nn.LayerNorm(4)} | {name: nn.Linear(4, 4) for name in names}) for _ in range(4)]
tower = nn.ModuleDict({"layers": nn.ModuleList(layers), "merge": nn.Linear(4, 4)})
config = make_trainable(tower, EncoderParams(train="lora", epochs=1, lr=0.1, rank=2, alpha=4), "the-source")
save_encoder(Path(sys.argv[1]), tower, config)
"""


@pytest.mark.slow
def test_the_files_do_not_depend_on_the_order_of_hashes(tmp_path: Path) -> None:
    """25 layers: from 20 on PEFT shortens the list of their names, by way of sets."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([sys.executable, "-c", SAVE, tmp_path / seed], env=environment | {"PYTHONHASHSEED": seed})
        for seed in ("0", "1")
    ]
    assert [child.wait() for child in children] == [0, 0]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        first, second = ((tmp_path / seed / name).read_bytes() for seed in ("0", "1"))
        assert first == second
    assert len(load_file(tmp_path / "0/adapter_model.safetensors")) == 50
