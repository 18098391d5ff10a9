"""The optimizer's step inside backward: gradients live until their bucket is full, and no longer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.nn import Parameter

from fdpo_fast.optim.adamw8bit import AdamW8bit
from fdpo_fast.optim.finite import norms_of
from fdpo_fast.optim.update import Clip

BUCKET_BYTES = 96 << 20
"""Bytes of the gradients that are stepped together: less would be many launches, more much memory."""


@dataclass
class _Bucket:
    grads: dict[Tensor, Tensor] = field(default_factory=dict)  # by parameter, in the order of arrival
    bytes: int = 0


class StepInBackward:
    """A set of post-accumulate hooks that step parameters while backward goes on, and free their gradients.

    So no copy of the model made of gradients ever exists. They are gathered in buckets, in the order in which they
    arrive, one for each device, dtype and dtype of the states; a bucket is averaged, clipped, stepped and freed once it
    holds `BUCKET_BYTES`, or when backward ends, whoever has called it.

    The global norm is not known until then. `max_norm` bounds each parameter's own norm instead, by
    min(1, max_norm / |g|), and a gradient that is not finite counts as zero: others have been stepped already. Or
    `backward` goes through the graph twice, once for the norm and once to step: then the global one is bounded, and a
    step whose gradients are not finite is left out, as where the step comes after backward. Gradients cannot be
    accumulated.

    Args:
        optimizer: over the parameters.
        parameters: those that are trained.
        max_norm: of each parameter's gradient, or with `twice` of all together; 0: none.
        average: makes a tensor its mean over ranks, in place; None where there is one rank, which saves a copy of the
            bucket.
        twice: whether the caller goes by `backward`, which bounds the global norm.
    """

    def __init__(
        self,
        optimizer: AdamW8bit,
        parameters: Iterable[Parameter],
        max_norm: float,
        average: Callable[[Tensor], Any] | None,
        twice: bool = False,
    ) -> None:
        parameters = list(parameters)
        self._optimizer, self._max_norm, self._average = optimizer, max_norm, average
        self._twice, self._order = twice, parameters
        self._norms: dict[Tensor, Tensor] | None = None
        """By parameter, while a backward is for them alone."""
        self._factor: Tensor | None = None
        self.norm: Tensor | None = None
        """The global norm before clipping, of the last `backward`; None without `twice`."""
        self._buckets: dict[tuple, _Bucket] = {}
        self._bad: dict[torch.device, Tensor] = {}
        self._backward = -1
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def backward(self, loss: Tensor, step: Callable[..., Any]) -> None:
        """Go backward from a loss by `step`, which is called as `Tensor.backward` is; with `twice` for the norm first.

        That the norm is finite, and whether it is too large, is waited for.
        """
        if not self._twice:
            step(loss)
            return
        self._norms = {}
        step(loss, retain_graph=True)
        self._step_all()
        norms = [self._norms[p] for p in self._order if p in self._norms]  # the order of other clippers
        self.norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else loss.new_zeros(())
        length = self.norm.item()
        self._factor = self._max_norm / self.norm if self._max_norm and length > self._max_norm else None
        if math.isfinite(length):
            self._norms = None
        else:  # and the second backward, which DeepSpeed counts, measures once more
            self._bad[self.norm.device] = torch.ones_like(self.norm)
        step(loss)
        self._step_all()
        self._norms = None

    def _arrived(self, parameter: Tensor) -> None:
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:  # another one than at the last gradient; one inside another has its own
            self._backward = backward
            Variable._execution_engine.queue_callback(self._step_all)
        grad, parameter.grad = parameter.grad, None
        if grad is None:  # there is nothing to step by
            return
        # the same on every rank, as addresses are not
        kind = parameter.get_device(), parameter.dtype, grad.dtype, parameter.numel() < self._optimizer.min_8bit_size
        bucket = self._buckets.get(kind)
        if bucket is None:
            bucket = self._buckets[kind] = _Bucket()
        if parameter in bucket.grads:  # a part of it: backward went through a checkpoint's own one
            bucket.grads[parameter] = bucket.grads[parameter] + grad
        else:
            bucket.grads[parameter] = grad
            bucket.bytes += grad.nbytes
        if bucket.bytes >= BUCKET_BYTES:
            self._step(self._buckets.pop(kind))

    def _step_all(self) -> None:
        """Step what is left in the buckets."""
        while self._buckets:
            self._step(self._buckets.pop(next(iter(self._buckets))))

    @torch.no_grad()
    def _step(self, bucket: _Bucket) -> None:
        grads = bucket.grads
        if self._average is not None:
            flat = torch.cat([grad.flatten() for grad in grads.values()])
            self._average(flat)
            parts = flat.split([grad.numel() for grad in grads.values()])
            grads.update({p: part.view(p.shape) for p, part in zip(grads, parts, strict=True)})
        if self._norms is not None:
            self._norms.update(zip(grads, norms_of([*grads.values()]), strict=True))
            return
        if self._twice:
            if self._factor is not None:
                torch._foreach_mul_([*grads.values()], self._factor)
            self._optimizer.step_by(grads)
            return
        device = next(iter(grads)).device
        bad = self._bad.get(device)
        if bad is None:
            bad = self._bad[device] = torch.zeros((), dtype=torch.float32, device=device)
        self._optimizer.step_by(grads, Clip(self._max_norm, bad))

    def bad(self) -> Tensor:
        """Return 1.0 if a gradient of this backward was not finite, else 0.0, and forget it."""
        self._step_all()
        flags, self._bad = list(self._bad.values()), {}
        flags = flags or [torch.zeros((), dtype=torch.float32, device="cpu")]
        return torch.stack([bad.to(flags[0].device) for bad in flags]).amax()
