"""The operators on GPU tensors: launches of the Triton kernels, one each. `missing` says why it is not there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fdpo_fast.ops.layout import arrange
from fdpo_fast.ops.operands import Results, elements, is_draws


class Lazy:
    """A module of kernels, imported at the first launch: Triton takes a while and is not everywhere."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, kernel: str) -> Any:
        found = getattr(import_module(self.name), kernel)
        setattr(self, kernel, found)  # and no longer asked for
        return found


_loss, _noise = Lazy("fdpo_fast.ops.triton_loss"), Lazy("fdpo_fast.ops.triton_noise")

missing: str | None = None if find_spec("triton") else "Triton (`pip install triton`)"

DEVICE = "cuda"
DTYPES = {torch.float32, torch.bfloat16, torch.float16}

BLOCK = 1024
"""Elements of each sample that a program takes."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False} | ({} if torch.version.hip else {"maxnreg": 128})
"""Of every launch: contraction of products and sums is the kernels' choice, not the compiler's; and without a word on
registers ptxas takes 48 of them and spills, on sm_120."""


@torch.compiler.assume_constant_result
def devices() -> tuple[str, ...]:
    """Types of device whose tensors it takes; the CPU's only by Triton's interpreter, where that is on."""
    import triton

    return ("cuda", "cpu") if triton.knobs.runtime.interpret else ("cuda",)


class _Pairs:
    """How a launch goes over samples [2B, ...]: `tensors` as the kernels take them, one program per pair and chunk."""

    def __init__(self, tensors: Sequence[Tensor], *, logical: bool) -> None:
        self.tensors, order = arrange(tensors, logical=logical)
        self.pairs, self.n = len(tensors[0]) // 2, elements(tensors[0])
        self.chunks = -(-self.n // BLOCK)
        self.grid = (self.pairs * self.chunks,)
        self.sizes = order.sizes[1:] if order else (0, 0)
        self._strides = iter(order.strides if order else [(0, 0, 0)] * len(tensors))
        self._left = iter(self.tensors)
        spans = [self.n]
        if order:
            spans += [
                sum((size - 1) * stride for size, stride in zip(order.sizes, s, strict=True)) for s in order.strides
            ]
        self.switches = {"DENSE": order is None, "WIDE": max(spans) + BLOCK >= 2**31, "BLOCK": BLOCK}

    def take(self) -> tuple[Tensor, int, tuple[int, int, int]]:
        """The next tensor, how far its rows are apart, and the strides within a row."""
        tensor = next(self._left)
        return tensor, tensor.stride(0), next(self._strides)


def _other(tensor: Tensor) -> tuple[Tensor, int, tuple[int, int, int]]:
    """A tensor without samples where one with them could stand, as `_Pairs.take` gives it."""
    return tensor.contiguous(), 0, (0, 0, 0)


def on(tensor: Tensor):
    """Triton launches on the current device; an interpreted kernel needs none."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def _kept_counters(device: torch.device, stream: int, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int32, device=device)


def stream_of(device: torch.device) -> int:
    """The current stream of a device; 0 for the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def counters(like: Tensor, count: int) -> Tensor:
    """Zeros, which every launch leaves as zeros: kept for each stream, since filling them would be a launch.

    A CUDA graph, which may be replayed on any stream, gets its own, filled at each replay.
    """
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    return _kept_counters(like.device, stream_of(like.device), max(1024, 1 << count.bit_length()))


def loss_forward(
    pred: Tensor,
    ref: Tensor,
    target: Tensor,
    weight: Tensor | None,
    link: Sequence[float],
    loss_type: Sequence[float],
    beta: float,
    ratio_scale: float,
    interleaved: bool,
    reduction: str,
    upstream: float | None,
) -> Results:
    """See `ops.operators.loss_forward`. A gradient asked for takes a launch of its own."""
    out, predicted, drawn = Results.empty(pred, reduction, False), ref.shape == pred.shape, is_draws(target)
    if len(pred) == 0:
        out.loss.zero_()
        out.accuracy.zero_()
        return out._replace(grad=torch.empty_like(pred)) if upstream is not None else out
    over = _Pairs([pred, *([ref] if predicted else []), *([] if drawn else [target])], logical=drawn)
    p, p_row, p_strides = over.take()
    r, r_row, r_strides = over.take() if predicted else _other(ref)
    t, t_row, t_strides = _other(target) if drawn else over.take()
    sums = 6 if predicted else 2  # of a program, see the kernel
    room = torch.empty(over.pairs * (sums * over.chunks + 1), dtype=torch.float64, device=pred.device)
    losses = out.loss if reduction == "none" else room[-over.pairs :].view(torch.float32)
    row, kind = (tuple(map(float, numbers)) for numbers in (link, loss_type))  # an integer would be compiled in
    with on(pred):
        _loss.loss_forward_kernel[over.grid](
            p, r, t, weight, out.loss, losses, out.accuracy, out.stats, room, counters(pred, over.pairs + 1),
            over.pairs, over.n, over.chunks, p_row, r_row, t_row, *over.sizes, *p_strides, *r_strides, *t_strides,
            *row, *kind, beta, ratio_scale, 1 / over.pairs if reduction == "mean" else 1.0,
            INTERLEAVED=interleaved, REF_ERRORS=not predicted, DRAWN=drawn, WEIGHTED=weight is not None,
            REDUCE=reduction != "none", **over.switches, **OPTIONS,
        )  # fmt: skip
    if upstream is not None:
        return out._replace(
            grad=loss_backward(torch.full_like(out.loss, upstream), out.stats, pred, target, interleaved)
        )
    return out


def loss_backward(grad_loss: Tensor, stats: Tensor, pred: Tensor, target: Tensor, interleaved: bool) -> Tensor:
    """See `ops.operators.loss_backward`."""
    grad, drawn = torch.empty_like(pred), is_draws(target)
    if len(pred) == 0:
        return grad
    over = _Pairs([pred, grad] if drawn else [pred, grad, target], logical=drawn)
    p, p_row, p_strides = over.take()
    g, g_row, g_strides = over.take()
    t, t_row, t_strides = _other(target) if drawn else over.take()
    grad_loss = grad_loss.float().expand(over.pairs)
    with on(pred):
        _loss.loss_backward_kernel[over.grid](
            grad_loss, stats[-2:], p, t, g, over.pairs, over.n, over.chunks, grad_loss.stride(0),
            p_row, t_row, g_row, *over.sizes, *p_strides, *t_strides, *g_strides,
            INTERLEAVED=interleaved, DRAWN=drawn, **over.switches, **OPTIONS,
        )  # fmt: skip
    return grad if g is grad else grad.copy_(g)


def add_noise(
    latents: Tensor, draws: Tensor, signal: Tensor, sigma: Tensor, interleaved: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `ops.operators.add_noise`."""
    out, timesteps, draws = torch.empty_like(latents, dtype=dtype), draws.new_empty(draws.shape[1]), draws.contiguous()
    if len(latents) == 0:
        return out, timesteps
    over = _Pairs([latents, out], logical=True)
    x, x_row, x_strides = over.take()
    noisy, o_row, o_strides = over.take()
    with on(latents):
        _noise.add_noise_kernel[over.grid](
            x, draws, signal, sigma, noisy, timesteps, over.pairs, over.n, over.chunks, len(signal),
            x_row, o_row, *over.sizes, *x_strides, *o_strides,
            INTERLEAVED=interleaved, **over.switches, **OPTIONS,
        )  # fmt: skip
    return out if noisy is out else out.copy_(noisy), timesteps


def normals(draws: Tensor, count: int) -> Tensor:
    """See `ops.operators.normals`."""
    out, draws = torch.empty((draws.shape[1], count), device=draws.device), draws.contiguous()
    chunks = -(-count // BLOCK)
    if out.numel():
        with on(draws):
            _noise.normals_kernel[(len(out) * chunks,)](draws, out, len(out), count, chunks, BLOCK=BLOCK, **OPTIONS)
    return out
