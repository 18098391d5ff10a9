"""What micro-batches accumulated in the moments cost on the digits: `python -m benchmarks.accumulation`.

A step inside backward keeps no gradients, so it could accumulate micro-batches in the moments only: m takes the mean of
their gradients as ever, v the sum of squares of each one's part of it, sum_k (g_k / K)^2, in place of the square of the
mean (arXiv 2305.19982). Here the trainer accumulates as it does, and an AdamW with that v stands for torch's;
configs/digits_js.json runs with its 32 pairs a step as micro-batches of 8. Clipping scales both moments alike.

Writes results/accumulation.csv, the figures of `benchmarks.common.digits` and the mean loss of the last 30 steps; rows
that are there already are kept; no run begins after `--minutes`. Prints by how much v of squares differs from AdamW of
the same seed: mean and standard error over the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.common.digits import FIGURES, LAST, Bench, Name, differences, filled
from fdpo_fast.optim import build
from fdpo_fast.training.records import read_records

RESULTS = Path(__file__).parent / "results/accumulation.csv"
PLAIN, SQUARES = "square of the mean", "sum of squares"
COLUMNS = ("second_moment", "seed", *FIGURES, "loss")


class SumOfSquares(Optimizer):
    """AdamW whose second moment takes the squares of micro-batches one by one."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, options)
        self.sums: dict[Tensor, Tensor] = {}
        self.squares: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            for p in group["params"]:
                p.register_post_accumulate_grad_hook(self.note)

    @torch.no_grad()
    def note(self, p: Tensor) -> None:
        """Add the square of what a micro-batch has added to the gradient."""
        own = p.grad - self.sums.get(p, 0.0)
        self.sums[p] = p.grad.clone()
        self.squares[p] = self.squares.get(p, 0.0) + own * own

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Step by gradients that were clipped since."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                clipped = p.grad.norm() / self.sums.pop(p).norm().clamp_min(torch.finfo(p.dtype).tiny)
                squares = self.squares.pop(p) * clipped.square()
                state = self.state[p] or {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                self.state[p] = state
                state["step"] += 1
                m = state["m"].lerp_(p.grad, 1 - beta1) / (1 - beta1 ** state["step"])
                v = state["v"].lerp_(squares, 1 - beta2) / (1 - beta2 ** state["step"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * m / (v.sqrt() + group["eps"]))


def run(bench: Bench, name: Name, folder: Path) -> list[float]:
    """Train with the second moment that a row names."""
    kind, seed = name
    with patch.dict(build.OPTIMIZERS, {"adamw": SumOfSquares} if kind == SQUARES else {}):
        figures, _ = bench.run({"train": {"pairs_per_micro_batch": 8}}, int(seed), folder)
    return [*figures, mean(record["loss"] for record in read_records(folder)[-LAST:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no run begins")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of training")
    arguments = parser.parse_args()
    wanted = ((kind, str(seed)) for seed in range(arguments.seeds) for kind in (PLAIN, SQUARES))
    rows = filled(RESULTS, COLUMNS, wanted, run, arguments.minutes)
    print("\n".join(differences(rows, COLUMNS, lambda of: (PLAIN,))))


if __name__ == "__main__":
    main()
