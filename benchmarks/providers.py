"""Who computes the loss: ours, the published expression, our own eager backend; and a copy to hold them against.

Of flows ours and the eager backend are given draws and latents; the published expression forms the target of noise and
latents first, as trainers do, and ours beside it once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import FLOWS, Case, Flow, Inputs
from benchmarks.common.clock import Call
from benchmarks.published import published_loss
from fdpo_fast import FDPOLoss

KNOBS = {"beta": 1.0, "ratio_scale": 2500.0}

RIVALS = {
    "published": "the published expression",
    "published_compiled": "its torch.compile",
    "uncast": "the same without casts",
    "uncast_compiled": "its torch.compile, without casts",
    "eager": "our own eager backend",
    "stored": "ours of a target that is a tensor",
}
"""Providers beside ours, in the order of the columns. Casts change nothing in float32. stored: of flows alone."""

LOSS_TOLERANCE = {"published": 1e-3, "published_compiled": 1e-3}
"""Relative, where it is not 1e-4: the published means of float32 errors move a logit by some 1e-4."""

TOLERANCE = {"float32": 1e-3, "bfloat16": 2**-7}
"""Relative, of a gradient's elements; for bfloat16 the distance of two neighbours. Losses are float32 in any dtype."""

Prepare = Callable[[], Call]
"""Does what is not to be timed, and returns the call that is."""


def make_providers(case: Case) -> dict[str, Callable]:
    """(pred, ref, target) -> (loss, what is logged), by name."""
    torch._dynamo.reset()  # a case must not inherit graphs from the case before: dynamo gives up after some shapes
    options = {"divergence": case.divergence, **KNOBS}
    providers: dict[str, Callable] = {"eager": FDPOLoss(backend="eager", **options), "ours": FDPOLoss(**options)}
    if case.form == "draws":  # no script draws its noise again inside the loss
        return providers
    published: dict[str, Callable] = {"published": partial(published_loss, casts=True, **options)}
    if case.dtype != "float32":
        published["uncast"] = partial(published_loss, casts=False, **options)
    if case.form in FLOWS:
        stored = {name: _formed(provider) for name, provider in {**published, "stored": providers["ours"]}.items()}
        providers = {name: _drawn(provider) for name, provider in providers.items()} | stored
        published = {name: stored[name] for name in published}
    compiled = {
        f"{name}_compiled": torch.compile(provider, fullgraph=True, dynamic=False)
        for name, provider in published.items()
    }
    return providers | published | compiled


def make_preserving(case: Case) -> dict[str, Callable]:
    """Ours with `winner_preserving`, and without it, where at least some gradients are scaled."""
    options = {"divergence": case.divergence, **KNOBS}
    both = {"ours": FDPOLoss(winner_preserving=1 - 2.0**-12, **options), "without": FDPOLoss(**options)}
    return {name: _drawn(loss) for name, loss in both.items()} if case.form in FLOWS else both


def _drawn(loss: Callable) -> Callable:
    def of(pred: Tensor, ref: Tensor, target: Flow) -> tuple:
        return loss(pred, ref, target.drawn)

    return of


def _formed(loss: Callable) -> Callable:
    def of(pred: Tensor, ref: Tensor, target: Flow) -> tuple:
        return loss(pred, ref, target.noise - target.latents)

    return of


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
    """Every provider gives eager's loss, and its gradient where pred asks for one.

    But for the expression without casts, which loses its digits in bfloat16; with casts it is the same function. And
    in bfloat16 but for whoever forms a flow's target, which is rounded; in float32 it is the same function.
    """
    apart = {"eager", "uncast", "uncast_compiled"}
    if case.form in FLOWS and case.dtype != "float32":
        apart |= providers.keys() - {"ours"}

    def evaluate(name: str) -> tuple[Tensor, ...]:
        loss, _ = providers[name](*inputs)
        return (loss.detach(), *(torch.autograd.grad(loss, inputs.pred) if case.passes != "fwd" else ()))

    loss, *grad = evaluate("eager")
    assert 0 < loss < torch.inf
    for name in providers.keys() - apart:
        other_loss, *other_grad = evaluate(name)
        _assert_close(f"loss of {name}", other_loss, loss, rtol=LOSS_TOLERANCE.get(name, 1e-4), atol=0)
        for ours, expected in zip(other_grad, grad, strict=True):
            smallest = 1e-6 * float(expected.abs().max())
            _assert_close(f"gradient of {name}", ours, expected, rtol=TOLERANCE[case.dtype], atol=smallest)


def _assert_close(what: str, actual: Tensor, expected: Tensor, **tolerance: float) -> None:
    # of stored float64 errors the published expression makes a float64 loss
    torch.testing.assert_close(
        actual, expected, check_dtype=False, **tolerance, msg=lambda text: f"{what} is not eager's. {text}"
    )
