"""The one picture of `benchmarks.report`."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import DTYPES
from benchmarks.published import DIVERGENCES

BARS = {
    "published_compiled": ("torch.compile of the published", "#9aa5b1"),
    "eager": ("our own eager backend", "#d8dde3"),
    "ours": ("fdpo_fast", "#1f6fb4"),
}
"""Label and colour, by provider."""

WIDTH = 0.8 / len(BARS)


def bars(rows: list[dict]) -> bytes:
    """A PNG of how many times faster than the published expression others are, forward and backward.

    A row of panels for each divergence, in it one for each dtype. rows: `extra_info` of the cases, in the order of the
    bars.
    """
    cases = [row["case"] for row in rows]
    divergences = [name for name in DIVERGENCES if any(case["divergence"] == name for case in cases)]
    dtypes = [dtype for dtype in DTYPES if any(case["dtype"] == dtype for case in cases)]
    figure = Figure(figsize=(5.5 * len(dtypes), 3.3 * len(divergences) + 0.5))
    panels = figure.subplots(len(divergences), len(dtypes), sharey=True, squeeze=False)
    for line, divergence in zip(panels, divergences, strict=True):
        for axes, dtype in zip(line, dtypes, strict=True):
            _panel(
                axes, [row for row in rows if (row["case"]["divergence"], row["case"]["dtype"]) == (divergence, dtype)]
            )
            axes.set_title(f"{divergence}, {dtype}", fontsize=10)
        line[0].set_ylabel("times faster than the\npublished expression (dashed)", fontsize=9)
    panels[0][0].legend(frameon=False, fontsize=9)
    device = {"cpu": "CPU", "cuda": "GPU"}[rows[0]["device"]]
    figure.suptitle(f"The loss, forward and backward, on the {device}", fontsize=11)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()


def _panel(axes: Axes, rows: list[dict]) -> None:
    """Draw the bars of one divergence and dtype."""
    for place, (provider, (label, color)) in enumerate(BARS.items()):
        heights = [row["providers"][provider]["times_faster_than_published"] for row in rows]
        middles = [number + WIDTH * (place - (len(BARS) - 1) / 2) for number in range(len(rows))]
        container = axes.bar(middles, heights, WIDTH, color=color, label=label)
        axes.bar_label(container, fmt="%.1f", fontsize=6, padding=1)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    cases = [row["case"] for row in rows]
    axes.set_xticks(range(len(rows)), [f"{case['size']}\n{case['pairs']}" for case in cases], fontsize=8)
    axes.set_xlabel("latents, pairs", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
