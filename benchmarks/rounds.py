"""One offline run against rounds of the policy's own pairs, on the digits: `python -m benchmarks.rounds --jobs 2`.

Every arm takes 150 steps of 32 pairs, and draws about as many pairs, within 4 % before ties: all of 22 images a caption
by the base (231 pairs), of 16 in each of two rounds (240), of 13 in each of three (234). The loss and its strength are
those of configs/digits_rounds.json. Rounds go farther from the base than one run does, so two offline runs that go
farther stand beside them: one of twice the steps, one with a third of `loss.ratio_scale`. A seed is that of the
training and of all drawing, so the arms of a seed share the images of their base. Each arm is a folder of `fdpo rounds`
in `--folder`, which goes on where it was stopped. Figures by round are written to results/rounds.csv, and the
differences from the offline run of the same seed are printed.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.common.digits import spread
from benchmarks.common.tables import write_csv
from fdpo_fast.compare.jobs import Crew
from fdpo_fast.compare.paired import differences
from fdpo_fast.config.load import load
from fdpo_fast.evaluate.tables import table
from fdpo_fast.progress import progress

RESULTS = Path(__file__).parent / "results/rounds.csv"
CONFIG = Path(__file__).parent.parent / "configs/digits_rounds.json"
FIGURES = ("preference", "unseen", "win_rate", "rmse", "vendi", "drift")
"""The rule's score and its win rate against the base, the unseen classifier's accuracy in the mean probability of the
digit asked for, two diversities, and the drift from the base in log-ratio at the strength of the configuration."""
STEPS = 150


class Arm(NamedTuple):
    """A way to spend the steps and the pairs."""

    name: str
    count: int
    images: int
    """Of each caption and round; all pairs of them are taken."""
    reference: str = "previous"
    steps: int = STEPS
    """Of all rounds together."""
    weaker: float = 1.0
    """By which `loss.ratio_scale` is divided."""


ARMS = (
    Arm("offline", 1, 22),
    Arm("two rounds", 2, 16),
    Arm("three rounds", 3, 13),
    Arm("two rounds, base as reference", 2, 16, "base"),
    Arm("three rounds, base as reference", 3, 13, "base"),
    Arm("offline, twice the steps", 1, 22, steps=2 * STEPS),
    Arm("offline, a third of the strength", 1, 22, weaker=3.0),
)


def written(arm: Arm, seed: int, folder: Path) -> Path:
    """Write the configuration of an arm and a seed beside its folder; returns the file."""
    own = folder / f"{arm.name.replace(', ', ' ').replace(' ', '-')}-{seed}"
    plain = load(CONFIG)
    config = plain.replace(
        {
            "train.output_dir": str(own),
            "train.seed": seed,
            "train.max_steps": arm.steps // arm.count,
            "loss.ratio_scale": plain.loss.ratio_scale / arm.weaker,
            "evaluate.seed": 20_000 + 1_000 * seed,
            "rounds.count": arm.count,
            "rounds.images_per_prompt": arm.images,
            "rounds.reference": arm.reference,
        }
    )
    file = own.with_suffix(".json")
    file.write_text(config.dumps())
    return file


def figures(arm: Arm, seed: int, folder: Path) -> list[tuple[str, ...]]:
    """Return the rows of an arm and a seed: the base (round 0) and each round, by FIGURES."""
    found = json.loads((folder / "evaluation.json").read_text())
    scores, diversity = found["scores"], found["diversity"]
    rows = []
    for number in range(arm.count + 1):
        model = f"round-{number:02d}" if number else "base"
        rule = scores["fdpo_fast.digits:preference"][model]
        values = (
            rule["mean"]["value"],
            scores["fdpo_fast.digits:unseen"][model]["mean"]["value"],
            rule["win_rate"]["value"] if rule["win_rate"] else 0.5,
            *(own[model]["mean"]["value"] for own in diversity.values()),
            found["drift"][model]["value"] * arm.weaker,
        )
        ranked = (folder / f"pairs/round-{number:02d}.jsonl") if number else None
        pairs = sum(_pairs(json.loads(line)["rank"]) for line in ranked.open()) if ranked else 0
        rows.append((arm.name, str(seed), str(number), str(pairs), *(f"{value:.5g}" for value in values)))
    return rows


def _pairs(ranks: list[int]) -> int:
    """Count the pairs of a ranking that are no ties."""
    return sum(a != b for i, a in enumerate(ranks) for b in ranks[:i])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/rounds"), help="where the arms are trained")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of training and drawing")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    wanted = [(arm, seed) for seed in range(arguments.seeds) for arm in ARMS]
    files = [written(arm, seed, arguments.folder) for arm, seed in wanted]
    crew = Crew(arguments.folder / "logs", arguments.jobs)
    with progress(total=len(wanted), desc="arms", unit=" arms") as bar, ThreadPoolExecutor(arguments.jobs) as pool:

        def run(file: Path) -> None:
            crew.run(bar, file.stem, ("rounds", ["--config", str(file)]))
            bar.update()

        list(pool.map(run, files))
    rows = [
        row for (arm, seed), file in zip(wanted, files, strict=True) for row in figures(arm, seed, file.with_suffix(""))
    ]
    write_csv(RESULTS, ("arm", "seed", "round", "pairs", *FIGURES), rows)
    for rival in ("offline", "offline, a third of the strength"):
        print("\n".join(beside(rows, rival)))


def beside(rows: list[tuple[str, ...]], rival: str) -> list[str]:
    """Return a table of the last rounds' figures, and their differences from a rival's, paired by seed."""
    last: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for arm, seed, _, _, *values in rows:  # the rounds of an arm and a seed are in order
        for name, value in zip(FIGURES, values, strict=True):
            last[name][arm][int(seed)] = float(value)
    lines = []
    for arm in ARMS:
        cells = [spread([*last[name][arm.name].values()]) for name in FIGURES]
        for at, name in enumerate(FIGURES if arm.name != rival else ()):
            for found in differences(last[name][arm.name], {rival: last[name][rival]}):
                cells[at] += f" ({found.gap.value:+.3g}, p {found.p:.2g})"
        lines.append((arm.name, *cells))
    return [f"differences from: {rival}", "", *table(("arm", *FIGURES), lines), ""]


if __name__ == "__main__":
    main()
