"""Every number of a call is within a bound that follows from how it is formed, whatever the sizes and options."""

import pytest
import torch

from fdpo_fast import fdpo_loss
from tests.helpers.backends import FUSED
from tests.helpers.fuzz_losses import EPS, call, misses

SLOW = [pytest.param("cpp", "cpu", 20_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    ("backend", "device", "calls"),
    [pytest.param(*case.values, 60, marks=case.marks) if hasattr(case, "marks") else (*case, 600) for case in FUSED]
    + SLOW,
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, where the interpreter meets infinities
def test_calls_are_within_their_bounds(backend, device, calls):
    found = {seed: misses(call(seed), backend, device) for seed in range(calls)}
    assert not {seed: words for seed, words in found.items() if words}


def test_reference_errors_cost_no_more_than_the_policys_squares():
    """The margin of a policy that is its reference is within beta ratio_scale 3 eps (error_w + error_l) of 0."""
    generator = torch.Generator().manual_seed(0)
    for spread in (1e-3, 1.0, 1e3):
        pred, target = (torch.randn(64, 4, 32, 32, generator=generator, dtype=torch.float32) for _ in range(2))
        pred, target = pred * spread, target * spread
        errors = (pred.double() - target.double()).square().mean((1, 2, 3))
        _, stats = fdpo_loss(pred, errors, target, divergence="reverse_kl", beta=2.0, ratio_scale=100.0)
        bound = 200.0 * 3 * EPS * (errors[:32] + errors[32:])
        assert (stats.margin.double().abs() <= bound).all()
        assert stats.margin.abs().max() > 0
