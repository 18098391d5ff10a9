"""Who computes the loss: ours, eager torch, torch.compile; and a memory copy to hold them against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs
from benchmarks.common.clock import Call
from fdpo_fast import FDPOLoss

OPTIONS = {"divergence": "jensen_shannon", "beta": 1.0, "ratio_scale": 2500.0}

TOLERANCE = {"float32": 1e-3, "bfloat16": 2**-7}
"""Relative, of a gradient's elements; for bfloat16 the distance of two neighbours. Losses are float32 in any dtype."""

Prepare = Callable[[], Call]
"""Does what is not to be timed, and returns the call that is."""


def make_providers(case: Case) -> dict[str, Callable]:
    """Modules (pred, ref, target) -> (loss, stats), by name."""
    torch._dynamo.reset()  # a case must not inherit graphs from the case before: dynamo gives up after some shapes
    eager = FDPOLoss(backend="eager", **OPTIONS)
    providers = {"eager": eager, "ours": FDPOLoss(**OPTIONS)}
    if case.form != "draws":  # noise drawn by plain torch inside the loss is here for completeness, as eager alone
        providers["compile"] = torch.compile(FDPOLoss(backend="eager", **OPTIONS), fullgraph=True, dynamic=False)
    return providers


def prepare_pass(provider: Callable, case: Case, inputs: Inputs) -> Prepare:
    """The pass of the case. Backward alone: the forward pass is preparation, a fresh one for each call."""
    upstream = torch.tensor(0.5, device=inputs.pred.device) if case.passes == "fwd+bwd/2" else None

    def forward() -> Tensor:
        return provider(*inputs)[0]

    def both() -> Tensor:
        return torch.autograd.grad(forward(), inputs.pred, upstream)[0]

    def prepare_backward() -> Call:
        loss = forward()
        return lambda: torch.autograd.grad(loss, inputs.pred)[0]

    if case.passes == "bwd":
        return prepare_backward
    call = forward if case.passes == "fwd" else both
    return lambda: call


def prepare_copy(total_bytes: int, device: torch.device) -> Prepare:
    """A copy that reads and writes as many bytes together: the speed of memory, as a limit."""
    source, to = torch.ones(2, total_bytes // 8, device=device)  # float32
    return lambda: lambda: to.copy_(source)


def check_agreement(case: Case, providers: dict[str, Callable], inputs: Inputs) -> None:
    """Every provider gives eager's loss, and its gradient where pred asks for one."""

    def evaluate(name: str) -> tuple[Tensor, ...]:
        loss, _ = providers[name](*inputs)
        return (loss.detach(), *(torch.autograd.grad(loss, inputs.pred) if case.passes != "fwd" else ()))

    loss, *grad = evaluate("eager")
    assert 0 < loss < torch.inf
    for name in providers.keys() - {"eager"}:
        other_loss, *other_grad = evaluate(name)
        _assert_close(f"loss of {name}", other_loss, loss, rtol=1e-4, atol=0)
        for ours, expected in zip(other_grad, grad, strict=True):
            smallest = 1e-6 * float(expected.abs().max())
            _assert_close(f"gradient of {name}", ours, expected, rtol=TOLERANCE[case.dtype], atol=smallest)


def _assert_close(what: str, actual: Tensor, expected: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, **tolerance, msg=lambda text: f"{what} is not eager's. {text}")
