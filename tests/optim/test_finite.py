"""Steps whose gradients are not finite are skipped and counted; steps inside backward likewise."""

import copy
import math

import pytest
import torch

from fdpo_fast import AdamW8bit
from fdpo_fast.optim.finite import SkipNonFinite
from fdpo_fast.optim.in_backward import StepInBackward


class Agree:
    def __call__(self, tensor):
        return tensor


@pytest.mark.parametrize("make", [torch.optim.AdamW, AdamW8bit])
def test_the_guard_skips_and_counts(make):
    p = torch.nn.Parameter(torch.ones(5000, dtype=torch.float32))
    optimizer = make([p], lr=0.1)
    guard = SkipNonFinite(optimizer, Agree())
    for bad in (False, True, True, False, True):
        p.grad = torch.full((5000,), 1.0, dtype=torch.float32)
        if bad:
            p.grad[17] = math.nan
        before, grad = p.detach().clone(), p.grad
        optimizer.step()
        guard.end_step(0)
        assert torch.equal(p, before) == bad
        assert p.grad is grad
    assert (guard.skipped, guard.in_a_row) == (3, 1)
    guard.end_step(1)  # DeepSpeed skipped one by itself
    guard.end_step(1)
    assert (guard.skipped, guard.in_a_row) == (4, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_guard_tells_large_gradients_from_infinite_ones(dtype):
    p = torch.nn.Parameter(torch.ones(5000, dtype=dtype))
    optimizer = torch.optim.SGD([p], lr=1e-8)
    guard = SkipNonFinite(optimizer, Agree())
    for value, bad in ((6e4, False), (math.inf, True), (-math.inf, True), (math.nan, True)):
        for place in (0, 17, 4999):
            p.grad = torch.full((5000,), 6e4, dtype=dtype)  # their norm has no place in float16
            p.grad[place] = value
            optimizer.step()
            assert guard.end_step(0) == bad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1e6])
def test_the_guard_clips_the_global_norm(dtype, max_norm):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (5000, 7, 300)]
    for p in ours:
        p.grad = torch.randn(p.shape).to(dtype)
    grads = [p.grad.double() for p in ours]
    norm = torch.cat(grads).norm().item()
    optimizer = torch.optim.SGD(ours, lr=1.0)
    guard = SkipNonFinite(optimizer, Agree(), max_norm)
    optimizer.step()
    assert guard.norm.item() == pytest.approx(norm, rel=2e-3 if dtype == torch.bfloat16 else 1e-6)
    factor = min(1.0, max_norm / norm) if max_norm else 1.0
    for p, grad in zip(ours, grads, strict=True):
        rtol = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(-p.detach().double(), factor * grad, rtol=rtol, atol=1e-9)


def test_inside_backward_a_gradient_lives_for_its_turn_only():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False, dtype=torch.float32) for _ in range(4)))
    plain = copy.deepcopy(model)
    alive = []
    inside = StepInBackward(AdamW8bit(model.parameters(), lr=1e-2), model.parameters(), 0.5, Agree())
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    optimizer, x = AdamW8bit(plain.parameters(), lr=1e-2), torch.randn(8, 64, dtype=torch.float32)
    for _ in range(3):
        model(x).square().sum().backward()
        plain(x).square().sum().backward()
        for p in plain.parameters():
            torch.nn.utils.clip_grad_norm_([p], 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert alive == [0] * 12
    assert not inside.bad()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (model(x) * math.inf).sum().backward()
    assert inside.bad()
    assert all(p.isfinite().all() for p in model.parameters())
