"""What becomes of updates: the sampled figures against those of the whole tensors, formed in float64."""

import pytest
import torch

from fdpo_fast import AdamW8bit
from fdpo_fast.optim.low_byte import joined
from fdpo_fast.optim.watch import UpdateWatch, figures
from tests.helpers.optimizers import parameter

STEP = 2.0**-8
"""Of bfloat16 between 1/2 and 1."""


def stepped(share, steps=1, count=4096, dtype=torch.bfloat16, **options):
    """Step weights of 3/4 by `share` of their bfloat16 step; returns (weights before, after the last step, figures)."""
    p = parameter(torch.full((count,), 0.75).to(dtype))
    optimizer = AdamW8bit([p], lr=share * STEP, weight_decay=0.0, eps=1e-30, **options)
    watch = UpdateWatch(optimizer)
    for step in range(steps):
        before = whole(p, optimizer)
        watch.armed = step == steps - 1
        p.grad = torch.ones_like(p)
        optimizer.step()
    sums = watch.take()
    assert watch.take() is None
    return before, whole(p, optimizer), None if sums is None else figures(sums.tolist())


def whole(p, optimizer):
    low = optimizer.state[p].get("low")
    return (p.detach().float() if low is None else joined(p.detach(), low)).double()


@pytest.mark.parametrize("share", [1e-4, 0.1, 0.4])
def test_to_nearest_small_updates_are_lost_whole(share):
    before, after, found = stepped(share, rounding="nearest")
    assert torch.equal(before, after)
    assert found == {"optimizer/lost": 1.0, "optimizer/noise": pytest.approx(1.0, rel=1e-5)}


@pytest.mark.parametrize("weights", ["plain", "bf16+8"])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.3])
def test_rounded_stochastically_they_are_noisy(share, weights):
    """With f the update's part of a step, its variance is f (1 - f), and 1 - f of them are lost."""
    step = STEP if weights == "plain" else STEP / 256
    before, after, found = stepped(share, count=1 << 16, weights=weights)
    f = share * STEP / step % 1
    assert found["optimizer/noise"] == pytest.approx((f * (1 - f)) ** 0.5 * step / (share * STEP), rel=0.15)
    lost = 1 - f if share * STEP < step else 0.0
    assert found["optimizer/lost"] == pytest.approx(lost, abs=0.03)
    sample = slice(1 << 15, (1 << 15) + 2048)
    assert found["optimizer/lost"] == (after == before)[sample].double().mean().item()


def test_the_update_is_that_of_the_moments_as_they_are_stored():
    """Later in a run, when codes are rough: the weights' true change is known to the last bit of 24."""
    before, after, found = stepped(3.0, steps=5, weights="bf16+8")
    moved = (before - after)[2048:]
    assert found["optimizer/lost"] == 0
    assert found["optimizer/noise"] < 0.01
    assert (moved / (3 * STEP) - 1).abs().max() < 0.02


@pytest.mark.parametrize("count", [1, 40, 5000])
def test_small_and_odd_parameters_are_looked_at(count):
    assert stepped(0.1, count=count, rounding="nearest")[2]["optimizer/lost"] == 1


def test_of_float32_and_of_what_was_not_stepped_there_is_nothing():
    assert stepped(0.1, dtype=torch.float32)[2] is None
    p = parameter(torch.ones(4096, dtype=torch.bfloat16))
    watch = UpdateWatch(optimizer := AdamW8bit([p]))
    watch.armed = True
    optimizer.step()  # no gradient
    watch.look()
    watch.compare()  # inside backward, of a step that was left out
    assert watch.take() is None


def test_of_many_parameters_some_are_looked_at():
    many = [parameter(torch.ones(300, dtype=torch.bfloat16)) for _ in range(100)]
    watch = UpdateWatch(optimizer := AdamW8bit(many, lr=1e-9, rounding="nearest"))
    watch.armed = True
    for p in many:
        p.grad = torch.ones_like(p)
    optimizer.step()
    count, lost, *_ = watch.take().tolist()
    assert count == lost == 25 * 300  # every fourth
