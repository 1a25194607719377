"""Training of the embedded world's VLM: from random weights to in-context learning in about ten minutes on one core.

Loss: cross-entropy of every answer token, weight 1 where the answer can be known (its class was shown before in the
episode) and `unseen_weight` where it cannot. In training only, linear heads read the classes from the image feature,
after the second layer (where the answer is predicted) and after the third (at the answer); they are thrown away.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from leverlab.training.digits_episodes import (
    CLASS_COUNT,
    CLASS_SIZES,
    Item,
    SceneSampler,
    matching_episode,
    training_episode,
)
from leverlab.training.resume import read_state, state_error
from leverlab.vlm.vision import encode_images

IGNORED = -100
END_WEIGHT = 0.1  # the end of an answer follows from the question type; it needs little of the loss


@dataclass(frozen=True)
class Batch:
    """Episodes as tensors. P is the padded prompt length; answers are indexed by where they are predicted."""

    ids_BP: Tensor
    images: NDArray[np.uint8]  # (images in reading order, 16, 16, 3)
    targets_BP: Tensor  # the token to predict next, IGNORED elsewhere
    weights_BP: Tensor
    classes_BP: Tensor  # the class of the word to predict next, IGNORED elsewhere
    shown: Tensor  # (images, 3): number, colour and texture that each image shows


def collate(episodes: list[list[Item]], tokenizer: Any, unseen_weight: float) -> Batch:
    """Return the batch of `episodes`, rendered turn by turn as the chat template does (a test compares)."""
    start, pad, end, stop, empty = (
        tokenizer.convert_tokens_to_ids(token)
        for token in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|im_end|>", "<|endoftext|>")
    )
    encode = _WordCache(tokenizer)
    rows, images, shown = [], [], []
    for items in episodes:
        ids: list[int] = []
        marks: list[tuple[int, int, float, int]] = []  # position that predicts, target, weight, class
        seen: set[int] = set()
        for item in items:
            images.append(item.image)
            shown.append(item.shown)
            ids += [start, pad, end, *encode(item.question)]
            for word, index in zip(item.words, item.classes, strict=True):
                (token,) = encode(" " + word)
                marks.append((len(ids) - 1, token, 1.0 if index in seen else unseen_weight, index))
                ids.append(token)
            marks.append((len(ids) - 1, stop, END_WEIGHT, IGNORED))
            ids.append(stop)
            seen.update(item.classes)
        rows.append((ids, marks))
    length = max(len(ids) for ids, _ in rows)
    ids_BP = torch.full((len(rows), length), empty)
    targets_BP, classes_BP = torch.full_like(ids_BP, IGNORED), torch.full_like(ids_BP, IGNORED)
    weights_BP = torch.zeros(len(rows), length)
    for row, (ids, marks) in enumerate(rows):
        ids_BP[row, : len(ids)] = torch.tensor(ids)
        for position, target, weight, index in marks:
            targets_BP[row, position], weights_BP[row, position], classes_BP[row, position] = target, weight, index
    return Batch(ids_BP, np.stack(images), targets_BP, weights_BP, classes_BP, torch.tensor(shown))


class _WordCache:
    """Token ids of short texts; the tokenizer's own call costs more than the rest of the batch."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._known = tokenizer, dict[str, list[int]]()

    def __call__(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False).input_ids
        return self._known[text]


def patches(images: NDArray[np.uint8], image_processor: Any) -> tuple[Tensor, Tensor]:
    """Return `(pixel_values, image_grid_thw)` of equal-size images (N, H, W, 3), as `image_processor` would (a test
    compares)."""
    size, merge, temporal = image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    pixels = (torch.from_numpy(images).float() / 255 - mean) / std
    count, height, width = images.shape[0], images.shape[1] // size, images.shape[2] // size
    cut = pixels.view(count, height // merge, merge, size, width // merge, merge, size, 3).permute(
        0, 1, 4, 2, 5, 7, 3, 6
    )
    flat = cut.unsqueeze(6).expand(*cut.shape[:6], temporal, size, size).reshape(count * height * width, -1)
    return flat, torch.tensor([[1, height, width]]).repeat(count, 1)


def embed(model: Any, image_processor: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the input embeddings (B, P, width) of `batch`, and the image features (images, width) that stand in
    them."""
    embeds_BPD = model.get_input_embeddings()(batch.ids_BP)
    features = torch.cat(encode_images(model, *patches(batch.images, image_processor)))
    is_image_BP = batch.ids_BP == model.config.image_token_id
    return embeds_BPD.masked_scatter(is_image_BP.unsqueeze(-1), features.to(embeds_BPD.dtype)), features


def run_text(model: Any, embeds_BPD: Tensor, hidden_states: bool = False) -> Any:
    """Return the language model's output; one token an image, so the three rotary axes coincide with the token index.

    Padding is on the right, behind the causal mask, and needs no mask of its own.
    """
    batch, length, _ = embeds_BPD.shape
    positions = torch.arange(length).expand(3, batch, length)
    return model.model.language_model(
        inputs_embeds=embeds_BPD, position_ids=positions, output_hidden_states=hidden_states, use_cache=False
    )


class ClassHeads(torch.nn.Module):
    """Linear readers of the classes, in training only: of the image feature, after layer 2, and after layer 3."""

    def __init__(self, width: int):
        super().__init__()
        self.image = torch.nn.Linear(width, CLASS_COUNT)
        self.after_second = torch.nn.Linear(width, CLASS_COUNT)
        self.after_third = torch.nn.Linear(width, CLASS_COUNT)


def episode_loss(
    model: Any, heads: ClassHeads, image_processor: Any, batch: Batch, head_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted answer loss plus `head_weight` times the class losses, and diagnostics.

    Diagnostics: `answer_loss`, `head_loss`, and `accuracy` over the answers that can be known.
    """
    embeds_BPD, features = embed(model, image_processor, batch)
    output = run_text(model, embeds_BPD, hidden_states=True)
    asked_BP = batch.targets_BP != IGNORED
    logits = model.lm_head(output.last_hidden_state[asked_BP])
    targets, weights, classes = batch.targets_BP[asked_BP], batch.weights_BP[asked_BP], batch.classes_BP[asked_BP]
    answer_loss = (functional.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
    is_word = classes != IGNORED
    at_answer_BP = torch.zeros_like(asked_BP)
    at_answer_BP[:, 1:] = batch.classes_BP[:, :-1] != IGNORED
    head_loss = functional.cross_entropy(
        heads.after_second(output.hidden_states[2][asked_BP][is_word]), classes[is_word]
    )
    head_loss = head_loss + functional.cross_entropy(
        heads.after_third(output.hidden_states[3][at_answer_BP]), classes[is_word]
    )
    for logits_part, shown in zip(heads.image(features).split(CLASS_SIZES, dim=-1), batch.shown.unbind(1), strict=True):
        head_loss = head_loss + functional.cross_entropy(logits_part, shown)
    known = is_word & (weights == 1.0)
    accuracy = (logits.argmax(-1) == targets)[known].float().mean()
    diagnostics = {"answer_loss": answer_loss.detach(), "head_loss": head_loss.detach(), "accuracy": accuracy}
    return answer_loss + head_weight * head_loss, diagnostics


@torch.no_grad()
def matching_accuracy(
    model: Any, processor: Any, scans: tuple[int, ...], shots: int, episodes: int, seed: int
) -> float:
    """Return the share of `episodes` matching tests (see `matching_episode`) whose answer, end included, is right.

    This, on scans that training never saw, is the figure that shows in-context learning; accuracy on training episodes
    does not.
    """
    sampler, rng = SceneSampler(scans), np.random.default_rng([seed, shots])
    right = 0
    for start in range(0, episodes, 64):
        tests = [matching_episode(sampler, shots, rng) for _ in range(min(64, episodes - start))]
        batch = collate(tests, processor.tokenizer, 1.0)
        hidden = run_text(model, embed(model, processor.image_processor, batch)[0]).last_hidden_state
        for row, items in enumerate(tests):
            asked = torch.nonzero(batch.targets_BP[row] != IGNORED).flatten()[-(len(items[-1].words) + 1) :]
            right += bool((model.lm_head(hidden[row, asked]).argmax(-1) == batch.targets_BP[row, asked]).all())
    return right / episodes


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the factor on the learning rate at `step` of `steps`: 100 steps of warm-up, linear decay over the last 40
    %."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))


def fit(
    model: Any,
    processor: Any,
    scans: tuple[int, ...],
    *,
    steps: int,
    episodes: int,
    items: int,
    learning_rate: float,
    unseen_weight: float,
    head_weight: float,
    seed: int,
    save_every: int,
    state_file: Path,
    on_step: Callable[[int, dict[str, float]], None],
) -> None:
    """Train `model` in place for `steps` steps of `episodes` episodes; continue from `state_file` where it exists.

    Every batch is a function of (seed, step) alone, so a run that was killed ends with the same weights as one that
    was not. `on_step` gets the step and its diagnostics.
    """
    torch.manual_seed(seed)
    heads = ClassHeads(model.config.text_config.hidden_size)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    first = 0
    if state_file.exists():
        state = read_state(state_file, ("model", "heads", "optimizer", "step"))
        try:
            model.load_state_dict(state["model"])
            heads.load_state_dict(state["heads"])
            optimizer.load_state_dict(state["optimizer"])
            if type(first := state["step"]) is not int:
                raise ValueError(f"its step is {first!r}")
        except Exception as error:  # a state of another form: torch raises errors of many kinds
            raise state_error(state_file, error) from None
    sampler = SceneSampler(scans)
    model.train()
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        drawn = [training_episode(sampler, items, rng) for _ in range(episodes)]
        batch = collate(drawn, processor.tokenizer, unseen_weight)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(step, steps)
        loss, diagnostics = episode_loss(model, heads, processor.image_processor, batch, head_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        on_step(step + 1, {"loss": float(loss.detach()), **{name: float(value) for name, value in diagnostics.items()}})
        if (step + 1) % save_every == 0 and step + 1 < steps:
            state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
            partial = state_file.with_suffix(".partial")
            torch.save({**state, "step": step + 1}, partial)
            partial.replace(state_file)
    model.eval()
