"""The operators `torch.ops.fdpo_fast.*`: schemas, fakes, and the choice of the backend that runs them.

One implementation each, for every device: it hands over to the backend that the call names. A key per device, the
usual way, could not run Triton's interpreter on the CPU tensors that the C++ code runs on too. The operators know
nothing of autograd; `ops.autograd` differentiates.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import wraps
from types import ModuleType

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel, register_fake
from torch.nn import Parameter

from fdpo_fast.ops import cpp
from fdpo_fast.ops.results import Results
from fdpo_fast.ops.triton import launch

BACKENDS: dict[str, ModuleType] = {"cpp": cpp, "triton": launch}
"""Each has `missing`, `DEVICE` (its own), `devices()` (all it can take), `DTYPES` and a function per operator."""

NAMES = ("eager", *BACKENDS)
""""eager" is plain torch, for any tensor."""

for _backend, _wanted in ((cpp, True), (launch, torch.version.cuda or torch.version.hip)):
    if _backend.missing and _wanted:
        # the fifth frame is the user's `import fdpo_fast`: this module, noise, loss, and the package lie between
        warnings.warn(f"fdpo_fast runs without {_backend.missing}, in eager torch", stacklevel=5)


def chosen(backend: str | None, device: torch.device, *dtypes: torch.dtype) -> str:
    """The backend to run floating-point tensors with: the best one that takes them, or the one that is named.

    Raises ValueError for one that is unknown, is not there, or does not take them.
    """
    if backend is None:
        name = "eager" if transformed() else _BEST.get(device.type, "eager")
        return name if name == "eager" or _refused(name, dtypes) is None else "eager"
    if backend not in NAMES:
        raise ValueError(f"unknown backend {backend!r}: use one of {', '.join(NAMES)}")
    if backend == "eager":
        return backend
    module, reason = BACKENDS[backend], None
    if module.missing:
        reason = f"needs {module.missing}"
    elif transformed():
        reason = "is not differentiable by torch.func, but backend 'eager' is"
    elif device.type != module.DEVICE and device.type not in module.devices():
        reason = f"runs on {' and '.join(module.devices())} tensors, not on {device.type}"
    elif refused := _refused(backend, dtypes):
        reason = f"takes float32, bfloat16 and float16 tensors, not {str(refused).removeprefix('torch.')}"
    if reason:
        raise ValueError(f"backend '{backend}' {reason}: use another, or None for the best there is")
    return backend


def _refused(backend: str, dtypes: Iterable[torch.dtype]) -> torch.dtype | None:
    known = BACKENDS[backend].DTYPES
    for dtype in dtypes:
        if dtype not in known:
            return dtype
    return None


_BEST = {module.DEVICE: name for name, module in BACKENDS.items() if not module.missing}
_BEST |= {"meta": _BEST[cpp.DEVICE]} if cpp.DEVICE in _BEST else {}  # a rehearsal of the host's way


def transformed() -> bool:
    """Whether torch.func's grad, vmap or jvp is at work, which want operations that they can see into."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def traced(tensor: Tensor) -> bool:
    """Whether operators have to be seen and values cannot be: by torch.compile, of fake tensors and the meta device.

    Everybody else is spared the dispatcher, which costs 10 us: a tenth of a call on small latents.
    """
    return torch.compiler.is_compiling() or type(tensor) not in (Tensor, Parameter) or tensor.is_meta


_library = Library("fdpo_fast", "DEF")


def _define(schema: str):
    """Define an operator, implemented by the backends' function of its name; the decorated function is its fake."""
    name = schema[: schema.index("(")]

    def run(backend: str, *arguments):
        return getattr(BACKENDS[backend], name)(*arguments)

    def decorate(fake):
        _library.define(schema)
        _library.impl(name, run, "CompositeExplicitAutograd")
        _library.impl(name, fallthrough_kernel, "Autograd")
        register_fake(f"fdpo_fast::{name}", fake, lib=_library)
        operator = getattr(torch.ops.fdpo_fast, name).default

        def call(backend: str, first: Tensor, *arguments):
            return (operator if traced(first) else run)(backend, first, *arguments)

        return wraps(fake)(call)

    return decorate


# pred [2B, ...]; ref: predictions like pred, or errors [2B]; target: like pred, or the draws [3, B] int64 of its noise;
# weight [B] float32; link, loss_type: rows of four numbers; upstream: gradient of each loss, for which to form that of
# pred in the same pass. Returns the fields of `operands.Results`.
@_define(
    "loss_forward(str backend, Tensor pred, Tensor ref, Tensor target, Tensor? weight, float[] link, "
    "float[] loss_type, float beta, float ratio_scale, bool interleaved, str reduction, float? upstream) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
def loss_forward(
    backend, pred, ref, target, weight, link, loss_type, beta, ratio_scale, interleaved, reduction, upstream
) -> Results:
    return Results.empty(pred, reduction, upstream is not None)


# grad_loss [B], or [] for all pairs; stats of `Results`, of which the last two rows are read. Returns
# grad_loss * c * (pred - target), like pred.
@_define(
    "loss_backward(str backend, Tensor grad_loss, Tensor stats, Tensor pred, Tensor target, bool interleaved) -> Tensor"
)
def loss_backward(backend, grad_loss, stats, pred, target, interleaved) -> Tensor:
    return torch.empty_like(pred)


# latents [2B, ...]; draws [3, B] int64; signal, sigma [T] float32 by timestep. Returns the noisy latents in `dtype`,
# and the timesteps [B] int64 that were drawn.
@_define(
    "add_noise(str backend, Tensor latents, Tensor draws, Tensor signal, Tensor sigma, bool interleaved, "
    "ScalarType dtype) -> (Tensor, Tensor)"
)
def add_noise(backend, latents, draws, signal, sigma, interleaved, dtype) -> tuple[Tensor, Tensor]:
    return torch.empty_like(latents, dtype=dtype), draws.new_empty(draws.shape[1])


# draws [3, B] int64. Returns the noise [B, count] float32.
@_define("normals(str backend, Tensor draws, SymInt count) -> Tensor")
def normals(backend, draws, count) -> Tensor:
    return draws.new_empty((draws.shape[1], count), dtype=torch.float32)
