"""How far the runs of a grid have gone from their base, and what they have of it: divergences at equal drift."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fdpo_fast.compare.grid import Point
from fdpo_fast.compare.paired import Difference, differences, interval
from fdpo_fast.evaluate.statistics import Estimate
from fdpo_fast.training.records import read_records

if TYPE_CHECKING:
    from fdpo_fast.compare.analysis import Comparison

MOVED = ("drift", "winner", "steep")
"""What a run's last look at held-out pairs has found, see `moved`."""
SHARES = (0.25, 0.5, 1.0)
"""At which parts of the drift that all curves reach they are compared."""
GAINS = ("alignment", "diversity")
"""The figures that are compared at equal drift."""


def moved(point: Point) -> dict[str, float | None]:
    """Return a run's `MOVED`: drift, the preferred images' error, and the share of steep samples; None without a look.

    drift is minus the mean log-ratio, -E[u] = ratio_scale (delta_w + delta_l) / 2 over both images of the pairs. Where
    the base has drawn them it estimates KL(base || policy), in units of u. The error is less the reference's.
    """
    looks = [record for record in read_records(Path(point.config.train.output_dir)) if "validation/steep" in record]
    if not looks:
        return dict.fromkeys(MOVED)
    delta_w, delta_l, steep = (looks[-1][f"validation/{name}"] for name in ("delta_w", "delta_l", "steep"))
    return dict(zip(MOVED, (point.config.loss.ratio_scale * (delta_w + delta_l) / 2, delta_w, steep), strict=True))


class At(NamedTuple):
    """What a divergence has at a drift: `GAINS`, means over the seeds, and how its alignment differs from others'."""

    kind: str
    drift: float
    figures: dict[str, Estimate]
    alignment: list[Difference]


def at_equal_drift(comparison: Comparison) -> list[At]:
    """Compare the divergences at drifts that every one of them reaches with every seed; empty where fewer than two do.

    Left out are those that were not looked at, or came nearer to the pairs than the base is with some seed. Between its
    strengths, and between the base (drift 0) and the weakest, a seed's curve is taken for straight.
    """
    curves: dict[str, dict[int, list[dict]]] = {}
    for point, row in zip(comparison.points, comparison.rows, strict=True):
        if row["drift"] is not None and math.isfinite(row["drift"]):
            curves.setdefault(point.kind.name, {}).setdefault(point.seed, []).append(row)
    reach = {kind: min(max(row["drift"] for row in rows) for rows in seeds.values()) for kind, seeds in curves.items()}
    curves = {kind: seeds for kind, seeds in curves.items() if reach[kind] > 0}
    if len(curves) < 2:
        return []
    found = []
    for drift in [share * min(reach[kind] for kind in curves) for share in SHARES]:
        at = {
            kind: {seed: _interpolated(comparison.base, rows, drift) for seed, rows in seeds.items()}
            for kind, seeds in curves.items()
        }
        alignment = {kind: {seed: row["alignment"] for seed, row in seeds.items()} for kind, seeds in at.items()}
        for kind, seeds in at.items():
            others = {other: by_seed for other, by_seed in alignment.items() if other != kind}
            figures = {name: interval(np.array([row[name] for row in seeds.values()])) for name in GAINS}
            found.append(At(kind, drift, figures, differences(alignment[kind], others)))
    return found


def _interpolated(base: dict[str, float], rows: list[dict], drift: float) -> dict[str, float]:
    """Return `GAINS` of a seed's curve at a drift."""
    rows = sorted([{**base, "drift": 0.0}, *rows], key=lambda row: row["drift"])
    drifts = [row["drift"] for row in rows]
    return {name: float(np.interp(drift, drifts, [row[name] for row in rows])) for name in GAINS}


class Effect(NamedTuple):
    """What other keys of the loss do to a divergence: each figure's difference from it without them, over the seeds."""

    kind: str
    plain: str
    figures: dict[str, Difference]


EFFECTS = ("alignment", "preference", "diversity", "winner")
"""The figures in which keys of the loss are compared, means over the strengths; and `hypervolume`."""


def effects(comparison: Comparison) -> list[Effect]:
    """Compare each divergence under other keys of the loss with the same one without, where the grid has both.

    Paired by seed and strength; each p is adjusted for the settings of the same divergence (Holm 1979).
    """
    kinds = {point.kind.name: point.kind for point in comparison.points}
    strengths = set(comparison.config.comparison.strengths)
    by_seed: dict[str, dict[str, dict[int, float]]] = {}
    for name in kinds:
        rows: dict[int, list[dict]] = {}
        for point, row in zip(comparison.points, comparison.rows, strict=True):
            if point.kind.name == name:
                rows.setdefault(point.seed, []).append(row)
        whole = {seed: own for seed, own in rows.items() if len(own) == len(strengths)}
        means = by_seed[name] = {}
        for figure in EFFECTS:
            told = {seed: [row[figure] for row in own] for seed, own in whole.items()}
            means[figure] = {seed: float(np.mean(own)) for seed, own in told.items() if None not in own}
        means["hypervolume"] = next((volume.by_seed for volume in comparison.volumes if volume.kind == name), {})
    found = []
    for name, kind in kinds.items():
        if kind.loss:
            continue
        others = [o for o, k in kinds.items() if k.loss and (k.divergence, k.alpha) == (kind.divergence, kind.alpha)]
        told_of: dict[str, dict[str, Difference]] = {other: {} for other in others}
        for figure, own in by_seed[name].items():
            for each in differences(own, {other: by_seed[other][figure] for other in others}):
                gap = Estimate(-each.gap.value, -each.gap.high, -each.gap.low)
                told_of[each.other][figure] = Difference(name, gap, each.p)
        found += [Effect(other, name, figures) for other, figures in told_of.items() if figures]
    return found
