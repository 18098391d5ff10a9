"""Each row against f' by autograd in float64, written from f and not from h."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast import DIVERGENCES, Divergence, alpha, divergence, log_ratio_loss
from fdpo_fast.ops.constants import EXP_CAP
from tests.helpers.divergences import F, f_alpha

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


def exactly(row, order, u):
    """h, h' or h'' of a float at fifty digits, from the formula in the module's head; a line behind the cap."""
    with mpmath.workdps(50):
        u, cap = mpmath.mpf(u), mpmath.mpf(EXP_CAP)
        rate, x = mpmath.mpf(row.rate), mpmath.mpf(row.rate) * u
        e = mpmath.exp(min(x, cap))
        power = [mpmath.expm1(x) if x <= cap else mpmath.expm1(cap) + e * (x - cap), rate * e, rate**2 * e * (x <= cap)]
        s = 1 / (1 + mpmath.exp(u))
        logistic = [mpmath.log(2 / (1 + mpmath.exp(-u))), s, -s * (1 - s)]
        linear = [u, 1, 0]
        return row.linear * linear[order] + row.scale * power[order] + row.logistic * logistic[order]


def off_by(got, want):
    """The largest distance of float32 values from exact ones, in units of the last place."""
    places = [2.0 ** (max(math.frexp(float(w))[1], -125) - 24) for w in want]
    return max(float(abs(mpmath.mpf(g) - w) / place) for g, w, place in zip(got.tolist(), want, places, strict=True))


@pytest.mark.parametrize("row", [*DIVERGENCES.values(), alpha(0.3), Divergence("mine", 0.3, -1.7, -0.37, 0.9)], ids=str)
def test_the_links_derivatives_are_exact_in_float32(row):
    u = torch.cat([torch.linspace(-88, 88, 353), torch.tensor([1e-30, -1e-12, 1e-6, 20.1, -19.9])]).float()
    u.requires_grad_()
    link = row(u)
    (slope,) = torch.autograd.grad(link.sum(), u, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), u)
    for order, got in enumerate((link, slope, curvature)):
        assert off_by(got, [exactly(row, order, x) for x in u.tolist()]) <= 1, order
    assert torch.equal(row.slope(u), slope)


@pytest.mark.parametrize("row", [*DIVERGENCES.values(), alpha(0.3)], ids=lambda row: row.name)
def test_the_link_differentiates_in_every_way(row):
    u = torch.tensor([-30.0, -3.0, -0.1, 0.0, 0.2, 4.0, 25.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(row, u, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(row, u)
    slope = row.slope(u.detach())
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(row))(u.detach()), slope)
    torch.testing.assert_close(torch.func.jvp(row, (u.detach(),), (torch.ones(7, dtype=torch.float64),))[1], slope)
    torch._dynamo.reset()  # torch 2.7 compiles one function for eight objects at most
    compiled = torch.compile(row, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(u).sum(), u)[0], slope)


@pytest.mark.parametrize("name", F)
def test_the_loss_behind_the_log_ratios_is_that_of_float64(name):
    # near one another far out, where the difference of two links rounded to float32 would have no digits
    w, apart = torch.tensor([[30.0, 12.0, -40.0, 5.0, 0.0], [1e-3, 0.5, 1e-4, 1e-5, 1e-7]], dtype=torch.float32)
    pairs = [w, w - apart]
    losses = []
    for dtype in (torch.float32, torch.float64):
        sides = [u.to(dtype).requires_grad_() for u in pairs]
        loss, margin = log_ratio_loss(*sides, divergence=name, beta=3.0, reduction="none")
        losses.append((loss, margin, *torch.autograd.grad(loss.sum(), sides)))
        assert {value.dtype for value in losses[-1]} == {dtype}
    for got, want in zip(*losses, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=2e-7, atol=0)


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
