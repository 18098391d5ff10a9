"""The optimizer's step beside those of other libraries, on one large tensor: `python -m benchmarks.optimizer`.

On the GPU where there is one, beside torch's fused AdamW and bitsandbytes; with `--host`, and where there is none, on
the host, beside DeepSpeed's and bitsandbytes'. Each round steps every optimizer once, on the same gradient, beside a
memory copy; medians over the rounds, the device idle at both ends of a step. Before anything is timed, each must agree
with a float64 AdamW after one step. Prints a table that names the device and writes it to results/optimizer.csv, or
results/gpu/optimizer.csv. What rounding leaves of small updates: `benchmarks.rounding`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.common.device import DEVICE, machine, synchronize
from benchmarks.common.tables import write_csv
from fdpo_fast import AdamW8bit
from fdpo_fast.evaluate.tables import table
from fdpo_fast.ops import cpp

RESULTS = Path(__file__).parent / "results"
OPTIONS = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}
"""Relative, of a first step against AdamW in float64."""

Maker = Callable[[list[Parameter]], Optimizer]


def _deepspeed(parameters: list[Parameter]) -> Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(parameters, adamw_mode=True, **OPTIONS)


def bitsandbytes(parameters: list[Parameter]) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **OPTIONS)


def _fused(parameters: list[Parameter]) -> Optimizer:
    return torch.optim.AdamW(parameters, **OPTIONS, fused=True)


MAKERS: dict[str, dict[str, Maker]] = {
    "cpu": {"deepspeed": _deepspeed, "bitsandbytes": bitsandbytes},
    "cuda": {"torch fused": _fused, "bitsandbytes": bitsandbytes},
}
"""Others' by the device that is measured."""
OURS: dict[torch.dtype, dict[str, Maker]] = {
    torch.float32: {"fdpo_fast": partial(AdamW8bit, **OPTIONS)},
    torch.bfloat16: {
        "fdpo_fast": partial(AdamW8bit, **OPTIONS),
        "fdpo_fast, 24 bits": partial(AdamW8bit, **OPTIONS, weights="bf16+8"),
    },
}
"""By the dtype of the weights."""


def makers(dtype: torch.dtype, device: torch.device) -> dict[str, Maker]:
    return MAKERS[device.type] | OURS[dtype]


def check(name: str, make: Maker, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError where an optimizer's first step is not AdamW's in float64, to the dtype's resolution."""
    torch.manual_seed(0)
    values, grad = (torch.randn(10_000).to(device, dtype) for _ in range(2))
    want = Parameter(values.double())
    want.grad = grad.double()
    torch.optim.AdamW([want], **OPTIONS).step()
    p = Parameter(values.clone())
    p.grad = grad.clone()
    make([p]).step()
    apart = (p.detach().double() - want.detach()).abs()
    if not (apart <= 1e-6 + TOLERANCE[dtype] * want.detach().abs()).all():
        raise ValueError(f"{name} is not AdamW in {dtype}: its first step differs by as much as {apart.max():.1e}")


def state_bytes(optimizer: Optimizer) -> float:
    """Of an optimizer's states, an element of what it steps; tables that all parameters share do not count."""
    elements = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    own = (value for state in optimizer.state.values() for name, value in state.items() if "qmap" not in name)
    return sum(x.nbytes for value in own for x in _tensors(value)) / elements


def _tensors(value: object) -> Iterable[Tensor]:
    """The plain tensors that a state is made of, wrapped ones too."""
    if not isinstance(value, Tensor):
        return
    if hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _tensors(getattr(value, name))
    else:
        yield value


def steps_of(p: Parameter, device: torch.device) -> Iterator[tuple[str, Callable[[], object], float]]:
    """(name, step, bytes that it must move an element) of each optimizer, after its first step."""
    for name, make in makers(p.dtype, device).items():
        optimizer = make([p])
        optimizer.step()
        moved = 3 * p.element_size() + 2 * state_bytes(optimizer)  # weight twice, gradient, states twice
        if not name.startswith("fdpo_fast") or device.type != "cpu":
            yield name, optimizer.step, moved
            continue
        for kernels in cpp.KERNELS:
            yield f"{name}, {kernels}", lambda kernels=kernels, step=optimizer.step: _with(kernels, step), moved


def measure(dtype: torch.dtype, elements: int, rounds: int, device: torch.device) -> list[dict]:
    """Rows of the table."""
    torch.manual_seed(0)
    p = Parameter(torch.randn(elements, device=device).to(dtype))
    p.grad = torch.randn(elements, device=device).to(dtype)
    step_sizes = list(steps_of(p, device))
    steps, moved = {name: step for name, step, _ in step_sizes}, {name: size for name, _, size in step_sizes}
    smallest = min(moved.values())
    source, to = torch.ones(2, int(elements * smallest) // 8, device=device)
    steps["copy"] = lambda: to.copy_(source)
    times: dict[str, list[float]] = {name: [] for name in steps}
    slow = (
        [name for name in steps if name == "bitsandbytes" or name.endswith("portable")] if device.type == "cpu" else ()
    )
    for turn in range(rounds + 1):  # the first one warms up
        for name, step in steps.items():
            if turn > 7 and name in slow:
                continue
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    seconds = {name: median(values) for name, values in times.items()}
    rivals = list(MAKERS[device.type])
    return [
        {
            "weights": str(dtype).removeprefix("torch."),
            "optimizer": name,
            "million_per_s": round(elements / seconds[name] / 1e6),
            **{f"vs_{rival.replace(' ', '_')}": round(seconds[rival] / seconds[name], 2) for rival in rivals},
            "state_bytes": round((moved[name] - 3 * p.element_size()) / 2, 2),
            "moved_bytes": round(moved[name], 2),
            "gb_per_s": round(moved[name] * elements / seconds[name] / 1e9, 1),
            "share_of_copy": round(seconds["copy"] * moved[name] / smallest / seconds[name], 2),
            "machine": machine(device),
        }
        for name in moved
    ]


def _with(kernels: str, step: Callable[[], object]) -> None:
    active, cpp.active = cpp.active, cpp.KERNELS[kernels]
    try:
        step()
    finally:
        cpp.active = active


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--host", action="store_true", help="measure the host although there is a GPU")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu") if options.host else DEVICE
    rows = []
    for dtype in TOLERANCE:
        for name, make in makers(dtype, device).items():
            check(name, make, dtype, device)
        rows += measure(dtype, options.elements, options.rounds, device)
    columns, cells = list(rows[0]), [list(row.values()) for row in rows]
    print("\n".join(table(columns, cells)))
    folder = options.results / "gpu" if device.type == "cuda" else options.results
    write_csv(folder / "optimizer.csv", columns, cells)


if __name__ == "__main__":
    main()
