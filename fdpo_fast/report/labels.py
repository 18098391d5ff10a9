"""Labels beside the points of a picture, each where there is room."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation
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
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # a layout moves the axes
    bars = [part for bars in axes.collections if isinstance(bars, LineCollection) for part in bars.get_segments()]
    paths = [*(np.asarray(line.get_xydata()) for line in axes.lines), *bars]
    lines = np.concatenate([_dense(axes.transData.transform(path)) for path in paths if len(path)])
    taken = np.empty((0, 4))
    for label in labels:
        note = _write(axes, label)
        size, at = np.array(note.get_window_extent().size), axes.transData.transform((label.x, label.y))
        turns = np.array([(math.cos(turn), math.sin(turn)) for turn in TURNS])
        distances = np.array(FAR if label.must else NEAR) * figure.dpi / 72
        # a box begins where its distance ends; the near ones come first
        shifts = (turns * (distances[:, None, None] + size / 2)).reshape(-1, 2)
        boxes = np.concatenate([at + shifts - size / 2, at + shifts + size / 2], axis=1)
        costs = _costs(boxes, axes.get_window_extent(), taken, lines)
        best = int(costs.argmin())
        if costs[best] > (math.inf if label.must else 0):
            note.remove()
            continue
        note.set_position(tuple(shifts[best] * 72 / figure.dpi))
        taken = np.concatenate([taken, boxes[best : best + 1]])


def _write(axes: Axes, label: Label) -> Annotation:
    """Write a label upon its point."""
    line = {"arrowstyle": "-", "color": label.color, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
    return axes.annotate(
        label.text,
        (label.x, label.y),
        (0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=8.5 if label.must else 7.5,
        weight=label.weight,
        color=LIGHT["text"] if label.must else LIGHT["faint"],
        arrowprops=line if label.must else None,
    )


def _dense(points: np.ndarray, per_segment: int = 12) -> np.ndarray:
    """Return points along the line through points [n, 2]."""
    shares = np.linspace(0, 1, per_segment)[:, None]
    return np.concatenate([points[-1:], *(a + shares * (b - a) for a, b in pairwise(points))])


def _costs(boxes: np.ndarray, inside: Bbox, taken: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Return by how much each of boxes [n, 4] covers others [m, 4] and lines [k, 2]; infinite outside the axes."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    cut = np.minimum(high, taken[:, 2:]) - np.maximum(low, taken[:, :2])
    within = ((lines > low) & (lines < high)).all(axis=2).sum(axis=1)
    outside = ((low < inside.min) | (high > inside.max)).any(axis=(1, 2))
    return np.where(outside, math.inf, cut.clip(min=0).prod(axis=2).sum(axis=1) + 3.0 * within)
