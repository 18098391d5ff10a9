"""Kernel time of the loss without launches: CUDA graphs of forward and backward, and of a copy of as many bytes.

The large cases exceed the L2 cache several times, so that their GB/s are the memory's; the small one is read from the
cache, and tells time only. Without CUDA graphs (on the host) the calls themselves are timed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.cases import Case, make_inputs
from benchmarks.device import CUDA, DEVICE
from benchmarks.gpu.lab import Lab, Work, reported, seconds
from benchmarks.providers import make_providers, prepare_copy, prepare_pass

SIZES = (("SDXL", 1), ("SDXL", 16), ("SD3", 64))
REHEARSED = (("SD1.5", 1),)
CALLS = 10
"""In a graph: what it takes to start one is spread over them."""


def ready(lab: Lab) -> Work:
    return lambda: measure(lab)


def measure(lab: Lab) -> None:
    """A line for each size, form of input and dtype; the rival that has to compile comes last."""
    for size, pairs in REHEARSED if lab.rehearse else SIZES:
        for dtype in ("bfloat16", "float32"):
            for form in ("predictions", "errors", "draws"):
                one(lab, Case(size, pairs, dtype, form, "fwd+bwd"))


def one(lab: Lab, case: Case) -> None:
    """Microseconds of each provider and of the copy; GB/s of ours by the bytes that must be moved."""
    inputs, providers = make_inputs(case, DEVICE), make_providers(case)
    about = case._asdict() | {"elements": case.elements, "minimal_mb": case.minimal_bytes(DEVICE) / 1e6, "graphs": CUDA}
    took = {"copy": kernels(prepare_copy(case.minimal_bytes(DEVICE), DEVICE)())}
    if lab.rehearse:
        providers.pop("compile", None)  # compiles for the host, for longer than a rehearsal may take
    for name in sorted(providers, key=("ours", "eager", "compile").index):
        with reported(lab, **about, provider=name):
            took[name] = kernels(prepare_pass(providers[name], case, inputs)())
    ours = {}
    if "ours" in took:
        speed = {"gb_per_s": case.minimal_bytes(DEVICE) / took["ours"] / 1e9}
        ours = speed | {"share_of_copy": took["copy"] / took["ours"]}
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
