"""The operators `torch.ops.fdpo_fast.*`: schemas, fakes, and the choice of the backend that runs them.

One implementation each, for every device: it hands over to the backend that the call names. A key per device, the
usual way, could not run Triton's interpreter on the CPU tensors that the C++ code runs on too. The operators know
nothing of autograd; `ops.autograd` differentiates.
"""

from __future__ import annotations

import warnings
from types import ModuleType

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel, register_fake

from fdpo_fast.ops import gpu, host
from fdpo_fast.ops.operands import Results

BACKENDS: dict[str, ModuleType] = {"cpp": host, "triton": gpu}
"""Each has `missing`, `DTYPES`, `devices()` and a function per operator."""

NAMES = ("eager", *BACKENDS)
""""eager" is plain torch, for any tensor."""

for _backend, _wanted in ((host, True), (gpu, torch.version.cuda or torch.version.hip)):
    if _backend.missing and _wanted:
        warnings.warn(f"fdpo_fast runs without {_backend.missing}, in eager torch", stacklevel=2)


def chosen(backend: str | None, *tensors: Tensor) -> str:
    """The backend to run these floating-point tensors with: the first that takes them, or the one that is named.

    Raises ValueError for one that is unknown, is not there, or does not take them.
    """
    if backend is None:
        return next((name for name in BACKENDS if _obstacle(name, *tensors) is None), "eager")
    if backend not in NAMES:
        raise ValueError(f"unknown backend {backend!r}: use one of {', '.join(NAMES)}")
    if backend in BACKENDS and (reason := _obstacle(backend, *tensors)):
        raise ValueError(f"backend '{backend}' {reason}: use another, or None for the best there is")
    return backend


def _obstacle(backend: str, *tensors: Tensor) -> str | None:
    """Why a backend cannot take these tensors, as the end of a sentence; None if it can."""
    module = BACKENDS[backend]
    if module.missing:
        return f"needs {module.missing}"
    for tensor in tensors:
        if tensor.device.type not in module.devices():
            return f"runs on {' and '.join(module.devices())} tensors, not on {tensor.device.type}"
        if tensor.dtype not in module.DTYPES:
            return f"takes float32, bfloat16 and float16 tensors, not {str(tensor.dtype).removeprefix('torch.')}"
    return None


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
        return getattr(torch.ops.fdpo_fast, name).default

    return decorate


# pred [2B, ...]; ref: predictions like pred, or errors [2B]; target: like pred, or the draws [3, B] int64 of its noise;
# weight [B] float32; link, loss_type: rows of four numbers. Returns the fields of `operands.Results`.
@_define(
    "loss_forward(str backend, Tensor pred, Tensor ref, Tensor target, Tensor? weight, float[] link, "
    "float[] loss_type, float beta, float ratio_scale, bool interleaved, bool mean, bool form_grad) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def loss_forward(
    backend, pred, ref, target, weight, link, loss_type, beta, ratio_scale, interleaved, mean, form_grad
) -> Results:
    return Results.empty(pred, form_grad)


# grad_loss [B], or [] for all pairs; coefficient [2B]. Returns grad_loss * coefficient * (pred - target), like pred.
@_define(
    "loss_backward(str backend, Tensor grad_loss, Tensor coefficient, Tensor pred, Tensor target, bool interleaved) "
    "-> Tensor"
)
def loss_backward(backend, grad_loss, coefficient, pred, target, interleaved) -> Tensor:
    return torch.empty_like(pred)


# latents [2B, ...]; draws [3, B] int64; signal, sigma [T] float32 by timestep. Returns the noisy latents in `dtype`, and
# the timesteps [B] int64 that were drawn.
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
