"""Each row against f' by autograd in float64, written from f and not from h."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast import DIVERGENCES, Divergence, alpha, divergence
from fdpo_fast.ops.constants import EXP_CAP


def f_alpha(a):
    return lambda x: (x ** (1 - a) - (1 - a) * x - a) / (a * (a - 1))


F = {
    "reverse_kl": lambda x: x * x.log(),
    "forward_kl": lambda x: -x.log(),
    "jensen_shannon": lambda x: x * x.log() - (x + 1) * ((x + 1) / 2).log(),
    "alpha": f_alpha(0.5),
    "squared_hellinger": lambda x: (x.sqrt() - 1) ** 2,
    "jeffreys": lambda x: (x - 1) * x.log(),
    "neyman_chi2": lambda x: (1 - x) ** 2 / x,
    "chi_po": lambda x: x * x.log() + (x - 1) ** 2 / 2,
}
SECOND = {"jensen_shannon": 0.5, "squared_hellinger": 0.5, "jeffreys": 2, "neyman_chi2": 2, "chi_po": 2}
U = torch.linspace(-6, 6, 241, dtype=torch.float64)


def f_prime(f, u):
    x = u.exp().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def assert_link(row, f):
    want = f_prime(f, U) - f_prime(f, torch.zeros(1, dtype=torch.float64))
    got = row(U) - row(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_table_is_complete():
    assert set(F) == set(DIVERGENCES)


@pytest.mark.parametrize("name", F)
def test_link_is_f_prime(name):
    assert_link(DIVERGENCES[name], F[name])


@given(st.floats(0.01, 0.99))
def test_alpha_link_is_f_prime(a):
    assert_link(alpha(a), f_alpha(a))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", F)
def test_slope_is_derivative_of_link(name, dtype):
    u = torch.linspace(-40, 40, 801, dtype=dtype, requires_grad=True)
    want, eps = DIVERGENCES[name].slope(u.detach().double()), torch.finfo(dtype).eps
    for got in (torch.autograd.grad(DIVERGENCES[name](u).sum(), u)[0], DIVERGENCES[name].slope(u.detach())):
        torch.testing.assert_close(got.double(), want, rtol=50 * eps, atol=2 * eps)


@pytest.mark.parametrize("name", F)
def test_second_derivative_at_one(name):
    # h'(0) = f''(1), the weight of a pair near the reference
    got = DIVERGENCES[name].slope(torch.zeros((), dtype=torch.float64)).item()
    assert got == pytest.approx(SECOND.get(name, 1))


def test_small_alpha_keeps_the_digits_of_u():
    # the limit a -> 0 is reverse KL; exp in place of expm1 would lose u below 1e-7 / a
    u = torch.tensor([1e-4, -3e-5, 2e-6], dtype=torch.float32)
    torch.testing.assert_close(alpha(1e-4)(u), u, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [name for name in F if DIVERGENCES[name].rate])
def test_tangent_continues_value_and_slope(name):
    row = DIVERGENCES[name]
    edge = EXP_CAP / row.rate
    u = edge + math.copysign(1, row.rate) * torch.tensor([-1e-9, 1e-9], dtype=torch.float64)
    below, above = row(u)
    assert below.item() == pytest.approx(above.item(), rel=1e-6)
    assert row.slope(u)[0].item() == pytest.approx(row.slope(u)[1].item(), rel=1e-6)
    assert row.clipped(u).tolist() == [False, True]


def test_lookup():
    assert divergence("alpha", a=0.3) == alpha(0.3) == divergence("alpha", alpha=0.3)
    assert divergence("reverse_kl").row == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: divergence("pearson_chi2"), ValueError, "not admissible"),
        (lambda: divergence("total_variation"), ValueError, "not admissible"),
        (lambda: divergence("renyi"), ValueError, "unknown divergence 'renyi'"),
        (lambda: divergence(3), TypeError, "string"),
        (lambda: divergence("reverse_kl", a=0.5), TypeError, "takes no parameter"),
        (lambda: divergence("alpha", b=0.5), TypeError, "takes no parameter b"),
        (lambda: alpha(0), ValueError, "strictly between 0 and 1"),
        (lambda: alpha(1.0), ValueError, "strictly between 0 and 1"),
        (lambda: alpha(-0.1), ValueError, "strictly between 0 and 1"),
        (lambda: alpha(float("nan")), ValueError, "strictly between 0 and 1"),
        (lambda: alpha("half"), TypeError, "number"),
        (lambda: Divergence("pearson", scale=2, rate=1), ValueError, "not admissible"),
        (lambda: Divergence("concave", linear=-1), ValueError, "not convex"),
        (lambda: Divergence("odd", linear=float("inf")), ValueError, "not finite"),
    ],
)
def test_refusals(call, error, says):
    with pytest.raises(error, match=says):
        call()
