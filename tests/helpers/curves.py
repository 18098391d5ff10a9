"""Records of runs, healthy ones and those in a known state, without a run."""

import math

from fdpo_fast.config.load import load
from tests.helpers import ROOT

EVERY, PAIRS = 10, 32
"""Steps between two writes, and pairs of a step, of `records`."""


def configured(*changes):
    """The configuration of the digits, changed by settings."""
    plain = ["loss.beta=1.0", "loss.winner_preserving=null"]
    return load(ROOT / "configs/digits_js.json", [*plain, *changes])


def records(steps=200, **figures):
    """Records of a healthy run; each of `figures` is a constant, or a function of the step, in the place of its own.

    A figure of None is left out. Names with a slash are written with two underscores.
    """
    own = HEALTHY | {name.replace("__", "/"): value for name, value in figures.items()}
    return [record(step, own) for step in range(steps)]


def record(step, figures):
    written = step % EVERY == EVERY - 1
    values = {
        name: value(step) if callable(value) else value
        for name, value in figures.items()
        if value is not None and (written or not seldom(name))
    }
    found = {"step": step, "pairs": PAIRS, **values}
    return found | ({"bins": [], "skipped": values.get("skipped", 0)} if written else {})


def seldom(name):
    """Whether a figure is looked at when records are written, and at no other step."""
    return "/" in name or name in ("movement", "skipped")


def _wave(step):
    return math.sin(0.7 * step)


HEALTHY = {
    "loss": lambda step: math.log(2) - 0.001 * step + 0.02 * _wave(step),
    "accuracy": lambda step: min(0.75, 0.5 + 0.002 * step) + 0.02 * _wave(step),
    "margin": lambda step: 0.005 * step,
    "delta_w": lambda step: -1e-5 * step + 1e-4 * _wave(step),
    "delta_l": lambda step: 2e-5 * step,
    "error_w": lambda step: 0.05,
    "error_l": lambda step: 0.05,
    "grad_norm": lambda step: 1.0 + 0.3 * _wave(step),
    "gradient_weight": lambda step: 1 - 0.002 * step,
    "saturated": lambda step: min(0.3, 0.001 * step),
    "lr": lambda step: 1e-5 * min(1, (step + 1) / 10),
    "margin/q05": lambda step: -0.004 * step,
    "margin/q25": lambda step: -0.001 * step,
    "margin/q50": lambda step: 0.004 * step,
    "margin/q75": lambda step: 0.01 * step,
    "margin/q95": lambda step: 0.02 * step,
    "movement": lambda step: 1e-4 * step,
    "optimizer/lost": 0.2,
    "optimizer/noise": 0.5,
    "validation/accuracy": lambda step: min(0.7, 0.5 + 0.002 * step),
    "validation/accuracy_half_width": 0.05,
    "validation/loss": lambda step: math.log(2) - 0.001 * step,
    "validation/loss_half_width": 0.01,
}
