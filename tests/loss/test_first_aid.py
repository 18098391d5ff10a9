"""`sft_weight`, `margin` and `clip_log_ratio`: values and gradients by their definitions, and what they are for."""

import math
from itertools import product

import pytest
import torch

from fdpo_fast import DIVERGENCES, FDPOLoss, fdpo_loss, log_ratio_loss
from fdpo_fast.ops.constants import EXP_CAP
from tests.helpers.backends import FUSED
from tests.helpers.loss import HALVES, KNOBS, evaluate, tensors
from tests.helpers.preserving import alike, link_of, loss_of, preserved

ALL = [*FUSED, ("eager", "cpu")]
# Neither knows of the other: every divergence, and every type of loss under the one with most terms.
COMBINATIONS = [(name, "sigmoid", 0.0) for name in DIVERGENCES]
COMBINATIONS += [
    ("jeffreys", *of) for of in (("sigmoid", 0.3), ("robust", 0.0), ("robust", 0.3), ("hinge", 0.0), ("ipo", 0.0))
]
AIDS = {
    "sft_weight": {"sft_weight": 3.0},
    "margin": {"margin": 0.7},
    "clip_log_ratio": {"clip_log_ratio": 0.05},
    "all": {"sft_weight": 3.0, "margin": 0.7, "clip_log_ratio": 0.05},
    "all, preserving": {"sft_weight": 1.0, "margin": 0.7, "clip_log_ratio": 0.05, "winner_preserving": 0.25},
    "sft_weight, preserving": {"sft_weight": 1.0, "winner_preserving": 0.25},
}


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize(("name", "loss_type", "e"), COMBINATIONS)
@pytest.mark.parametrize("aid", AIDS)
def test_values_and_gradients_are_those_of_the_definitions(backend, device, name, loss_type, e, aid):
    for errors in (False, True):
        pred, ref, target = alike(12, (3, 5), seed=len(name))
        if errors:
            ref = (ref.double() - target.double()).square().flatten(1).mean(1)
        options = {"divergence": name, "loss_type": loss_type, "label_smoothing": e, "ratio_scale": 20.0, "beta": 0.5}
        options |= AIDS[aid]
        loss, grad, stats = evaluate(pred, ref, target, backend, device, reduction="sum", **options)
        mu = options.pop("winner_preserving", None)
        want = preserved(pred, ref, target, mu, **options)
        torch.testing.assert_close(loss, want.losses.sum(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grad, want.grad, rtol=2e-5, atol=2e-6 * want.grad.abs().max().item())
        torch.testing.assert_close(stats["loser_scale"], want.scale, rtol=2e-5, atol=0)
        assert (mu is not None) == bool((want.scale < 1).any())
        if "clip_log_ratio" in options:
            beyond = torch.stack([stats["log_ratio_w"], stats["log_ratio_l"]]).abs() > 0.05
            assert torch.equal(stats["clipped"], beyond.double().sum(0))
            assert 0 < beyond.double().mean() < 1


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("divergence", ["jensen_shannon", "forward_kl", torch.sinh])
@pytest.mark.parametrize("mu", [None, 0.5])
def test_options_that_reach_nothing_keep_the_bits(backend, device, dtype, divergence, mu):
    inputs = alike(5, (4, 20, 20), (dtype,) * 3)
    options = {"divergence": divergence, "ratio_scale": 5.0, "winner_preserving": mu, "reduction": "none"}
    off = evaluate(*inputs, backend, device, **options)
    for more in ({"sft_weight": 0.0, "margin": 0.0, "clip_log_ratio": None}, {"clip_log_ratio": 1e4}):
        on = evaluate(*inputs, backend, device, **options | more)
        assert torch.equal(on[0], off[0])
        assert torch.equal(on[1], off[1])
        assert all(torch.equal(value, off[2][name]) for name, value in on[2].items())


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "hinge", "ipo"])
def test_statistics_are_of_the_plain_margin(backend, device, loss_type):
    inputs = tensors(6, (3, 5))
    plain, moved = (
        evaluate(*inputs, backend, device, loss_type=loss_type, margin=m, reduction="none", sft_weight=m)
        for m in (0.0, 1.5)
    )
    assert all(torch.equal(value, moved[2][name]) for name, value in plain[2].items())
    assert not torch.isclose(plain[0], moved[0]).any()


@pytest.mark.parametrize(("backend", "device"), ALL)
def test_where_losses_with_a_margin_bend(backend, device):
    """Under reverse KL, by known numbers: z of -1, 0, 1, 2, 3 and a margin of 1."""
    z = torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float32)
    pred, target = torch.ones(10, 1, dtype=torch.float32), torch.zeros(10, 1, dtype=torch.float32)
    errors = 1 + torch.cat([z, 0 * z]).double() / 8
    options = {"divergence": "reverse_kl", "beta": 2.0, "ratio_scale": 4.0, "margin": 1.0, "reduction": "none"}
    wants = {
        "sigmoid": [math.log1p(math.exp(1 - value)) for value in z.tolist()],
        "hinge": [3.0, 2.0, 1.0, 0.0, 0.0],  # at 1 + m
        "ipo": [((value - 1.5) / 2) ** 2 for value in z.tolist()],  # around 1/2 + m
    }
    for loss_type, want in wants.items():
        loss, grad, stats = evaluate(pred, errors, target, backend, device, loss_type=loss_type, **options)
        torch.testing.assert_close(stats["margin"], z.double())
        torch.testing.assert_close(loss, torch.tensor(want, dtype=torch.float64))
        signs = (z < {"sigmoid": math.inf, "hinge": 2.0, "ipo": 1.5}[loss_type]).double() - (
            z.gt(1.5).double() if loss_type == "ipo" else 0.0
        )
        assert torch.equal(grad[:5, 0].sign(), signs)


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("divergence", [*DIVERGENCES, torch.sinh])
def test_slopes_beyond_the_clip_are_those_at_it(backend, device, divergence):
    """However far a log-ratio goes: with "ipo" the gradient says gap and slope as they are."""
    far = [-1e6, -1e3, -50.0, -2.0, 2.0, 50.0, 1e3, 1e6]
    u = torch.tensor(far, dtype=torch.float32)
    pred, target = torch.ones(16, 1, dtype=torch.float32), torch.zeros(16, 1, dtype=torch.float32)
    errors = 1 + torch.cat([u, 0 * u]).double()
    options = {"divergence": divergence, "loss_type": "ipo", "beta": 0.5, "ratio_scale": 1.0, "reduction": "sum"}
    _, grad, stats = evaluate(pred, errors, target, backend, device, clip_log_ratio=2.0, **options)
    ends = torch.tensor([-2.0, 2.0], dtype=torch.float64, requires_grad=True)
    h, zero = link_of(divergence)(ends), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(h.sum(), ends)[0]
    side = (u > 0).long()
    gap = (h[side] + slopes[side] * (u.double() - ends[side]) - link_of(divergence)(zero)).detach()
    torch.testing.assert_close(grad[:8, 0], 2 * (gap - 1) * slopes[side] * -2, rtol=1e-5, atol=0)
    assert stats["clipped"].tolist() == [1, 1, 1, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("backend", "device"), ALL)
def test_log_ratios_past_either_cap_are_counted_once(backend, device):
    u = torch.tensor([-25.0, -EXP_CAP - 1, -3.0, 3.0, 25.0], dtype=torch.float32)
    pred, target = torch.ones(10, 1, dtype=torch.float32), torch.zeros(10, 1, dtype=torch.float32)
    errors = 1 + torch.cat([u, -u]).double()
    counts = {None: [1, 1, 0, 0, 1], 30.0: [1, 1, 0, 0, 1], 22.0: [2, 1, 0, 0, 2], 2.0: [2] * 5}
    for clip, want in counts.items():
        options = {"divergence": "forward_kl", "beta": 1e-9, "ratio_scale": 1.0, "clip_log_ratio": clip}
        assert evaluate(pred, errors, target, backend, device, **options)[2]["clipped"].tolist() == want


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_the_preferred_samples_own_loss_counts_when_it_is_preserved(backend, device, weight):
    """lambda = (1 - mu) (c_w + v w / r) E / (c_l X), by numbers: equal predictions, reverse KL, r = 8, w = 2."""
    miss_w, miss_l = torch.tensor([[1.0, 0.0]], dtype=torch.float32), torch.tensor([[4.0, 1.0]], dtype=torch.float32)
    pred = torch.cat([miss_w, miss_l])
    options = {"divergence": "reverse_kl", "beta": 1.0, "ratio_scale": 8.0, "sft_weight": 2.0}
    options |= {"weight": torch.full((1,), weight, device=device), "winner_preserving": 0.5}
    _, grad, stats = evaluate(pred, pred, torch.zeros_like(pred), backend, device, **options)
    # c_w = v (1/2 + 2/8), c_l = v / 2, E = 1/2, X = 2
    scale = 0.5 * (0.75 * 0.5) / (0.5 * 2) if weight > 0 else 1.0
    assert stats["loser_scale"].item() == pytest.approx(scale)
    want = weight * torch.cat([8 * 0.75 * miss_w, -8 * 0.5 * scale * miss_l]).double()
    torch.testing.assert_close(grad, want)


class Learnt(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float32))

    def forward(self, u):
        return (self.rate * u).sinh()


class Once(torch.autograd.Function):
    """u + u^3, whose derivative has none of its own."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return u + u**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 + 3 * ctx.saved_tensors[0] ** 2)


@pytest.mark.parametrize(("backend", "device"), ALL)
def test_parameters_of_a_link_learn_through_its_tangents(backend, device):
    pred, ref, target = tensors(6, (3, 5))
    link = Learnt().to(device)
    options = {"beta": 2.0, "ratio_scale": 20.0, "clip_log_ratio": 0.03, "backend": backend}
    loss, stats = FDPOLoss(link, **options)(*(x.to(device) for x in (pred, ref, target)))
    (got,) = torch.autograd.grad(loss, link.rate)
    assert stats.clipped.sum() > 3
    rate = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    u = -20 * ((pred.double() - target).square() - (ref.double() - target).square()).flatten(1).mean(1)
    at = u.clamp(-0.03, 0.03)
    h = (rate * at).sinh() + rate * (rate * at).cosh() * (u - at)
    want = torch.nn.functional.softplus(-2 * (h[:6] - h[6:])).mean()
    torch.testing.assert_close(loss.detach().double().cpu(), want.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(got.double().cpu(), torch.autograd.grad(want, rate)[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("mu", [None, 0.5])
def test_a_link_needs_no_second_derivative(backend, device, mu):
    inputs = alike(6, (3, 5))
    options = {"ratio_scale": 20.0, "beta": 0.1, "clip_log_ratio": 0.05, "reduction": "sum"}
    _, grad, _ = evaluate(*inputs, backend, device, divergence=Once.apply, winner_preserving=mu, **options)
    del options["reduction"]
    want = preserved(*inputs, mu, divergence=lambda u: u + u**3, **options)
    torch.testing.assert_close(grad, want.grad, rtol=2e-5, atol=2e-6 * want.grad.abs().max().item())


@pytest.mark.parametrize("divergence", ["jeffreys", torch.sinh])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_ratio_loss_has_margin_and_clip(divergence, dtype):
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, 40, generator=generator, dtype=torch.float64).to(dtype)
    for loss_type, clip, margin in product(("sigmoid", "hinge", "ipo", "robust"), (None, 0.7), (0.0, 1.2)):
        sides = [side.detach().requires_grad_() for side in u]
        options = {"beta": 0.8, "loss_type": loss_type, "clip_log_ratio": clip, "margin": margin, "reduction": "none"}
        losses, margins = log_ratio_loss(*sides, divergence=divergence, **options)
        grads = torch.autograd.grad(losses.sum(), sides)
        exact = u.double().requires_grad_()
        gap = link_of(divergence, clip)(exact[0]) - link_of(divergence, clip)(exact[1])
        want = loss_of(gap - margin / 0.8, 0.8, loss_type)
        (slopes,) = torch.autograd.grad(want.sum(), exact)
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(losses.double(), want.detach(), **tolerance)
        torch.testing.assert_close(margins.double(), 0.8 * gap.detach(), **tolerance)
        rounding = max(torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(torch.stack(grads).double(), slopes, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("divergence", ["jeffreys", torch.sinh])
def test_second_derivatives(divergence):
    """Of the eager backend; a tangent has none."""
    pred, ref, target = (x.double() for x in tensors(2, (3,)))
    options = {"beta": 2.0, "ratio_scale": 10.0, "sft_weight": 0.5, "margin": 0.3, "clip_log_ratio": 0.02}

    def ours(p):
        return fdpo_loss(p, ref, target, divergence=divergence, backend="eager", **options)[0]

    def formula(p):
        error = (p - target).square().mean(1)
        u = -10 * (error - (ref - target).square().mean(1))
        at = u.clamp(-0.02, 0.02)
        h, ends = {
            "jeffreys": lambda: (at + 1 - (-at).exp(), 1 + (-at.detach()).exp()),
            torch.sinh: lambda: (at.sinh(), at.detach().cosh()),
        }[divergence]()
        h = h + ends * (u - at)
        return (torch.nn.functional.softplus(0.3 - 2 * (h[:2] - h[2:])) + 0.5 * error[:2]).mean()

    want = torch.func.hessian(formula)(pred)
    _, stats = fdpo_loss(pred, ref, target, divergence=divergence, **options)
    assert 0 < stats.clipped.sum() < 4
    torch.testing.assert_close(ours(pred), formula(pred))
    torch.testing.assert_close(torch.func.hessian(ours)(pred), want)
    torch.testing.assert_close(torch.autograd.functional.hessian(ours, pred), want)


@pytest.mark.parametrize("backend", ["cpp", "eager"])
@pytest.mark.parametrize("link", [lambda u: u[:, None], lambda u: u.mean()])
def test_a_clipped_link_of_another_shape_is_refused(backend, link):
    x = torch.zeros(4, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="one number for each log-ratio"):
        fdpo_loss(x, x, x, divergence=link, clip_log_ratio=1.0, backend=backend, **{"beta": 1.0, "ratio_scale": 1.0})


def test_the_defaults_are_off():
    assert {name: FDPOLoss(**KNOBS).options[name] for name in ("sft_weight", "margin", "clip_log_ratio")} == {
        "sft_weight": 0.0,
        "margin": 0.0,
        "clip_log_ratio": None,
    }
