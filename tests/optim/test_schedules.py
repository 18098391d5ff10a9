"""Learning rates by step, against torch's own schedulers."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, PolynomialLR

from fdpo_fast.config import schema
from fdpo_fast.optim import build

LR, WARMUP, STEPS = 3e-4, 5, 21
DECAYS = {
    "constant": lambda optimizer: ConstantLR(optimizer, 1.0),
    "linear": lambda optimizer: PolynomialLR(optimizer, STEPS - WARMUP, power=1.0),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, STEPS - WARMUP),
}


def rates(make, steps):
    """By step; the first is that of step 0."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", build.SCHEDULES)
def test_warm_up_then_decay(name):
    settings = schema.Optimizer(lr=LR, warmup_steps=WARMUP, schedule=name)
    found = rates(build.schedule(settings, STEPS), STEPS)
    assert found[:WARMUP] == pytest.approx(rates(lambda o: LinearLR(o, 1 / WARMUP, 1.0, WARMUP - 1), WARMUP))
    assert found[WARMUP:] == pytest.approx(rates(DECAYS[name], STEPS - WARMUP))


@pytest.mark.parametrize("name", build.SCHEDULES)
def test_without_warm_up_the_first_step_has_the_whole_rate(name):
    settings = schema.Optimizer(lr=LR, warmup_steps=0, schedule=name)
    assert rates(build.schedule(settings, STEPS), 1) == [LR]


def test_nothing_falls_below_zero_behind_the_last_step():
    for name, last in (("constant", LR), ("linear", 0.0), ("cosine", 0.0)):
        settings = schema.Optimizer(lr=LR, warmup_steps=WARMUP, schedule=name)
        assert rates(build.schedule(settings, STEPS), STEPS + 3)[STEPS:] == pytest.approx([last] * 3)
