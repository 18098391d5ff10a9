"""A comparison whose figures are given, without a run."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fdpo_fast.compare.analysis import Comparison
from fdpo_fast.compare.grid import losses, points
from fdpo_fast.config.load import load
from fdpo_fast.evaluate.gallery import Gallery
from fdpo_fast.evaluate.score import Report
from tests.helpers import ROOT

CONFIG = ROOT / "configs/digits_sweep.json"


def comparison(
    tmp_path, place, kinds=("reverse_kl", "jensen_shannon"), seeds=(0, 1, 2), captions=("a", "b"), looks=None
):
    """Runs whose alignment and diversity are `place(kind, strength, seed)`; the base is at (0, 1).

    looks: of the same, (drift, error of the preferred images, share of steep samples) of the last look.
    """
    words = json.dumps(list(kinds)), json.dumps(list(seeds))
    config = load(CONFIG, [f"compare.divergences={words[0]}", f"compare.seeds={words[1]}", "compare.strengths=[1, 2]"])
    fits = losses(config, config.compare.divergences)
    found = list(points(config, fits, tmp_path / "runs"))
    wanted = config.compare
    for point in found if looks else ():
        drift, winner, steep = looks(point.kind.name, point.strength, point.seed)
        folder = Path(point.config.train.output_dir)
        folder.mkdir(parents=True)
        delta_l = 2 * drift / point.config.loss.ratio_scale - winner
        last = {"delta_w": winner, "delta_l": delta_l, "steep": steep}
        records = [
            {"step": 0, "validation/delta_w": 9.0, "validation/delta_l": 9.0, "validation/steep": 0.9},
            {"step": 1} | {f"validation/{name}": value for name, value in last.items()},
            {"step": 2},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    report = Report(2, 2, 0, "captions")
    for model, (alignment, diversity) in {
        "base": (0.0, 1.0),
        **{p.name: place(p.kind.name, p.strength, p.seed) for p in found},
    }.items():
        for name in (wanted.alignment, wanted.preference):
            report.scores.setdefault(name, {})[model] = np.full((2, 2), alignment)
            report.checkpoints[name] = ""
        report.diversity.setdefault(wanted.diversity, {})[model] = np.full(2, diversity)
        folder = tmp_path / "images" / model
        folder.mkdir(parents=True)
        for number in range(2 * len(captions)):
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / f"{number}.png")
    galleries = [
        Gallery(model, tmp_path / "images" / model, list(captions),
                [[tmp_path / "images" / model / f"{2 * c + k}.png" for k in range(2)] for c in range(len(captions))],
                [[0, 1]] * len(captions))
        for model in report.scores[wanted.alignment]
    ]  # fmt: skip
    return Comparison(config, found, report, galleries)
