"""The whole of `params.yaml`, checked before anything runs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leverlab.config.base import LARGEST_SEED, Section, parse_section, read_params
from leverlab.config.benchmark import BenchmarkParams
from leverlab.config.data import DataParams
from leverlab.config.gguf import KINDS, GgufParams, RuntimeParams
from leverlab.config.grpo import GrpoParams
from leverlab.config.infer import InferParams
from leverlab.config.prepare import PrepareParams
from leverlab.config.rce import RceParams
from leverlab.config.report import ReportParams
from leverlab.config.reward import RewardParams
from leverlab.config.rl_data import RlDataParams
from leverlab.config.select_best import SelectBestParams
from leverlab.config.selector import SelectorParams
from leverlab.config.sft import SftParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.errors import LeverlabError
from leverlab.nearest import did_you_mean
from leverlab.pipeline.gate_names import MOST_SHOTS, gates_without_file, main_metrics, unknown_metrics

SECTIONS: dict[str, type[Section]] = {
    "data": DataParams,
    "vlm": VlmParams,
    "eval": EvalParams,
    "selector": SelectorParams,
    "reward": RewardParams,
    "prepare": PrepareParams,
    "rl_data": RlDataParams,
    "sft": SftParams,
    "rce": RceParams,
    "grpo": GrpoParams,
    "select_best": SelectBestParams,
    "infer": InferParams,
    "gguf": GgufParams,
    "runtime": RuntimeParams,
    "benchmark": BenchmarkParams,
    "report": ReportParams,
}


RETRIEVAL_LISTS = 4  # of a stored group, beside the beams and the random lists
RUN_CACHE_IGNORES = {"size", "nfiles"}  # dvc.stage.cache drops them at any depth, params included


def check_params(data: Mapping[str, Any], where: str) -> None:
    """Raise `LeverlabError` with one line per problem unless `data` is a valid params file of the main pipeline."""
    check_sections(data, where, SECTIONS, _cross_checks)


def check_sections(
    data: Mapping[str, Any],
    where: str,
    sections: Mapping[str, type[Section]],
    between: Callable[[Mapping[str, Any], str], list[str]] = lambda parsed, where: [],
) -> None:
    """Raise `LeverlabError` with one line per problem unless `data` holds valid `sections`, `seeds`, and nothing else.

    between: returns what is wrong between valid sections, which it gets by name.
    """
    known = [*sections, "seeds"]
    problems = [
        f"{where}: unknown section '{name}'{did_you_mean(str(name), known)}" for name in data if name not in known
    ]
    problems += [
        f"{where}: no key may be named '{key}': DVC's run cache leaves it out of account (3.67.1), so that a change of "
        "it would bring back old outs; rename it"
        for key in sorted(_keys(data) & RUN_CACHE_IGNORES)
    ]
    parsed: dict[str, Section] = {}
    for name, model in sections.items():
        try:
            parsed[name] = parse_section(model, name, data, where)
        except LeverlabError as error:
            problems.append(str(error))
    seeds = data.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(map(_is_seed, seeds)):
        problems.append(
            f"{where}: 'seeds' = {seeds!r} must be a list of whole numbers from 0 to {LARGEST_SEED}; on the command "
            "line -S 'seeds=[0,1,2]'"
        )
    elif len(set(seeds)) != len(seeds):
        problems.append(f"{where}: 'seeds' = {seeds!r} names a seed twice")
    if not problems:
        problems += between(parsed, where)
    if problems:
        raise LeverlabError("\n".join(problems))


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SEED


def _keys(data: Any) -> set[str]:
    """Return the names of all keys of nested mappings and lists."""
    if isinstance(data, Mapping):
        return {str(key) for key in data}.union(*map(_keys, data.values()))
    return set().union(*map(_keys, data)) if isinstance(data, list) else set()


def check_params_file(path: Path) -> None:
    """Raise `LeverlabError` unless the file holds valid params of the main pipeline."""
    check_params(read_params(path), path.name)


def _cross_checks(parsed: Mapping[str, Any], where: str) -> list[str]:
    """Return what is wrong between sections."""
    problems = []
    shots, weights = parsed["eval"].shots, parsed["reward"].shot_weights
    if len(weights) != shots:
        problems.append(f"{where}: reward.shot_weights has {len(weights)} values, but eval.shots = {shots}")
    if parsed["prepare"].candidates < shots:
        problems.append(
            f"{where}: prepare.candidates = {parsed['prepare'].candidates} is less than eval.shots = {shots}"
        )
    if parsed["data"].pool < parsed["prepare"].candidates:
        problems.append(f"{where}: data.pool = {parsed['data'].pool} holds fewer demos than prepare.candidates")
    if parsed["rl_data"].queries > parsed["data"].train:
        problems.append(f"{where}: rl_data.queries exceeds data.train = {parsed['data'].train}")
    stored = parsed["rl_data"].beam_width + RETRIEVAL_LISTS + parsed["rl_data"].random_lists
    if parsed["grpo"].rollouts == "offline" and parsed["grpo"].control.keep > stored:
        problems.append(
            f"{where}: grpo.control.keep = {parsed['grpo'].control.keep} exceeds the {stored} lists of a stored group"
        )
    gates, headline = main_metrics(shots, KINDS), main_metrics(MOST_SHOTS, KINDS)
    problems += unknown_metrics(parsed["report"], gates, headline, where)
    return problems + gates_without_file(parsed["report"], parsed["gguf"].kinds, KINDS, where)
