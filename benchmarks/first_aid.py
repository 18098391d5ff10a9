"""Whether `sft_weight`, `margin` and `clip_log_ratio` help on the digits: `python -m benchmarks.first_aid`.

Trains configs/digits_js.json with one key of the loss changed at a time, the first values by all seeds before any
others, and draws with every policy what `fdpo demo` draws. Writes results/first_aid.csv, the figures of
`benchmarks.common.digits`. Rows that are there already are kept; no run begins after `--minutes`. Prints, for each
setting, by how much it differs from the plain loss of the same divergence, strength and seed: mean and standard error
over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from benchmarks.common.digits import FIGURES, Bench, Name, differences, filled

RESULTS = Path(__file__).parent / "results/first_aid.csv"
STARTS = ("jensen_shannon", 200.0), ("reverse_kl", 200.0)
"""Where a weight and a margin are tried: the strengths of the configuration."""
FAR = ("jensen_shannon", 1000.0), ("forward_kl", 1000.0)
"""Where log-ratios are clipped: they go five times as far."""
AIDS = {"sft_weight": (50.0, 10.0, 200.0), "margin": (1.0, 0.5, 2.0)}
CLIPS = {"clip_log_ratio": (1.0, 0.5, 3.0)}
"""Values, the most telling one first."""
COLUMNS = ("divergence", "ratio_scale", "key", "value", "seed", *FIGURES)


def settings(first: bool) -> Iterator[Name]:
    """The changes of the loss: the plain one and the first value of each key, or the other values."""
    for starts, aids in ((STARTS, AIDS), (FAR, CLIPS)):
        for divergence, ratio_scale in starts:
            of = divergence, f"{ratio_scale:g}"
            if first:
                yield *of, "", ""
            for key, values in aids.items():
                yield from ((*of, key, f"{value:g}") for value in (values[:1] if first else values[1:]))


def run(bench: Bench, name: Name, folder: Path) -> list[float]:
    """Train with the loss that a row names."""
    divergence, ratio_scale, key, value, seed = name
    change = {"divergence": divergence, "ratio_scale": float(ratio_scale)} | ({key: float(value)} if key else {})
    figures, _ = bench.run({"loss": change}, int(seed), folder)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no run begins")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of training")
    arguments = parser.parse_args()
    rounds = product((True, False), range(arguments.seeds))
    wanted = ((*of, str(seed)) for first, seed in rounds for of in settings(first))
    rows = filled(RESULTS, COLUMNS, wanted, run, arguments.minutes)
    print("\n".join(differences(rows, COLUMNS, lambda of: (*of[:2], "", ""))))


if __name__ == "__main__":
    main()
