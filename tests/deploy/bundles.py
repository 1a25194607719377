"""A small bundle, made by the stage itself: the committed VLM, a pool of digits, a selector of random weights."""

import json
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from leverlab.config.base import read_yaml
from leverlab.deploy.bundle import Bundle
from leverlab.dvcfile import read_declaration
from leverlab.export.gguf import export_text, export_vision
from leverlab.export.selector import inference_tensors
from leverlab.records import Example, write_examples
from leverlab.selector.architecture import Architecture
from leverlab.selector.candidates import draw_candidates, write_candidates
from leverlab.selector.encoders import compute_features_vlm
from leverlab.selector.features import write_features
from leverlab.selector.inference import save_inference
from leverlab.selector.network import FEATURES, Selector
from leverlab.stage import Stage
from leverlab.vlm.model import load_vlm
from leverlab.worlds.digits import digits_world
from stages.bundle import body

REPOSITORY = Path(__file__).parents[2]
VLM = REPOSITORY / "worlds/digits/vlm"
DEPS = ("data/prepared", "models/gguf", "models/selector", "reports/gates.json")
GATES = [{"name": "g", "metric": "m", "threshold": 0.5, "direction": "at_least", "value": 0.6, "passed": True}]
CANDIDATES, SHOTS = 12, 4


@dataclass(frozen=True)
class Made:
    """A bundle, the repository that it was made in, its selector as a network, and its validation questions."""

    root: Path
    bundle: Bundle
    network: Selector
    questions: Sequence[Example]

    @property
    def folder(self) -> Path:
        return self.root / "models/bundle"


def make_bundle(root: Path, kinds: Sequence[str] = ("f16", "q8_0")) -> Made:
    """Make a bundle in a repository at `root`; features are float32, as the bundle's own are."""
    world = digits_world(pool=60, train=1, val=20, test=1, label_noise=0.0, seed=0)
    prepared, gguf = root / "data/prepared", root / "models/gguf"
    prepared.mkdir(parents=True)
    write_examples(prepared / "pool.parquet", world.pool)
    write_examples(prepared / "val.parquet", world.val)
    features = compute_features_vlm(load_vlm(str(VLM), "float32"), [*world.pool, *world.val])
    write_features(prepared / "features.parquet", features)
    sets = draw_candidates("random", "val", world.val, world.pool, features, CANDIDATES, sets=1, seed=0)
    write_candidates(prepared / "candidates.parquet", sets)
    for kind in kinds:
        export_text(VLM, gguf / f"text-{kind}.gguf", kind)  # type: ignore[arg-type]
    export_vision(VLM, gguf / "mmproj-f16.gguf")
    network = _write_selector(root / "models/selector", features)
    (root / "reports").mkdir()
    (root / "reports/gates.json").write_text(json.dumps(GATES))
    params = read_yaml(REPOSITORY / "params.yaml")
    params["vlm"]["source"], params["prepare"]["candidates"] = str(VLM), CANDIDATES
    (root / "params.yaml").write_text(json.dumps(params))
    stage = {"cmd": "x", "deps": list(DEPS), "params": [*params], "outs": ["models/bundle"]}
    (root / "dvc.yaml").write_text(json.dumps({"stages": {"bundle": stage}}))
    with chdir(root):
        run = Stage(read_declaration(Path("dvc.yaml"), "bundle", {}))
        run.prepare()
        body(run)
        run.check_inputs()
        run.publish()
    return Made(root, Bundle(root / "models/bundle"), network, world.val)


def _write_selector(folder: Path, features: object) -> Selector:
    parts = [getattr(features, f"{name}_ND") for name in FEATURES]
    architecture = Architecture(width=32, state="gru", head="dot", mmr=False, stop=False)
    torch.manual_seed(0)
    selector = Selector([part.shape[1] for part in parts], architecture, 0.0)
    for name, part in zip(FEATURES, parts, strict=True):
        selector.set_statistics(name, torch.from_numpy(part))
    chosen = {"method": "grpo", "seed": 0, "epoch": 1, "val_accuracy": 0.5, "shots": SHOTS, "pool": "x"}
    widths = {"widths": list(selector.widths)}
    save_inference(folder, inference_tensors(selector), chosen | widths | asdict(architecture))
    return selector.eval()
