"""Trajectories to learn from: sampled from the policy and scored by the VLM, or read from stored groups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leverlab.selector.batches import QueryBatch, QueryData
from leverlab.selector.decoding import sample
from leverlab.selector.network import Selector
from leverlab.training.groups import Group
from leverlab.vlm.scoring import Scorer

# Reward of every prefix, (..., T), from the reward terms of every prefix
PrefixReward = Callable[[Mapping[str, NDArray[np.float64]]], NDArray[np.float64]]


@dataclass(frozen=True)
class Trajectories:
    """G lists of B queries: `picks_BGT` positions, and the reward of every prefix, `rewards_BGT` (float64)."""

    inputs: QueryBatch
    picks_BGT: Tensor
    rewards_BGT: Tensor


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
        vqa: Callable[[str, str], float] | None,
        query_ids: Sequence[str],
        seed: int,
    ):
        """`vqa(query_id, text)` gives an answer's VQA accuracy, where the reward needs it; else no text is decoded."""
        self.query_ids = query_ids
        self._data, self._scorer, self._reward, self._vqa, self._seed = data, scorer, reward, vqa, seed

    @torch.no_grad()
    def draw(
        self, policy: Selector, query_ids: Sequence[str], epoch: int, step: int, lists: int, shots: int
    ) -> Trajectories:
        """Return `lists` scored lists of `shots` demos for each query; random in (seed, step) alone."""
        policy.eval()
        inputs = self._data.batch(query_ids, (epoch - 1) % self._data.sets(query_ids[0]))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        encoded = policy.encode(inputs.query, inputs.demos)
        picks_BGT = sample(policy, encoded, lists, shots, generator)
        asked = [
            (query, demos) for query, group in zip(query_ids, inputs.ids(picks_BGT), strict=True) for demos in group
        ]
        unique = {prompt: index for index, prompt in enumerate(dict.fromkeys(asked))}
        scores = self._scorer.score(
            [query for query, _ in unique],
            [demos for _, demos in unique],
            range(1, shots + 1),
            texts=self._vqa is not None,
        )
        terms = {
            "correct": scores.correct_NM.astype(np.float64),
            "answer_prob": scores.answer_prob_NM.astype(np.float64),
        }
        if self._vqa is not None:
            vqa = [
                [self._vqa(query, text) for text in texts]
                for (query, _), texts in zip(unique, scores.text_NM or [], strict=True)
            ]
            terms["vqa_accuracy"] = np.asarray(vqa, np.float64)
        rewards_NT = self._reward(terms)[[unique[prompt] for prompt in asked]]
        return Trajectories(inputs, picks_BGT, torch.from_numpy(rewards_NT).view(picks_BGT.shape))


class StoredRollouts:
    """The groups of the rl-data stage, again every epoch."""

    def __init__(self, data: QueryData, groups: Sequence[Group], reward: PrefixReward):
        self._data = data
        self.query_ids: Sequence[str] = [group.query_id for group in groups]
        self._groups = {group.query_id: group for group in groups}
        self._rewards = {group.query_id: reward(group.terms) for group in groups}

    def draw(
        self, policy: Selector, query_ids: Sequence[str], epoch: int, step: int, lists: int, shots: int
    ) -> Trajectories:
        """Return the stored groups of the queries, whole; only the signature is shared with `OnlineRollouts`."""
        inputs = self._data.batch(query_ids)
        picks_BGT = inputs.positions([self._groups[query].lists for query in query_ids])
        return Trajectories(
            inputs, picks_BGT, torch.from_numpy(np.stack([self._rewards[query] for query in query_ids]))
        )
