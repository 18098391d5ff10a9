"""Whether `sft_weight`, `margin` and `clip_log_ratio` help on the digits: `python -m benchmarks.first_aid`.

Trains configs/digits_js.json with one key of the loss changed at a time, the first values by all seeds before any
others, and draws with every policy what `fdpo demo` draws. Writes results/first_aid.csv: errors less the reference's
and implicit accuracy are means of the last 30 steps; the judge's accuracy, the win rate under the rule that made the
pairs, and the diversity are those of the demo. Rows that are there already are kept; no run begins after `--minutes`.
Prints, for each setting, by how much it differs from the plain loss of the same divergence, strength and seed: mean and
standard error over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.tables import write_csv
from fdpo_fast import train as trainer
from fdpo_fast.config.run import Config
from fdpo_fast.digits.dataset import CAPTIONS, Sampler, embedded, family_of
from fdpo_fast.digits.demo import measure, sample, wins
from fdpo_fast.evaluate.tables import table
from fdpo_fast.training.records import read_records

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/first_aid.csv"
STARTS = ("jensen_shannon", 200.0), ("reverse_kl", 200.0)
"""Where a weight and a margin are tried: the strengths of the configuration."""
FAR = ("jensen_shannon", 1000.0), ("forward_kl", 1000.0)
"""Where log-ratios are clipped: they go five times as far."""
AIDS = {"sft_weight": (50.0, 10.0, 200.0), "margin": (1.0, 0.5, 2.0)}
CLIPS = {"clip_log_ratio": (1.0, 0.5, 3.0)}
"""Values, the most telling one first."""
FIGURES = ("delta_w", "delta_l", "accuracy", "judge", "win_rate", "diversity")
COLUMNS = ("divergence", "ratio_scale", "key", "value", "seed", *FIGURES)
LAST = 30
"""Steps whose records are averaged."""
IMAGES = 32
"""Of each caption."""


def settings(first: bool, others: bool) -> Iterator[dict[str, Any]]:
    """The changes of the loss: the plain one and the first value of each key, the other values, or both."""
    for starts, aids in ((STARTS, AIDS), (FAR, CLIPS)):
        for divergence, ratio_scale in starts:
            of = {"divergence": divergence, "ratio_scale": ratio_scale}
            if first:
                yield of
            for key, values in aids.items():
                yield from (of | {key: value} for value in values[0 if first else 1 : None if others else 1])


def named(change: dict[str, Any], seed: int) -> tuple[str, ...]:
    """The first columns of a row."""
    key, value = next((item for item in change.items() if item[0] in AIDS | CLIPS), ("", ""))
    return change["divergence"], f"{change['ratio_scale']:g}", key, f"{value:g}" if key else "", str(seed)


class Bench:
    """The digits, and what the base draws of them."""

    def __init__(self) -> None:
        self.raw = json.loads((ROOT / "configs/digits_js.json").read_text())
        self.raw["log"] |= {"samples_every": 0, "tensorboard": False}
        config = Config.model_validate(self.raw)
        self.recipe, base = config.data.digits, config.model.base
        self.family = family_of(base, embedded(base, self.recipe, config.data.cache_dir))
        self.labels = torch.arange(len(CAPTIONS), dtype=torch.int64, device="cpu").repeat_interleave(IMAGES)
        self.before = self.drawn(None)

    def drawn(self, export: Path | None) -> Tensor:
        """Images of the ten captions, by the base or a policy, from the same start latents."""
        return sample(Sampler(self.family, self.recipe, export), self.labels, "drawing")

    def run(self, change: dict[str, Any], seed: int, folder: Path) -> list[float]:
        """Train, draw and measure: the figures of a row."""
        raw = self.raw | {"loss": self.raw["loss"] | change}
        raw["train"] = raw["train"] | {"output_dir": str(folder), "seed": seed, "checkpoint_every": 1000}
        trainer.start(Config.model_validate(raw), resume=False, dry_run=False)
        records = read_records(folder)[-LAST:]
        after = self.drawn(folder / "export")
        found = measure(after, self.labels)
        won = wins(self.before, after, self.labels, self.recipe).value
        learnt = [mean(record[name] for record in records) for name in FIGURES[:3]]
        return [*learnt, found["accuracy_judge"], won, found["diversity"]]


def told(rows: dict[tuple[str, ...], list[float]]) -> list[str]:
    """The table of differences from the plain loss."""
    lines = []
    for change in settings(first=True, others=True):
        *of, key, value, _ = named(change, 0)
        seeds = [row[-1] for row in rows if row[:-1] == (*of, key, value)]
        plain = [rows.get((*of, "", "", seed)) for seed in seeds]
        if not seeds or None in plain:
            continue
        own = [rows[(*of, key, value, seed)] for seed in seeds]
        cells = []
        for i in range(len(FIGURES)):
            values = [a[i] - (b[i] if key else 0.0) for a, b in zip(own, plain, strict=True)]
            spread = f" ± {stdev(values) / len(values) ** 0.5:.1g}" if len(values) > 1 else ""
            cells.append(f"{mean(values):{'+' if key else ''}.3g}{spread}")
        lines.append((*of, f"{key} {value}".strip() or "plain", str(len(seeds)), *cells))
    return table(("divergence", "ratio_scale", "setting", "seeds", *FIGURES), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no run begins")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of training")
    arguments = parser.parse_args()
    began, rows = time.monotonic(), {}
    if RESULTS.exists():
        with RESULTS.open() as file:
            rows = {tuple(row[:5]): [float(cell) for cell in row[5:]] for row in list(csv.reader(file))[1:]}
    bench = None
    with TemporaryDirectory() as scratch:
        for first, seed in product((True, False), range(arguments.seeds)):
            for change in settings(first, not first):
                name = named(change, seed)
                if name in rows or time.monotonic() - began > 60 * arguments.minutes:
                    continue
                bench = bench or Bench()
                start = time.monotonic()
                rows[name] = bench.run(change, seed, Path(scratch) / "-".join(filter(None, name)))
                print(*name, *(f"{value:.4g}" for value in rows[name]), f"{time.monotonic() - start:.0f} s", flush=True)
                write_csv(RESULTS, COLUMNS, [(*key, *(f"{x:.6g}" for x in row)) for key, row in rows.items()])
    print("\n".join(told(rows)))


if __name__ == "__main__":
    main()
