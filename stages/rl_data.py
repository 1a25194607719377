"""rl-data: let the frozen VLM score: beams by InfoScore, groups of trajectories, and the health report."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from leverlab.config.reward import RewardParams
from leverlab.config.rl_data import RlDataParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.errors import LeverlabError
from leverlab.evaluation.health import Finding, failures, health_report, raise_on_failures
from leverlab.files import write_text
from leverlab.parallel import run_tasks
from leverlab.records import Example
from leverlab.stage import Stage, run_stage, workspace_store
from leverlab.training.collect import Beams, beam_search, build_group, random_lists, retrieval_lists
from leverlab.training.groups import TERMS, Group, write_beams, write_groups
from leverlab.training.prepared import Prepared
from leverlab.training.reward import list_reward
from leverlab.vlm.scoring import Scorer

PREPARED = Path("data/prepared")
QUERIES_A_TASK = 8


class Worker:
    """One process: the prepared data and a scorer of the train questions."""

    data: Prepared
    settings: tuple[VlmParams, RlDataParams, int]
    scorer: Scorer
    examples: dict[str, Example]
    types: dict[str, str]

    @classmethod
    def start(cls, vlm: VlmParams, params: RlDataParams, shots: int) -> None:
        """Open the data and the VLM, once in each process."""
        cls.data = Prepared(PREPARED, ["train"])
        cls.settings = (vlm, params, shots)
        cls.scorer = cls.data.scorer(cls.data.splits["train"], workspace_store() / "scores.sqlite", vlm)
        cls.examples = {example.id: example for example in cls.data.splits["train"]}
        cls.types = cls.data.question_types()


def collect(task: list[tuple[str, list[tuple[str, ...]]]]) -> list[tuple[str, Beams, Group]]:
    """Return the beams and the group of some queries; `task` names them with their random lists."""
    _, params, shots = Worker.settings
    found = []
    for query_id, random in task:
        batch = Worker.data.queries.batch([query_id])
        beams = beam_search(Worker.scorer, query_id, batch.candidate_ids[0], params.beam_width, shots)
        retrieved = retrieval_lists(batch, Worker.types, shots)
        lists = [*(demos for demos, _ in beams), *(found[0] for found in retrieved.values()), *random]
        sources = ["beam"] * len(beams) + ["retrieval"] * len(retrieved) + ["random"] * len(random)
        found.append((query_id, beams, build_group(Worker.scorer, batch, Worker.examples[query_id], lists, sources)))
    return found


def body(stage: Stage) -> None:
    """Write beams, groups and the health report; fail when the data cannot teach."""
    vlm = stage.section("vlm", VlmParams)
    params = stage.section("rl_data", RlDataParams)
    reward = stage.section("reward", RewardParams)
    shots = stage.section("eval", EvalParams).shots
    data = Prepared(stage.dep("data/prepared"), ["train"])
    query_ids = [query.id for query in data.splits["train"]][: params.queries]
    if len(query_ids) < params.queries:
        raise LeverlabError(
            f"rl_data.queries = {params.queries}, but there are {len(query_ids)} train questions; lower it"
        )
    random = random_lists(data.queries.batch(query_ids), params.random_lists, shots, params.seed)
    paired = list(zip(query_ids, random, strict=True))
    tasks = [paired[start : start + QUERIES_A_TASK] for start in range(0, len(paired), QUERIES_A_TASK)]
    beams: dict[str, Beams] = {}
    groups: list[Group] = []
    done = run_tasks(collect, tasks, Worker.start, (vlm, params, shots))
    for part in stage.progress(done, f"tasks of {QUERIES_A_TASK} queries", total=len(tasks)):
        for query_id, found, group in part:
            beams[query_id] = found
            groups.append(group)
    write_beams(stage.out("data/rl/beams.parquet"), beams)
    write_groups(stage.out("data/rl/groups.parquet"), groups)
    findings = health(data, groups, params, reward)
    report = {"findings": [asdict(finding) for finding in findings]}
    write_text(stage.out("reports/health.json"), json.dumps(report, indent=2) + "\n")
    stage.say(
        f"{len(groups)} groups of {len(groups[0].lists)}; {len(failures(findings))} health findings beyond their limits"
    )
    raise_on_failures(findings)


def health(data: Prepared, groups: list[Group], params: RlDataParams, reward: RewardParams) -> list[Finding]:
    """Return the findings of the health report; a reward weight that moves counts as it is in the beginning."""
    table = pd.DataFrame(
        [
            {"query_id": group.query_id, "source": group.sources[g], "demos": list(group.lists[g])}
            | {term: group.terms[term][g].tolist() for term in TERMS}
            for group in groups
            for g in range(len(group.lists))
        ]
    )
    offered = pd.DataFrame(
        [
            {"query_id": group.query_id, "candidates": list(data.queries.batch([group.query_id]).candidate_ids[0])}
            for group in groups
        ]
    )
    rewards = np.concatenate([list_reward(reward, group.terms, 0.0) for group in groups])
    pools = {"data/prepared/pool.parquet": [demo.id for demo in data.pool]}
    return health_report(table, offered, pools, params.health, rewards)


if __name__ == "__main__":
    run_stage("rl-data", body)
