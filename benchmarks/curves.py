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
SHARED = {"data.validation": 0.2, "train.validate_every": 10, "log.samples_every": 0, "log.tensorboard": False}
NEAR = {"loss.ratio_scale": 1000.0, "optimizer.lr": 2e-6}
"""A log-ratio that counts early, and a low rate: the policy stays near the reference."""
RUNS: dict[str, dict[str, Any]] = {
    "healthy": NEAR,
    "not moving": {**NEAR, "optimizer.lr": 1e-9},
    "learning by heart": {**NEAR, "data.max_rows": 120, "train.max_steps": 250},
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
ROWS = ("accuracy", "delta_w", "margin", "saturated", "grad_norm", "movement")
"""The curves that are drawn, by a key of each."""
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
    with mpl.rc_context({**mpl.rcParamsDefault, "backend": "agg", **RULES}):
        figure = Figure(figsize=(3.1 * len(runs), 1.75 * len(curves) + 1.9), dpi=110, layout="constrained")
        grid = figure.subplots(len(curves), len(runs), squeeze=False, sharex="col")
        for line, curve in zip(grid, curves, strict=True):
            for axes, run in zip(line, runs.values(), strict=True):
                _panel(axes, run, curve)
            line[0].set_ylabel(curve.word.name, color=theme.LIGHT["text"], fontsize=9)
        for axes, (name, run) in zip(grid[0], runs.items(), strict=True):
            said = "\n\n".join(textwrap.fill(words, 44) for words in states(run)) or "Nothing to say."
            axes.set_title(f"{name}\n\n", fontsize=11, weight="bold", loc="left")
            axes.annotate(said, (0, 1.06), xycoords="axes fraction", fontsize=7.5, va="bottom")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _panel(axes: mpl.axes.Axes, run: Run, curve: Curve) -> None:
    """Draw a curve of a run; one that it has not is an empty place."""
    if not curve.of(run):
        axes.set_axis_off()
        return
    curve.draw(run, axes)
    if not axes.get_subplotspec().is_last_row():
        axes.set_xlabel("")


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
