"""Lists of distinct demos from the selector: greedy for use, sampled for training.

A pick of a selector with STOP may be K, one behind the last candidate: the list has ended, and all later picks are K.
"""

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
    queries, places = encoded.key_BKW.shape[:2]
    candidates = places - selector.architecture.stop
    if picks > candidates:
        raise LeverlabError(
            f"{picks} distinct demos cannot be picked from {candidates} candidates; raise prepare.candidates"
        )
    state_BGW = encoded.state_BW[:, None].expand(-1, lists, -1)
    picks_BGT = torch.zeros(queries, lists, 0, dtype=torch.long, device=state_BGW.device)
    for _ in range(picks):
        logits_BGK = selector.logits(encoded, state_BGW, picks_BGT)
        if generator is None:
            pick_BG = logits_BGK.argmax(-1)
        else:
            probabilities = torch.softmax(logits_BGK, dim=-1).flatten(0, 1)
            pick_BG = torch.multinomial(probabilities, 1, generator=generator).view(queries, lists)
        picks_BGT = torch.cat([picks_BGT, pick_BG[..., None]], dim=2)
        state_BGW = selector.advance(encoded, state_BGW, pick_BG)
    return picks_BGT
