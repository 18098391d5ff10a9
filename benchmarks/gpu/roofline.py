"""The picture of a report: what was reached, beneath the card's two ceilings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

Line = dict[str, Any]

LOSS_FLOP = 10
"""Of an element of the loss, forward and backward: differences, products and sums. A place on the axis, no more."""
STEP_FLOP = 20
"""Of a parameter in a step of AdamW, its codes aside."""
STEP_BYTES = 16
"""Of a parameter in a training step at least: a bfloat16 weight read forward and backward, its gradient written, and
the optimizer's step on 8-bit states. Activations come on top, so a step lies further left than it is drawn."""


class Point(NamedTuple):
    """Something measured: FLOP by byte that must be moved, and what it reached."""

    intensity: float
    tflops: float


def draw(device: str, lines: list[Line], path: Path) -> None:
    """Write a PNG; nothing where the ceilings were not measured."""
    ceilings = next((line for line in lines if line["what"] == "ceilings"), None)
    if ceilings is None:
        return
    kinds = {
        "the loss, forward and backward": (losses(lines), "o", "#1f6fb4"),
        "a step of AdamW8bit": (optimizers(lines), "s", "#2a9d5c"),
        "a training step": (steps(lines), "^", "#c0392b"),
    }
    points = [point for dots, *_ in kinds.values() for point in dots]
    memory, product = ceilings["copy_gb_per_s"] / 1e3, ceilings["matmul_tflops"]  # TB/s: TFLOP/s by FLOP a byte
    corner = product / memory
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    low = min([0.3, *(p.intensity / 2 for p in points)])
    high = max([10 * corner, *(3 * p.intensity for p in points)])
    axes.plot([low, corner, high], [low * memory, product, product], color="black", linewidth=1.2)
    axes.text(high, product * 1.08, f"a bfloat16 product: {product:.3g} TFLOP/s", fontsize=8, ha="right", va="bottom")
    middle = (low * corner) ** 0.5
    axes.annotate(
        f"a copy: {1e3 * memory:,.4g} GB/s", (middle, middle * memory), (8, -9), textcoords="offset points", fontsize=8
    )
    for kind, (dots, marker, color) in kinds.items():
        if dots:
            axes.scatter(*zip(*dots, strict=True), marker=marker, color=color, label=kind, s=22)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="FLOP by byte that must be moved", ylabel="TFLOP/s")
    title = f"{device}: everything tiny, nothing is measured" if ceilings["rehearsal"] else device
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)


def losses(lines: list[Line]) -> list[Point]:
    chosen = [line for line in lines if line["what"] == "loss" and line.get("ours_us")]
    flops = [LOSS_FLOP * line["elements"] for line in chosen]
    return [
        Point(flop / line["minimal_mb"] / 1e6, flop / line["ours_us"] / 1e6)
        for flop, line in zip(flops, chosen, strict=True)
    ]


def optimizers(lines: list[Line]) -> list[Point]:
    rows = [line for line in lines if line["what"] == "optimizer" and line.get("ms")]
    chosen = [line for line in rows if line["optimizer"] == "fdpo_fast"]
    rates = [STEP_FLOP * line["elements"] / line["ms"] / 1e9 for line in chosen]
    return [Point(1e3 * rate / line["gb_per_s"], rate) for rate, line in zip(rates, chosen, strict=True)]


def steps(lines: list[Line]) -> list[Point]:
    chosen = [line for line in lines if line["what"] == "train" and line.get("tflops")]
    return [Point(1e12 * line["tflop_per_step"] / line["parameters"] / STEP_BYTES, line["tflops"]) for line in chosen]
