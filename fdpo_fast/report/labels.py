"""Labels beside the points of a picture, each where there is room."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.transforms import Bbox

from fdpo_fast.report.theme import LIGHT


class Label(NamedTuple):
    """Words about a point; those that must be there move away as far as it takes, and have a line to their point."""

    x: float
    y: float
    text: str
    must: bool = True
    weight: str = "normal"
    color: str = LIGHT["faint"]
    """Of the line; letters are as dark as others, since lines may be lighter than letters should be."""


NEAR, FAR = (5.0,), (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0)
"""Distances to try, in points."""
TURNS = tuple(math.tau * n / 16 for n in (0, 1, 15, 2, 14, 8, 7, 9, 3, 13, 4, 12, 5, 11, 6, 10))
"""Directions to try, the right first."""


def place(axes: Axes, labels: list[Label]) -> None:
    """Write labels where they cover neither curves nor one another; without room, some are left out."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # a layout moves the axes
    inside, scale = axes.get_window_extent(), figure.dpi / 72
    bars = [part for bars in axes.collections if isinstance(bars, LineCollection) for part in bars.get_segments()]
    paths = [*(line.get_xydata() for line in axes.lines), *bars]
    lines = np.concatenate([_dense(axes.transData.transform(path)) for path in paths if len(path)])
    taken: list[Bbox] = []
    for label in labels:
        at = axes.transData.transform((label.x, label.y))
        size = 7.5 if not label.must else 8.5
        note = axes.annotate(
            label.text,
            (label.x, label.y),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            weight=label.weight,
            color=LIGHT["text"] if label.must else LIGHT["faint"],
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
            if label.must
            else None,
        )
        width, height = note.get_window_extent().size
        best, least = None, math.inf
        for distance in FAR if label.must else NEAR:
            for turn in TURNS:
                x, y = math.cos(turn), math.sin(turn)
                # the box begins where the distance ends
                shift = (x * (distance * scale + width / 2), y * (distance * scale + height / 2))
                box = Bbox.from_bounds(at[0] + shift[0] - width / 2, at[1] + shift[1] - height / 2, width, height)
                cost = _cost(box, inside, taken, lines)
                if cost < least:
                    best, least = (box, shift), cost
            if not least:
                break
        if best is None or (least and not label.must):
            note.remove()
            continue
        note.set_position((best[1][0] / scale, best[1][1] / scale))
        taken.append(best[0])


def _dense(points: np.ndarray, per_segment: int = 12) -> np.ndarray:
    """Return points along the line through points [n, 2]."""
    shares = np.linspace(0, 1, per_segment)[:, None]
    return np.concatenate([points[-1:], *(a + shares * (b - a) for a, b in pairwise(points))])


def _cost(box: Bbox, inside: Bbox, taken: list[Bbox], lines: np.ndarray) -> float:
    """Return by how much a box covers others and lines; infinite where it leaves the axes."""
    if box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1:
        return math.inf
    covered = sum(float(np.prod(cut.size)) for other in taken if (cut := Bbox.intersection(box, other)))
    return covered + 3 * float(((lines > box.min) & (lines < box.max)).all(axis=1).sum())
