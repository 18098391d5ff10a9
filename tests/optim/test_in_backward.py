"""Steps inside backward, in buckets: against one parameter after the other, by torch's own operations."""

import math
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fdpo_fast import AdamW8bit
from fdpo_fast.optim import in_backward
from fdpo_fast.optim.finite import SkipNonFinite
from fdpo_fast.optim.in_backward import StepInBackward
from tests.helpers.backends import FUSED
from tests.helpers.optimizers import parameter

SIZES = (512, 40, 1000, 256, 3, 640)
# Multiplications by powers of two alone, so that every backend has the same numbers to round.
OPTIONS = {"lr": 2.0**-10, "betas": (0.5, 0.5), "eps": 2.0**-20, "weight_decay": 0.0, "min_8bit_size": 256}


@pytest.fixture(params=[600, 2000, 1 << 20])
def bucket(request, monkeypatch):
    """Bytes of a bucket: one that most gradients fill, one for some, and one that is never full."""
    monkeypatch.setattr(in_backward, "BUCKET_BYTES", request.param)
    return request.param


def weights(device, dtype):
    torch.manual_seed(0)
    return [parameter(torch.randn(size).to(dtype).to(device)) for size in SIZES]


def slopes(step):
    """Of a loss that is linear in the weights: their gradients. Squares add up without rounding."""
    torch.manual_seed(step)
    return [2.0 ** torch.randint(-3, 3, (size,)) * (torch.randint(0, 2, (size,)) * 2 - 1) for size in SIZES]


def backward(parameters, by):
    sum((p * slope.to(p.device, p.dtype)).sum() for p, slope in zip(parameters, by, strict=True)).backward()


def one_by_one(optimizer, parameters, by, max_norm):
    for p, slope in zip(parameters, by, strict=True):
        grad = slope.to(p.device, p.dtype)
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
        if max_norm:
            grad.mul_((max_norm / norm).clamp(max=1.0).to(grad.dtype))
        p.grad = grad if norm.isfinite() else torch.zeros_like(grad)
    optimizer.step()


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("max_norm", [0.0, 20.0])
def test_buckets_are_one_by_one(backend, device, dtype, max_norm, bucket):
    ours, theirs = weights(device, dtype), weights(device, dtype)
    inside = StepInBackward(AdamW8bit(ours, **OPTIONS, backend=backend), ours, max_norm, None)
    plain = AdamW8bit(theirs, **OPTIONS, backend=backend)
    for step in range(2):
        by = slopes(step)
        if step:
            by[2][17], by[4][0] = math.nan, math.inf
        backward(ours, by)  # and nobody asks for what is left
        assert all(p.grad is None for p in ours)
        one_by_one(plain, theirs, by, max_norm)
        assert all(map(torch.equal, ours, theirs))
        assert bool(inside.bad()) == bool(step)
        assert not inside.bad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("share", [0.0, 0.3, 2.0])
def test_two_backwards_bound_the_global_norm(dtype, share, bucket):
    """As where the step comes after backward: clipped by all gradients together, and left out where one is broken."""
    ours, theirs = weights("cpu", dtype), weights("cpu", dtype)
    whole = torch.cat([slope.flatten() for slope in slopes(0)]).norm().item()
    inside = StepInBackward(AdamW8bit(ours, **OPTIONS), ours, share * whole, None, twice=True)
    plain = AdamW8bit(theirs, **OPTIONS)
    guard = SkipNonFinite(plain, lambda tensor: tensor, share * whole)
    for step in range(3):
        by = slopes(step)
        if step == 1:
            by[2][17], by[4][0] = math.nan, math.inf
        loss = sum((p * slope.to(dtype)).sum() for p, slope in zip(ours, by, strict=True))
        inside.backward(loss, torch.Tensor.backward)
        assert all(p.grad is None for p in ours)
        for p, slope in zip(theirs, by, strict=True):
            p.grad = slope.to(dtype)
        plain.step()
        assert all(map(torch.equal, ours, theirs))
        assert bool(inside.bad()) == (step == 1)
        assert torch.equal(inside.norm, guard.norm) or step == 1
        assert guard.end_step(0) == (step == 1)
    assert [state["step"] for state in plain.state.values()] == [2] * len(SIZES)


def test_two_backwards_average_before_they_measure(bucket):
    ours, theirs = weights("cpu", torch.float32), weights("cpu", torch.float32)
    inside = StepInBackward(AdamW8bit(ours, **OPTIONS), ours, 1.0, lambda tensor: tensor.div_(2), twice=True)
    inside.backward(sum((p * slope).sum() for p, slope in zip(ours, slopes(0), strict=True)), torch.Tensor.backward)
    plain = AdamW8bit(theirs, **OPTIONS)
    SkipNonFinite(plain, lambda tensor: tensor, 1.0)
    for p, slope in zip(theirs, slopes(0), strict=True):
        p.grad = slope / 2
    plain.step()
    assert all(map(torch.equal, ours, theirs))


def test_gradients_live_as_long_as_their_bucket(bucket):
    parameters, arrived, most = weights("cpu", torch.bfloat16), [], [0]

    def count(p):
        arrived.append((weakref.ref(p.grad), p.grad.nbytes))
        most[0] = max(most[0], sum(size for grad, size in arrived if grad() is not None))

    for p in parameters:
        p.register_post_accumulate_grad_hook(count)
    StepInBackward(AdamW8bit(parameters, **OPTIONS), parameters, 0.0, None)
    backward(parameters, slopes(0))
    assert len(arrived) == len(SIZES)
    assert all(grad() is None for grad, _ in arrived)
    if bucket < 1 << 20:
        assert most[0] < bucket + 2 * max(SIZES) + 2 * (40 + 3)  # the small ones have a bucket of their own


def test_a_parameter_that_is_used_twice_and_one_that_is_not(bucket):
    ours, theirs = weights("cpu", torch.float32), weights("cpu", torch.float32)
    StepInBackward(optimizer := AdamW8bit(ours, **OPTIONS), ours, 0.0, None)
    plain = AdamW8bit(theirs, **OPTIONS)
    for parameters in (ours, theirs):
        a, b, c, *_ = parameters
        (a.square().sum() + (a * 2).sum() + b.sum() + (c * c.detach().roll(1)).sum()).backward()
    plain.step()
    assert all(map(torch.equal, ours, theirs))
    assert [optimizer.state[p].get("step") for p in ours] == [1, 1, 1, None, None, None]


def test_a_backward_inside_backward(monkeypatch):
    """A checkpoint of the older kind runs one of its own; what it leaves is stepped at its end, and the rest later."""
    ours, theirs = weights("cpu", torch.float32)[2:4], weights("cpu", torch.float32)[2:4]
    StepInBackward(optimizer := AdamW8bit(ours, **OPTIONS), ours, 0.0, None)
    plain = AdamW8bit(theirs, **OPTIONS)
    for parameters in (ours, theirs):
        a, b = parameters
        x = torch.ones(1000, requires_grad=True)
        (checkpoint(lambda x: x * a, x, use_reentrant=True).sum() + b.square().sum()).backward()  # noqa: B023
    plain.step()
    assert all(map(torch.equal, ours, theirs))
    assert [optimizer.state[p]["step"] for p in ours] == [1, 1]


def test_a_bucket_is_averaged_as_one(bucket):
    ours, theirs, sizes = weights("cpu", torch.float32), weights("cpu", torch.float32), []

    def halved(tensor):
        sizes.append(tensor.numel())
        tensor /= 2

    StepInBackward(AdamW8bit(ours, **OPTIONS), ours, 0.0, halved)
    backward(ours, slopes(0))
    one_by_one(AdamW8bit(theirs, **OPTIONS), theirs, [slope / 2 for slope in slopes(0)], 0.0)
    assert all(map(torch.equal, ours, theirs))
    assert sum(sizes) == sum(SIZES)
    assert len(sizes) == {600: 5, 2000: 4, 1 << 20: 2}[bucket]


def test_what_a_broken_backward_left_is_not_forgotten():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("broken")

    first, second = weights("cpu", torch.float32)[2:4]
    inside = StepInBackward(optimizer := AdamW8bit([first, second], **OPTIONS), [first, second], 0.0, None)
    with pytest.raises(ValueError, match="broken"):
        (Broken.apply(second).sum() + (first * 2).sum()).backward()
    (second * 2).sum().backward()
    assert optimizer.state[second]["step"] == 1
    inside.bad()
    assert optimizer.state[first].get("step", 1) == 1
    assert first.grad is None


@pytest.mark.gpu
def test_many_programs_give_the_same_norm(triton_device):
    torch.manual_seed(0)
    values, grad = torch.randn(5_000_003, device=triton_device).bfloat16(), torch.randn(5_000_003).bfloat16()
    ends = []
    for _ in range(20):
        p = parameter(values)
        StepInBackward(AdamW8bit([p]), [p], 1.0, None)
        (p * grad.to(triton_device)).sum().backward()
        ends.append(p.detach())
    assert all(torch.equal(ends[0], end) for end in ends)
