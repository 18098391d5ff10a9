"""Runs of the digits that differ from a plain one in a few keys, as rows of a CSV."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable
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

ROOT = Path(__file__).parent.parent.parent
FIGURES = ("delta_w", "delta_l", "accuracy", "judge", "win_rate", "diversity")
"""Errors less the reference's and implicit accuracy are means of the last 30 steps; the judge's accuracy, the win rate
under the rule that made the pairs, and the diversity are those of the demo."""
LAST = 30
"""Steps whose records are averaged."""
IMAGES = 32
"""Of each caption."""

Name = tuple[str, ...]
"""The first columns of a row; the last of them is the seed."""
Rows = dict[Name, list[float]]


def plain() -> dict[str, Any]:
    """configs/digits_js.json under the loss as it is published, which these runs change one thing of."""
    raw = json.loads((ROOT / "configs/digits_js.json").read_text())
    raw["loss"] |= {"beta": 1.0, "winner_preserving": None}
    return raw


class Bench:
    """The digits, and what the base draws of them."""

    def __init__(self) -> None:
        self.raw = plain()
        self.raw["log"] |= {"samples_every": 0, "tensorboard": False}
        config = Config.model_validate(self.raw)
        self.recipe, base = config.data.digits, config.model.base
        self.family = family_of(base, embedded(base, self.recipe, config.data.cache_dir))
        self.labels = torch.arange(len(CAPTIONS), dtype=torch.int64, device="cpu").repeat_interleave(IMAGES)
        self.before = self.drawn(None)

    def drawn(self, export: Path | None) -> Tensor:
        """Images of the ten captions, by the base or a policy, from the same start latents."""
        return sample(Sampler(self.family, self.recipe, export), self.labels, "drawing")

    def run(self, changes: dict[str, dict[str, Any]], seed: int, folder: Path) -> tuple[list[float], Tensor]:
        """Train with some keys of sections changed, draw and measure: FIGURES, and the images."""
        raw = self.raw | {section: self.raw[section] | keys for section, keys in changes.items()}
        raw["train"] = raw["train"] | {"output_dir": str(folder), "seed": seed, "checkpoint_every": 1000}
        trainer.start(Config.model_validate(raw), resume=False, dry_run=False)
        records = read_records(folder)[-LAST:]
        after = self.drawn(folder / "export")
        found = measure(after, self.labels)
        won = wins(self.before, after, self.labels, self.recipe).value
        learnt = [mean(record[name] for record in records) for name in FIGURES[:3]]
        return [*learnt, found["accuracy_judge"], won, found["diversity"]], after

    def distance(self, export: Path) -> float:
        """Return how far the weights of a policy are from the base's, as a share of the norm of those."""
        base, policy = (
            torch.cat([p.detach().double().flatten() for p in self.family.denoiser(torch.float32, of).parameters()])
            for of in (None, export)
        )
        return ((policy - base).norm() / base.norm()).item()


def filled(
    results: Path,
    columns: Name,
    wanted: Iterable[Name],
    run: Callable[[Bench, Name, Path], list[float]],
    minutes: float,
) -> Rows:
    """Return the rows of a CSV, once those that are wanted and not there have been run and written.

    run: (the digits, a row's name, an empty folder) -> its figures.
    minutes: after which no run begins.
    """
    began, rows = time.monotonic(), Rows()
    if results.exists():
        names = columns.index(FIGURES[0])
        with results.open(newline="") as file:
            rows = {tuple(row[:names]): [float(cell) for cell in row[names:]] for row in list(csv.reader(file))[1:]}
    bench = None
    with TemporaryDirectory() as scratch:
        for name in wanted:
            if name in rows or time.monotonic() - began > 60 * minutes:
                continue
            bench = bench or Bench()
            start = time.monotonic()
            rows[name] = run(bench, name, Path(scratch) / "-".join(filter(None, name)))
            print(*name, *(f"{value:.4g}" for value in rows[name]), f"{time.monotonic() - start:.0f} s", flush=True)
            write_csv(results, columns, [(*key, *(f"{x:.6g}" for x in row)) for key, row in rows.items()])
    return rows


def spread(values: list[float], sign: str = "") -> str:
    """Write the mean of values with its standard error."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.1g}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.3g}{error}"


def differences(rows: Rows, columns: Name, plain_of: Callable[[Name], Name]) -> list[str]:
    """Return a table of settings: their differences from a plain one of the same seed, and the plain ones themselves.

    plain_of: (a row's name without the seed) -> that of the row it is compared with, itself for a plain one.
    """
    names = columns.index(FIGURES[0]) - 1
    lines = []
    for of in sorted({name[:-1] for name in rows}, key=lambda of: (plain_of(of), of != plain_of(of), of)):
        plain = plain_of(of)
        seeds = [name[-1] for name in rows if name[:-1] == of and (*plain, name[-1]) in rows]
        if not seeds:
            continue
        cells = []
        for i in range(len(columns) - names - 1):
            own, theirs = ([rows[(*setting, seed)][i] for seed in seeds] for setting in (of, plain))
            less = [a - b for a, b in zip(own, theirs, strict=True)]
            cells.append(spread(own) if of == plain else spread(less, "+"))
        lines.append((*of, str(len(seeds)), *cells))
    return list(table((*columns[:names], "seeds", *columns[names + 1 :]), lines))
