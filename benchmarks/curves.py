"""What healthy and sick curves look like: `python -m benchmarks.curves`.

Trains the digits five times, each a minute on one thread, and draws results/curves.png: a column for each run, with
what its page says above it, and a row for each of the curves that tell. results/curves.csv has the figures, means of
the steps between two writes. Runs that are there are not trained again.
"""

from __future__ import annotations

import argparse
import io
import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.tables import write_csv
from fdpo_fast import train
from fdpo_fast.config.load import load
from fdpo_fast.files import replacing
from fdpo_fast.report import theme
from fdpo_fast.report.curves import SHEET, Curve
from fdpo_fast.report.pictures import RULES
from fdpo_fast.report.run import Run
from fdpo_fast.report.verdict import states
from fdpo_fast.training.states import windows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
BASE = ROOT / "configs/digits_js.json"
SHARED = {
    "loss.beta": 1.0,
    "loss.winner_preserving": None,
    "data.validation": 0.2,
    "train.validate_every": 10,
    "log.samples_every": 0,
    "log.tensorboard": False,
}
NEAR = {"loss.ratio_scale": 1000.0, "optimizer.lr": 2e-6}
"""A log-ratio that counts early, and a low rate: the policy stays near the reference."""
RUNS: dict[str, dict[str, Any]] = {
    "healthy": NEAR,
    "not moving": {**NEAR, "optimizer.lr": 1e-9},
    "learning by heart": {**NEAR, "data.max_rows": 200, "data.validation": 0.5, "train.max_steps": 180},
    "forgetting": {"optimizer.lr": 1e-4},
    "bf16, standing still": {
        **NEAR,
        "model.dtype": "bf16",
        "optimizer.type": "adamw8bit",
        "optimizer.rounding": "nearest",
        "deepspeed.bf16": {"enabled": False},
    },
}
"""What each run changes of the configuration."""
ROWS = ("loss", "accuracy", "delta_w", "margin", "saturated", "grad_norm", "movement")
"""The curves that are drawn, by a key of each."""
WIDTH, HEIGHT, LETTERS, LINE = 2.9, 1.55, 40, 0.165
"""Of a panel in inches; of a line of what is said, in letters and in inches."""
FIGURES = (
    *("loss", "accuracy", "validation/accuracy", "validation/accuracy_half_width", "delta_w", "delta_l"),
    *("margin/q05", "margin/q25", "margin/q50", "margin/q75", "margin/q95", "gradient_weight", "saturated"),
    *("grad_norm", "movement", "optimizer/lost", "optimizer/noise"),
)


def trained(name: str, changes: dict[str, Any], folder: Path) -> Run:
    """The run of a name, trained unless it is finished already."""
    own = folder / name.replace(" ", "_").replace(",", "")
    settings = {**SHARED, **changes, "train.output_dir": str(own)}
    config = load(BASE, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    if not (own / "export").is_dir():
        train.check_output(own, resume=False)
        train.train(config, resume=False)
    return Run(own)


def draw(runs: dict[str, Run]) -> bytes:
    """A PNG of the rows of curves, a column for each run with what is said of it above."""
    curves = [next(curve for curve in SHEET if key in curve.keys) for key in ROWS]
    said = {name: _wrapped(states(run) or ["Nothing to say."]) for name, run in runs.items()}
    lines = max(words.count("\n") for words in said.values()) + 3
    heights = [lines * LINE, *[HEIGHT] * len(curves)]
    with mpl.rc_context({**mpl.rcParamsDefault, "backend": "agg", **RULES}):
        figure = Figure(figsize=(WIDTH * len(runs), sum(heights) + 0.3), dpi=120, layout="constrained")
        grid = figure.subplots(len(heights), len(runs), squeeze=False, height_ratios=heights)
        for column, (name, run) in zip(grid.T, runs.items(), strict=True):
            head, *panels = column
            head.set_axis_off()
            head.text(0, 1, name, fontsize=11, weight="bold", va="top").set_in_layout(False)
            below = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top", "fontsize": 7.5}
            head.annotate(said[name], (0, 1), (0, -20), **below).set_in_layout(False)
            for axes, curve in zip(panels, curves, strict=True):
                curve.draw(run, axes)
                _arrange(axes, curve, first=name == next(iter(runs)), last=axes is panels[-1])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _wrapped(sentences: list[str]) -> str:
    return "\n\n".join(textwrap.fill(words, LETTERS) for words in sentences)


def _arrange(axes: Axes, curve: Curve, first: bool, last: bool) -> None:
    """Name a row at its first panel alone, with its lines, and the steps below the last."""
    if curve.keys == ("accuracy",):
        axes.set_ylim(0.35, 1.02)
    if not last:
        axes.set_xlabel("")
    if first:
        axes.set_ylabel(curve.word.name, color=theme.LIGHT["text"], fontsize=9)
    elif legend := axes.get_legend():
        legend.remove()


def rows(runs: dict[str, Run]) -> list[list[str]]:
    """The figures of each run, a row for each window of its records."""
    return [
        [name, str(each["step"] + 1), *(f"{each[key]:.4g}" if key in each else "" for key in FIGURES)]
        for name, run in runs.items()
        for each in windows(run.records)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/curves"), help="where the runs are trained, and stay")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: trained(name, changes, options.runs) for name, changes in RUNS.items()}
    write_csv(options.results / "curves.csv", ("run", "step", *FIGURES), rows(runs))
    with replacing(options.results / "curves.png") as partial:
        partial.write_bytes(draw(runs))
    for name, run in runs.items():
        print(f"{name}: {' '.join(states(run)) or 'nothing to say'}")


if __name__ == "__main__":
    main()
