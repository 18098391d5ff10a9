"""Make pairs of a model and captions alone: `fdpo pairs --config ... --prompts FILE`.

Images are drawn as `fdpo sample` draws them, scored by `evaluate.scorers`, and ranked within each caption; what comes
of it is a folder for `data.source`. Images and scores that are there are not made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fdpo_fast.cache.open import cache_root
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.readers.jsonl import METADATA
from fdpo_fast.distributed import Rank, single_process, start_processes, under_launcher
from fdpo_fast.evaluate import gallery
from fdpo_fast.evaluate.feedback.combine import Combination
from fdpo_fast.evaluate.feedback.parts import in_parts
from fdpo_fast.evaluate.gallery import Gallery
from fdpo_fast.evaluate.judging import Tool, judged, judges, try_out
from fdpo_fast.evaluate.sample import draw
from fdpo_fast.files import digest, replacing, stamp
from fdpo_fast.models import find, quiet_libraries
from fdpo_fast.training.samples import side_by_side

CAPTIONS = 8
"""Captions to a file of scores: what a kill costs at most."""
SHEET = "best_and_worst.png"
READ_AS = {
    "data.format": "jsonl",
    "data.split": None,
    "data.max_rows": None,
    "data.labels": None,
    "data.unlabelled": "keep",
}
"""How a source that is made here is read: all of it, by the labels it has."""


def make(config: Config, prompts: list[str], policies: list[str], folder: Path, base: bool) -> None:
    """Draw the captions by the base, if asked to, and by policies ("[NAME=]PATH"), and write who is better than whom.

    Raises UserError where that can make no pair, a policy is not there, a scorer fails, or the folder holds images of
    other settings. Collective over the launcher's ranks.
    """
    quiet_libraries()
    find(config.model)
    rank = start_processes() if under_launcher() else single_process()
    tools = judges(config.evaluate.scorers, rank.device)
    if config.evaluate.images_per_prompt * (len(policies) + base) == 1:
        raise UserError("one image of a caption makes no pair: raise --images-per-prompt, or name another --policy")
    if not (folder / METADATA).is_file():
        try_out(tools)  # hours of drawing come first
    names = draw(config, prompts, policies, folder, base, rank, "--policy")
    models = [gallery.gallery(folder / name) for name in names]
    combination = Combination(config.pairs, tuple(judge.name for judge in tools))
    scores = np.stack([score(config, one, models, rank) for one in tools])
    if rank.index == 0:
        write(folder, models, scores, combination)
    rank.barrier()
    rank.say(f"pairs: {folder}")


def score(config: Config, one: Tool, models: list[Gallery], rank: Rank) -> np.ndarray:
    """Score all images of all models: [captions, images], the models one behind the other. Collective.

    Raises UserError that names the scorer where it fails.
    """
    prompts = models[0].prompts
    count = sum(model.images_per_prompt for model in models)
    files = [[model.model, [[stamp(path) for path in row] for row in model.files]] for model in models]
    of = {"judge": one.identity, "batch": config.evaluate.batch, "images": digest(files), "captions": digest(prompts)}

    def part(number: int) -> dict[str, Any]:
        own = range(number * CAPTIONS, min((number + 1) * CAPTIONS, len(prompts)))
        images = [image for at in own for model in models for image in model.images(at)]
        captions = [prompts[at] for at in own for _ in range(count)]
        return {"scores": judged(one, images, captions, config.evaluate.batch).reshape(-1, count).tolist()}

    sizes = [count * min(CAPTIONS, len(prompts) - at) for at in range(0, len(prompts), CAPTIONS)]
    parts = in_parts(cache_root(config), of, sizes, part, one.name, rank)
    return np.array([row for part in parts for row in part["scores"]])


def write(folder: Path, models: list[Gallery], scores: np.ndarray, combination: Combination) -> None:
    """Write the records of all captions, and the sheet of the best and the worst image of the first ones.

    scores: [judges, captions, images]. Raises UserError where all images tie.
    """
    standardised = combination.standardised(scores)
    values = [combination.values(standardised[:, at]) for at in range(scores.shape[1])]
    ranks = [combination.ranks(own) for own in values]
    lines, ties = [], 0
    for at in range(len(values)):
        for record in records(models, at, scores[:, at], values[at], ranks[at], combination):
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            ties += len(set(record["rank"])) == 1
    if ties == len(lines):
        raise combination.all_tie()
    with replacing(folder / METADATA) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
    with replacing(folder / SHEET) as partial:
        sheet(models, values).save(partial, format="PNG")
    print(f"{len(lines)} records of {len(values)} captions with {scores.shape[2]} images each; {ties} are ties alone")


def records(
    models: list[Gallery],
    at: int,
    scores: np.ndarray,
    values: np.ndarray,
    ranks: np.ndarray,
    combination: Combination,
) -> Iterator[dict[str, Any]]:
    """Yield the rankings of a caption that the combination asks for; scores: [judges, images]."""
    files = [f"{model.model}/{path.name}" for model in models for path in model.files[at]]
    seeds = [seed for model in models for seed in model.seeds[at]]
    names = [model.model for model in models for _ in model.files[at]]
    for own in combination.chosen(values):
        yield {
            "images": [files[image] for image in own],
            "caption": models[0].prompts[at],
            "rank": [int(ranks[image]) for image in own],
            "scores": {name: scores[judge, own].tolist() for judge, name in enumerate(combination.judges)},
            "seeds": [seeds[image] for image in own],
            "models": [names[image] for image in own],
        }


def sheet(models: list[Gallery], values: list[np.ndarray]) -> Image.Image:
    """Put the best and the worst image of the first captions beside one another."""
    blocks: dict[str, list[torch.Tensor]] = {"best": [], "worst": []}
    for at in range(min(gallery.ROWS, len(values))):
        files = [path for model in models for path in model.files[at]]
        order = np.argsort(-values[at], kind="stable").tolist()
        for name, image in (("best", order[0]), ("worst", order[-1])):
            with Image.open(files[image]) as picture:
                small = picture.convert("RGB")
            small.thumbnail((gallery.SIDE, gallery.SIDE))
            blocks[name].append(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255)
    return side_by_side(models[0].prompts[: gallery.ROWS], {name: torch.stack(rows) for name, rows in blocks.items()})
