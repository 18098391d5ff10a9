"""The one picture of `benchmarks.report`."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from benchmarks.cases import DTYPES


def bars(rows: list[dict]) -> bytes:
    """A PNG of how many times faster than eager compile and ours are, forward and backward; one panel for each dtype.

    rows: `extra_info` of the cases, in the order of the bars.
    """
    dtypes = [dtype for dtype in DTYPES if any(row["case"]["dtype"] == dtype for row in rows)]
    figure = Figure(figsize=(5.5 * len(dtypes), 4))
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)
    for panel, dtype in zip(panels[0], dtypes, strict=True):
        shown = [row for row in rows if row["case"]["dtype"] == dtype]
        for provider, color, side in (("compile", "#9aa5b1", -1), ("ours", "#1f6fb4", 1)):
            heights = [row["providers"][provider]["times_faster_than_eager"] for row in shown]
            middles = [number + 0.2 * side for number in range(len(shown))]
            label = {"compile": "torch.compile", "ours": "fdpo_fast"}[provider]
            container = panel.bar(middles, heights, 0.4, color=color, label=label)
            panel.bar_label(container, fmt="%.1f", fontsize=7, padding=1)
        panel.axhline(1, color="black", linewidth=0.8, linestyle="--")
        cases = [row["case"] for row in shown]
        panel.set_xticks(range(len(shown)), [f"{case['size']}\n{case['pairs']}" for case in cases], fontsize=8)
        panel.set_title(dtype, fontsize=10)
        panel.set_xlabel("latents, pairs", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("times faster than eager (dashed)", fontsize=9)
    panels[0][0].legend(frameon=False, fontsize=9)
    device = {"cpu": "CPU", "cuda": "GPU"}[rows[0]["device"]]
    figure.suptitle(f"The loss, forward and backward, on the {device}", fontsize=11)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()
