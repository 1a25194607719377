"""The scoring engine: how probable is the right answer after these demos, for very many lists of demos.

What makes it fast: every image is encoded once (`TurnTable`); all prefixes of the lists of a question are scored in few
rows by a tree-shaped attention mask, and what lists have in common is computed once (`tries`); beam search keeps the
keys and values of a prefix and runs only a candidate and the question behind it; answers that are not the reference are
decoded onward from where they leave it, as in speculative decoding (Leviathan et al. 2023, arXiv 2211.17192) with the
reference as the draft. A plain forward gives the same log-probabilities (tested).

Batches are formed from the request alone, never from what a cache lacks, because a batched forward is not bit-invariant
to what else is in the batch: so warm, cold and resumed runs give the same bytes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.vlm.cache import ScoreCache
from leverlab.vlm.decoder import Decoder, KeyValues, select_rows
from leverlab.vlm.tries import DemoList, Trie, plant
from leverlab.vlm.turns import HEAD, NO_TURN, PADDING, Ints, Rows, TurnTable

ENGINE_VERSION = 2  # part of every cache key: raise it when the arithmetic of scoring changes


@dataclass(frozen=True)
class ListScores:
    """Scores of N lists at each of M shot counts.

    `answer_prob_NM` is exp of the mean log-probability of the reference answer's tokens (in 0..1), `correct_NM` whether
    greedy decoding gives exactly that answer, and `text_NM` what it gives instead (None unless texts were asked for).
    """

    answer_prob_NM: NDArray[np.float32]
    correct_NM: NDArray[np.bool_]
    text_NM: list[list[str]] | None = None


class Scorer:
    """Scores demo lists with a frozen VLM.

    `batch_tokens` bounds the tokens of one forward, padding included; `max_new_tokens` bounds a greedy answer.
    """

    def __init__(self, table: TurnTable, batch_tokens: int, max_new_tokens: int, cache: ScoreCache | None = None):
        self.table = table
        self.cache = cache
        self.computed = 0  # prompts that went through the VLM, rather than being found in the cache
        self.batch_tokens = batch_tokens
        self.max_new_tokens = max_new_tokens
        self._device = table.vlm.device
        self._decoder = Decoder(table.vlm.model)
        self._head_length = len(table.format.head_ids)
        ends = table.vlm.model.generation_config.eos_token_id
        self._ends = {*(ends if isinstance(ends, list) else [ends])} - {None}

    def score(
        self, questions: Sequence[str], lists: Sequence[DemoList], shots: Sequence[int], texts: bool = False
    ) -> ListScores:
        """Return the scores of `lists[n]` before question `questions[n]` at each shot count of `shots` (0 = no demo).

        A list shorter than a shot count is asked whole. With `texts` the greedy answers are decoded too.
        Raises `LeverlabError` for an unknown id and for a score that is not finite.
        """
        tries, leaf_NM = plant(
            questions,
            lists,
            shots,
            lambda question: self.table.length(self.table.question(question)),
            lambda demo: self.table.length(self.table.demo(demo)),
        )
        parts = [self._score_chunk(tries[a:b], texts) for a, b in self._chunks(tries)]
        if not parts:
            return ListScores(
                np.zeros(leaf_NM.shape, np.float32), np.zeros(leaf_NM.shape, np.bool_), [] if texts else None
            )
        text_F = [text for part in parts for text in part.text_F or []]
        return ListScores(
            np.concatenate([part.answer_prob_F for part in parts])[leaf_NM],
            np.concatenate([part.correct_F for part in parts])[leaf_NM],
            [[text_F[leaf] for leaf in leaves] for leaves in leaf_NM.tolist()] if texts else None,
        )

    def _chunks(self, tries: Sequence[Trie]) -> Iterator[tuple[int, int]]:
        """Yield the bounds of consecutive rows that fit `batch_tokens`."""
        start, widest = 0, 0
        for index, trie in enumerate(tries):
            width = self._head_length + trie.tokens
            if index > start and max(widest, width) * (index + 1 - start) > self.batch_tokens:
                yield start, index
                start, widest = index, 0
            widest = max(widest, width)
        if tries:
            yield start, len(tries)

    def _score_chunk(self, tries: Sequence[Trie], texts: bool) -> "_LeafScores":
        kind = f"score {texts and self.max_new_tokens} {[(trie.parents, trie.leaves) for trie in tries]}"
        key = self._key(kind, [(trie.question, trie.demos) for trie in tries])
        found = self.cache.get(key) if self.cache else None
        count = sum(len(trie.leaves) for trie in tries)
        if found is not None:
            return _LeafScores.unpack(found, count)
        scores = self._score_rows(tries, texts)
        self.computed += count
        if self.cache:
            self.cache.put(key, scores.packed())
        return scores

    def _key(self, kind: str, prompts: Iterable[tuple[str, Sequence[str]]]) -> bytes:
        """Return the cache key of a batch: the VLM, the kind of scores, and the contents of every prompt in order."""
        sha = hashlib.sha256(f"{ENGINE_VERSION} {self.table.vlm.digest} {kind}".encode())
        for question, demos in prompts:
            sha.update(b"question" + self.table.content(self.table.question(question)))
            sha.update(b"".join(self.table.content(self.table.demo(demo)) for demo in demos))
        return sha.digest()

    @torch.no_grad()
    def _score_rows(self, tries: Sequence[Trie], texts: bool) -> "_LeafScores":
        demos, leaves = max(len(trie.demos) for trie in tries), max(len(trie.leaves) for trie in tries)
        turns_RS, parents_RS = np.full((2, len(tries), 1 + demos + leaves), NO_TURN, np.int64)
        turns_RS[:, 0] = HEAD
        for row, trie in enumerate(tries):
            own, asked = slice(1, 1 + len(trie.demos)), slice(1 + demos, 1 + demos + len(trie.leaves))
            turns_RS[row, own] = [self.table.demo(demo) for demo in trie.demos]
            turns_RS[row, asked] = self.table.question(trie.question)
            parents_RS[row, own], parents_RS[row, asked] = np.add(trie.parents, 1), np.add(trie.leaves, 1)
        questions = [trie.question for trie in tries]
        rows = self.table.pack(turns_RS, parents_RS)
        real_RM = turns_RS[:, 1 + demos :] != NO_TURN
        logp, correct, spans, known = self._read_answers(rows, questions, real_RM)
        self._check_finite(logp, questions, lambda row, leaf: tries[row].path(leaf))
        decoded = None
        if texts:
            decoded = [[self._text(self.table.answer_ids[trie.question])] * len(trie.leaves) for trie in tries]
            if not bool(correct.all()):
                self._decode_onward(rows, known, questions, correct, spans, decoded)
        return _LeafScores(
            logp.exp().float().cpu().numpy()[real_RM],
            correct.cpu().numpy()[real_RM],
            None if decoded is None else [text for row in decoded for text in row],
        )

    def extend(self, question: str, prefixes: Sequence[DemoList], candidates: Sequence[str]) -> NDArray[np.float32]:
        """Return P(answer | prefix + candidate) for every prefix (B of them, one length) and candidate (K), shape (B,
        K).

        A candidate that is already in the prefix scores NaN. This is one step of InfoScore beam search; the prefixes
        are computed once, each candidate's row holds only its own tokens and the question's.
        """
        key = self._key(
            f"extend {self.batch_tokens}", [(question, candidates), *((question, prefix) for prefix in prefixes)]
        )
        shape = (len(prefixes), len(candidates))
        found = self.cache.get(key) if self.cache else None
        if found is not None:
            return np.frombuffer(found, np.float32).reshape(shape).copy()
        scores_BK = self._extend(question, prefixes, candidates)
        self.computed += int(np.isfinite(scores_BK).sum())
        if self.cache:
            self.cache.put(key, scores_BK.tobytes())
        return scores_BK

    @torch.no_grad()
    def _extend(self, question: str, prefixes: Sequence[DemoList], candidates: Sequence[str]) -> NDArray[np.float32]:
        turns_BS = np.array([[HEAD, *map(self.table.demo, prefix)] for prefix in prefixes], np.int64)
        past: tuple[KeyValues, Rows] | None = None
        if any(self.table.length(int(turn)) for turn in turns_BS.ravel()):
            before = self.table.pack(turns_BS, _each_behind_the_last(turns_BS))
            past = (self._forward(before, None)[1], before)
        scores_BK = np.full((len(prefixes), len(candidates)), np.nan, np.float32)
        todo = [(b, k) for b, prefix in enumerate(prefixes) for k, demo in enumerate(candidates) if demo not in prefix]
        turns_K = np.array([self.table.demo(demo) for demo in candidates], np.int64)
        leaf = self.table.question(question)
        width = self.table.length(leaf) + max(self.table.length(int(turn)) for turn in turns_K)
        width += past[1].tokens_RT.shape[1] if past else 0
        step = max(1, self.batch_tokens // width)
        for start in range(0, len(todo), step):
            row_b, row_k = (np.array(part) for part in zip(*todo[start : start + step], strict=True))
            turns_R2 = np.stack([turns_K[row_k], np.full(len(row_k), leaf)], axis=1)
            offset_R = past[1].ends_RS[row_b, -1] if past else None
            rows = self.table.pack(turns_R2, _each_behind_the_last(turns_R2), offset_R)
            asked, real_R1 = [question] * len(row_b), np.ones((len(row_b), 1), bool)
            logp, _, _, _ = self._read_answers(rows, asked, real_R1, past, row_b)
            lists = [(*prefixes[b], candidates[k]) for b, k in zip(row_b, row_k, strict=True)]
            self._check_finite(logp, asked, lambda row, _, lists=lists: lists[row])  # type: ignore[misc]
            scores_BK[row_b, row_k] = logp[:, 0].exp().float().cpu().numpy()
        return scores_BK

    def _forward(
        self,
        rows: Rows,
        read: Tensor | None,
        past: tuple[KeyValues, Rows] | None = None,
        past_rows: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, KeyValues]:
        """Return hidden states at the columns `read` (all when None), and the keys and values of the rows."""
        embeds, _ = self.table.tensors()
        sees_RTT, known = _tree_mask(rows), None
        if past is not None and past_rows is not None:
            index = torch.from_numpy(past_rows).to(self._device)
            known = select_rows(past[0], index)
            before = (past[1].turn_RT[index] != PADDING)[:, None, :].expand(-1, sees_RTT.shape[1], -1)
            sees_RTT = torch.cat([before, sees_RTT], dim=2)
        return self._decoder.run(embeds[rows.tokens_RT], rows.positions_3RT, sees_RTT, read, known)

    def _read_answers(
        self,
        rows: Rows,
        questions: Sequence[str],
        real_RM: NDArray[np.bool_],
        past: tuple[KeyValues, Rows] | None = None,
        past_rows: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, Tensor, "_Spans", KeyValues]:
        """Run the rows and read their last M turns, the leaves; those that are not real are right with probability 1.

        Returns the mean answer log-probabilities (R, M), exact greedy matches (R, M), where the answers stand with what
        was predicted there, and the keys and values.
        """
        spans = _Spans.of(self.table, questions, rows.starts_RS[:, -real_RM.shape[1] :], real_RM, self._device)
        hidden, known = self._forward(rows, spans.columns_RMA.flatten(1), past, past_rows)
        logits_RMAV = self._decoder.logits(hidden).view(*spans.columns_RMA.shape, -1)
        predicted_RMA = logits_RMAV.argmax(-1)
        logp_RMA = torch.log_softmax(logits_RMAV, dim=-1).gather(-1, spans.targets_RMA[..., None])[..., 0]
        answer_RMA = spans.valid_RMA.clone()
        answer_RMA.scatter_(2, spans.last_RM[:, :, None], False)  # the end token decides `correct`, not the probability
        logp_RM = logp_RMA.masked_fill(~answer_RMA, 0).sum(-1) / answer_RMA.sum(-1).clamp_min(1)
        # any of the model's end tokens ends an answer, also where the template would have another one
        last_RMA = torch.zeros_like(spans.valid_RMA).scatter_(2, spans.last_RM[:, :, None], True)
        ended_RMA = last_RMA & torch.isin(predicted_RMA, self._stops(questions))
        correct_RM = ((predicted_RMA == spans.targets_RMA) | ended_RMA | ~spans.valid_RMA).all(-1)
        return logp_RM, correct_RM, replace(spans, predicted_RMA=predicted_RMA), known

    def _check_finite(
        self, logp_RM: Tensor, questions: Sequence[str], demos: Callable[[int, int], Sequence[str]]
    ) -> None:
        if not bool(torch.isfinite(logp_RM).all()):
            row, leaf = torch.nonzero(~torch.isfinite(logp_RM))[0].tolist()
            raise LeverlabError(
                f"the VLM gave a score that is not a number for question '{questions[row]}' after demos "
                f"{list(demos(row, leaf))}; its weights may be damaged, or float16 overflowed: check vlm.source and "
                "vlm.dtype"
            )

    def _decode_onward(
        self,
        rows: Rows,
        known: KeyValues,
        questions: Sequence[str],
        correct_RM: Tensor,
        spans: "_Spans",
        decoded: list[list[str]],
    ) -> None:
        """Replace the texts of wrong leaves by what greedy decoding gives from the first token where they leave the
        reference."""
        first_RM = ((spans.predicted_RMA != spans.targets_RMA) & spans.valid_RMA).int().argmax(-1)
        row_r = torch.nonzero(~correct_RM.all(-1)).flatten()
        row_rM, leaf_rM = row_r[:, None], torch.arange(correct_RM.shape[1], device=self._device)[None, :]
        column_rM = spans.columns_RMA[row_rM, leaf_rM, first_RM[row_r]]
        token_rM = spans.predicted_RMA[row_rM, leaf_rM, first_RM[row_r]]
        positions_3rM = rows.positions_3RT[:, row_rM, column_rM] + 1
        sees_rMT = _tree_mask(rows)[row_rM, column_rM]
        own = torch.eye(correct_RM.shape[1], dtype=torch.bool, device=self._device).expand(len(row_r), -1, -1)
        tokens = [[list(self.table.answer_ids[questions[r]][:m]) for m in first_RM[r].tolist()] for r in row_r.tolist()]
        stops = self._stops(questions)
        alive_rM = ~correct_RM[row_r] & ~torch.isin(token_rM, stops)
        known = select_rows(known, row_r)
        while bool(alive_rM.any()):
            for row, leaf in torch.nonzero(alive_rM).tolist():
                tokens[row][leaf].append(int(token_rM[row, leaf]))
                alive_rM[row, leaf] = len(tokens[row][leaf]) < self.max_new_tokens
            sees_rMT = torch.cat([sees_rMT, own], dim=2)
            embeds = self.table.vlm.embed_tokens(token_rM)
            hidden, known = self._decoder.run(embeds, positions_3rM, sees_rMT, None, known)
            token_rM = self._decoder.logits(hidden).argmax(-1)
            positions_3rM = positions_3rM + 1
            alive_rM &= ~torch.isin(token_rM, stops)
        for index, row in enumerate(row_r.tolist()):
            for leaf in torch.nonzero(~correct_RM[row]).flatten().tolist():
                decoded[row][leaf] = self._text(tokens[index][leaf])

    def _text(self, tokens: Sequence[int]) -> str:
        return self.table.format.decode(list(tokens[: self.max_new_tokens]))

    def _stops(self, questions: Sequence[str]) -> Tensor:
        """Return the tokens that end an answer: the template's, and those of the model's generation config."""
        return torch.tensor(
            sorted(self._ends | {self.table.end_id[question] for question in questions}), device=self._device
        )


def _each_behind_the_last(turns_RS: Ints) -> Ints:
    """Return the parents of turns that follow each other in every row."""
    return np.broadcast_to(np.arange(turns_RS.shape[1]) - 1, turns_RS.shape)


@dataclass(frozen=True)
class _LeafScores:
    """Scores of F leaves; see `ListScores`."""

    answer_prob_F: NDArray[np.float32]
    correct_F: NDArray[np.bool_]
    text_F: list[str] | None

    def packed(self) -> bytes:
        """Return all as bytes: the probabilities, the matches, then the texts as JSON when there are any."""
        arrays = self.answer_prob_F.astype(np.float32).tobytes() + self.correct_F.astype(np.uint8).tobytes()
        return arrays + (b"" if self.text_F is None else json.dumps(self.text_F).encode())

    @classmethod
    def unpack(cls, data: bytes, count: int) -> "_LeafScores":
        """Return the scores of `count` leaves from what `packed` gave."""
        texts = data[5 * count :]
        return cls(
            np.frombuffer(data[: 4 * count], np.float32),
            np.frombuffer(data[4 * count : 5 * count], np.uint8).astype(np.bool_),
            json.loads(texts) if texts else None,
        )


@dataclass(frozen=True)
class _Spans:
    """Where each leaf predicts its answer's tokens and the end token (A positions, right-padded)."""

    columns_RMA: Tensor
    targets_RMA: Tensor
    valid_RMA: Tensor
    last_RM: Tensor  # index in A of the end token
    predicted_RMA: Tensor

    @classmethod
    def of(
        cls, table: TurnTable, questions: Sequence[str], leaf_starts_RM: Ints, real_RM: NDArray[np.bool_], device: Any
    ) -> "_Spans":
        answers = [(*table.answer_ids[question], table.end_id[question]) for question in questions]
        longest = max(len(answer) for answer in answers)
        targets = np.array([[*answer, *([0] * (longest - len(answer)))] for answer in answers], np.int64)
        counts = np.array([len(answer) for answer in answers])
        lengths = np.array([table.length(table.question(question)) for question in questions])
        # the last question token predicts the first answer token; the last answer token predicts the end
        first_R = lengths - counts
        columns = leaf_starts_RM[:, :, None] + (first_R[:, None] + np.arange(longest))[:, None, :]
        valid = (np.arange(longest) < counts[:, None])[:, None, :] & real_RM[:, :, None]
        shape = columns.shape
        return cls(
            torch.from_numpy(np.where(valid, columns, 0)).to(device),
            torch.from_numpy(np.broadcast_to(targets[:, None, :], shape).copy()).to(device),
            torch.from_numpy(valid).to(device),
            torch.from_numpy(np.broadcast_to(counts[:, None] - 1, shape[:2]).copy()).to(device),
            torch.zeros(shape, dtype=torch.long, device=device),
        )


def _tree_mask(rows: Rows) -> Tensor:
    """Return the attention mask (R, T, T): True where the token of a row's column i sees the one of column j."""
    turn_RT, width = rows.turn_RT.clamp_min(0), rows.turn_RT.shape[1]
    order = torch.arange(width, device=turn_RT.device)
    own = (rows.turn_RT[:, :, None] == rows.turn_RT[:, None, :]) & (order[None, :] <= order[:, None])
    sees_RTS = rows.sees_RSS.gather(1, turn_RT[:, :, None].expand(-1, -1, rows.sees_RSS.shape[2]))
    behind = sees_RTS.gather(2, turn_RT[:, None, :].expand(-1, width, -1))
    real = rows.turn_RT != PADDING
    return own | (behind & real[:, :, None] & real[:, None, :])
