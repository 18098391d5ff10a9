"""The operators on GPU tensors: launches of the Triton kernels, one each. `missing` says why it is not there."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from fdpo_fast.ops.call import Call
from fdpo_fast.ops.constants import BLOCK
from fdpo_fast.ops.once import once
from fdpo_fast.ops.results import Results, coefficients_of, elements
from fdpo_fast.ops.strides import arrange
from fdpo_fast.ops.target import Target


class Lazy:
    """A module of kernels, imported at the first launch: Triton takes a while and is not everywhere."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, kernel: str) -> Any:
        function = getattr(import_module(self.name), kernel)
        setattr(self, kernel, function)  # and no longer asked for
        return function


_loss, _noise = Lazy("fdpo_fast.ops.triton.loss"), Lazy("fdpo_fast.ops.triton.noise")

LOWEST_TRITON = (3, 3)
"""Older ones do not compile the kernels; `pyproject.toml` asks for it too."""


def _missing() -> str | None:
    """Return what there is to install; without importing Triton, which takes a while."""
    if not find_spec("triton"):
        return "Triton (`pip install triton`)"
    try:
        installed = TorchVersion(version("triton"))
    except PackageNotFoundError:  # a build for ROCm or Windows, of another name
        return None
    lowest = ".".join(map(str, LOWEST_TRITON))
    if installed < lowest:
        return f"Triton >= {lowest} ({installed} is installed)"
    return None


missing: str | None = _missing()

DEVICE = "cuda"
DTYPES: Collection[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16)

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False} | ({} if torch.version.hip else {"maxnreg": 128})
"""Of every launch: contraction of products and sums is the kernels' choice, not the compiler's; and without a word on
registers ptxas takes 48 of them and spills, on sm_120."""


def devices() -> tuple[str, ...]:
    """Return the types of device whose tensors it takes; the CPU's only by Triton's interpreter, where that is on."""
    from triton import JITFunction

    return ("cuda",) if isinstance(_noise.normals_kernel, JITFunction) else ("cuda", "cpu")


# as torch.compiler.assume_constant_result marks it, which imports the compiler first and waits a second for that
devices._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Grid(NamedTuple):
    """How a launch covers samples [2B, ...], one program per pair and chunk."""

    pairs: int
    n: int  # elements of a sample
    chunks: int
    programs: tuple[int]
    sizes: tuple[int, ...]
    strides: Sequence[tuple[int, ...]]  # within a row, of each tensor
    options: dict[str, Any]
    """Of the launch, switches among them."""


_NOWHERE: tuple[int, ...] = (0, 0, 0)
"""Strides of a tensor without samples, where one with them could stand."""
_grids: dict[tuple, _Grid] = {}
_MOST_GRIDS = 1024


def _grid(tensors: list[Tensor], *, logical: bool) -> tuple[Sequence[Tensor], _Grid]:
    """Return the tensors as the kernels take them, and the grid over them, remembered for their shape and strides."""
    key = (tensors[0].shape, logical, *(tensor.stride() for tensor in tensors))
    known = _grids.get(key)
    if known is not None:
        return tensors, known
    taken, order = arrange(tensors, logical=logical)
    pairs, n = tensors[0].shape[0] // 2, elements(tensors[0])
    chunks, spans = -(-n // BLOCK), [n]
    if order:
        spans += [sum((size - 1) * stride for size, stride in zip(order.sizes, s, strict=True)) for s in order.of]
    switches = {"DENSE": order is None, "WIDE": max(spans) + BLOCK >= 2**31, "BLOCK": BLOCK}
    sizes, strides = (order.sizes[1:], order.of) if order else ((0, 0), [_NOWHERE] * len(tensors))
    grid = _Grid(pairs, n, chunks, (pairs * chunks,), sizes, strides, switches | OPTIONS)
    if taken is tensors:
        if len(_grids) >= _MOST_GRIDS:
            _grids.clear()
        _grids[key] = grid
    return taken, grid


_HERE = nullcontext()


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one, on which Triton launches; an interpreted kernel needs none."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)


@once
def _kept_counters(device: torch.device, stream: int, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int32, device=device)


def stream_of(device: torch.device) -> int:
    """Return the current stream of a device; 0 for the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def counters(device: torch.device, count: int) -> Tensor:
    """Return int32 zeros, which every launch leaves as zeros: kept by stream, since filling them would be a launch.

    A CUDA graph, which may be replayed on any stream, gets its own, filled at each replay.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    return _kept_counters(device, stream_of(device), max(1024, 1 << count.bit_length()))


def _dense(draws: Tensor | None) -> Tensor | None:
    return draws if draws is None or draws.is_contiguous() else draws.contiguous()


def loss_forward(
    pred: Tensor, ref: Tensor, target: Target, weight: Tensor | None, call: Call, upstream: float | None
) -> Results:
    """Run `ops.library.loss_forward` in Triton. A gradient asked for takes a launch of its own."""
    out, predicted = Results.empty(pred, call.reduction, None), ref.shape == pred.shape
    drawn, given = target.draws is not None, [] if target.data is None else [target.data]
    if pred.shape[0] == 0:
        out.loss.zero_()
        out.stats.zero_()
        return out._replace(grad=torch.empty_like(pred)) if upstream is not None else out
    rows, grid = _grid([pred, *([ref] if predicted else []), *given], logical=drawn)
    p, r, data = rows[0], rows[1] if predicted else ref.contiguous(), rows[-1] if given else None
    strides, device, pairs, data_row = grid.strides, pred.device, grid.pairs, 0 if data is None else data.stride(0)
    preserving = call.may_undo is not None
    sums = (6 if predicted else 2) + preserving  # of a program, see the kernel
    room = torch.empty(pairs * sums * grid.chunks, dtype=torch.float64, device=device)
    clip = math.inf if call.clip_log_ratio is None else call.clip_log_ratio
    losses = out.loss if call.reduction == "none" else torch.empty(pairs, dtype=torch.float32, device=device)
    with on(device):
        _loss.loss_forward_kernel[grid.programs](
            p, r, _dense(target.draws), data, target.on, weight,
            out.loss, losses, out.stats, room, counters(device, pairs + 1),
            pairs, grid.n, grid.chunks, p.stride(0), r.stride(0) if predicted else 0, data_row,
            *grid.sizes, *strides[0], *(strides[1] if predicted else _NOWHERE), *(strides[-1] if given else _NOWHERE),
            *map(float, call.link), *map(float, call.loss_type),  # an integer would be compiled in
            call.beta, call.ratio_scale, call.may_undo or 0.0, call.sft_weight, call.offset, clip,
            1 / pairs if call.reduction == "mean" else 1.0,
            INTERLEAVED=call.interleaved, REF_ERRORS=not predicted, DRAWN=drawn, MIXED=drawn and bool(given),
            WEIGHTED=weight is not None, REDUCE=call.reduction != "none", PRESERVING=preserving,
            **grid.options,
        )  # fmt: skip
    if upstream is not None:
        grad_loss = torch.full_like(out.loss, upstream)
        grad = loss_backward(grad_loss, coefficients_of(out.stats), pred, target, call.interleaved)
        return out._replace(grad=grad)
    return out


def loss_backward(grad_loss: Tensor, coefficients: Tensor, pred: Tensor, target: Target, interleaved: bool) -> Tensor:
    """Run `ops.library.loss_backward` in Triton."""
    grad, drawn, given = torch.empty_like(pred), target.draws is not None, [] if target.data is None else [target.data]
    if pred.shape[0] == 0:
        return grad
    (p, g, *rows), grid = _grid([pred, grad, *given], logical=drawn)
    data, data_row, strides = (rows[0], rows[0].stride(0), grid.strides) if rows else (None, 0, grid.strides)
    if grad_loss.dtype != torch.float32:
        grad_loss = grad_loss.float()
    if not coefficients.is_contiguous():
        coefficients = coefficients.contiguous()
    with on(pred.device):
        _loss.loss_backward_kernel[grid.programs](
            grad_loss, coefficients, p, _dense(target.draws), data, target.on, g, grid.pairs, grid.n, grid.chunks,
            grad_loss.stride(0) if grad_loss.ndim else 0, p.stride(0), data_row, g.stride(0),
            *grid.sizes, *strides[0], *(strides[2] if given else _NOWHERE), *strides[1],
            INTERLEAVED=interleaved, DRAWN=drawn, MIXED=drawn and bool(given), **grid.options,
        )  # fmt: skip
    return grad if g is grad else grad.copy_(g)


def add_noise(
    latents: Tensor,
    draws: Tensor,
    signal: Tensor,
    sigma: Tensor,
    density: Tensor | None,
    interleaved: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Run `ops.library.add_noise` in Triton."""
    out, timesteps, draws = torch.empty_like(latents, dtype=dtype), draws.new_empty(draws.shape[1]), draws.contiguous()
    if latents.shape[0] == 0:
        return out, timesteps
    (x, noisy), grid = _grid([latents, out], logical=True)
    with on(latents.device):
        _noise.add_noise_kernel[grid.programs](
            x, draws, signal, sigma, density, noisy, timesteps, grid.pairs, grid.n, grid.chunks, signal.shape[0],
            x.stride(0), noisy.stride(0), *grid.sizes, *grid.strides[0], *grid.strides[1],
            INTERLEAVED=interleaved, STEPS=0 if density is None else signal.shape[0].bit_length(), **grid.options,
        )  # fmt: skip
    return out if noisy is out else out.copy_(noisy), timesteps


def normals(draws: Tensor, count: int) -> Tensor:
    """Run `ops.library.normals` in Triton."""
    out, draws = torch.empty((draws.shape[1], count), dtype=torch.float32, device=draws.device), draws.contiguous()
    chunks = -(-count // BLOCK)
    if out.numel():
        rows = out.shape[0]
        with on(draws.device):
            _noise.normals_kernel[(rows * chunks,)](draws, out, rows, count, chunks, BLOCK=BLOCK, **OPTIONS)
    return out
