"""The rival of the loss's benchmarks is the same loss: what scripts publish, and what `fdpo_loss` gives."""

import pytest
import torch

from benchmarks.published import DIVERGENCES, published_loss, published_margins
from fdpo_fast import fdpo_loss
from tests.helpers.published import official, sdxl_script, tensors

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
"""Of the loss, and of the gradient relative to its largest element: the means of float32 errors lose digits."""


@pytest.mark.parametrize("casts", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_it_is_the_loss_of_ours(divergence, dtype, casts):
    pred, ref, target = tensors(dtype)
    options = {"divergence": divergence, "beta": 1.5, "ratio_scale": 200.0}
    theirs, ours = (pred.clone().requires_grad_() for _ in range(2))
    want, accuracy = published_loss(theirs, ref, target, casts=casts, **options)
    loss, stats = fdpo_loss(ours, ref, target, **options)
    want.backward()
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=TOLERANCE[dtype])
    atol = TOLERANCE[dtype] * ours.grad.abs().max().item()
    torch.testing.assert_close(theirs.grad, ours.grad, rtol=TOLERANCE[dtype], atol=atol)
    ties = 0 if casts else 0.5 * stats.margin.eq(0).double().mean().item()
    assert accuracy.item() == pytest.approx(stats.accuracy.item() - ties, rel=1e-6)


def test_it_is_what_the_scripts_compute():
    inputs = tensors(torch.float64)
    with_casts, without = (published_loss(*inputs, ratio_scale=2500.0, casts=casts) for casts in (True, False))
    assert torch.equal(torch.stack(with_casts), torch.stack(sdxl_script(*inputs, beta_dpo=5000)))
    assert torch.equal(torch.stack(without), torch.stack(official(*inputs, beta_dpo=5000)[:2]))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_errors_of_the_reference_stand_for_its_predictions(divergence):
    pred, ref, target = tensors(torch.float64)
    options = {"divergence": divergence, "ratio_scale": 200.0}
    errors = (ref - target).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(
        published_margins(pred, errors, target, **options), published_margins(pred, ref, target, **options)
    )


def test_casts_are_what_keeps_the_margins_of_bfloat16():
    inputs = tensors(torch.bfloat16)
    truth = published_margins(*(x.double() for x in inputs), ratio_scale=2500.0)
    error = {c: (published_margins(*inputs, ratio_scale=2500.0, casts=c) - truth).abs().max() for c in (True, False)}
    assert error[True] < 1e-3 < 1e-1 < error[False]
