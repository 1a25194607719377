"""The whole of a recipe's `params.yaml`, checked before anything runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from leverlab.config.base import Section, read_params
from leverlab.config.clarify_alarms import AlarmLimits
from leverlab.config.clarify_data import ClarifyDataParams, TeacherParams
from leverlab.config.clarify_gguf import Kind, PolicyGgufParams, TurnBenchmarkParams
from leverlab.config.clarify_grpo import DialogueGrpoParams
from leverlab.config.clarify_rl_data import DialogueGroupParams
from leverlab.config.clarify_shadow import HackProbeParams, ShadowParams
from leverlab.config.dialogue_inference import DialogueInferParams, SelectPolicyParams
from leverlab.config.dialogue_training import DialogueRceParams, DialogueSftParams, DpoParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams, DialogueRewardParams, LoraParams
from leverlab.config.gguf import RuntimeParams
from leverlab.config.report import ReportParams
from leverlab.lm.scorers import FEATURES
from leverlab.pipeline.gate_names import gates_without_file, recipe_metrics, unknown_metrics
from leverlab.pipeline.params import check_sections

SECTIONS: dict[str, type[Section]] = {
    "base": BaseModelParams,
    "lora": LoraParams,
    "data": ClarifyDataParams,
    "teacher": TeacherParams,
    "dialogues": DialogueParams,
    "reward": DialogueRewardParams,
    "sft": DialogueSftParams,
    "rl_data": DialogueGroupParams,
    "rce": DialogueRceParams,
    "grpo": DialogueGrpoParams,
    "dpo": DpoParams,
    "select_best": SelectPolicyParams,
    "infer": DialogueInferParams,
    "shadow": ShadowParams,
    "hack_probe": HackProbeParams,
    "alarms": AlarmLimits,
    "gguf": PolicyGgufParams,
    "runtime": RuntimeParams,
    "benchmark": TurnBenchmarkParams,
    "report": ReportParams,
}


def check_recipe(folder: Path) -> None:
    """Raise `LeverlabError` with one line per problem unless `folder` holds valid params of the recipe."""
    path = folder / "params.yaml"
    check_sections(read_params(path), str(path), SECTIONS, _cross_checks)


def _cross_checks(parsed: Mapping[str, Any], where: str) -> list[str]:
    """Return what is wrong between sections."""
    problems = []
    if parsed["rl_data"].questions > parsed["data"].train:
        problems.append(f"{where}: rl_data.questions exceeds data.train = {parsed['data'].train}")
    if parsed["grpo"].questions > parsed["data"].train:
        problems.append(f"{where}: grpo.questions exceeds data.train = {parsed['data'].train}")
    if parsed["grpo"].evaluate_on > parsed["data"].val:
        problems.append(f"{where}: grpo.evaluate_on exceeds data.val = {parsed['data'].val}")
    if parsed["hack_probe"].evaluate_every % parsed["grpo"].updates:
        problems.append(f"{where}: hack_probe.evaluate_every must be a multiple of grpo.updates")
    if parsed["shadow"].member_features > len(FEATURES):
        problems.append(f"{where}: shadow.member_features exceeds the {len(FEATURES)} features of a scorer")
    if parsed["shadow"].folds > parsed["data"].calib:
        problems.append(f"{where}: shadow.folds exceeds data.calib = {parsed['data'].calib}")
    kinds = get_args(Kind)
    metrics = recipe_metrics(kinds)
    problems += unknown_metrics(parsed["report"], metrics, metrics, where)
    problems += gates_without_file(parsed["report"], parsed["gguf"].kinds, kinds, where)
    if not parsed["report"].rules:
        problems.append(f"{where}: report.gates has no gate that is on; the acceptance report needs at least one")
    return problems
