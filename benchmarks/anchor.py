"""Whether decay toward the reference's weights helps on the digits: `python -m benchmarks.anchor`.

AdamW's decay pulls weights toward zero. An anchored one pulls them toward where they began, the reference,

    w <- w - lr wd (w - w_ref),

and then steps as AdamW does. It stands for torch's in the trainer here, and is no part of the library. Of a rate of
1e-5 and 150 steps a decay of 667 makes a time constant as long as the run: that is the scale of what can be felt. The
figures are those of `benchmarks.common.digits`, and `distance`, of the weights from the reference's as a share of the
norm of these, and `moved`, the RMSE between images of the base and the policy from the same start latents.

An anchor holds a policy back, as fewer steps or a larger strength do. So the second table takes, of the same seed, the
plain run stopped where it has moved the images as far (between stops, linearly): what is left is what the anchor is
worth. Writes results/anchor.csv; rows that are there already are kept; no run begins after `--minutes`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.optim import AdamW

from benchmarks.common.digits import FIGURES, Bench, Name, Rows, differences, filled, spread
from fdpo_fast.evaluate.tables import table
from fdpo_fast.optim import build

RESULTS = Path(__file__).parent / "results/anchor.csv"
STEPS = 150
STOPS = 50, 100, 150
STRENGTHS = "200", "1000", "50"
"""The demo's own, one that holds the policy closer, and one under which the preferred images are forgotten."""
ANCHORS = "67", "667", "2000"
"""lr wd, summed over 150 steps, is 0.1, 1 and 3."""
COLUMNS = ("ratio_scale", "toward", "weight_decay", "steps", "seed", *FIGURES, "distance", "moved")
COMPARED = "delta_w", "delta_l", "accuracy", "judge", "win_rate", "diversity", "distance"


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
    for steps in STOPS[:-1]:
        yield strength, "", "0", str(steps)


TOWARD_ZERO = [(STRENGTHS[0], "zero", weight_decay, str(STEPS)) for weight_decay in ("0.1", "0.01")]


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


def stopped(rows: Rows, strength: str, seed: str, moved: float) -> dict[str, float]:
    """Return the figures of the plain run at the step at which it had moved the images so far."""
    runs = [rows[strength, "", "0", str(steps), seed] for steps in STOPS]
    figures = dict(zip(COLUMNS[5:], np.array(runs).T, strict=True))
    return {name: float(np.interp(moved, figures["moved"], figures[name])) for name in COMPARED}


def beyond(rows: Rows) -> list[str]:
    """Return a table of what anchored runs have over plain ones that were stopped where they had moved as far."""
    lines = []
    for strength in STRENGTHS:
        for weight_decay in ANCHORS:
            found: dict[str, list[float]] = {name: [] for name in COMPARED}
            for name, row in rows.items():
                seed = name[-1]
                if name[:3] != (strength, "reference", weight_decay) or (strength, "", "0", "50", seed) not in rows:
                    continue
                own = dict(zip(COLUMNS[5:], row, strict=True))
                for figure, value in stopped(rows, strength, seed, own["moved"]).items():
                    found[figure].append(own[figure] - value)
            if found["judge"]:
                cells = [spread(values, "+") for values in found.values()]
                lines.append((strength, weight_decay, str(len(found["judge"])), *cells))
    return list(table(("ratio_scale", "weight_decay", "seeds", *COMPARED), lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no run begins")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of training")
    parser.add_argument("--strengths", nargs="+", default=STRENGTHS, help="values of loss.ratio_scale")
    arguments = parser.parse_args()
    anchored = [of for strength in arguments.strengths for of in settings(strength)]
    zero = [of for of in TOWARD_ZERO if of[0] in arguments.strengths]
    wanted = ((*of, str(seed)) for kind in (anchored, zero) for seed in range(arguments.seeds) for of in kind)
    rows = filled(RESULTS, COLUMNS, wanted, run, arguments.minutes)
    print("\n".join(differences(rows, COLUMNS, lambda of: (of[0], "", "0", str(STEPS)))), end="\n\n")
    print("\n".join(beyond(rows)))


if __name__ == "__main__":
    main()
