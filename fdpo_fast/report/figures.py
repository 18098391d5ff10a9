"""The pictures of the reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from fdpo_fast.compare.analysis import Comparison
from fdpo_fast.config.schema import Loss
from fdpo_fast.report import theme, words
from fdpo_fast.report.labels import Label, place
from fdpo_fast.report.pictures import DESK, PHONE, Panel, Picture
from fdpo_fast.report.run import Run

PLANE = 6.0
"""The largest |log-ratio| that the gradient fields show."""
SMOOTH = 10
"""The number of steps that a curve's full line is the mean of."""

_SIDES = LinearSegmentedColormap.from_list(
    "sides", [theme.LIGHT["down"], theme.LIGHT["down"] + "00", theme.LIGHT["up"] + "00", theme.LIGHT["up"]]
)
"""From blue over nothing to red, so that the middle is whatever the page is."""


def styles_of(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each divergence, the same in every picture."""
    return {kind: theme.series(number) for number, kind in enumerate(comparison.kinds)}


# --- a comparison ---


def trade_off(comparison: Comparison, key: str = "alignment") -> Picture:
    """Draw a score against diversity: a curve along the strengths for each divergence, bars of a standard error."""
    styles, compare = styles_of(comparison), comparison.config.comparison
    curves = [(kind, [spot for spot in comparison.spots if spot.kind == kind]) for kind in comparison.kinds]
    base = comparison.base[key], comparison.base["diversity"]

    def draw(axes: Axes) -> None:
        labels = [Label(*base, "base", weight="bold")]
        strengths = []
        if key == "alignment":
            front = [(spot.mean[key], spot.mean["diversity"]) for spot in comparison.front]
            axes.plot(*np.array(front).reshape(-1, 2).T, color=theme.LIGHT["text"], linewidth=6, alpha=0.13)
        for kind, spots in curves:
            x, y = ([spot.mean[name] for spot in spots] for name in (key, "diversity"))
            errors = ([np.nan_to_num(spot.error[name]) for spot in spots] for name in (key, "diversity"))
            axes.errorbar(x, y, *reversed(list(errors)), elinewidth=0.7, **styles[kind])
            labels.append(Label(x[-1], y[-1], words.divergence(kind), color=styles[kind]["color"]))
            at = zip(x, y, spots, strict=True)
            strengths += [Label(x, y, f"{spot.strength:g}", must=False) for x, y, spot in at]
        axes.plot(*base, "+", color=theme.LIGHT["text"], markersize=11, markeredgewidth=2)
        axes.set(
            xlabel=f"{key}: {words.measure(getattr(compare, key)).name} (more is better)",
            ylabel=f"diversity: {words.measure(compare.diversity).name} (more is better)",
        )
        place(axes, [*labels, *strengths])

    key_of_lines = [(words.divergence(kind), style) for kind, style in styles.items()]
    return Picture((Panel(draw, f"{key} against diversity"),), tuple(key_of_lines), shape=DESK, phone=PHONE)


def volumes(comparison: Comparison) -> Picture:
    """Draw the hypervolume of each divergence with its interval, and that of every seed."""
    styles, rows = styles_of(comparison), comparison.volumes[::-1]

    def draw(axes: Axes) -> None:
        for row, volume in enumerate(rows):
            style = styles[volume.kind]
            if not math.isnan(volume.area.low):
                axes.plot([volume.area.low, volume.area.high], [row, row], color=style["color"], linewidth=2)
            axes.plot(volume.area.value, row, markersize=8, **style)
            seeds = list(volume.by_seed.values())
            axes.plot(seeds, [row - 0.3] * len(seeds), "|", color=theme.LIGHT["faint"], markersize=5)
        axes.set_yticks(range(len(rows)), [words.divergence(volume.kind) for volume in rows])
        axes.tick_params(axis="y", length=0, labelcolor=theme.LIGHT["text"])
        axes.set_ylim(-0.7, len(rows) - 0.4)
        axes.set_xlabel("hypervolume (more is better)")

    height = 0.3 * len(rows) + 0.6
    return Picture((Panel(draw, "Hypervolume"),), shape=(DESK[0], height), phone=(PHONE[0], height))


def gradient_fields(comparison: Comparison) -> Picture:
    """Draw how hard a step of the loss pulls at winner and loser, over the plane of their log-ratios.

    With u = log p_theta / p_ref the loss falls along (c h'(u_w), -c h'(u_l)), c = beta sigmoid(m - z), m the target
    margin; a weight of the winner's own error pulls at it besides. Arrows point there, colours are log10 of the pull on
    the winner divided by that on the loser. Strength nearest 1.
    """
    losses: dict[str, Loss] = {}
    for point in sorted(comparison.points, key=lambda point: abs(math.log(point.strength))):
        losses.setdefault(point.kind.name, point.config.loss)
    line = torch.linspace(-PLANE, PLANE, 61, dtype=torch.float64, device="cpu")
    u_l, u_w = torch.meshgrid(line, line, indexing="ij")
    fields, longest = [], 0.0
    for kind, loss in losses.items():
        link, own = loss.link(), loss.sft_weight / loss.ratio_scale
        weight = torch.sigmoid(loss.margin - loss.beta * (link(u_w) - link(u_l))) * loss.beta
        slope_w, slope_l = link.slope(u_w) + own / weight.clamp(min=1e-30), link.slope(u_l)
        pull_w, pull_l = weight * slope_w, weight * slope_l
        ratio = (slope_w / slope_l).log10()  # of the pulls; their common weight may underflow
        some = slice(3, None, 9)
        size = torch.hypot(pull_w, pull_l).clamp(min=1e-12)
        grown = size.log1p() / size  # arrows by the logarithm of the pull: it spans decades
        arrows = tuple(x[some, some].numpy() for x in (u_w, u_l, pull_w * grown, -pull_l * grown))
        longest = max(longest, size.log1p().max().item())
        fields.append((kind, loss, ratio.numpy(), arrows))

    def draw(ratio: np.ndarray, arrows: tuple[np.ndarray, ...], axes: Axes) -> None:
        axes.pcolormesh(line.numpy(), line.numpy(), ratio, cmap=_SIDES, vmin=-2, vmax=2, rasterized=True)
        axes.quiver(*arrows, scale=8 * longest, width=0.008, color=theme.LIGHT["text"])  # one scale for all
        axes.set(xlabel="u of the winner", ylabel="u of the loser")
        axes.grid(visible=False)

    panels = (
        Panel(partial(draw, ratio, arrows), f"{words.divergence(kind)}, beta {loss.beta:.3g}")
        for kind, loss, ratio, arrows in fields
    )
    return Picture(tuple(panels), shape=(3.5, 2.8))


def training(comparison: Comparison, runs: Sequence[tuple[str, Run]]) -> Picture:
    """Draw loss, implicit accuracy and the error on preferred images of several runs, one line each."""
    styles = styles_of(comparison)

    def draw(key: str, axes: Axes) -> None:
        for kind, run in runs:
            steps, values = run.series(key)
            axes.plot(steps, smooth(values), markevery=max(1, len(steps) // 5), **styles[kind])
        if key != "loss" or all(point.config.loss.starts_at_log_2 for point in comparison.points):
            level(axes, key)
        steps_below(axes)

    panels = tuple(Panel(partial(draw, key), *words.FIGURES[key][:2]) for key in ("loss", "accuracy", "delta_w"))
    return Picture(panels, tuple((words.divergence(kind), styles[kind]) for kind, _ in runs))


BY_TIMESTEP = ("accuracy", "margin", "delta_w", "delta_l")


def over_timesteps(comparison: Comparison, runs: Sequence[tuple[str, Run]]) -> Picture:
    """Draw where on the scale of timesteps several runs end: means of the last half of each."""
    styles = styles_of(comparison)

    def draw(key: str, axes: Axes) -> None:
        for kind, run in runs:
            values = [run.bin_series(edge, key)[1] for edge in run.edges]
            ends = [np.mean(those[len(those) // 2 :]) for those in values]
            axes.plot([sum(edge) / 2 for edge in run.edges], ends, **styles[kind])
        level(axes, key)
        steps_below(axes, "timestep, from little noise to much")

    panels = tuple(Panel(partial(draw, key), *words.FIGURES[key][:2]) for key in BY_TIMESTEP)
    return Picture(panels, tuple((words.divergence(kind), styles[kind]) for kind, _ in runs))


# --- one run ---


def smooth(values: Sequence[float], width: int = SMOOTH) -> list[float]:
    """Return the mean of the last `width` values at each."""
    return [float(np.mean(values[max(0, at + 1 - width) : at + 1])) for at in range(len(values))]


def level(axes: Axes, key: str) -> None:
    """Draw the value that a figure starts from, with its name where it is no plain number."""
    start = words.FIGURES[key].level
    if start is not None:
        axes.axhline(start, color=theme.LIGHT["faint"], linewidth=1, linestyle=(0, (4, 3)))
        if key == "loss":
            right = axes.get_yaxis_transform()
            axes.annotate("log 2", (1, start), (-2, 3), xycoords=right, textcoords="offset points", ha="right")


def steps_below(axes: Axes, of: str = "step") -> None:
    """Name the horizontal axis, and give both few ticks."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(of)


def timestep_bins(run: Run) -> Picture:
    """Draw accuracy, margin and the change of both errors along a run, a line for each bin of timesteps."""
    shares = [number / max(1, len(run.edges) - 1) for number in range(len(run.edges))]
    styles: list[dict[str, Any]] = [
        {"color": theme.shade(share), "marker": theme.MARKERS[number % len(theme.MARKERS)], "markersize": 4}
        for number, share in enumerate(shares)
    ]

    def draw(key: str, axes: Axes) -> None:
        for edge, style in zip(run.edges, styles, strict=True):
            steps, values = run.bin_series(edge, key)
            axes.plot(steps, smooth(values, 3), markevery=max(1, len(steps) // 4), **style)
        level(axes, key)
        steps_below(axes)

    names = [f"{low} to {high}" for low, high in run.edges]
    return Picture(
        tuple(Panel(partial(draw, key), *words.FIGURES[key][:2]) for key in BY_TIMESTEP),
        tuple(zip(names, styles, strict=True)),
        tuple((theme.shade(share), theme.mixed(share)) for share in shares),
    )
