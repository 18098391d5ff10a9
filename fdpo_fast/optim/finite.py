"""What stands before an optimizer's step: gradients that are not finite skip it, large ones are clipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def norms_of(grads: list[Tensor]) -> Tensor:
    """Return the norm of each gradient, [n] float32: formed in its own dtype, but for float16, which cannot hold it."""
    # Only float16 has norms that do not fit it; for a host tensor another dtype makes a whole copy.
    dtype = torch.float32 if any(grad.dtype == torch.float16 for grad in grads) else None
    return torch.stack(torch._foreach_norm(grads, dtype=dtype)).float()


class SkipNonFinite:
    """A pair of hooks that makes an optimizer leave everything as it is where a gradient is not finite, on any rank.

    It does so by hiding the gradients while `step` runs. The verdict is waited for, once for each call of `step`.

    Args:
        optimizer: the one that is handed to DeepSpeed; under ZeRO it sees the partitions.
        agree: makes the largest value of a tensor that of every rank, in place.
        max_norm: where the optimizer sees all gradients and nobody else clips them: the largest global norm that is
            let through, 0 for any. DeepSpeed would copy each to float32, and keep the norm for itself.
    """

    LIMIT = 10
    """How many skipped steps in a row end a run."""

    def __init__(self, optimizer: Optimizer, agree: Callable[[Tensor], Any], max_norm: float | None = None) -> None:
        self.skipped = self.in_a_row = 0
        self.norm: Tensor | None = None
        """The norm of all gradients at the last step, before clipping; None without `max_norm`."""
        self._max_norm = max_norm
        self._agree, self._seen, self._elsewhere = agree, False, 0
        self._hidden: list[tuple[Tensor, Tensor]] = []
        optimizer.register_step_pre_hook(self._hide)
        optimizer.register_step_post_hook(self._show)

    def _hide(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            self.note(torch.zeros((), dtype=torch.float32, device="cpu"))
            return
        grads = [p.grad for p in parameters]
        norms = norms_of(grads)
        bad, norm = (~norms.isfinite()).sum().float(), torch.linalg.vector_norm(norms)
        self._agree(bad)
        count, length = torch.stack((bad, norm)).tolist()  # the one wait
        self._seen |= count > 0
        if self._max_norm is not None:
            self.norm = norm
        if self._seen:
            self._hidden = list(zip(parameters, grads, strict=True))
            for parameter in parameters:
                parameter.grad = None
        elif self._max_norm and length > self._max_norm:
            torch._foreach_mul_(grads, self._max_norm / norm)

    def _show(self, *_: Any) -> None:
        for parameter, grad in self._hidden:  # offloading keeps its buffers there
            parameter.grad = grad
        self._hidden = []

    def note(self, bad: Tensor) -> None:
        """Take note of a number of gradients that are not finite; all ranks see the largest."""
        self._agree(bad)
        self._seen |= bool(bad > 0)

    def end_step(self, skipped_elsewhere: int) -> bool:
        """Count the step that has ended, and say whether it was skipped.

        skipped_elsewhere: how many DeepSpeed itself has skipped so far.
        """
        skipped = self._seen or skipped_elsewhere > self._elsewhere
        self.skipped += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self._seen, self._elsewhere = False, skipped_elsewhere
        return skipped
