"""Lists of distinct demos from the selector: greedy for use, sampled for training."""

import torch
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.selector.network import Encoded, Selector


@torch.no_grad()
def greedy(selector: Selector, encoded: Encoded, picks: int) -> Tensor:
    """Return the most probable next pick, `picks` times in a row: positions among the candidates, (B, T)."""
    return _roll_out(selector, encoded, 1, picks, None)[:, 0]


@torch.no_grad()
def sample(selector: Selector, encoded: Encoded, lists: int, picks: int, generator: torch.Generator) -> Tensor:
    """Return `lists` lists of `picks` picks for every query, sampled from the policy: positions, (B, G, T)."""
    return _roll_out(selector, encoded, lists, picks, generator)


def _roll_out(
    selector: Selector, encoded: Encoded, lists: int, picks: int, generator: torch.Generator | None
) -> Tensor:
    queries, candidates = encoded.key_BKW.shape[:2]
    if picks > candidates:
        raise LeverlabError(
            f"{picks} distinct demos cannot be picked from {candidates} candidates; raise prepare.candidates"
        )
    state_BGW = encoded.state_BW[:, None].expand(-1, lists, -1)
    picked_BGK = torch.zeros(queries, lists, candidates, dtype=torch.bool, device=state_BGW.device)
    chosen = []
    for _ in range(picks):
        logits_BGK = selector.logits(encoded, state_BGW, picked_BGK)
        if generator is None:
            pick_BG = logits_BGK.argmax(-1)
        else:
            probabilities = torch.softmax(logits_BGK, dim=-1).flatten(0, 1)
            pick_BG = torch.multinomial(probabilities, 1, generator=generator).view(queries, lists)
        chosen.append(pick_BG)
        picked_BGK = picked_BGK.scatter(2, pick_BG[..., None], True)
        state_BGW = selector.advance(encoded, state_BGW, pick_BG)
    return torch.stack(chosen, dim=-1)
