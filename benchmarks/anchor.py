"""Whether decay toward the reference's weights helps on the digits: `python -m benchmarks.anchor`.

AdamW's decay pulls weights toward zero. An anchored one pulls them toward where they began, the reference,

    w <- w - lr wd (w - w_ref),

and then steps as AdamW does. It stands for torch's in the trainer here, and is no part of the library. Of a rate of
1e-5 and 150 steps a decay of 667 makes a time constant as long as the run: that is the scale of what can be felt. The
figures are those of `benchmarks.common.digits`, and `distance`, of the weights from the reference's as a share of the
norm of these, and `moved`, the RMSE between images of the base and the policy from the same start latents.

An anchor holds a policy back, as fewer steps or a larger strength of the loss do. So after the differences from the
plain run of the same strength and seed come those from runs that were stopped early, and from the plain run of the
larger strength. Writes results/anchor.csv; rows that are there already are kept; no run begins after `--minutes`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.optim import AdamW

from benchmarks.common.digits import FIGURES, Bench, Name, Rows, differences, filled
from fdpo_fast.optim import build

RESULTS = Path(__file__).parent / "results/anchor.csv"
STEPS = 150
STOPS = "50", "100"
STRENGTHS = "200", "1000"
"""Values of loss.ratio_scale: the demo's own, and one that holds the policy closer."""
ANCHORS = "67", "667", "2000"
"""lr wd, summed over 150 steps of which ten warm up, is 0.1, 1 and 3."""
COLUMNS = ("ratio_scale", "toward", "weight_decay", "steps", "seed", *FIGURES, "distance", "moved")


class Anchored(AdamW):
    """AdamW that decays toward the weights it was made with."""

    def __init__(self, parameters: Any, weight_decay: float, **options: Any) -> None:
        super().__init__(parameters, weight_decay=0.0, **options)
        self.weight_decay = weight_decay
        self.anchors = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    def step(self, closure: Any = None) -> Any:
        """Pull the weights back, then step."""
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.lerp_(self.anchors[p], group["lr"] * self.weight_decay)
        return super().step(closure)


def settings(strength: str) -> Iterator[Name]:
    """The rows of a strength but for their seeds: plain, anchored, stopped early."""
    yield strength, "", "0", str(STEPS)
    for weight_decay in ANCHORS:
        yield strength, "reference", weight_decay, str(STEPS)
    for steps in STOPS:
        yield strength, "", "0", steps


TOWARD_ZERO = [(STRENGTHS[0], "zero", weight_decay, str(STEPS)) for weight_decay in ("0.1", "0.01")]
"""Of one seed: over the run they take 0.015 and 0.0015 % off the weights, against a movement of 0.2 %."""


def rivals(strength: str) -> list[Name]:
    """The other ways of holding a policy back: stopping it early, and a larger strength of the loss."""
    larger = [other for other in STRENGTHS if float(other) > float(strength)]
    return [(strength, "", "0", steps) for steps in STOPS] + [(other, "", "0", str(STEPS)) for other in larger]


def run(bench: Bench, name: Name, folder: Path) -> list[float]:
    """Train with the decay that a row names."""
    strength, toward, weight_decay, steps, seed = name
    changes = {
        "loss": {"ratio_scale": float(strength)},
        "optimizer": {"weight_decay": float(weight_decay)},
        "train": {"max_steps": int(steps)},
    }
    with patch.dict(build.OPTIMIZERS, {"adamw": Anchored} if toward == "reference" else {}):
        figures, after = bench.run(changes, int(seed), folder)
    moved = (after - bench.before).square().mean().sqrt().item()
    return [*figures, bench.distance(folder / "export"), moved]


def beside(rows: Rows, strength: str, rival: Name) -> list[str]:
    """Return a table of what the anchored runs of a strength have over another run of the same seed."""
    anchored = {name: row for name, row in rows.items() if name[:2] == (strength, "reference") or name[:-1] == rival}
    return differences(anchored, COLUMNS, lambda of: rival)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no run begins")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of training")
    parser.add_argument("--strengths", nargs="+", default=STRENGTHS, help="values of loss.ratio_scale")
    arguments = parser.parse_args()
    anchored = [of for strength in arguments.strengths for of in settings(strength)]
    wanted = [(*of, str(seed)) for seed in range(arguments.seeds) for of in anchored]
    wanted += [(*of, "0") for of in TOWARD_ZERO if of[0] in arguments.strengths]
    rows = filled(RESULTS, COLUMNS, wanted, run, arguments.minutes)
    print("\n".join(differences(rows, COLUMNS, lambda of: (of[0], "", "0", str(STEPS)))), end="\n\n")
    for strength in STRENGTHS:
        for rival in rivals(strength):
            print("\n".join(beside(rows, strength, rival)), end="\n\n")


if __name__ == "__main__":
    main()
