"""The pictures of the reports, as PNG bytes by name."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

from fdpo_fast.compare.analysis import Comparison
from fdpo_fast.config.schema import Loss
from fdpo_fast.report.run import Run

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the backend is chosen
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARKERS = "os^vDPX*<>"
PLANE = 6.0
"""The largest |log-ratio| that the gradient fields show."""


def png(figure: Figure) -> bytes:
    """Write a figure as PNG bytes, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png", facecolor="white")
    plt.close(figure)
    return buffer.getvalue()


def _style(comparison: Comparison) -> dict[str, dict]:
    """Return colour and marker of each divergence, the same in every picture."""
    return {
        kind: {"color": f"C{n % 10}", "marker": MARKERS[n % len(MARKERS)]} for n, kind in enumerate(comparison.kinds)
    }


def trade_off(comparison: Comparison, key: str = "alignment") -> bytes:
    """Draw a score against diversity: a curve along the strengths for each divergence, bars of a standard error."""
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for kind, style in _style(comparison).items():
        spots = [spot for spot in comparison.spots if spot.kind == kind]
        axes.errorbar(
            [spot.mean[key] for spot in spots],
            [spot.mean["diversity"] for spot in spots],
            xerr=[np.nan_to_num(spot.error[key]) for spot in spots],
            yerr=[np.nan_to_num(spot.error["diversity"]) for spot in spots],
            label=kind,
            capsize=2,
            linewidth=1.2,
            markersize=6,
            **style,
        )
    if key == "alignment":
        axes.plot(
            [spot.mean[key] for spot in comparison.front],
            [spot.mean["diversity"] for spot in comparison.front],
            color="black",
            linewidth=4,
            alpha=0.15,
            label="Pareto front",
        )
    axes.plot(comparison.base[key], comparison.base["diversity"], "k+", markersize=14, markeredgewidth=2, label="base")
    compare = comparison.config.comparison
    axes.set(xlabel=f"{key}: {getattr(compare, key)}", ylabel=f"diversity: {compare.diversity}")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return png(figure)


def volumes(comparison: Comparison) -> bytes:
    """Draw the hypervolume of each divergence with its interval, and that of every seed."""
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(comparison.volumes) + 1.2), layout="constrained")
    style = _style(comparison)
    for row, volume in enumerate(reversed(comparison.volumes)):
        color = style[volume.kind]["color"]
        axes.barh(row, volume.area.value, color=color, alpha=0.5)
        axes.plot(list(volume.by_seed.values()), [row] * len(volume.by_seed), "o", color=color, markersize=4)
        if not math.isnan(volume.area.low):
            axes.plot([volume.area.low, volume.area.high], [row, row], color="black", linewidth=1)
    axes.set_yticks(range(len(comparison.volumes)), [volume.kind for volume in reversed(comparison.volumes)])
    axes.set(xlabel="hypervolume of alignment and diversity, base included (points: seeds; lines: 95 %)")
    return png(figure)


def gradient_fields(comparison: Comparison) -> bytes:
    """Draw how hard a step of the loss pulls at winner and loser, over the plane of their log-ratios.

    With u = log p_theta / p_ref the loss falls along (sigmoid(-z) beta h'(u_w), -sigmoid(-z) beta h'(u_l)): arrows
    point there, colours are log10 of the pull on the winner divided by that on the loser. Strength nearest 1.
    """
    losses: dict[str, Loss] = {}
    for point in sorted(comparison.points, key=lambda point: abs(math.log(point.strength))):
        losses.setdefault(point.kind.name, point.config.loss)
    columns = min(4, len(losses))
    rows = -(-len(losses) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.1 * rows), layout="constrained", squeeze=False)
    line = torch.linspace(-PLANE, PLANE, 81, dtype=torch.float64, device="cpu")
    u_l, u_w = torch.meshgrid(line, line, indexing="ij")
    image, longest = None, 0.0
    arrows = []
    for axes, (kind, loss) in zip(grid.flat, losses.items(), strict=False):
        link = loss.link()
        weight = torch.sigmoid(-loss.beta * (link(u_w) - link(u_l))) * loss.beta
        pull_w, pull_l = weight * link.slope(u_w), weight * link.slope(u_l)
        ratio = (link.slope(u_w) / link.slope(u_l)).log10()  # of the pulls; their common weight may underflow
        image = axes.pcolormesh(u_w, u_l, ratio, cmap="coolwarm", vmin=-2, vmax=2, rasterized=True)
        some = slice(None, None, 10)
        size = torch.hypot(pull_w, pull_l).clamp(min=1e-12)
        grown = size.log1p() / size  # arrows by the logarithm of the pull: it spans decades
        arrows.append((axes, *(x[some, some] for x in (u_w, u_l, pull_w * grown, -pull_l * grown))))
        longest = max(longest, size.log1p().max().item())
        axes.set_title(f"{kind}, beta {loss.beta:.3g}", fontsize=9)
        axes.set(xlabel="u of the winner", ylabel="u of the loser")
    for axes, *arrow in arrows:
        axes.quiver(*arrow, scale=10 * longest)  # one scale for all
    for axes in list(grid.flat)[len(losses) :]:
        axes.axis("off")
    figure.colorbar(image, ax=grid, label="log10 (pull on the winner / on the loser)", shrink=0.8)
    return png(figure)


def _smooth(values: list[float], width: int = 10) -> list[float]:
    return [float(np.mean(values[max(0, at + 1 - width) : at + 1])) for at in range(len(values))]


def _curve(axes: Axes, records: list[dict], key: str, **style: Any) -> None:
    """Draw a key of the records by step: each value faintly, the mean of the last ten in full."""
    there = [(record["step"], record[key]) for record in records if key in record]
    if not there:
        axes.set_visible(False)
        return
    steps, values = zip(*there, strict=True)
    (line,) = axes.plot(steps, _smooth(list(values)), **style)
    if "label" not in style:
        axes.plot(steps, values, alpha=0.25, color=line.get_color())
    axes.set_title(key, fontsize=10)


def training(runs: Iterable[tuple[str, Run]]) -> bytes:
    """Draw loss and implicit accuracy of several runs, one line each."""
    figure, grid = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for name, run in runs:
        for axes, key in zip(grid, ("loss", "accuracy", "delta_w"), strict=True):
            _curve(axes, run.records, key, label=name)
    grid[0].legend(fontsize=7)
    return png(figure)


def curves(run: Run) -> bytes:
    """Draw everything that a run writes at each step."""
    keys = ("loss", "accuracy", "margin", "delta_w", "delta_l", "grad_norm", "lr", "clipped", "images_per_second")
    figure, grid = plt.subplots(3, 3, figsize=(11, 7.5), layout="constrained")
    for axes, key in zip(grid.flat, keys, strict=True):
        _curve(axes, run.records, key)
    return png(figure)


def timestep_bins(runs: Iterable[tuple[str, Run]]) -> bytes | None:
    """Draw accuracy, margin and the change of both errors by bins of timesteps; None where there are none yet."""
    runs = [(name, run) for name, run in runs if run.bins]
    if not runs:
        return None
    keys = ("accuracy", "margin", "delta_w", "delta_l")
    figure, grid = plt.subplots(len(runs), 4, figsize=(11, 2.6 * len(runs)), layout="constrained", squeeze=False)
    for row, (name, run) in zip(grid, runs, strict=True):
        for axes, key in zip(row, keys, strict=True):
            for number, (low, high) in enumerate(run.edges):
                there = [
                    (step, part[key]) for step, parts in run.bins for part in parts if part["timesteps"] == [low, high]
                ]
                steps, values = zip(*there, strict=True)
                shade = plt.get_cmap("viridis")(number / max(1, len(run.edges) - 1))
                axes.plot(steps, _smooth(list(values), 3), color=shade, label=f"{low} to {high}")
            axes.set_title(f"{key}, {name}" if len(runs) > 1 else key, fontsize=8)
    grid[0][0].legend(fontsize=6, title="timesteps", title_fontsize=6)
    return png(figure)
