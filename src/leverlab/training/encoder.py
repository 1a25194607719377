"""Training of the image encoder: with a selector of its own it learns to write the best beams, whole or through LoRA.

The selector of the run is taught afterwards, on the features that the trained encoder gives; all later stages read
them. The VLM that answers stays as it is.

LoRA (Hu et al. 2021, arXiv 2106.09685) comes from PEFT, on every linear layer of the encoder.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from leverlab.config.sft import EncoderParams, SftParams
from leverlab.errors import LeverlabError
from leverlab.files import write_bytes, write_text
from leverlab.records import Example
from leverlab.rl.losses import sequence_cross_entropy
from leverlab.rl.sampling import batches, epoch_order
from leverlab.rl.schedules import warmup_cosine
from leverlab.selector.batches import QueryBatch, QueryData
from leverlab.selector.encoders import ImageEncoder, Inputs, image_batches
from leverlab.selector.network import Selector
from leverlab.training.imitation import Lists, updates_per_epoch
from leverlab.training.loop import NotFiniteError
from leverlab.training.resume import read_state, state_error

ADAPTER = "default"


def make_trainable(module: nn.Module, params: EncoderParams, source: str) -> dict[str, Any]:
    """Let gradients into the weights that `params` trains, and return the config of the adapter, empty for `full`.

    With `lora` the linear layers of `module` are replaced in place, and start as they were. `source` names the model.
    """
    if params.train == "full":
        module.requires_grad_(True)
        return {}
    from peft import LoraConfig, inject_adapter_in_model  # seconds of import, for one plan alone

    layers = sorted(name for name, layer in module.named_modules() if isinstance(layer, nn.Linear))
    config = LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=layers, base_model_name_or_path=source)
    inject_adapter_in_model(config, module, ADAPTER)
    plain: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    return {name: sorted(value) if isinstance(value, set) else value for name, value in plain.items()}


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of `module` that are trained."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def save_encoder(folder: Path, module: nn.Module, config: Mapping[str, Any]) -> None:
    """Write the trained weights: an adapter as PEFT saves one, or model.safetensors."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in trained_weights(module).items()}
    if not config:
        write_bytes(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
        return
    named = {f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": weight for name, weight in weights.items()}
    write_bytes(folder / "adapter_model.safetensors", save(named, metadata={"format": "pt"}))
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")


@dataclass(frozen=True)
class ImageTable:
    """The images of examples, ready for the encoder, and which of them each example shows."""

    inputs: Sequence[Inputs]
    row_of: Mapping[str, int]

    @classmethod
    def of(cls, encoder: ImageEncoder, examples: Sequence[Example]) -> "ImageTable":
        """Return the table of `examples`; equal images are held once."""
        shown = {example.image: example for example in examples}
        inputs: dict[bytes, Inputs] = {}
        for batch in image_batches(examples):
            inputs |= zip(batch, encoder.prepare([shown[content].open_image() for content in batch]), strict=True)
        rows = {content: row for row, content in enumerate(inputs)}
        return cls(list(inputs.values()), {example.id: rows[example.image] for example in examples})

    def encoded(self, encoder: ImageEncoder, batch: QueryBatch) -> QueryBatch:
        """Return `batch` with the image vectors that the encoder gives now; each image is encoded once."""
        shown = [self.row_of[query] for query in batch.query_ids]
        shown += [self.row_of[demo] for candidates in batch.candidate_ids for demo in candidates]
        rows, index = torch.unique(torch.tensor(shown), return_inverse=True)
        vectors = encoder.encode([self.inputs[row] for row in rows.tolist()]).to(batch.query[0].device)[index]
        queries = len(batch.query_ids)
        demo_BKD = vectors[queries:].view(*batch.demos[0].shape[:2], -1)
        return replace(batch, query=(vectors[:queries], batch.query[1]), demos=(demo_BKD, *batch.demos[1:]))


def train_encoder(
    encoder: ImageEncoder,
    selector: Selector,
    data: QueryData,
    images: ImageTable,
    lists: Mapping[str, Lists],
    picks: int,
    params: SftParams,
    seed: int,
    folder: Path,
    on_epoch: Callable[[dict[str, float]], None],
) -> None:
    """Train the weights of `encoder` that take gradients, and `selector`, on the `lists` of each query, in place.

    The state after each epoch is kept in `folder`, and a run goes on from the last one. `on_epoch` gets a row with
    `epoch`, `step` (updates so far) and the mean `loss`. Raises `NotFiniteError` when a
    loss is not a number.
    """
    weights, queries = trained_weights(encoder.module), sorted(lists)
    groups: list[dict[str, Any]] = [{"params": list(selector.parameters())}, {"params": list(weights.values())}]
    optimizer = torch.optim.AdamW(groups, weight_decay=params.weight_decay)
    state_file = folder / "encoder.pt"
    done = _resume(state_file, weights, selector, optimizer)
    per_epoch, epochs = updates_per_epoch(len(queries), params.batch), params.encoder.epochs
    peaks = (params.lr.largest(), params.encoder.lr)

    def batch_loss(query_ids: Sequence[str]) -> Tensor:
        batch = images.encoded(encoder, data.batch(query_ids))
        picks_BGT = batch.positions([lists[query] for query in query_ids], picks)
        logp_BG = selector.list_logp(selector.encode(batch.query, batch.demos), picks_BGT).sum(-1)
        return sequence_cross_entropy(logp_BG, torch.full_like(logp_BG, 1 / logp_BG.shape[1]))[0]

    selector.train()
    for epoch in range(done + 1, epochs + 1):
        torch.manual_seed(seed * 1_000_003 + epoch)
        losses = []
        for index, positions in enumerate(batches(epoch_order(len(queries), seed, epoch), params.batch)):
            update = (epoch - 1) * per_epoch + index
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * warmup_cosine(update, epochs * per_epoch, params.warmup)
            loss = batch_loss([queries[row] for row in positions])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            everything = [weight for group in optimizer.param_groups for weight in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(everything, params.grad_clip)
            if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
                raise NotFiniteError(
                    f"the loss of the encoder or its gradient is not a number at update {update + 1}; lower "
                    "sft.encoder.lr"
                )
            optimizer.step()
            losses.append(float(loss.detach()))
        _save(state_file, epoch, weights, selector, optimizer)
        on_epoch({"epoch": epoch, "step": epoch * per_epoch, "loss": sum(losses) / len(losses)})


def describe_encoder(row: Mapping[str, float], epochs: int) -> str:
    """Return one line about an epoch."""
    return f"encoder epoch {row['epoch']:.0f} of {epochs}: loss {row['loss']:.4f}"


def _save(
    path: Path, epoch: int, weights: Mapping[str, Tensor], selector: Selector, optimizer: torch.optim.Optimizer
) -> None:
    state = {
        "epoch": epoch,
        "weights": {name: weight.detach() for name, weight in weights.items()},
        "selector": selector.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def _resume(
    path: Path,
    weights: Mapping[str, nn.Parameter] | Mapping[str, Tensor],
    selector: Selector,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Take over the state at `path`, if there is one, and return how many epochs are done."""
    if not path.exists():
        return 0
    state = read_state(path, ("epoch", "weights", "selector", "optimizer"))
    try:
        kept, wanted = ({name: weight.shape for name, weight in of.items()} for of in (state["weights"], weights))
        if kept != wanted or type(state["epoch"]) is not int or state["epoch"] < 1:
            raise LeverlabError("it belongs to other weights")
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state["weights"][name])
        selector.load_state_dict(state["selector"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:  # a state of another form: torch raises errors of many kinds
        raise state_error(path, error) from None
    return int(state["epoch"])
