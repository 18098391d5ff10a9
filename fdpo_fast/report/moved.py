"""What a comparison tells of held-out pairs: divergences at equal drift, and what becomes of the preferred images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from fdpo_fast.compare.analysis import Comparison
from fdpo_fast.compare.moved import EFFECTS, GAINS, At, Effect, at_equal_drift, effects
from fdpo_fast.compare.paired import Difference
from fdpo_fast.evaluate.statistics import Estimate
from fdpo_fast.report import theme
from fdpo_fast.report.figures import styles_of
from fdpo_fast.report.pages import Part, Table
from fdpo_fast.report.pictures import Panel, Picture
from fdpo_fast.report.verdict import ALPHA
from fdpo_fast.report.words import divergence

PANELS = (
    ("alignment", "Alignment", "more is better"),
    ("diversity", "Diversity", "more is better"),
    ("steep", "Steep samples", "share of the held-out: there the link is over ten times as steep as at the reference"),
)


def parts(comparison: Comparison) -> Iterator[Part]:
    """Yield what the runs' last looks at held-out pairs say; nothing where there were none."""
    if not any("drift" in spot.mean for spot in comparison.spots):
        return
    found = at_equal_drift(comparison)
    yield Part(
        "At equal drift",
        ("Drift is minus the mean log-ratio u of held-out images: how far a policy has gone from its base. Points are "
         "means over the seeds, one for each strength; bars a standard error.", *map(_said, _groups(found))),
        picture=over_drift(comparison),
        table=_levels(found),
        file="drift.png",
    )  # fmt: skip
    if told := effects(comparison):
        yield Part(
            "What other keys of the loss do",
            ("Differences from the same divergence without them, means over the strengths, paired by seed; in brackets "
             f"95 %. A star: p < {ALPHA:g} (t-test, Holm). The preferred images' error is of held-out pairs, and less "
             "of it is better.",),
            table=_effects(told),
        )  # fmt: skip


def over_drift(comparison: Comparison) -> Picture:
    """Draw alignment, diversity and, where there are any, the share of steep samples over the drift."""
    styles = styles_of(comparison)

    def draw(key: str, axes: Axes) -> None:
        if key in GAINS:
            axes.plot(0, comparison.base[key], "+", color=theme.LIGHT["text"], markersize=9, markeredgewidth=2)
        for kind in comparison.kinds:
            spots = [spot for spot in comparison.spots if spot.kind == kind and "drift" in spot.mean]
            x, y = ([spot.mean[name] for spot in spots] for name in ("drift", key))
            errors = ([np.nan_to_num(spot.error[name]) for spot in spots] for name in ("drift", key))
            axes.errorbar(x, y, *reversed(list(errors)), elinewidth=0.7, **styles[kind])
        axes.set_xlabel("drift")

    steep = any(spot.mean.get("steep") for spot in comparison.spots)
    shown = [panel for panel in PANELS if panel[0] != "steep" or steep]
    panels = tuple(Panel(partial(draw, key), title, about) for key, title, about in shown)
    return Picture(panels, tuple((divergence(kind), style) for kind, style in styles.items()))


def _groups(found: list[At]) -> list[list[At]]:
    drifts = list(dict.fromkeys(at.drift for at in found))
    return [[at for at in found if at.drift == drift] for drift in drifts]


def _said(group: list[At]) -> str:
    """Say of one drift whether the divergences differ in alignment."""
    best = max(group, key=lambda at: at.figures["alignment"].value)
    behind = [each for each in best.alignment if each.p < ALPHA and each.gap.value > 0]
    head = f"At a drift of {best.drift:.3g} {divergence(best.kind)} has the most alignment, "
    head += f"{best.figures['alignment'].value:.3f}"
    if not best.alignment:
        return f"{head}; with fewer than two seeds nothing can be said about significance."
    if not behind:
        return f"{head}, and none of the others differs from it significantly (paired by seed, t-test, Holm)."
    names = ", ".join(f"{divergence(each.other)} (by {each.gap.value:.3f})" for each in behind)
    return f"{head}, significantly more than {names}."


def _levels(found: list[At]) -> Table | None:
    if not found:
        return None
    rows = tuple(
        (f"{at.drift:.3g}", divergence(at.kind), *(_shown(at.figures[name]) for name in GAINS)) for at in found
    )
    return Table(("drift", "divergence", *(f"{name} (95 %)" for name in GAINS)), rows, "rlrr")


def _effects(told: list[Effect]) -> Table:
    names = (*EFFECTS, "hypervolume")
    rows = tuple(
        (divergence(each.kind), *(_difference(each.figures.get(name), name) for name in names)) for each in told
    )
    header = ("setting", "alignment", "preference", "diversity", "preferred images' error", "hypervolume")
    return Table(header, rows, "wrrrrr")


def _difference(found: Difference | None, name: str) -> str:
    if found is None:
        return ""
    star = " *" if found.p < ALPHA else ""
    return _shown(found.gap, "+.3g" if name == "winner" else "+.3f") + star


def _shown(found: Estimate, form: str = ".3f") -> str:
    ends = "" if math.isnan(found.low) else f" [{found.low:{form}}, {found.high:{form}}]"
    return f"{found.value:{form}}{ends}"
