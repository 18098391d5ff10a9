"""Stochastic rounding of half-precision parameters."""

import math

import pytest
import torch

from fdpo_fast import AdamW8bit
from tests.helpers.backends import FUSED
from tests.helpers.optimizers import BACKENDS, DTYPES, parameter, resumed, start, stepped


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rounding_is_that_of_the_reference(backend, device, dtype):
    """Exact inputs, so that all backends have the same numbers to round: eager's random bits, element by element."""
    torch.manual_seed(0)
    values = torch.cat([torch.randn(3000, dtype=torch.float32), torch.randn(3000, dtype=torch.float32) * 1e-5]).to(
        dtype
    )
    ends = []
    for name, where in ((backend, device), ("eager", "cpu")):
        p = parameter(values.to(where))
        options = {"lr": 2.0**-12, "betas": (0.0, 0.0), "eps": 1.0, "weight_decay": 0.0, "seed": 2**63 + 5}
        optimizer = AdamW8bit(
            [parameter(torch.zeros(8, device=where, dtype=torch.float32)), p], **options, backend=name
        )
        ends.append(stepped(optimizer, p, torch.ones(6000, dtype=torch.float32)).detach().cpu())
    assert torch.equal(*ends)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("dtype", "at"), [(torch.bfloat16, 1.0), (torch.float16, -0.75), (torch.float16, 3e-5)])
def test_stochastic_rounding_is_unbiased(backend, device, dtype, at):
    n, step = 40_000, {torch.bfloat16: 2**-7, torch.float16: 2**-10 if abs(at) > 0.01 else 2**-24}[dtype]
    start_at = torch.full((n,), at, dtype=dtype, device=device)
    lr = 0.3 * step * (1 if at > 0 else 0.5)
    p = parameter(start_at)
    optimizer = AdamW8bit([p], lr=lr, betas=(0.0, 0.0), eps=1e-30, weight_decay=0.0, backend=backend)
    stepped(optimizer, p, torch.full((n,), -1.0, dtype=torch.float32))
    moved = (p.detach().double() - start_at.double()).cpu()
    assert len(moved.unique()) == 2  # the two neighbours
    jump = moved.abs().max()
    share = lr / jump
    sigma = jump * math.sqrt(share * (1 - share) / n)
    assert abs(moved.mean() - lr) < 5 * sigma
    assert abs(moved[::8].mean() - lr) < 5 * sigma * math.sqrt(8)
    still = parameter(start_at)
    options = {"lr": lr, "betas": (0.0, 0.0), "eps": 1e-30, "weight_decay": 0.0, "rounding": "nearest"}
    stepped(AdamW8bit([still], **options, backend=backend), still, torch.full((n,), -1.0, dtype=torch.float32))
    assert torch.equal(still, start_at)


def test_rounding_depends_on_seed_step_and_number_alone():
    start_at, state_dict, grad = start(200_000, torch.bfloat16)

    def end(threads=1, **options):
        torch.set_num_threads(threads)
        p = parameter(start_at)
        stepped(resumed(state_dict, p, **options), p, grad)
        return p.detach()

    threads = torch.get_num_threads()
    want = end()
    assert torch.equal(end(2), want)
    torch.set_num_threads(threads)
    state_dict["param_groups"][0]["seed"] = 1
    assert not torch.equal(end(), want)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_split_tensor_is_rounded_like_the_whole(backend, device):
    torch.manual_seed(0)
    values, grad, cut = torch.randn(16_384).bfloat16(), torch.randn(16_384), 8192
    whole = parameter(values.to(device))
    stepped(AdamW8bit([whole], backend=backend), whole, grad)
    parts = []
    for first, part in ((0, slice(None, cut)), (cut, slice(cut, None))):
        p = parameter(values[part].to(device))
        parts.append(stepped(AdamW8bit([{"params": [p], "first_element": first}], backend=backend), p, grad[part]))
    assert torch.equal(torch.cat([p.detach() for p in parts]), whole)


def test_small_updates_of_bfloat16_follow_float32():
    """Updates of 1e-4 of a bfloat16 step: stochastic rounding follows float32, nearest stands still."""
    n, steps = 65_536, 1000
    lr = 1e-4 * 2**-8  # a step below 1 is 2^-8
    ends = {}
    for name, dtype, rounding in (("fp32", torch.float32, "nearest"), ("bf16", torch.bfloat16, "stochastic"),
                                  ("nearest", torch.bfloat16, "nearest")):  # fmt: skip
        p = parameter(torch.full((n,), 0.75).to(dtype))
        optimizer = AdamW8bit([p], lr=lr, weight_decay=0.0, rounding=rounding)
        stepped(optimizer, p, *(torch.ones(n) for _ in range(steps)))
        ends[name] = p.detach().double().mean().item() - 0.75
    assert ends["nearest"] == 0
    assert ends["bf16"] == pytest.approx(ends["fp32"], rel=0.05)
