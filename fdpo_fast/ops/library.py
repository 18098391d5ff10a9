"""The operators `torch.ops.fdpo_fast.*`: schemas, fakes, and the choice of the backend that runs them.

An operator runs C++ on CPU tensors and Triton on GPU ones, by torch's dispatch key. Triton's interpreter takes CPU
tensors too; where it is asked for, the operators of the same names under `fdpo_fast_interpreted` run it. The operators
know nothing of autograd; `ops.autograd` differentiates.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library, fallthrough_kernel, register_fake
from torch.nn import Parameter

from fdpo_fast.ops import cpp
from fdpo_fast.ops.call import Call
from fdpo_fast.ops.constants import BACKENDS as NAMES
from fdpo_fast.ops.constants import one_of
from fdpo_fast.ops.results import Results
from fdpo_fast.ops.target import Target
from fdpo_fast.ops.triton import launch


class Backend(Protocol):
    """What a module offers that runs the operators; shapes and dtypes are those of this module's functions."""

    missing: str | None
    """What has to be installed before it can run; None where it can."""
    DEVICE: str
    """The type of device that it is made for."""
    DTYPES: Collection[torch.dtype]
    """The dtypes that it takes."""

    def devices(self) -> tuple[str, ...]:
        """Return the types of device whose tensors it takes."""

    def loss_forward(
        self, pred: Tensor, ref: Tensor, target: Target, weight: Tensor | None, call: Call, upstream: float | None
    ) -> Results:
        """Run this module's `loss_forward`."""

    def loss_backward(
        self, grad_loss: Tensor, coefficients: Tensor, pred: Tensor, target: Target, interleaved: bool
    ) -> Tensor:
        """Run this module's `loss_backward`."""

    def add_noise(
        self,
        latents: Tensor,
        draws: Tensor,
        signal: Tensor,
        sigma: Tensor,
        density: Tensor | None,
        interleaved: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Run this module's `add_noise`."""

    def normals(self, draws: Tensor, count: int) -> Tensor:
        """Run this module's `normals`."""


BACKENDS: dict[str, Backend] = {"cpp": cpp, "triton": launch}


def _warn(message: str) -> None:
    """Warn at the line of the user's that imports the package, however many modules lie between."""
    frame: FrameType | None = sys._getframe()
    depth = 1
    while frame and (frame.f_globals.get("__name__") or "").startswith(("fdpo_fast", "importlib", "_frozen_importlib")):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)


for _backend, _wanted in ((cpp, True), (launch, torch.version.cuda or torch.version.hip)):
    if _backend.missing and _wanted:
        _warn(f"fdpo_fast runs without {_backend.missing}, in eager torch")


def chosen(backend: str | None, device: torch.device, *dtypes: torch.dtype) -> str:
    """Return the backend to run floating-point tensors with: the best one that takes them, or the one that is named.

    Raises ValueError for one that is unknown, is not there, or does not take them.
    """
    if backend is None:
        name = "eager" if transformed() else best(device.type)
        return name if name == "eager" or _refused(name, dtypes) is None else "eager"
    one_of("backend", backend, NAMES)
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


def best(device: str) -> str:
    """Return the backend that is there for a type of device."""
    return _BEST.get(device, "eager")


def _refused(backend: str, dtypes: Iterable[torch.dtype]) -> torch.dtype | None:
    known = BACKENDS[backend].DTYPES
    for dtype in dtypes:
        if dtype not in known:
            return dtype
    return None


_BEST = {module.DEVICE: name for name, module in BACKENDS.items() if not module.missing}
_BEST |= {"meta": _BEST[cpp.DEVICE]} if cpp.DEVICE in _BEST else {}  # a rehearsal of the host's way


def transformed() -> bool:
    """Say whether torch.func's grad, vmap or jvp, or forward_ad, is at work: they want operations to see into."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def traced(*tensors: Any) -> bool:
    """Say whether an operation on these tensors has to be seen, or is not torch's own to run.

    So it is under torch.compile and any mode of the dispatcher (fake tensors, make_fx, counters of operations), of
    tensors of another type (DTensor, fake tensors, a user's own) and of the meta device. Everybody else is spared the
    dispatcher, which costs 10 us: a fifth of a call on small latents.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    for tensor in tensors:
        if type(tensor) is not Tensor and tensor is not None and type(tensor) is not Parameter:
            return True
    return tensors[0] is None or tensors[0].is_meta  # as all are then


class _Operators:
    """The operators of one namespace, which runs a backend on each of its devices."""

    def __init__(self, namespace: str, **backends: Backend) -> None:
        """Take the backends by dispatch key."""
        self._library, self._backends = Library(namespace, "DEF"), backends
        self._namespace = getattr(torch.ops, namespace)

    def define(self, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        """Define an operator: `run` of a backend and the operator's arguments, `fake` of the arguments alone."""
        name = schema[: schema.index("(")]
        self._library.define(schema)
        for key, backend in self._backends.items():
            self._library.impl(name, lambda *arguments, _on=backend: run(_on, *arguments), key)
        self._library.impl(name, fallthrough_kernel, "Autograd")
        register_fake(f"{self._library.ns}::{name}", fake, lib=self._library)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._namespace, name).default


_by_device = _Operators("fdpo_fast", CPU=cpp, CUDA=launch)
_interpreted = _Operators("fdpo_fast_interpreted", CPU=launch)


def _operators(backend: str, tensor: Tensor) -> _Operators:
    return _interpreted if backend == "triton" and tensor.device.type == "cpu" else _by_device


def _define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    for operators in (_by_device, _interpreted):
        operators.define(schema, run, fake)


def loss_forward(
    backend: str, pred: Tensor, ref: Tensor, target: Target, weight: Tensor | None, call: Call, upstream: float | None
) -> Results:
    """Return the losses of B pairs and what their gradient needs, in one pass.

    pred: [2B, ...]. ref: predictions like pred, or errors [2B]. weight: [B] float32, or None for ones. upstream: the
    gradient of each loss for which that of pred is formed in the same pass; None to form none.
    """
    if traced(pred, ref, *target, weight):
        return Results(*_operators(backend, pred).loss_forward(pred, ref, *target, weight, *call, upstream))
    return BACKENDS[backend].loss_forward(pred, ref, target, weight, call, upstream)


def _tensors(pred: Tensor, results: Results) -> Results:
    """Return the results as an operator has to: it cannot leave out the gradient."""
    return results if results.grad is not None else results._replace(grad=pred.new_empty(0))


_define(
    "loss_forward(Tensor pred, Tensor ref, Tensor? draws, Tensor? data, Tensor? on, Tensor? weight, float[] link, "
    "float[] loss_type, float beta, float ratio_scale, bool interleaved, str reduction, float? may_undo, "
    "float sft_weight, float offset, float? clip_log_ratio, float? upstream) -> (Tensor, Tensor, Tensor)",
    lambda backend, pred, ref, draws, data, on, weight, link, of_pair, *numbers: _tensors(
        pred,
        backend.loss_forward(
            pred, ref, Target(draws, data, on), weight, Call(tuple(link), tuple(of_pair), *numbers[:-1]), numbers[-1]
        ),
    ),
    lambda pred, ref, draws, data, on, weight, *numbers: _tensors(
        pred,
        Results.empty(pred, Call(*numbers[:-1]).reduction, None if numbers[-1] is None else torch.empty_like(pred)),
    ),
)


def loss_backward(
    backend: str, grad_loss: Tensor, coefficients: Tensor, pred: Tensor, target: Target, interleaved: bool
) -> Tensor:
    """Return the gradient grad_loss * c * (pred - target), like pred.

    grad_loss: [B], or [] for all pairs. coefficients: c [2, B] float32, of the preferred and the dispreferred samples.
    """
    if traced(grad_loss, coefficients, pred, *target):
        return _operators(backend, pred).loss_backward(grad_loss, coefficients, pred, *target, interleaved)
    return BACKENDS[backend].loss_backward(grad_loss, coefficients, pred, target, interleaved)


_define(
    "loss_backward(Tensor grad_loss, Tensor coefficients, Tensor pred, Tensor? draws, Tensor? data, Tensor? on, "
    "bool interleaved) -> Tensor",
    lambda backend, grad_loss, coefficients, pred, draws, data, on, interleaved: backend.loss_backward(
        grad_loss, coefficients, pred, Target(draws, data, on), interleaved
    ),
    lambda grad_loss, coefficients, pred, *others: torch.empty_like(pred),
)


def add_noise(
    backend: str,
    latents: Tensor,
    draws: Tensor,
    signal: Tensor,
    sigma: Tensor,
    density: Tensor | None,
    interleaved: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the noisy latents in `dtype`, like latents [2B, ...], and the timesteps [B] int64 that were drawn.

    draws: [3, B] int64. signal, sigma: [T] float32, by timestep. density: [T] int64, see `noise.timesteps`.
    """
    if traced(latents, draws, signal, sigma, density):
        return _operators(backend, latents).add_noise(latents, draws, signal, sigma, density, interleaved, dtype)
    return BACKENDS[backend].add_noise(latents, draws, signal, sigma, density, interleaved, dtype)


_define(
    "add_noise(Tensor latents, Tensor draws, Tensor signal, Tensor sigma, Tensor? density, bool interleaved, "
    "ScalarType dtype) -> (Tensor, Tensor)",
    lambda on, *arguments: on.add_noise(*arguments),
    lambda latents, draws, signal, sigma, density, interleaved, dtype: (
        torch.empty_like(latents, dtype=dtype),
        draws.new_empty(draws.shape[1]),
    ),
)


def normals(backend: str, draws: Tensor, count: int) -> Tensor:
    """Return the noise [B, count] float32 of draws [3, B] int64."""
    if traced(draws):
        return _operators(backend, draws).normals(draws, count)
    return BACKENDS[backend].normals(draws, count)


_define(
    "normals(Tensor draws, SymInt count) -> Tensor",
    lambda on, *arguments: on.normals(*arguments),
    lambda draws, count: draws.new_empty((draws.shape[1], count), dtype=torch.float32),
)
