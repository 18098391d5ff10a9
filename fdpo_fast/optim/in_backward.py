"""The optimizer's step inside backward: a gradient lives no longer than its parameter's turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fdpo_fast.optim.adamw8bit import AdamW8bit


class StepInBackward:
    """Steps each parameter as soon as its gradient is complete, and frees the gradient (post-accumulate hooks).

    So no copy of the model made of gradients ever exists. The global norm is not known until backward ends; `max_norm`
    bounds each parameter's own norm instead, by min(1, max_norm / |g|). A gradient that is not finite counts as zero:
    the others have been stepped already. Gradients cannot be accumulated.

    Args:
        optimizer: over the parameters.
        parameters: those that are trained.
        max_norm: of each parameter's gradient; 0: none.
        average: makes a tensor its mean over ranks, in place.
    """

    def __init__(
        self,
        optimizer: AdamW8bit,
        parameters: Iterable[Parameter],
        max_norm: float,
        average: Callable[[Tensor], Any],
    ) -> None:
        self._optimizer, self._max_norm, self._average = optimizer, max_norm, average
        self._bad: Tensor | None = None
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._step)

    @torch.no_grad()
    def _step(self, parameter: Tensor) -> None:
        grad = parameter.grad
        self._average(grad)
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
        finite = norm.isfinite()
        if self._max_norm:
            grad.mul_((self._max_norm / norm).clamp(max=1.0).to(grad.dtype))
        parameter.grad = torch.where(finite, grad, 0)
        self._bad = ~finite if self._bad is None else self._bad | ~finite
        self._optimizer.step_parameter(parameter)
        parameter.grad = None

    def bad(self) -> Tensor:
        """1.0 if a gradient of this backward was not finite; forgets it."""
        bad, self._bad = self._bad, None
        return torch.zeros(()) if bad is None else bad.float()
