"""Use of everything in a fresh process, first under a mode or default of torch's, then as usual."""

from contextlib import ExitStack, nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fdpo_fast import AdamW8bit, add_noise, draws, fdpo_loss, pair_draw
from fdpo_fast.noise import normals
from fdpo_fast.ops import cpp
from fdpo_fast.optim import cpp as of_cpp
from fdpo_fast.optim import triton as of_triton
from fdpo_fast.optim.codebook import dynamic_map

CPU = {"dtype": torch.float32, "device": "cpu"}


def used(backend, **where):
    """A number of everything: losses, gradients, noise, weights and states behind two steps."""
    generator = None if torch._C._len_torch_dispatch_stack() else torch.Generator("cpu").manual_seed(0)
    pred, ref, target = (torch.randn(4, 3, 5, generator=generator, **CPU | where) for _ in range(3))
    pred = pred.requires_grad_(not torch.is_inference_mode_enabled())
    found = []
    drawn = draws(3, torch.arange(2, device=pred.device), 1)
    for divergence in ("jensen_shannon", torch.tanh):
        for of in (target, drawn):
            loss, stats = fdpo_loss(pred, ref, of, beta=2.0, ratio_scale=5.0, divergence=divergence, backend=backend)
            found += [loss, stats["margin"], stats["accuracy"], stats["clipped"]]
            if loss.requires_grad:
                found += torch.autograd.grad(loss, pred)
    table = torch.linspace(0.1, 0.9, 7, **CPU | where)
    found += [*add_noise(target, drawn, table, table, backend=backend), normals(drawn, 6, backend=backend)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 5000, **CPU | where).to(dtype))
        small = torch.nn.Parameter(torch.linspace(-1, 1, 7, **CPU | where).to(dtype))
        optimizer = AdamW8bit([p, small], lr=1e-2, backend=backend)
        for _ in range(2):
            p.grad, small.grad = torch.ones_like(p), torch.ones_like(small)
            optimizer.step()
        found += [p, small, *(value for name, value in optimizer.state[p].items() if name != "step")]
    if not where:
        found += pair_draw(0, 1, 2, (5,))
    return found


def tables():
    """Ask for all that is kept for the process."""
    host = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.uint8):
        of_triton._like(dtype, host)
    cpp._scalar()
    dynamic_map(True)
    of_cpp._maps()
    of_triton._lines(host)


def first(mode, backend):
    """Use everything under a mode; what cannot be used there may say so."""
    if mode == "make_fx":
        make_fx(lambda x: (tables(), [*used(backend)[:3], x])[1])(torch.ones(1, **CPU))
        return
    with {
        "none": nullcontext,
        "fake": FakeTensorMode,
        "inference": torch.inference_mode,
    }[mode]():
        tables()
        used(backend)


def main(mode, backend):
    """Print what everything gives behind its first use under a mode; "none" is the measure of the others."""
    assert not dynamic_map.cache_info().currsize
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        if mode in ("bfloat16", "float16", "float64"):
            torch.set_default_dtype(getattr(torch, mode))
            stack.callback(torch.set_default_dtype, default)
            inside = used(backend)
        elif mode == "meta":
            torch.set_default_device("meta")
            stack.callback(torch.set_default_device, None)
            inside = used(backend)
        else:
            inside = None
            try:
                first(mode, backend)
            except (RuntimeError, TypeError) as error:  # of the optimizer, whose step no tracer sees
                assert mode in ("fake", "make_fx"), error  # noqa: PT017
    results = used(backend)
    if inside is not None:
        assert all(torch.equal(*pair) for pair in zip(inside, results, strict=True))
    assert not any(tensor.is_inference() or type(tensor).__name__ == "FakeTensor" for tensor in results)
    for tensor in results:
        print(tensor.dtype, tensor.device, tuple(tensor.shape), tensor.detach().double().sum().item())
