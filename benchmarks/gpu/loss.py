"""Kernel time of the loss without launches: CUDA graphs of forward and backward, and of a copy of as many bytes.

The large cases exceed the L2 cache several times, so that their GB/s are the memory's; the small one is read from the
cache, and tells time only. Without CUDA graphs (on the host) the calls themselves are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

import torch

from benchmarks.cases import DTYPES, READS, Case, make_inputs
from benchmarks.common.device import CUDA, DEVICE
from benchmarks.gpu.lab import Lab, Work, reported, seconds
from benchmarks.providers import make_providers, prepare_copy, prepare_pass
from benchmarks.published import DIVERGENCES

SIZES = (("SDXL", 1), ("SDXL", 16), ("SD3", 64))
REHEARSED = (("SD1.5", 1),)
FORMS = tuple(READS)
EAGER = {"ours", "published", "uncast", "eager", "stored"}
"""Providers that have nothing to compile; the published ones where a case has them."""
CALLS = 10
"""In a graph: what it takes to start one is spread over them."""


def ready(lab: Lab) -> Work:
    return lambda: measure(lab)


def measure(lab: Lab) -> None:
    """A line for each size, dtype and form of input; then the first form again beside what has to compile for each.

    Predictions under both divergences, all other forms under Jensen-Shannon alone.
    """
    for form in FORMS:
        for case in cases(lab, form):
            one(lab, case, {"ours"} if form == "draws" else EAGER)
    if not lab.rehearse:  # compiles for the host, for longer than a rehearsal may take
        for case in cases(lab, FORMS[0]):
            one(lab, case, {*EAGER, "published_compiled", "uncast_compiled"})


def cases(lab: Lab, form: str) -> Iterator[Case]:
    """Jensen-Shannon first: if time runs out, it is the default that has been measured."""
    divergences = sorted(DIVERGENCES) if form == FORMS[0] else ("jensen_shannon",)
    for divergence in divergences:
        for size, pairs in REHEARSED if lab.rehearse else SIZES:
            for dtype in DTYPES:
                yield Case(size, pairs, dtype, form, "fwd+bwd", divergence)


def one(lab: Lab, case: Case, names: Set[str]) -> None:
    """Microseconds of the copy, and of these providers as far as the case has them; GB/s of ours.

    GB/s are those of the bytes that must be moved.
    """
    inputs, providers, needed = make_inputs(case, DEVICE), make_providers(case), case.minimal_bytes(DEVICE)
    about = case._asdict() | {"elements": case.elements, "minimal_mb": needed / 1e6, "graphs": CUDA}
    took = {"copy": kernels(prepare_copy(needed, DEVICE)())}
    for name in sorted(providers.keys() & names):
        with reported(lab, what="loss", **about, provider=name):
            took[name] = kernels(prepare_pass(providers[name], case, inputs)())
    ours = {}
    if "ours" in took:
        ours = {"gb_per_s": needed / took["ours"] / 1e9, "share_of_copy": took["copy"] / took["ours"]}
    lab.line(what="loss", **about, **{f"{name}_us": 1e6 * value for name, value in took.items()}, **ours)


def kernels(call: Callable[[], object]) -> float:
    """Seconds that a call keeps the GPU busy: a graph of several calls, by their number; on the host, of the call."""
    if not CUDA:
        return seconds(call, rounds=20)[0]
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # a capture wants its warm-up on another stream
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return seconds(graph.replay)[0] / CALLS
