"""The curves of a run, on one sheet: what to look at, in the order in which to look at it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from fdpo_fast.report import theme, words
from fdpo_fast.report.figures import level, smooth, steps_below
from fdpo_fast.report.pictures import Panel, Picture
from fdpo_fast.report.run import Run
from fdpo_fast.report.words import Word

FOUND = (
    *("loss", "accuracy", "margin", "delta_w", "delta_l", "grad_norm", "clipped", "loser_scale"),
    *("gradient_weight", "saturated", "steep"),
)
"""What differs from batch to batch, so that a mean says more."""
BANDS = (("margin/q05", "margin/q95", 0.15), ("margin/q25", "margin/q75", 0.3))
"""Pairs of quantiles with the opacity of what lies between them."""
DECADES = 1.5
"""The span of a norm, in powers of ten, from which on it is drawn by its logarithm."""


class Curve(NamedTuple):
    """A panel of the sheet, for runs whose records have one of the keys."""

    word: Word
    keys: tuple[str, ...]
    draw: Callable[[Run, Axes], None]

    def of(self, run: Run) -> bool:
        """Say whether a run has it."""
        return any(key in record for record in run.records for key in self.keys)


def sheet(run: Run) -> Picture:
    """Draw what there is to look at of a run; what is drawn from batches as means too."""
    return Picture(tuple(Panel(partial(curve.draw, run), *curve.word[:2]) for curve in SHEET if curve.of(run)))


def _line(run: Run, axes: Axes, key: str, name: str = "", number: int = 0) -> None:
    """Draw a figure of every step: what is drawn from batches as means over a faint line."""
    steps, values = run.series(key)
    color = theme.SERIES[number][0]
    if key in FOUND:
        axes.plot(steps, values, color=color, alpha=0.35, linewidth=0.8)
        values = smooth(values)
    axes.plot(steps, values, color=color, marker="." if len(steps) == 1 else "", label=name)


def _held_out(run: Run, axes: Axes, key: str) -> None:
    """Draw a figure of the held-out pairs with the band of its interval, where there are any."""
    steps, values = run.series(f"validation/{key}")
    halves = run.series(f"validation/{key}_half_width")[1]
    if not steps or len(halves) != len(values):
        return
    color = theme.SERIES[1][0]
    low, high = ([value + side * half for value, half in zip(values, halves, strict=True)] for side in (-1, 1))
    axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(steps, values, color=color, marker="o", markersize=3.5, label="held out, 95 %")


def _named(axes: Axes, where: str) -> None:
    """Name the lines, where there are several, in the corner that they seldom come to."""
    handles, names = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(handles, names, loc=where, fontsize=7.5, handlelength=1.2, borderaxespad=0.2, labelspacing=0.25)


def _loss(run: Run, axes: Axes) -> None:
    _line(run, axes, "loss", "training")
    _held_out(run, axes, "loss")
    if run.config.loss.starts_at_log_2:
        level(axes, "loss")
    _named(axes, "lower left")


def _errors(run: Run, axes: Axes) -> None:
    _line(run, axes, "delta_w", "preferred")
    _line(run, axes, "delta_l", "dispreferred", 1)
    level(axes, "delta_w")
    _named(axes, "upper left")


def _accuracy(run: Run, axes: Axes) -> None:
    _line(run, axes, "accuracy", "training")
    _held_out(run, axes, "accuracy")
    level(axes, "accuracy")
    _named(axes, "lower right")


def _margins(run: Run, axes: Axes) -> None:
    steps, middle = run.series("margin/q50")
    color = theme.SERIES[0][0]
    for low, high, alpha in BANDS:
        if steps:
            axes.fill_between(steps, run.series(low)[1], run.series(high)[1], color=color, alpha=alpha, linewidth=0)
    if steps:
        axes.plot(steps, middle, color=color)
    else:
        _line(run, axes, "margin")
    level(axes, "margin")


def _shares(run: Run, axes: Axes) -> None:
    if run.series("saturated")[0]:
        _line(run, axes, "saturated", "saturated")
    steps, clipped = run.series("clipped")
    if any(clipped):  # caps are seldom reached
        axes.plot(steps, smooth([value / 2 for value in clipped]), color=theme.SERIES[1][0], label="capped")
    steps, steep = run.series("steep")
    if any(steep):  # most links never are
        axes.plot(steps, smooth(steep), color=theme.SERIES[2][0], label="steep")
    axes.set_ylim(0, 1)
    _named(axes, "upper left")


def _plain(key: str, run: Run, axes: Axes) -> None:
    _line(run, axes, key)
    level(axes, key)


def _norm(key: str, run: Run, axes: Axes) -> None:
    _line(run, axes, key)
    there = [value for value in run.series(key)[1] if value > 0]
    if there and max(there) > 10**DECADES * min(there):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _curve(word: Word, keys: tuple[str, ...], draw: Callable[[Run, Axes], None]) -> Curve:
    def upon_steps(run: Run, axes: Axes) -> None:
        steps_below(axes)
        draw(run, axes)

    return Curve(word, keys, upon_steps)


def _single(key: str, draw: Callable[[str, Run, Axes], None] = _plain) -> Curve:
    return _curve(words.FIGURES[key], (key,), partial(draw, key))


SHEET = (
    _curve(words.FIGURES["loss"], ("loss",), _loss),
    _curve(Word("Errors", "minus the reference's; the preferred one should fall or stay"), ("delta_w",), _errors),
    _curve(words.FIGURES["accuracy"], ("accuracy",), _accuracy),
    _curve(Word("Margin", "median; half of the pairs and 90 % lie in the bands"), ("margin",), _margins),
    _curve(
        Word("Saturated, capped, steep", "shares: pairs that pull no more, log-ratios cut, samples that pull for many"),
        ("saturated",),
        _shares,
    ),
    _single("gradient_weight"),
    _single("loser_scale"),
    _single("grad_norm", _norm),
    _single("movement"),
    _single("optimizer/lost"),
    _single("optimizer/noise", _norm),
    _single("lr"),
    _single("images_per_second"),
)
"""All that a run may have; the page shows what it has."""
