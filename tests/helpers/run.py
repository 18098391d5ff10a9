"""A run's folder with given figures, without a run."""

import json
import math

import torch

from fdpo_fast.config.load import load
from fdpo_fast.training.samples import side_by_side
from tests.helpers import ROOT

CONFIG = ROOT / "configs/digits_js.json"


def written(folder, captions=("a handwritten two", "a handwritten five"), steps=40, changes=()):
    """Write what a run of `steps` of 40 steps has written: records, a sheet of samples, an evaluation, warnings."""
    settings = ["train.max_steps=40", f"log.prompts={json.dumps(list(captions))}", *changes]
    config = load(CONFIG, settings)
    (folder / "samples").mkdir(parents=True)
    (folder / "evaluation").mkdir()
    (folder / "config.json").write_text(config.dumps())
    (folder / "data.json").write_text(json.dumps({"rows": 12, "refused": [{"place": captions[0], "why": "no image"}]}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            file.write(json.dumps(record(step)) + "\n")
    images = torch.rand(len(captions), 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sheet = side_by_side(list(captions), {"base": images, "step 40": 1 - images})
    sheet.save(folder / "samples/step-000040.png")
    estimate = {"value": 0.6, "low": 0.4, "high": 0.8}
    scored = {
        model: {"mean": estimate, "win_rate": None if model == "base" else estimate} for model in ("base", "policy")
    }
    evaluation = {
        "captions": 2,
        "images_per_prompt": 4,
        "scores": {"clip": scored},
        "diversity": {"mine:spread": scored},
    }
    (folder / "evaluation/evaluation.json").write_text(json.dumps(evaluation))
    return folder


def record(step):
    """A record of a step, every fourth with bins."""
    wave = math.sin(step)
    figures = {"loss": 0.69 - 0.01 * step + 0.05 * wave, "accuracy": 0.5 + 0.01 * step, "margin": 0.1 * step}
    figures |= {"delta_w": 1e-3 * step, "delta_l": 2e-3 * step, "clipped": 0.0, "lr": 1e-5 * min(1, (step + 1) / 10)}
    figures |= {"gradient_weight": 1 - 0.01 * step, "saturated": 0.005 * step}
    found = {"step": step, "pairs": 32, **figures, "grad_norm": 10 ** (1 + wave)}
    if step % 4 == 3:
        edges = [[200 * n, 200 * n + 200] for n in range(5)]
        found["bins"] = [{"timesteps": edge, "pairs": 6, **figures} for edge in edges]
        found |= {"images_per_second": 100.0 + wave, "memory_gib": 1.5, "movement": 1e-4 * step}
        found |= {f"margin/q{share:02}": 0.1 * step * (share - 45) / 10 for share in (5, 25, 50, 75, 95)}
        found |= {"optimizer/lost": 0.2, "optimizer/noise": 0.5 + wave / 4}
        found |= {f"validation/{name}": figures[name] - 0.1 for name in ("loss", "accuracy")}
        found |= {f"validation/{name}_half_width": 0.05 for name in ("loss", "accuracy")}
    if step == 19:
        found["warnings"] = ["step 19: the error on preferred images has risen"]
    return found
