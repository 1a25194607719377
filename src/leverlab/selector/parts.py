"""The parts of the selector that params choose: the state update, the head, and the penalty for similar picks.

    state   gru       h' = GRU(z, h)                                          Cho et al. 2014, arXiv 1406.1078
            gated     h' = g * h + (1 - g) * tanh(U z),  g = sigmoid(G [h, z])
            static    h' = h
    head    dot       logit = <R norm(h), K z> / sqrt(W)                      Vaswani et al. 2017, arXiv 1706.03762
            bilinear  logit = norm(h)^T K z / sqrt(W)                         "general" of Luong et al. 2015, 1508.04025
            additive  logit = v^T tanh(R norm(h) + K z)                       Bahdanau et al. 2015, arXiv 1409.0473
    mmr     logit_k falls by softplus(w) * max over picked j of cos(z_k, z_j) Carbonell & Goldstein 1998

h is the state, z the vector of a demo. `gated` is the GRU with its reset gate closed: what a pick adds does not depend
on the state, only how much of it is taken. SRU (Lei et al. 2018, arXiv 1709.02755) has this form too, without the tanh
and with a diagonal G on h. `bilinear` divides by sqrt(W), which Luong does not, so that it starts about as flat as
`dot`. `bilinear` and `additive` have no biases: the softmax cancels the one, the bias of the norm stands for the other.

Axes: N rows, B queries, G lists of a query, T picks, K candidates, W width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from leverlab.config.selector import HeadKind, StateUpdate


class GatedUpdate(nn.Module):
    """A gate for each number of the state: keep it, or take what the pick says."""

    def __init__(self, width: int):
        super().__init__()
        self.gate = nn.Linear(2 * width, width)
        self.new = nn.Linear(width, width)

    def forward(self, demo_NW: Tensor, state_NW: Tensor) -> Tensor:
        """Return the states after the picks `demo_NW`."""
        keep_NW = torch.sigmoid(self.gate(torch.cat([state_NW, demo_NW], dim=-1)))
        return keep_NW * state_NW + (1 - keep_NW) * torch.tanh(self.new(demo_NW))


class StaticUpdate(nn.Module):
    """A state that picks do not change."""

    def forward(self, demo_NW: Tensor, state_NW: Tensor) -> Tensor:
        """Return `state_NW`."""
        return state_NW


def state_update(kind: StateUpdate, width: int) -> nn.Module:
    """Return the module that takes demos picked and states (N, W) and gives the states after the picks."""
    match kind:
        case "gru":
            return nn.GRUCell(width, width)
        case "gated":
            return GatedUpdate(width)
        case "static":
            return StaticUpdate()


class ScaledProduct(nn.Module):
    """The inner product over sqrt(W)."""

    def forward(self, read_BGW: Tensor, key_BKW: Tensor) -> Tensor:
        """Return the logits (B, G, K)."""
        return cast(Tensor, torch.einsum("bgw,bkw->bgk", read_BGW, key_BKW) / read_BGW.shape[-1] ** 0.5)


class Additive(nn.Module):
    """A layer of W units for every pair of state and candidate.

    The sums take B G K W numbers: 17 MB in float32 for 32 queries, 16 lists, 64 candidates and width 128, once for each
    pick while gradients are on. `tanh_` overwrites them, so that there is one such tensor and not two.
    """

    def __init__(self, width: int):
        super().__init__()
        self.energy = nn.Linear(width, 1, bias=False)

    def forward(self, read_BGW: Tensor, key_BKW: Tensor) -> Tensor:
        """Return the logits (B, G, K)."""
        hidden_BGKW = (read_BGW[:, :, None] + key_BKW[:, None]).tanh_()
        return cast(Tensor, self.energy(hidden_BGKW)[..., 0])


def head_parts(kind: HeadKind, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the modules (key, read, score) of a head: the logit of a candidate is score(read(norm(h)), key(z))."""
    match kind:
        case "dot":
            return nn.Linear(width, width), nn.Linear(width, width), ScaledProduct()
        case "bilinear":
            return nn.Linear(width, width, bias=False), nn.Identity(), ScaledProduct()
        case "additive":
            linear = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
            return *linear, Additive(width)


class RedundancyPenalty(nn.Module):
    """The penalty of maximal marginal relevance, with a learned weight softplus(w) >= 0.

    w starts at 0, a weight of log 2 = 0.69: logits then differ by a few tenths, and w moves by about the learning rate
    in an update, so that a start near a weight of 0 would leave the penalty out of a short training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, demo_BKW: Tensor, picks_BGT: Tensor) -> Tensor:
        """Return what the logits (B, G, K) fall by after `picks_BGT`, at least one."""
        unit_BKW = functional.normalize(demo_BKW, dim=-1)
        index_BCW = picks_BGT.flatten(1)[..., None].expand(-1, -1, demo_BKW.shape[-1])
        chosen_BGTW = unit_BKW.gather(1, index_BCW).view(*picks_BGT.shape, -1)
        cosine_BGTK = torch.einsum("bgtw,bkw->bgtk", chosen_BGTW, unit_BKW)
        return functional.softplus(self.weight) * cosine_BGTK.amax(dim=2)
