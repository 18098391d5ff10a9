"""What the tests of the optimizer share."""

import copy

import pytest
import torch

from fdpo_fast import AdamW8bit
from tests.helpers.backends import FUSED

BACKENDS = [("eager", "cpu"), *FUSED]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def parameter(values, grad_dtype=None):
    out = torch.nn.Parameter(values.clone())
    if grad_dtype not in (None, values.dtype):
        if not hasattr(out, "grad_dtype"):
            pytest.skip("before torch 2.10 a gradient has the dtype of its tensor")
        out.grad_dtype = grad_dtype
    return out


def stepped(optimizer, p, *grads):
    for grad in grads:
        p.grad = grad.to(p.device, getattr(p, "grad_dtype", p.dtype))
        optimizer.step()
    return p


def start(n, dtype=torch.float32, device="cpu", seed=0):
    """A parameter behind three steps of eager AdamW8bit, its state_dict, and a fresh gradient."""
    torch.manual_seed(seed)
    p = parameter(torch.randn(n, dtype=torch.float32).to(dtype))
    optimizer = AdamW8bit([p], **OPTIONS, backend="eager")
    scales = 10.0 ** torch.empty(n, dtype=torch.float32).uniform_(-1, 0)
    stepped(optimizer, p, *(torch.randn(n, dtype=torch.float32) * scales for _ in range(3)))
    return p.detach().to(device), optimizer.state_dict(), torch.randn(n, dtype=torch.float32) * scales


def resumed(state_dict, p, **options):
    optimizer = AdamW8bit([p], **(OPTIONS | options))
    optimizer.load_state_dict(copy.deepcopy(state_dict))
    return optimizer
