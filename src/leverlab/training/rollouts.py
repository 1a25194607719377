"""Trajectories to learn from: sampled from the policy and scored by the VLM, or read from stored groups."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leverlab.rl.sampling import keep_best_and_worst
from leverlab.selector.batches import QueryBatch, QueryData
from leverlab.selector.decoding import sample
from leverlab.selector.network import Selector
from leverlab.training.groups import Group
from leverlab.training.reward import Terms
from leverlab.vlm.scoring import Scorer
from leverlab.vlm.tries import DemoList

# Reward of every prefix, (..., T), from the reward terms of every prefix and the progress of training in [0, 1]
PrefixReward = Callable[[Terms, float], NDArray[np.float64]]


@dataclass(frozen=True)
class Moment:
    """Where training stands: epoch from 1 on, batch of queries from 0 on over all epochs, progress in [0, 1]."""

    epoch: int
    step: int
    progress: float


@dataclass(frozen=True)
class Trajectories:
    """G lists of B queries: `picks_BGT` positions, the reward of every prefix, `rewards_BGT` (float64), and
    `success_B`, the share of right answers over all lists and prefixes."""

    inputs: QueryBatch
    picks_BGT: Tensor
    rewards_BGT: Tensor
    success_B: Tensor

    def best_and_worst(self, keep: int) -> "Trajectories":
        """Return the `keep` lists of each group with the highest and the lowest reward, in their order."""
        kept_BG = torch.from_numpy(np.stack([keep_best_and_worst(row, keep) for row in self.rewards_BGT.mean(-1)]))
        index_BGT = kept_BG[..., None].expand(-1, -1, self.picks_BGT.shape[-1])
        return replace(
            self, picks_BGT=self.picks_BGT.gather(1, index_BGT), rewards_BGT=self.rewards_BGT.gather(1, index_BGT)
        )


class OnlineRollouts:
    """Lists sampled from the current policy, in evaluation mode, and scored by the VLM.

    An epoch takes each query's next candidate set, so that the policy cannot learn a set by heart. Equal lists are
    scored once.
    """

    def __init__(
        self,
        data: QueryData,
        scorer: Scorer,
        reward: PrefixReward,
        vqa: Callable[[str, str], float],
        needed: Collection[str],
        query_ids: Sequence[str],
        seed: int,
    ):
        """`vqa(query_id, text)` gives an answer's VQA accuracy; `needed` are the terms that the reward reads."""
        self.query_ids = query_ids
        self._data, self._scorer, self._reward, self._seed = data, scorer, reward, seed
        self._vqa, self._needed = vqa, needed

    @torch.no_grad()
    def draw(self, policy: Selector, query_ids: Sequence[str], at: Moment, lists: int, shots: int) -> Trajectories:
        """Return `lists` scored lists of `shots` demos for each query; random in (seed, at.step) alone."""
        policy.eval()
        inputs = self._data.batch(query_ids, (at.epoch - 1) % self._data.sets(query_ids[0]))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + at.step)
        encoded = policy.encode(inputs.query, inputs.demos)
        picks_BGT = sample(policy, encoded, lists, shots, generator)
        asked = [
            (query, demos) for query, group in zip(query_ids, inputs.ids(picks_BGT), strict=True) for demos in group
        ]
        unique = {prompt: index for index, prompt in enumerate(dict.fromkeys(asked))}
        terms = self._score(list(unique), shots)
        rows = [unique[prompt] for prompt in asked]
        per_list = {name: values[rows].reshape(picks_BGT.shape) for name, values in terms.items()}
        if "relevance" in self._needed:
            per_list["relevance"] = inputs.relevance(picks_BGT)
        rewards_BGT = torch.from_numpy(self._reward(per_list, at.progress))
        return Trajectories(inputs, picks_BGT, rewards_BGT, torch.from_numpy(per_list["correct"].mean((1, 2))))

    def _score(self, prompts: Sequence[tuple[str, DemoList]], shots: int) -> Terms:
        """Return what the VLM says of every prefix of the lists, (M, T)."""
        first = 0 if "beam_score" in self._needed else 1  # a gain over the answer without demos needs that answer
        queries, lists = zip(*prompts, strict=True)
        scores = self._scorer.score(queries, lists, range(first, shots + 1), texts="vqa_accuracy" in self._needed)
        probability = scores.answer_prob_NM.astype(np.float64)
        correct = scores.correct_NM.astype(np.float64)
        terms = {"correct": correct[:, 1 - first :], "answer_prob": probability[:, 1 - first :]}
        if "beam_score" in self._needed:
            terms["beam_score"] = probability[:, 1:] - probability[:, :1]
        if "vqa_accuracy" in self._needed:
            pairs = zip(queries, scores.text_NM or [], strict=True)
            vqa = [[self._vqa(query, text) for text in texts[1 - first :]] for query, texts in pairs]
            terms["vqa_accuracy"] = np.asarray(vqa, np.float64)
        return terms


class StoredRollouts:
    """The groups of the rl-data stage, again every epoch."""

    def __init__(self, data: QueryData, groups: Sequence[Group], reward: PrefixReward):
        self._data = data
        self.query_ids: Sequence[str] = [group.query_id for group in groups]
        self._groups = {group.query_id: group for group in groups}
        self._reward = reward

    def draw(self, policy: Selector, query_ids: Sequence[str], at: Moment, lists: int, shots: int) -> Trajectories:
        """Return the stored groups of the queries, whole; only the signature is shared with `OnlineRollouts`."""
        inputs, groups = self._data.batch(query_ids), [self._groups[query] for query in query_ids]
        rewards_BGT = np.stack([self._reward(group.terms, at.progress) for group in groups])
        success_B = np.stack([group.terms["correct"].mean() for group in groups])
        picks_BGT = inputs.positions([group.lists for group in groups], rewards_BGT.shape[2])
        return Trajectories(inputs, picks_BGT, torch.from_numpy(rewards_BGT), torch.from_numpy(success_B))
