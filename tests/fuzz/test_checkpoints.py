"""Checkpoints, resume states, the inference format and the score cache."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import nn

from leverlab.config.schedule import Schedule
from leverlab.export.selector import inference_tensors
from leverlab.selector.architecture import Architecture
from leverlab.selector.checkpoints import FORMAT, load_selector, save_selector
from leverlab.selector.inference import InferenceSelector, save_inference
from leverlab.selector.network import Selector
from leverlab.training.digits_vlm import ClassHeads, fit
from leverlab.training.loop import Loss, Optimisation, Row, train
from leverlab.vlm.cache import ScoreCache
from tests.fuzz.conftest import Tally
from tests.fuzz.mutations import byte_mutants

Maker = Callable[..., Tally]
WIDTHS = (2, 2, 2)
PLAIN = Architecture(4, "gru", "dot", False, False)

pytestmark = pytest.mark.filterwarnings("error")


def make_selector() -> Selector:
    torch.manual_seed(0)
    selector = Selector(WIDTHS, PLAIN, 0.1)
    for name in ("image", "question", "answer"):
        selector.set_statistics(name, torch.randn(9, 2))
    return selector


def tensor_mutants(tensors: dict[str, Any], count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield other valid files: a tensor lost, added, renamed, swapped, of another shape or type, or not finite."""
    rng = np.random.default_rng(seed)
    kinds = ("drop", "extra", "rename", "swap", "cut", "flat", "f64", "f16", "i32", "nan", "inf", "empty", "scalar")
    for index in range(count):
        kind, name = kinds[index % len(kinds)], sorted(tensors)[int(rng.integers(len(tensors)))]
        mutant, values = dict(tensors), tensors[name]
        other = sorted(tensors)[int(rng.integers(len(tensors)))]
        at = int(rng.integers(values.size))
        if kind in ("drop", "rename"):
            del mutant[name]
        if kind in ("extra", "rename"):
            mutant[f"{name}_"] = values
        if kind == "swap":
            mutant[name], mutant[other] = tensors[other], values
        changed = {
            "cut": values[:-1],
            "flat": values.reshape(-1, 1),
            "f64": values.astype(np.float64),
            "f16": values.astype(np.float16),
            "i32": values.astype(np.int32),
            "empty": values[:0],
            "scalar": values.ravel()[0],
        }
        if kind in ("nan", "inf"):
            mutant[name] = values.copy()
            mutant[name].flat[at] = np.nan if kind == "nan" else -np.inf
        elif kind in changed:
            mutant[name] = np.ascontiguousarray(changed[kind])
        yield f"{kind} {name}", mutant


HEADER = {"format": FORMAT, "widths": list(WIDTHS), "dropout": 0.1, **asdict(PLAIN)}


def test_selector_checkpoint(tmp_path: Path, tally: Maker) -> None:
    """Weights have no checksum: a changed one passes when it is a number that the network can compute with."""
    path = tmp_path / "epoch-001.safetensors"
    save_selector(path, make_selector())
    sound = {name: tensor.numpy().copy() for name, tensor in load_file(path).items()}  # not the mapped file
    shapes = {name: tensor.shape for name, tensor in sound.items()}

    def check(selector: Selector) -> None:
        state = selector.state_dict()
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
        assert (tuple(selector.widths), selector.architecture) == (WIDTHS, PLAIN)
        assert 0 <= selector.dropout.p < 1
        for name, tensor in state.items():
            assert tensor.dtype == torch.float32
            assert bool(torch.isfinite(tensor).all())
            assert not name.endswith("_scale") or bool((tensor > 0).all())

    count = tally(lambda: load_selector(path), check, [str(path)])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1600, seed=0))
    metadata = {"leverlab": json.dumps(HEADER)}
    mutants = tensor_mutants(sound, 400, seed=1)
    count.attempt_all(path, ((what, save(tensors, metadata)) for what, tensors in mutants))
    values = (None, True, -1, 0, 1e9, "4", [], [2, 2], {"a": 1}, "gated", "static", "bilinear", "additive")
    headers = [{**HEADER, key: value} for key in HEADER for value in values]
    texts = [*map(json.dumps, headers), "", "[]", "null", "NaN", "{", "[" * 5000, '"x"']
    count.attempt_all(path, ((text[:80], save(sound, {"leverlab": text})) for text in texts))
    count.attempt_all(path, [("no metadata", save(sound)), ("other metadata", save(sound, {"x": "y"}))])


CONFIG = {"widths": list(WIDTHS), **asdict(PLAIN), "shots": 2, "method": "grpo", "seed": 0}


@pytest.mark.parametrize("name", ["selector.safetensors", "config.json"])
def test_inference_format(tmp_path: Path, tally: Maker, name: str) -> None:
    tensors = inference_tensors(make_selector().eval())
    save_inference(tmp_path, tensors, CONFIG)
    path = tmp_path / name
    rng = np.random.default_rng(0)
    query = [rng.normal(size=(1, 2)) for _ in range(2)]
    demos = [rng.normal(size=(1, 3, 2)) for _ in range(3)]

    def check(selector: InferenceSelector) -> None:
        assert selector.architecture == PLAIN
        assert selector.config["widths"] == list(WIDTHS)
        assert {key: value.shape for key, value in selector._t.items()} == {k: v.shape for k, v in tensors.items()}
        for values in selector._t.values():
            assert np.isfinite(values).all()
            assert np.array_equal(values, values.astype(np.float32))
        with np.errstate(all="ignore"):
            assert sorted(selector.pick(query, demos, 3)[0].tolist()) == [0, 1, 2]

    count = tally(lambda: InferenceSelector.load(tmp_path), check, [str(tmp_path)])
    if name == "config.json":
        count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=0))
        count.attempt_trees(path, json.loads(path.read_text()), 1000)
    else:
        count.attempt_all(path, byte_mutants(path.read_bytes(), 1700, seed=0))
        mutants = tensor_mutants(tensors, 400, seed=1)
        count.attempt_all(path, ((what, save(changed)) for what, changed in mutants))


def fuzz_state(path: Path, count: Tally, weights: Callable[[Any], list[float]]) -> None:
    """Damage the bytes of a zip file, which holds checksums, then put other things into a valid one."""
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1900, seed=0))
    sound = weights(count.read())

    def check(found: Any) -> None:
        assert len(weights(found)) == len(sound)
        assert np.isfinite(weights(found)).all()

    count.check = check
    state = torch.load(path, weights_only=True)
    values: tuple[Any, ...] = (None, 7, "x", [], {}, [1], {"x": 1}, torch.ones(2), [None], [{}], {"state": 1}, True)

    def files() -> Iterator[tuple[str, bytes]]:
        for what, mutant in [(repr(value)[:40], value) for value in values]:
            yield what, torch_bytes(mutant)
        for key in state:
            yield f"no {key}", torch_bytes({other: value for other, value in state.items() if other != key})
            for value in values:
                yield f"{key} = {value}", torch_bytes({**state, key: value})
            if isinstance(state[key], dict):
                for inner in state[key]:
                    yield (
                        f"no {key}.{inner}",
                        torch_bytes({**state, key: {k: value for k, value in state[key].items() if k != inner}}),
                    )
                    for value in values:
                        yield f"{key}.{inner} = {value}", torch_bytes({**state, key: {**state[key], inner: value}})

    count.attempt_all(path, files())


def torch_bytes(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def flat_state(module: nn.Module) -> list[float]:
    return [value for tensor in module.state_dict().values() for value in tensor.flatten().tolist()]


def test_resume_state(tmp_path: Path, tally: Maker) -> None:
    """A run that is resumed after its last epoch ends with the weights and rows that were saved."""
    settings = Optimisation(1, 1, Schedule.model_validate(0.1), 0.0, 0.0, 1.0, 0)

    def losses(selector: Selector) -> Callable[[int, Sequence[Row]], Iterator[Callable[[], Loss]]]:
        def closures(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
            yield lambda: (sum((weight**2).sum() for weight in selector.parameters()), {})  # type: ignore[misc]

        return closures

    def run(selector: Selector) -> Any:
        train(selector, settings, losses(selector), lambda _: {"val_accuracy": 0.5}, tmp_path, lambda _: None)
        return flat_state(selector), (tmp_path / "metrics.csv").read_text()

    expected = run(make_selector())
    blank = make_selector().state_dict()
    selector = Selector(WIDTHS, PLAIN, 0.1)

    def resume() -> Any:
        selector.load_state_dict(blank)
        return run(selector)

    def check(found: Any) -> None:
        assert found == expected

    fuzz_state(tmp_path / "resume.pt", tally(resume, check, [str(tmp_path / "resume.pt")]), lambda found: found[0])


def test_resume_state_of_the_vlm(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "resume.pt"
    model: Any = nn.Linear(3, 2)
    model.config = SimpleNamespace(text_config=SimpleNamespace(hidden_size=2))
    heads = ClassHeads(2)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()])
    sum((weight**2).sum() for weight in [*model.parameters(), *heads.parameters()]).backward()  # type: ignore[union-attr]
    optimizer.step()
    state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict(), "step": 5}
    path.write_bytes(torch_bytes(state))
    expected = flat_state(model)
    options: dict[str, Any] = {"episodes": 1, "items": 2, "learning_rate": 0.1, "unseen_weight": 0, "head_weight": 0}

    def resume() -> Any:
        nn.init.zeros_(model.weight)
        steps: list[int] = []
        fit(
            model,
            None,
            {},
            steps=5,
            **options,
            seed=0,
            save_every=9,
            state_file=path,
            on_step=lambda n, _: steps.append(n),
        )
        assert not steps
        return flat_state(model)

    def check(found: Any) -> None:
        assert found == expected

    fuzz_state(path, tally(resume, check, [str(path)]), lambda found: found)


def test_score_cache(tmp_path: Path, tally: Maker) -> None:
    """An entry is found as it was put, or not at all."""
    path = tmp_path / "scores.sqlite"
    entries = {bytes([n]) * 32: np.random.default_rng(n).bytes(300) for n in range(40)}
    with ScoreCache(path) as cache:
        for key, value in entries.items():
            cache.put(key, value)

    def read() -> Any:
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        with ScoreCache(path) as cache:
            found = {key: cache.get(key) for key in entries}
            cache.put(b"new", b"value")
            return found

    def check(found: Any) -> None:
        assert all(value is None or value == entries[key] for key, value in found.items())

    count = tally(read, check, [str(path)])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 2000, seed=0))
