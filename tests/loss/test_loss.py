"""The drop-in loss against published expressions, float64 and its own invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid, mse_loss

from fdpo_fast import DIVERGENCES, FDPOLoss, alpha, fdpo_loss

KNOBS = {"beta": 2.0, "ratio_scale": 50.0}


def tensors(pairs=3, shape=(4, 5, 5), dtype=torch.float64, seed=0, spread=0.1):
    generator = torch.Generator().manual_seed(seed)
    target, p, r = (torch.randn(2 * pairs, *shape, generator=generator, dtype=torch.float64) for _ in range(3))
    pred, ref = target + spread * p, target + spread * r
    return pred.to(dtype).requires_grad_(), ref.to(dtype), target.to(dtype)


def diffusion_dpo(model_pred, ref_pred, target, beta_dpo):
    """The loss as the authors of Diffusion-DPO publish it: halves layout, means over C, H, W, factor 1/2."""
    model_losses = (model_pred - target).pow(2).mean(dim=[1, 2, 3])
    model_losses_w, model_losses_l = model_losses.chunk(2)
    ref_losses = (ref_pred - target).pow(2).mean(dim=[1, 2, 3])
    ref_losses_w, ref_losses_l = ref_losses.chunk(2)
    scale_term = -0.5 * beta_dpo
    inside_term = scale_term * ((model_losses_w - model_losses_l) - (ref_losses_w - ref_losses_l))
    implicit_acc = (inside_term > 0).sum().float() / inside_term.size(0)
    return -1 * logsigmoid(inside_term).mean(), implicit_acc


@pytest.mark.parametrize(("beta", "ratio_scale"), [(1.0, 2500.0), (2500.0, 1.0), (50.0, 50.0)])
def test_reverse_kl_is_diffusion_dpo(beta, ratio_scale):
    pred, ref, target = tensors()
    want, accuracy = diffusion_dpo(pred, ref, target, beta_dpo=5000)
    got, stats = fdpo_loss(pred, ref, target, divergence="reverse_kl", beta=beta, ratio_scale=ratio_scale)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    assert stats.accuracy == accuracy
    (got_grad,) = torch.autograd.grad(got, pred)
    (want_grad,) = torch.autograd.grad(want, pred)
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_predictions_give_exactly_log_2(name, dtype):
    pred, _, target = tensors(dtype=dtype)
    loss, stats = fdpo_loss(pred, pred.detach().clone(), target, divergence=name, beta=5000.0, ratio_scale=1.0)
    assert loss.item() == torch.tensor(math.log(2), dtype=loss.dtype).item()
    assert stats.margin.eq(0).all()
    assert stats.accuracy == 0.5


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_swapping_the_sides_negates_the_margin(name, layout):
    pred, ref, target = tensors()
    order = {"halves": [3, 4, 5, 0, 1, 2], "interleaved": [1, 0, 3, 2, 5, 4]}[layout]
    _, stats = fdpo_loss(pred, ref, target, divergence=name, layout=layout, **KNOBS)
    _, swapped = fdpo_loss(pred[order], ref[order], target[order], divergence=name, layout=layout, **KNOBS)
    assert torch.equal(swapped.margin, -stats.margin)
    assert torch.equal(swapped.error_w, stats.error_l)


def test_layouts_agree():
    pred, ref, target = tensors()
    to_interleaved = [0, 3, 1, 4, 2, 5]
    halves, _ = fdpo_loss(pred, ref, target, **KNOBS)
    interleaved, _ = fdpo_loss(
        pred[to_interleaved], ref[to_interleaved], target[to_interleaved], layout="interleaved", **KNOBS
    )
    assert halves.item() == pytest.approx(interleaved.item(), rel=1e-14)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_reference_errors_stand_for_predictions(name):
    pred, ref, target = tensors()
    errors = (ref - target).square().mean(dim=(1, 2, 3))
    want, want_stats = fdpo_loss(pred, ref, target, divergence=name, **KNOBS)
    got, stats = fdpo_loss(pred, errors, target, divergence=name, **KNOBS)
    assert got.item() == pytest.approx(want.item(), rel=1e-11)
    for key, value in want_stats.items():
        torch.testing.assert_close(stats[key], value)


def test_float64_reference_errors_are_not_rounded():
    # policy error equal to a stored one up to 1e-12: float32 could not tell them apart
    pred, _, target = tensors(dtype=torch.float32)
    errors = (pred.detach() - target).square().mean(dim=(1, 2, 3), dtype=torch.float64)
    _, stats = fdpo_loss(pred, errors + 1e-12, target, divergence="reverse_kl", beta=1.0, ratio_scale=1e12)
    torch.testing.assert_close(stats.log_ratio_w, torch.ones(3, dtype=torch.float32), rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo", "robust"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_matches_finite_differences(name, loss_type):
    pred, ref, target = tensors(pairs=2, shape=(3, 2))
    assert torch.autograd.gradcheck(
        lambda p: fdpo_loss(p, ref, target, divergence=name, loss_type=loss_type, beta=0.7, ratio_scale=9.0)[0], pred
    )


def test_loss_types_on_a_known_margin():
    # one element a sample: delta is p^2 - r^2 with target 0, so u_w = 3, u_l = -1 and the gap is 4
    pred, ref, target = torch.tensor([1.0, 2.0]).double(), torch.tensor([4.0, 3.0]).double().sqrt(), torch.zeros(2)
    options = {"divergence": "reverse_kl", "beta": 0.25, "ratio_scale": 1.0}
    z, e = 1.0, 0.1

    def softplus(x):
        return math.log1p(math.exp(x))

    want = {
        ("sigmoid", 0.0): softplus(-z),
        ("sigmoid", e): (1 - e) * softplus(-z) + e * softplus(z),
        ("robust", e): ((1 - e) * softplus(-z) - e * softplus(z)) / (1 - 2 * e),
        ("hinge", 0.0): 0.0,
        ("ipo", 0.0): (4 - 2.0) ** 2,
    }
    for (loss_type, smoothing), value in want.items():
        loss, _ = fdpo_loss(pred, ref.square().sqrt(), target.double(), loss_type=loss_type,
                            label_smoothing=smoothing, **options)  # fmt: skip
        assert loss.item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo", "robust"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_extremes_stay_finite_with_the_right_sign(name, loss_type):
    # u_w, u_l through every pair of extremes; target 0 and one element make delta = p^2 - error
    extremes = [-1e6, -1e3, -30.0, 0.0, 30.0, 1e3, 1e6]
    grid = torch.tensor([(a, b) for a in extremes for b in extremes], dtype=torch.float32)
    pred = torch.ones(2 * len(grid), 1, requires_grad=True, dtype=torch.float32)
    errors = 1 + torch.cat([grid[:, 0], grid[:, 1]])
    loss, stats = fdpo_loss(pred, errors, torch.zeros_like(pred), divergence=name, loss_type=loss_type,
                            beta=1e4, ratio_scale=1.0, reduction="none")  # fmt: skip
    torch.testing.assert_close(stats.log_ratio_w, grid[:, 0])
    assert loss.isfinite().all()
    (grad,) = torch.autograd.grad(loss.sum(), pred)
    assert grad.isfinite().all()
    if loss_type in ("sigmoid", "hinge", "robust"):  # ipo also pulls margins back
        assert (grad[: len(grid)] >= 0).all()  # less error on the preferred image
        assert (grad[len(grid) :] <= 0).all()
        lost = grid[:, 0] < grid[:, 1]  # a preferred image far below the reference always pulls
        assert (grad[: len(grid)][lost & (grid[:, 0] < -20)] > 0).all()


def test_a_hard_clamp_would_have_no_gradient_here():
    pred = torch.ones(2, 1, requires_grad=True, dtype=torch.float32)
    errors = torch.tensor([-99.0, 1.0], dtype=torch.float32)
    loss, stats = fdpo_loss(pred, errors, torch.zeros_like(pred), divergence="forward_kl", beta=1e-3, ratio_scale=1.0)
    loss.backward()
    assert pred.grad[0].item() > 0
    assert stats.clipped.tolist() == [1.0]


@given(
    pairs=st.integers(0, 5),
    shape=st.lists(st.integers(1, 6), min_size=0, max_size=4),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    name=st.sampled_from(sorted(DIVERGENCES)),
    layout=st.sampled_from(["halves", "interleaved"]),
    errors=st.booleans(),
)
@settings(max_examples=60)
def test_any_shape_against_float64(pairs, shape, dtype, name, layout, errors):
    pred, ref, target = tensors(pairs, shape, dtype, seed=pairs)
    pred64, ref64, target64 = pred.detach().double().requires_grad_(), ref.double(), target.double()
    if errors and shape:
        ref = ref64 = (ref64 - target64).square().mean(dim=tuple(range(1, pred.ndim)))
    options = {"divergence": name, "layout": layout, "beta": 1.5, "ratio_scale": 4.0}
    loss, stats = fdpo_loss(pred, ref, target, **options)
    want, _ = fdpo_loss(pred64, ref64, target64, **options)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(want.item(), rel=1e-5, abs=1e-6)
    loss.backward()
    want.backward()
    assert pred.grad.dtype == dtype
    scale = pred64.grad.abs().max().item() if pairs else 0.0
    info = torch.finfo(dtype)
    tolerance = {"rtol": 2 * info.eps, "atol": 1e-5 * scale + info.tiny * info.eps}
    torch.testing.assert_close(pred.grad.double(), pred64.grad, **tolerance)
    per_pair = [key for key in stats if key != "accuracy"]
    assert all(stats[key].shape == (pairs,) and stats[key].dtype == torch.float32 for key in per_pair)
    assert not any(value.requires_grad for value in stats.values())


def test_mixed_dtypes_and_strides():
    pred, ref, target = tensors(dtype=torch.float32)
    want, _ = fdpo_loss(pred, ref.bfloat16().float(), target.bfloat16().float(), **KNOBS)
    strided = pred.to(memory_format=torch.channels_last)
    got, _ = fdpo_loss(strided, ref.bfloat16(), target.bfloat16().transpose(1, 2).contiguous().transpose(1, 2), **KNOBS)
    assert got.item() == pytest.approx(want.item(), rel=1e-6)


def test_a_nan_stays_in_its_pair():
    pred, ref, target = tensors(dtype=torch.float32)
    with torch.no_grad():
        pred[1, 0, 0, 0] = float("nan")
    _, stats = fdpo_loss(pred, ref, target, **KNOBS)
    assert stats.margin.isnan().tolist() == [False, True, False]


def test_no_gradient_reaches_reference_or_target():
    pred, ref, target = tensors()
    ref.requires_grad_()
    target.requires_grad_()
    fdpo_loss(pred, ref, target, **KNOBS)[0].backward()
    assert ref.grad is None
    assert target.grad is None


def test_weights_and_reductions():
    pred, ref, target = tensors()
    weight = torch.tensor([1.0, 0.5, 0.0])
    losses, _ = fdpo_loss(pred, ref, target, reduction="none", **KNOBS)
    weighted = {
        r: fdpo_loss(pred, ref, target, weight=weight, reduction=r, **KNOBS)[0] for r in ("mean", "sum", "none")
    }
    torch.testing.assert_close(weighted["none"], losses * weight)
    torch.testing.assert_close(weighted["sum"], (losses * weight).sum())
    torch.testing.assert_close(weighted["mean"], (losses * weight).sum() / 3)


def test_mean_of_logsigmoid_not_logsigmoid_of_mean():
    pred, ref, target = tensors()
    loss, stats = fdpo_loss(pred, ref, target, **KNOBS)
    assert loss.item() == pytest.approx(-logsigmoid(stats.margin.double()).mean().item(), rel=1e-6)
    assert loss.item() != pytest.approx(-logsigmoid(stats.margin.double().mean()).item(), rel=1e-3)


def test_stats_hold_the_errors():
    pred, ref, target = tensors()
    _, stats = fdpo_loss(pred, ref, target, **KNOBS)
    assert stats["error_w"][0].item() == pytest.approx(mse_loss(pred[0], target[0]).item(), rel=1e-6)
    assert stats["ref_error_l"][2].item() == pytest.approx(mse_loss(ref[5], target[5]).item(), rel=1e-6)
    assert stats.accuracy.shape == ()


def test_any_callable_is_a_divergence():
    pred, ref, target = tensors()
    want, _ = fdpo_loss(pred, ref, target, divergence="reverse_kl", **KNOBS)
    got, stats = fdpo_loss(pred, ref, target, divergence=lambda u: u, **KNOBS)
    assert got.item() == want.item()
    assert stats.clipped.eq(0).all()


def test_module_is_the_function():
    pred, ref, target = tensors()
    module = FDPOLoss(alpha(0.3), layout="interleaved", **KNOBS)
    weight = torch.rand(3)
    want, _ = fdpo_loss(pred, ref, target, divergence=alpha(0.3), layout="interleaved", weight=weight, **KNOBS)
    assert module(pred, ref, target, weight)[0].item() == want.item()
    assert "beta=2.0" in repr(module)
