"""Eager torch, C++ and Triton leave the same bits, whatever the sizes, dtypes and options."""

import pytest
import torch

from tests.helpers.backends import FUSED
from tests.helpers.fuzz_steps import differing, ends, run

LEAST = {("triton", "cpu"): 1e-25, ("triton", "cuda"): 1e-18}
"""The interpreter misreads denormal bfloat16; what a GPU divides is not to leave a denormal rest."""
SLOW = [pytest.param("cpp", "cpu", 1500, marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    ("backend", "device", "runs"),
    [pytest.param(*case.values, 30, marks=case.marks) if hasattr(case, "marks") else (*case, 60) for case in FUSED]
    + SLOW,
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, where the interpreter meets infinities
def test_backends_leave_the_same_bits(backend, device, runs):
    least = LEAST.get((backend, device), 0.0)
    found = {seed: differing(run(seed, least=least), backend, device) for seed in range(runs)}
    assert not {seed: words for seed, words in found.items() if words}


def test_a_gradient_whose_square_is_infinite_is_forgotten():
    """Also where states are float32, and 0 times infinity would be no number."""
    for count in (100, 5000):
        of = run(0)._replace(
            start=torch.ones(count, dtype=torch.float32),
            grads=[torch.full((count,), value, dtype=torch.float32) for value in (1e30, 1.0)],
            options={"lr": 1e-3, "betas": (0.9, 0.0)},
        )
        last = list(ends(of, "cpp"))[-1]["weights"]
        assert last.isfinite().all()
        torch.testing.assert_close(last, torch.full_like(last, last[0].item()))
        assert last[0] < 1
