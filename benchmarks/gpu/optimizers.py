"""One optimizer step in bfloat16 over SDXL's own 1,680 tensors, and over 32 large ones: ours and other libraries'.

GB/s by what must be read and written: weight twice, gradient, states twice, the states as each keeps them. Before it is
timed, each one's first step is held against AdamW in float64. A library that is not installed is a sentence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from benchmarks.common.device import CUDA, DEVICE, forget_peaks, gpu_memory, synchronize
from benchmarks.gpu.lab import Lab, Work, reported, seconds
from benchmarks.optimizer import OPTIONS, Maker, bitsandbytes, check, state_bytes
from fdpo_fast import AdamW8bit


def _torchao(parameters: list[Parameter]) -> Optimizer:
    from torchao.optim import AdamW8bit

    return AdamW8bit(parameters, **OPTIONS, bf16_stochastic_round=True)


def _flashoptim(parameters: list[Parameter]) -> Optimizer:
    from flashoptim import FlashAdamW

    return FlashAdamW(parameters, **OPTIONS)


FAST: dict[str, Maker] = {
    "fdpo_fast": partial(AdamW8bit, **OPTIONS),
    "fdpo_fast, to nearest": partial(AdamW8bit, **OPTIONS, rounding="nearest"),
    "fdpo_fast, 24 bits": partial(AdamW8bit, **OPTIONS, weights="bf16+8"),
    "torch fused": partial(AdamW, **OPTIONS, fused=True),
    "bitsandbytes": bitsandbytes,
    "flashoptim": _flashoptim,
}
COMPILED: dict[str, Maker] = {"torchao, stochastic rounding": _torchao}
"""They compile for each shape, of which SDXL has 44: for minutes."""
NEED_CUDA = ("flashoptim",)


def ready(lab: Lab, compiled: bool = False) -> Work:
    makers = available(lab, COMPILED if compiled else FAST)
    layouts = dict(shapes(lab))
    if compiled:
        layouts = dict(reversed(layouts.items()))  # first what has one shape
    return lambda: measure(lab, makers, layouts)


def available(lab: Lab, makers: dict[str, Maker]) -> dict[str, Maker]:
    """Those whose package is here; a line for each of the others."""
    here = {}
    for name, make in makers.items():
        package = name.split(",")[0].split()[0]
        if not find_spec(package):
            lab.line(what="optimizer", optimizer=name, skipped=f"the package {package} is not installed")
        elif package in NEED_CUDA and not CUDA:
            lab.line(what="optimizer", optimizer=name, skipped=f"{package} needs a CUDA device")
        else:
            here[name] = make
    return here


def shapes(lab: Lab) -> Iterator[tuple[str, list[torch.Size]]]:
    from diffusers import UNet2DConditionModel

    from fdpo_fast.models import presets

    with torch.device("meta"):
        unet = UNet2DConditionModel(**presets.unet_config(lab.preset))
    yield "SDXL", [p.shape for p in unet.parameters()]
    yield "32 large", [torch.Size([1 << (12 if lab.rehearse else 25)])] * 32


def measure(lab: Lab, makers: dict[str, Maker], layouts: dict[str, list[torch.Size]]) -> None:
    """A line for each optimizer and layout."""
    sound = {}
    for name, make in makers.items():
        with reported(lab, what="optimizer", optimizer=name):
            check(name, make, torch.bfloat16, DEVICE)
            sound[name] = make
    for layout, sizes in layouts.items():
        parameters = [Parameter(torch.randn(size, device=DEVICE, dtype=torch.bfloat16) * 0.02) for size in sizes]
        for p in parameters:
            p.grad = torch.randn_like(p) * 1e-3
        for name, make in sound.items():
            with reported(lab, what="optimizer", optimizer=name, layout=layout):
                one(lab, name, make, layout, parameters)


def one(lab: Lab, name: str, make: Maker, layout: str, parameters: list[Parameter]) -> None:
    """Time of a step by the device's clock and until it returns, and what its states hold."""
    if CUDA:  # what the one before it took of the allocator is not this one's
        torch.cuda.empty_cache()
    forget_peaks()
    optimizer, start = make(parameters), time.perf_counter()
    optimizer.step()
    synchronize()
    first = time.perf_counter() - start
    took, host = seconds(optimizer.step, warm=2, rounds=7)
    elements, states = sum(p.numel() for p in parameters), state_bytes(optimizer)
    lab.line(
        what="optimizer", optimizer=name, layout=layout, tensors=len(parameters), elements=elements, ms=1e3 * took,
        host_ms=1e3 * host, gb_per_s=(3 * 2 + 2 * states) * elements / took / 1e9, state_bytes=states, first_s=first,
        **gpu_memory(),
    )  # fmt: skip
