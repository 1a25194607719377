"""What a checkpoint is worth on the validation questions."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from leverlab.evaluation.vqa_metric import vqa_accuracy
from leverlab.records import Example
from leverlab.rl.kl import categorical_entropy, categorical_kl
from leverlab.selector.batches import QueryData
from leverlab.selector.decoding import greedy
from leverlab.selector.network import Selector
from leverlab.vlm.scoring import Scorer
from leverlab.vlm.tries import DemoList


class Validator:
    """Scores selectors by what the VLM answers after their greedy picks, at every shot count from 1 to `shots`.

    Each question counts once for each of its candidate sets.
    """

    def __init__(self, data: QueryData, questions: Sequence[Example], scorer: Scorer, shots: int):
        self._questions = list(questions)
        self._scorer, self._shots = scorer, shots
        sets = range(data.sets(questions[0].id))
        self._batches = [data.batch([question.id for question in questions], set_index) for set_index in sets]
        lists = (candidates for batch in self._batches for candidates in batch.candidate_ids)
        self._offered = len({demo for candidates in lists for demo in candidates})

    @torch.no_grad()
    def __call__(self, selector: Selector, reference: Selector | None = None) -> dict[str, float]:
        """Return the row of a checkpoint.

        `val_accuracy` is the VQA accuracy averaged over shot counts, `val_accuracy_k` the one at k shots, `val_loss`
        the mean negative log-probability of the reference answers, `entropy` the policy's mean entropy per pick and
        `kl` its exact divergence from `reference` per pick, both along the greedy lists and in nats, `distinct_demos`
        how many different demos were picked, `distinct_share` that over the number which as many random picks of the
        offered demos would show, in expectation, `identical` the share of the questions that get the most frequent
        list, `list_length` how many demos a list has.
        """
        selector.eval()
        accuracy, loss, entropy, kl, picked = [], [], [], [], Counter[DemoList]()
        for batch in self._batches:
            encoded = selector.encode(batch.query, batch.demos)
            picks_B1T = greedy(selector, encoded, self._shots)[:, None]
            lists = [group[0] for group in batch.ids(picks_B1T)]
            picked.update(lists)
            scores = self._scorer.score(batch.query_ids, lists, range(1, self._shots + 1), texts=True)
            accuracy += [
                [vqa_accuracy(text, question.answers) for text in texts]
                for question, texts in zip(self._questions, scores.text_NM or [], strict=True)
            ]
            loss.append(-np.log(np.maximum(scores.answer_prob_NM, 1e-30)))
            logits = selector.list_logits(encoded, picks_B1T)
            entropy.append(float(categorical_entropy(logits).mean()))
            if reference is not None:
                other = reference.list_logits(reference.encode(batch.query, batch.demos), picks_B1T)
                kl.append(float(categorical_kl(logits, other).mean()))
        accuracy_M = np.mean(np.asarray(accuracy), axis=0)
        row: dict[str, Any] = {"val_accuracy": float(accuracy_M.mean())}
        row |= {f"val_accuracy_{shots}": float(value) for shots, value in enumerate(accuracy_M, start=1)}
        row |= {"val_loss": float(np.mean(np.concatenate(loss))), "entropy": float(np.mean(entropy))}
        distinct = {demo for demos in picked for demo in demos}
        row |= {"kl": float(np.mean(kl)) if kl else math.nan, "distinct_demos": float(len(distinct))}
        picks = sum(len(demos) * times for demos, times in picked.items())
        at_random = self._offered * (1 - (1 - 1 / self._offered) ** picks)
        row |= {"distinct_share": len(distinct) / at_random, "list_length": picks / picked.total()}
        return row | {"identical": max(picked.values()) / picked.total()}
