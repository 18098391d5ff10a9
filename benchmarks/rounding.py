"""What rounding does to weights that move by less than their step: `python -m benchmarks.rounding`.

Draws results/rounding.png, the mean movement of weights whose updates are 1e-4 of the bfloat16 step, and writes
results/rounding.csv: weights that start between 0.5 and 1 take 2000 updates of one size by AdamW8bit without moments,
whose updates then are the rate exactly. `variance` and `mean` are of the error against the sum of the updates in
float64, in bfloat16 steps of 2^-8, where signs are random; `followed` is the share of the mean movement that is there
in the end where three of four updates go one way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks.common.tables import write_csv
from fdpo_fast import AdamW8bit
from fdpo_fast.evaluate.tables import table
from fdpo_fast.optim.low_byte import joined

RESULTS = Path(__file__).parent / "results"
UNIT = 2.0**-8
"""The step of bfloat16 below 1."""
WIDE = {"weights": "bf16+8"}
KINDS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "bfloat16, nearest": (torch.bfloat16, {"rounding": "nearest"}),
    "bfloat16, stochastic": (torch.bfloat16, {}),
    "24 bits, nearest": (torch.bfloat16, {"rounding": "nearest", **WIDE}),
    "24 bits, stochastic": (torch.bfloat16, WIDE),
    "float32": (torch.float32, {}),
}
SIZES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""Of updates, in bfloat16 steps."""


def values(p: Parameter, optimizer: AdamW8bit) -> Tensor:
    """The values of a parameter in float64, with its low byte if it has one."""
    low = optimizer.state[p].get("low")
    return (p.detach() if low is None else joined(p.detach(), low)).double()


def draw(path: Path, elements: int = 65_536, steps: int = 2000) -> None:
    """Mean movement of weights 0.75 under a constant gradient, whose update is 1e-4 of the bfloat16 step there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    styles = {
        "float32": "-",
        "24 bits, stochastic": "-.",
        "bfloat16, stochastic": "--",
        "bfloat16, nearest": ":",
    }
    for name, style in styles.items():
        dtype, options = KINDS[name]
        p = Parameter(torch.full((elements,), 0.75).to(dtype))
        p.grad = torch.full_like(p, -1.0)
        optimizer = AdamW8bit([p], lr=1e-4 * UNIT, weight_decay=0.0, **options)
        moved = []
        for _ in range(steps):
            optimizer.step()
            moved.append((values(p, optimizer).mean().item() - 0.75) / UNIT)
        axes.plot(moved, style, label=name)
    axes.set(xlabel="step", ylabel="mean movement, in bfloat16 steps", title="Updates of 1e-4 of a bfloat16 step")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def walk(kind: str, size: float, up: float, elements: int, steps: int) -> tuple[Tensor, Tensor]:
    """How far weights have moved, and by how much they should have, in bfloat16 steps; `up` is the share of updates."""
    dtype, options = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    start = (0.5 + torch.rand(elements, generator=generator, dtype=torch.float32) / 2).bfloat16()
    p = Parameter(start.to(dtype, copy=True))
    optimizer = AdamW8bit([p], lr=size * UNIT, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, **options)
    total = torch.zeros(elements, dtype=torch.float64)
    for _ in range(steps):
        sign = torch.where(torch.rand(elements, generator=generator, dtype=torch.float32) < up, 1.0, -1.0)
        p.grad = -sign.to(dtype)
        optimizer.step()
        total += sign
    rate = torch.tensor(size * UNIT, dtype=torch.float32).double()
    return (values(p, optimizer) - start.double()) / UNIT, rate * total / UNIT


def row(kind: str, size: float, elements: int, steps: int) -> dict[str, Any]:
    """A row of the table."""
    moved, meant = walk(kind, size, 0.5, elements, steps)
    drifted, drift = walk(kind, size, 0.75, elements, steps)
    error = moved - meant
    return {
        "update": size,
        "weights": kind,
        "steps": steps,
        "variance": f"{error.var().item():.2g}",
        "mean": f"{error.mean().item():.1g}",
        "of_the_updates": f"{meant.var().item():.2g}",
        "followed": f"{(drifted.mean() / drift.mean()).item():.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = [row(kind, size, options.elements, options.steps) for size in SIZES for kind in KINDS]
    columns, cells = list(rows[0]), [list(row.values()) for row in rows]
    print("\n".join(table(columns, cells)))
    write_csv(options.results / "rounding.csv", columns, cells)
    draw(options.results / "rounding.png", steps=options.steps)


if __name__ == "__main__":
    main()
