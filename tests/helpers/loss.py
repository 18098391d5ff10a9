"""Calls of the loss on each backend, for the tests of the fused ones."""

import torch

from fdpo_fast import Target, draws, fdpo_loss
from fdpo_fast.noise import eager_normals

KNOBS = {"divergence": "jensen_shannon", "beta": 2.0, "ratio_scale": 50.0}
HALVES = [torch.bfloat16, torch.float16]
FLOW = torch.tensor([[1.0], [-1.0]], dtype=torch.float32)
"""What noise and data are multiplied by in the target of a rectified flow."""


def tensors(pairs, shape, dtypes=(torch.float32,) * 3, seed=0, spread=0.1):
    """(pred, ref, target), near one another as a policy and its reference are."""
    generator = torch.Generator().manual_seed(seed)
    target, p, r = (torch.randn(2 * pairs, *shape, generator=generator, dtype=torch.float32) for _ in range(3))
    return tuple(
        x.to(dtype) for x, dtype in zip((target + spread * p, target + spread * r, target), dtypes, strict=True)
    )


def mixed(pairs, shape, dtypes=(torch.float32,) * 3, on=FLOW, seed=0):
    """(pred, ref, target), the predictions near a target of noise and data that no tensor holds; pairs in halves."""
    generator = torch.Generator().manual_seed(seed)
    data, p, r = (torch.randn(2 * pairs, *shape, generator=generator, dtype=torch.float32) for _ in range(3))
    drawn = draws(7, torch.arange(pairs) + 11, torch.arange(pairs) % 3)
    target = Target(drawn, data.to(dtypes[2]), on.expand(2, pairs))
    whole = as_tensor(target).float()
    return (whole + 0.1 * p).to(dtypes[0]), (whole + 0.1 * r).to(dtypes[1]), target


def as_tensor(target):
    """What a target of noise and data in halves stands for, in float64."""
    pairs, shape = len(target.data) // 2, target.data.shape[1:]
    noise = eager_normals(target.draws, shape.numel()).view(pairs, *shape).repeat(2, *[1] * len(shape))
    on_noise, on_data = (row.double().repeat(2).view(-1, *[1] * len(shape)) for row in target.on)
    return on_noise * noise + on_data * target.data


def evaluate(pred, ref, target, backend, device="cpu", upstream=None, **options):
    """(losses or loss, gradient, stats) in float64 on the CPU."""
    pred = pred.to(device).detach().requires_grad_()
    loss, stats = fdpo_loss(pred, ref.to(device), target.to(device), backend=backend, **(KNOBS | options))
    (grad,) = torch.autograd.grad(loss, pred, torch.ones_like(loss) if upstream is None else upstream.to(loss))
    assert grad.dtype == pred.dtype
    assert grad.shape == pred.shape
    return (
        loss.detach().double().cpu(),
        grad.double().cpu(),
        {key: value.double().cpu() for key, value in stats.items()},
    )


def oracle(pred, ref, target, **options):
    drawn = target.dtype == torch.int64
    return evaluate(pred.double(), ref.double(), target if drawn else target.double(), "eager", **options)
