"""The optimizer's step on the host, beside DeepSpeed's and bitsandbytes': `python -m benchmarks.optimizer`.

Each round steps every optimizer once, on the same gradient, beside a memory copy; medians over the rounds. Before
anything is timed, each must agree with a float64 AdamW after one step. Writes results/optimizer.csv and prints it as a
table; then trains bfloat16 weights by updates of 1e-4 of their step and draws results/rounding.png.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from fdpo_fast import AdamW8bit
from fdpo_fast.ops import host

RESULTS = Path(__file__).parent / "results"
OPTIONS = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
# Bytes that must be read and written for a parameter: weight twice, gradient, states twice.
STATE_BYTES = {"fdpo_fast": 2 + 8 / 256, "deepspeed": 8, "bitsandbytes": 2 + 8 / 256}


def _deepspeed(parameters: list[Parameter]) -> Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(parameters, adamw_mode=True, **OPTIONS)


def _bitsandbytes(parameters: list[Parameter]) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **OPTIONS)


MAKERS: dict[str, Callable[[list[Parameter]], Optimizer]] = {
    "deepspeed": _deepspeed,
    "bitsandbytes": _bitsandbytes,
    "fdpo_fast": lambda parameters: AdamW8bit(parameters, **OPTIONS),
}


def check(dtype: torch.dtype) -> None:
    """Every optimizer's first step is AdamW's, to the dtype's resolution."""
    torch.manual_seed(0)
    values, grad = torch.randn(10_000).to(dtype), torch.randn(10_000).to(dtype)
    want = Parameter(values.double())
    want.grad = grad.double()
    torch.optim.AdamW([want], **OPTIONS).step()
    for name, make in MAKERS.items():
        p = Parameter(values.clone())
        p.grad = grad.clone()
        make([p]).step()
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}[dtype]
        torch.testing.assert_close(p.double(), want.double(), rtol=tolerance, atol=1e-6, msg=f"{name} is not AdamW")


def measure(dtype: torch.dtype, elements: int, rounds: int) -> list[dict]:
    """Rows of the table."""
    torch.manual_seed(0)
    p = Parameter(torch.randn(elements).to(dtype))
    p.grad = torch.randn(elements).to(dtype)
    steps: dict[str, Callable[[], object]] = {}
    for name in ("deepspeed", "bitsandbytes"):
        steps[name] = MAKERS[name]([p]).step
    ours = MAKERS["fdpo_fast"]([p])
    for kernels in host.KERNELS:
        steps[f"fdpo_fast, {kernels}"] = lambda kernels=kernels: _with(kernels, ours.step)
    wide = p.element_size()
    moved = {name: wide * 3 + 2 * STATE_BYTES[name.split(",")[0]] for name in steps}
    smallest = min(moved.values())
    source, to = torch.ones(2, int(elements * smallest) // 8)
    steps["copy"] = lambda: to.copy_(source)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):  # the first one makes the states
        for name, step in steps.items():
            if turn > 7 and name in ("bitsandbytes", "fdpo_fast, portable"):
                continue  # slow
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - start)
    seconds = {name: median(values) for name, values in times.items()}
    return [
        {
            "weights": str(dtype).removeprefix("torch."),
            "optimizer": name,
            "million_per_s": round(elements / seconds[name] / 1e6),
            "vs_deepspeed": round(seconds["deepspeed"] / seconds[name], 2),
            "vs_bitsandbytes": round(seconds["bitsandbytes"] / seconds[name], 1),
            "state_bytes": round(STATE_BYTES[name.split(",")[0]], 2),
            "moved_bytes": round(moved[name], 2),
            "gb_per_s": round(moved[name] * elements / seconds[name] / 1e9, 1),
            "share_of_copy": round(seconds["copy"] * moved[name] / smallest / seconds[name], 2),
        }
        for name in moved
    ]


def _with(kernels: str, step: Callable[[], object]) -> None:
    active, host.active = host.active, host.KERNELS[kernels]
    try:
        step()
    finally:
        host.active = active


def draw_rounding(path: Path, elements: int = 65_536, steps: int = 2000) -> None:
    """Mean movement of weights 0.75 under a constant gradient, whose update is 1e-4 of the bfloat16 step there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    unit = 2.0**-8
    for name, dtype, rounding, style in (
        ("float32", torch.float32, "nearest", "-"),
        ("bfloat16, stochastic rounding", torch.bfloat16, "stochastic", "--"),
        ("bfloat16, rounding to nearest", torch.bfloat16, "nearest", ":"),
    ):
        p = Parameter(torch.full((elements,), 0.75).to(dtype))
        p.grad = torch.full_like(p, -1.0)
        optimizer = AdamW8bit([p], lr=1e-4 * unit, weight_decay=0.0, rounding=rounding)
        moved = []
        for _ in range(steps):
            optimizer.step()
            moved.append((p.detach().double().mean().item() - 0.75) / unit)
        axes.plot(moved, style, label=name)
    axes.set(xlabel="step", ylabel="mean movement, in bfloat16 steps", title="Updates of 1e-4 of a bfloat16 step")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        check(dtype)
        rows += measure(dtype, options.elements, options.rounds)
    print("|", " | ".join(rows[0]), "|\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("|", " | ".join(map(str, row.values())), "|")
    partial = options.results / "optimizer.csv.tmp"
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(options.results / "optimizer.csv")
    draw_rounding(options.results / "rounding.png")


if __name__ == "__main__":
    main()
