"""What curves and figures do and do not support, in sentences: of a run, and of the runs of a comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from fdpo_fast.compare.analysis import Comparison, Volume
from fdpo_fast.compare.paired import Difference
from fdpo_fast.evaluate.statistics import Estimate
from fdpo_fast.report.run import Run
from fdpo_fast.report.words import divergence
from fdpo_fast.training.states import STATES, windows

ALPHA = 0.05
"""The level at which a test is called significant."""


def states(run: Run) -> list[str]:
    """List what is said of the states that a run is in."""
    seen = windows(run.records)
    said = [words for state in STATES if seen and (words := state(seen, run.config))]
    return [f"{words[0].upper()}{words[1:]}." for words in said]


def of_run(run: Run) -> Iterator[str]:
    """Say in which states a run is that have a known cause and remedy, or that it is in none."""
    said = states(run)
    yield from said
    if not said:
        yield (
            "Nothing shows in the last steps that has a known remedy: the run moves, loss and gradients stay bounded, "
            "the preferred images are not forgotten, most pairs still pull."
        )
    if run.config.data.validation is None:
        yield "No pairs are held out (`data.validation`), so nothing tells whether the run learns its pairs by heart."


def sentences(comparison: Comparison, kind: str = "jensen_shannon") -> Iterator[str]:
    """Say plainly what the runs do and do not support; `kind` is the divergence that the paper's finding is about."""
    front = Counter(spot.kind for spot in comparison.front)
    of = len(comparison.config.comparison.strengths)
    on = ", ".join(f"{divergence(name)} ({count} of {of} strengths)" for name, count in front.most_common())
    on = on or "none, as the base has more of both than any run, or as much"
    yield f"On the Pareto front of alignment and diversity, by means over the seeds: {on}."
    missing = comparison.config.comparison.runs - len(comparison.points)
    if missing or not comparison.volumes:
        yield f"{missing} of {comparison.config.comparison.runs} runs are not finished, so nothing more is said."
        return
    best, *others = comparison.volumes
    if not (differences := comparison.differences(best.kind)):
        yield f"{_name(best)} has a hypervolume of {_shown(best.area)}."
        what = "two seeds" if others else "two divergences"
        yield f"With fewer than {what} nothing can be said about significance."
        return
    yield _first(best, differences)
    if kind in comparison.kinds:
        yield from _finding(comparison, kind, on=kind in front)


def _first(best: Volume, differences: list[Difference]) -> str:
    """Name what has the largest hypervolume, unless it cannot be told from others."""
    tied = [divergence(each.other) for each in differences if each.p >= ALPHA or each.gap.value <= 0]
    if tied:
        return (
            f"No divergence is ahead for sure: {_name(best)} has the largest mean hypervolume, {_shown(best.area)}, "
            f"but cannot be told from {', '.join(tied)} (paired by seed, t-test, Holm)."
        )
    least = min(differences, key=lambda each: each.gap.value)
    return (
        f"The largest hypervolume has {_name(best)}, {_shown(best.area)}: significantly more than any other (paired by "
        f"seed, t-test, Holm), by {_shown(least.gap)} than {divergence(least.other)}."
    )


def _finding(comparison: Comparison, kind: str, on: bool) -> Iterator[str]:
    """Say what becomes of the paper's finding that one divergence balances alignment and diversity best."""
    differences = comparison.differences(kind)
    verdicts = {
        "significantly larger than that of": [d.other for d in differences if d.p < ALPHA and d.gap.value > 0],
        "significantly smaller than that of": [d.other for d in differences if d.p < ALPHA and d.gap.value < 0],
        "not significantly different from that of": [d.other for d in differences if d.p >= ALPHA],
    }
    said = "; ".join(f"{verdict} {', '.join(map(divergence, names))}" for verdict, names in verdicts.items() if names)
    seeds = len(next(volume for volume in comparison.volumes if volume.kind == kind).by_seed)
    yield f"Over {seeds} seeds, the hypervolume of {divergence(kind)} is {said}."
    larger, smaller, same = verdicts.values()
    if larger and not smaller and not same and on:
        yield f"So these runs support that {divergence(kind)} balances alignment and diversity best."
    elif smaller:
        yield f"So these runs speak against {divergence(kind)} balancing alignment and diversity best."
    else:
        yield f"So these runs do not decide whether {divergence(kind)} balances alignment and diversity best."


def _name(volume: Volume) -> str:
    return divergence(volume.kind)


def _shown(area: Estimate) -> str:
    ends = "one seed" if math.isnan(area.low) else f"95 %: {area.low:.3f} to {area.high:.3f}"
    return f"{area.value:.3f} ({ends})"
