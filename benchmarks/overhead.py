"""What one small loss costs its thread, part by part: `python -m benchmarks.overhead`.

One pair of SD1.5 latents in float32, forward and backward, two threads, on the host: CPU time of the calling thread,
which waits for no other program. Parts are measured in turns, blocks of calls of each, and what counts is the median
over the rounds. The kernel alone is the calls of the compiled part that one loss makes, repeated on the same memory;
torch's smallest autograd.Function gives a number forward and a tensor that is there already backward, so nothing that
Python differentiates costs less. The rest is what our Python, allocations and statistics come to. Beside it the
published expression and our own eager backend, which compute the same. Writes results/overhead.csv.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, make_inputs
from benchmarks.common.arguments import help_if_asked
from benchmarks.common.clock import Call
from benchmarks.common.tables import write_csv
from benchmarks.providers import make_providers, prepare_pass
from fdpo_fast.evaluate.tables import table
from fdpo_fast.ops import cpp

CSV = Path(__file__).parent / "results/overhead.csv"
CASE = Case("SD1.5", 1, "float32", "predictions", "fwd+bwd")
THREADS, ROUNDS, CALLS = 2, 300, 20
WHOLE, KERNEL, FUNCTION = "fdpo_fast", "the kernel alone", "torch's smallest autograd.Function"
PARTS = (WHOLE, KERNEL, FUNCTION, "the rest")


class Smallest(torch.autograd.Function):
    """(pred, its gradient) -> a number."""

    @staticmethod
    def forward(ctx, pred: Tensor, grad: Tensor) -> Tensor:
        ctx.grad = grad
        return pred.new_empty(())

    @staticmethod
    def backward(ctx, _: Tensor) -> tuple[Tensor, None]:
        return ctx.grad, None


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls of the compiled part that are made meanwhile, each ready to be made again."""
    native, calls = import_module("fdpo_fast._native"), []

    def recording(function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(partial(function, *args, **kwargs))
            return function(*args, **kwargs)

        return call

    names = [name for name in dir(native) if name.startswith("loss")]
    with mock.patch.multiple(native, **{name: recording(getattr(native, name)) for name in names}):
        yield calls


def kernel(ours: Callable, inputs: Inputs) -> tuple[Call, object]:
    """What of a loss is the compiled part, and what must live as long: the memory that it writes to."""
    with recorded() as calls:
        loss, stats = ours(*inputs)
        (grad,) = torch.autograd.grad(loss, inputs.pred)
    if not calls:
        raise RuntimeError("the loss no longer calls fdpo_fast._native by its name: benchmarks/overhead.py must follow")
    return (calls[0] if len(calls) == 1 else lambda: [call() for call in calls]), (loss, stats, grad)


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """Microseconds of thread time of a call, by what it was."""
    torch.set_num_threads(THREADS)
    inputs, providers = make_inputs(CASE, torch.device("cpu")), make_providers(CASE)
    calls = {name: prepare_pass(providers[name], CASE, inputs)() for name in ("ours", "published", "eager")}
    calls[WHOLE] = calls.pop("ours")
    calls[KERNEL], _kept = kernel(providers["ours"], inputs)
    grad = torch.zeros_like(inputs.pred)
    calls[FUNCTION] = lambda: torch.autograd.grad(Smallest.apply(inputs.pred, grad), inputs.pred)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # brings its data back into the cache; untimed
            start = time.thread_time()
            for _ in range(CALLS):
                call()
            times[name].append((time.thread_time() - start) / CALLS)
    spent = {name: 1e6 * median(values) for name, values in times.items()}
    spent["the rest"] = spent[WHOLE] - spent[KERNEL] - spent[FUNCTION]
    return {name: spent[name] for name in (*PARTS, "published", "eager")}


def main() -> None:
    if cpp.missing:
        sys.exit(f"there is nothing to take apart without {cpp.missing}")
    names = {"published": "the published expression", "eager": "our own eager backend"}
    rows = [(names.get(name, name), f"{spent:.1f}") for name, spent in measure().items()]
    print(f"{CASE.pairs} pair of {CASE.size}, {CASE.dtype}, {CASE.passes}, {CASE.divergence}, {THREADS} threads\n")
    print("\n".join(table(("of it", "us of thread time"), rows, figures=1)))
    write_csv(CSV, ("part", "thread_us"), rows)


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
