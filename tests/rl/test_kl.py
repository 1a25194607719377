"""The KL estimator against exact values, masked distributions without NaN, and the adaptive coefficient."""

import math

import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.rl.kl import adapt_beta, categorical_entropy, categorical_kl, k3


def test_k3_by_hand() -> None:
    """log r = ln 2: k3 = 2 - 1 - ln 2."""
    log_ratio = torch.tensor(math.log(2), dtype=torch.float64)
    assert k3(log_ratio).item() == pytest.approx(1 - math.log(2))


def test_expectations_under_q() -> None:
    """Summed over x with weights q(x), k3 is KL(q || p) exactly, which is not KL(p || q)."""
    logits_q, logits_p = torch.tensor([[0.3, -0.2, 0.9]]).double(), torch.tensor([[0.1, 0.2, 0.6]]).double()
    logq, logp = logits_q.log_softmax(-1), logits_p.log_softmax(-1)
    exact = categorical_kl(logits_q, logits_p)
    assert exact.item() > 1e-3
    torch.testing.assert_close((logq.exp() * k3(logp - logq)).sum(-1), exact)
    reverse = categorical_kl(logits_p, logits_q)
    assert abs(reverse.item() - exact.item()) > 1e-5  # the direction is not interchangeable


def test_k3_keeps_its_digits_near_one() -> None:
    """k3 = x^2 / 2 + x^3 / 6 + ...; at x = 1e-4 in float32, exp(x) - 1 - x is mostly rounding, expm1(x) - x is not."""
    assert k3(torch.tensor(1e-4)).item() == pytest.approx(0.5e-8, rel=1e-2)
    assert (k3(torch.linspace(-3, 3, 61)) >= 0).all()


def test_categorical_kl_by_hand() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3)."""
    p, q = torch.tensor([1.0, 1.0]).log(), torch.tensor([1.0, 3.0]).log()
    assert categorical_kl(p, q).item() == pytest.approx(0.5 * math.log(4 / 3))


def test_categorical_kl_of_masked_entries() -> None:
    logits_p, logits_q = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.tensor([True, True, False]).expand(5, 3)
    expected = categorical_kl(logits_p[:, :2], logits_q[:, :2])
    torch.testing.assert_close(categorical_kl(logits_p, logits_q, mask), expected)
    infinite_p, infinite_q = (logits.masked_fill(~mask, -math.inf) for logits in (logits_p, logits_q))
    torch.testing.assert_close(categorical_kl(infinite_p, infinite_q), expected)
    # q may offer what p never picks; p may not pick what q never offers.
    assert torch.isfinite(categorical_kl(infinite_p, logits_q)).all()
    assert (categorical_kl(logits_p, infinite_q) == math.inf).all()


def test_gradients_through_the_mask_are_finite() -> None:
    logits = torch.tensor([[0.5, -0.5, -math.inf]], requires_grad=True)
    (categorical_kl(logits, torch.zeros(1, 3)) + categorical_entropy(logits)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 2] == 0


def test_entropy_by_hand() -> None:
    """Uniform over 4 is ln 4; (1/4, 3/4) is ln 4 - 3/4 ln 3; a masked entry leaves no trace; a certain pick is 0."""
    assert categorical_entropy(torch.zeros(4)).item() == pytest.approx(math.log(4))
    biased = torch.tensor([0.0, math.log(3), -math.inf])
    assert categorical_entropy(biased).item() == pytest.approx(math.log(4) - 0.75 * math.log(3))
    assert categorical_entropy(torch.tensor([2.0, -math.inf])).item() == 0


def test_entropy_and_kl_to_uniform_are_complements() -> None:
    logits = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)).double()
    uniform = torch.zeros_like(logits)
    torch.testing.assert_close(
        categorical_kl(logits, uniform) + categorical_entropy(logits), torch.full((7,), math.log(6)).double()
    )


def test_bad_logits_are_refused() -> None:
    with pytest.raises(LeverlabError, match="no entry"):
        categorical_entropy(torch.tensor([[0.0, 1.0], [-math.inf, -math.inf]]))
    with pytest.raises(LeverlabError, match="no entry"):
        categorical_kl(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[False, False]]))
    with pytest.raises(LeverlabError, match="one shape"):
        categorical_kl(torch.zeros(1, 2), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("beta", "kl", "expected"),
    [
        (0.1, 0.2, 0.15),  # above the window: the leash tightens
        (0.15, 0.005, 0.1),  # below: it loosens
        (0.1, 0.1, 0.1),  # both edges belong to the window
        (0.1, 0.01, 0.1),
        (8.0, 5.0, 10.0),  # bounds
        (0.0012, 0.0, 0.001),
    ],
)
def test_adaptive_beta(beta: float, kl: float, expected: float) -> None:
    """Window [.01, .1], factor 1.5, bounds [.001, 10]."""
    assert adapt_beta(beta, kl, 0.01, 0.1, 1.5, 0.001, 10) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, math.nan, 0.01, 0.1, 1.5, 0.001, 10), "measured KL is nan"),
        ((0.1, math.inf, 0.01, 0.1, 1.5, 0.001, 10), "measured KL is inf"),
        ((0.1, 0.05, 0.1, 0.01, 1.5, 0.001, 10), "window"),
        ((0.1, 0.05, 0.01, 0.1, 1.0, 0.001, 10), "factor"),
        ((11, 0.05, 0.01, 0.1, 1.5, 0.001, 10), "bounds"),
        ((0.0, 0.05, 0.01, 0.1, 1.5, 0.0, 10), "bounds"),
    ],
)
def test_adaptive_beta_refuses(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        adapt_beta(*arguments)
