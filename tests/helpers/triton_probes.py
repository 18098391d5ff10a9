"""Kernels around the device functions of `fdpo_fast.ops.triton.noise`, to look at them one by one."""

import torch
import triton
import triton.language as tl

from fdpo_fast.ops.triton.launch import OPTIONS
from fdpo_fast.ops.triton.noise import _box_muller, draw_of, philox_words


@triton.jit
def words_kernel(draws, out, STREAM: tl.constexpr, BLOCKS: tl.constexpr):
    seed, pair_id, visit = draw_of(draws, tl.program_id(0), tl.num_programs(0))
    block = tl.arange(0, BLOCKS)
    start = out + tl.program_id(0) * 4 * BLOCKS + 4 * block
    w0, w1, w2, w3 = philox_words(seed, pair_id, visit, STREAM, block.to(tl.uint32))
    tl.store(start, w0.to(tl.int64))
    tl.store(start + 1, w1.to(tl.int64))
    tl.store(start + 2, w2.to(tl.int64))
    tl.store(start + 3, w3.to(tl.int64))


def words(draws, stream, blocks):
    """`noise.words` as the kernels form it; a power of two of blocks."""
    out = torch.empty(draws.shape[1], 4 * blocks, dtype=torch.int64, device=draws.device)
    words_kernel[(draws.shape[1],)](draws, out, STREAM=stream, BLOCKS=blocks, **OPTIONS)
    return out


@triton.jit
def box_muller_kernel(x, y, cosine, sine, n, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    c, s = _box_muller(tl.load(x + at, at < n, 0).to(tl.uint32), tl.load(y + at, at < n, 0).to(tl.uint32))
    tl.store(cosine + at, c, at < n)
    tl.store(sine + at, s, at < n)


def box_muller(x, y):
    """The two normals [2, n] of words x and y [n]."""
    out = torch.empty(2, len(x), device=x.device, dtype=torch.float32)
    size = triton.next_power_of_2(len(x))
    box_muller_kernel[(1,)](x, y, out[0], out[1], len(x), SIZE=size, **OPTIONS)
    return out
