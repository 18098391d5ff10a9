"""Roots and quotients of the optimizer's kernel on a GPU: those of IEEE 754, bit for bit."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs Triton")
kernel = pytest.importorskip("fdpo_fast.optim.triton_kernel", reason="needs Triton")
tl = triton.language
_root, _quotient = kernel._root, kernel._quotient


@triton.jit
def differing(a, b, found, ROOT: tl.constexpr, SIZE: tl.constexpr):
    from_ = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    x, y = tl.load(a + from_), tl.load(b + from_)
    if ROOT:
        ours, want = _root(x), tl.sqrt_rn(x)
    else:
        ours, want = _quotient(x, y), tl.div_rn(x, y)
    differ = ours.to(tl.int32, bitcast=True) != want.to(tl.int32, bitcast=True)
    tl.atomic_add(found, tl.sum(differ.to(tl.int32)))


def count(a, b, root):
    """Count what differs from Triton's own, which leave the fast path for rare values."""
    found = torch.zeros((), dtype=torch.int32, device="cuda")
    differing[(a.numel() // 1024,)](a, b, found, root, 1024, enable_fp_fusion=False)
    return found.item()


@pytest.mark.gpu
def test_roots_of_all_floats():
    for first in range(0, 0x7F800000, 1 << 24):
        bits = torch.arange(first, first + (1 << 24), dtype=torch.int32, device="cuda").clamp(max=0x7F7FFFFF)
        x = bits.view(torch.float32)
        assert count(x, x, True) == 0


@pytest.mark.gpu
def test_quotients_of_a_step():
    """Of numerators down to 2^-70, by denominators from 2^-37 to 2^20."""
    generator = torch.Generator("cuda").manual_seed(0)

    def floats(lowest, highest):
        def whole(low, high):
            return torch.randint(low, high, (1 << 24,), generator=generator, device="cuda", dtype=torch.int32)

        exponents = whole(127 + lowest, 128 + highest)
        return (whole(0, 2) << 31 | exponents << 23 | whole(0, 1 << 23)).view(torch.float32)

    for _ in range(20):
        assert count(floats(-70, 60), floats(-37, 20).abs(), False) == 0
