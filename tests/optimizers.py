"""What the tests of the optimizer share."""

import torch
from conftest import FUSED

BACKENDS = [("eager", "cpu"), *FUSED]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def parameter(values, grad_dtype=None):
    out = torch.nn.Parameter(values.clone())
    out.grad_dtype = grad_dtype or values.dtype
    return out


def stepped(optimizer, p, *grads):
    for grad in grads:
        p.grad = grad.to(p.device, p.grad_dtype)
        optimizer.step()
    return p
