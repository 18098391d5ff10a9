"""Calls of the loss on each backend, for the tests of the fused ones."""

import torch

from fdpo_fast import fdpo_loss

KNOBS = {"divergence": "jensen_shannon", "beta": 2.0, "ratio_scale": 50.0}
HALVES = [torch.bfloat16, torch.float16]


def tensors(pairs, shape, dtypes=(torch.float32,) * 3, seed=0, spread=0.1):
    """(pred, ref, target), near one another as a policy and its reference are."""
    generator = torch.Generator().manual_seed(seed)
    target, p, r = (torch.randn(2 * pairs, *shape, generator=generator, dtype=torch.float32) for _ in range(3))
    return tuple(
        x.to(dtype) for x, dtype in zip((target + spread * p, target + spread * r, target), dtypes, strict=True)
    )


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
