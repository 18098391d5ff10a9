"""The folder of drawn images: one folder per model, an index of each and of all, and a sheet to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from fdpo_fast.config.errors import UserError
from fdpo_fast.evaluate.policies import BASE
from fdpo_fast.files import replacing
from fdpo_fast.training.samples import side_by_side

NAME = "index.parquet"
ROWS, PICTURES, SIDE = 8, 4, 256
"""The size of the sheet: captions, images of each, and the largest side of an image in pixels."""


def write(path: Path, rows: list[dict]) -> None:
    """Write an index with a row for each image.

    A row has model, prompt_number, prompt, image, seed, file, and how it was drawn.
    """
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)


def merge(folder: Path) -> None:
    """Put the indices of all models together into the folder's own."""
    tables = [pq.read_table(path) for path in sorted(folder.glob(f"*/{NAME}"))]
    with replacing(folder / NAME) as partial:
        pq.write_table(pa.concat_tables(tables), partial)


@dataclass(frozen=True)
class Gallery:
    """The images of a model, by caption."""

    model: str
    folder: Path
    prompts: list[str]
    files: list[list[Path]]
    """The files of the images by caption, then by image."""
    seeds: list[list[int]]

    @property
    def images_per_prompt(self) -> int:
        """Return the number of images of a caption, which is the same for all."""
        return len(self.files[0])

    def images(self, number: int) -> list[Image.Image]:
        """Load the images of caption `number`, RGB."""
        return [Image.open(path).convert("RGB") for path in self.files[number]]


def gallery(folder: Path) -> Gallery:
    """Read a model's folder. Raises UserError where `fdpo sample` has not finished it."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: `fdpo sample` makes one of each model")
    if not (folder / NAME).is_file():
        raise UserError(f"{folder} has no {NAME}: `fdpo sample` has not finished it")
    rows = pq.read_table(folder / NAME).to_pylist()
    prompts: dict[int, str] = {row["prompt_number"]: row["prompt"] for row in rows}
    files: dict[int, list[Path]] = {number: [] for number in prompts}
    seeds: dict[int, list[int]] = {number: [] for number in prompts}
    for row in sorted(rows, key=lambda row: row["image"]):
        files[row["prompt_number"]].append(folder.parent / row["file"])
        seeds[row["prompt_number"]].append(row["seed"])
    if missing := [path for paths in files.values() for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]} is in the index but not there: run `fdpo sample` again")
    return Gallery(folder.name, folder, list(prompts.values()), list(files.values()), list(seeds.values()))


def galleries(folder: Path) -> list[Gallery]:
    """Read all models of a folder, the base first. Raises UserError where there is none."""
    models = [gallery(path.parent) for path in sorted(folder.glob(f"*/{NAME}"))]
    if not models:
        raise UserError(f"{folder} holds no images of `fdpo sample`")
    return sorted(models, key=lambda model: model.model != BASE)


def sheet(folder: Path, names: list[str]) -> None:
    """Write `side_by_side.png`: the models' images of the first captions beside one another."""
    models = [gallery(folder / name) for name in names]
    with replacing(folder / "side_by_side.png") as partial:
        contact_sheet(models).save(partial, format="PNG")


def contact_sheet(models: list[Gallery]) -> Image.Image:
    """Put the models' images of the first captions into one picture, a row for each caption."""
    blocks = {}
    for model in models:
        rows = [model.images(number)[:PICTURES] for number in range(min(ROWS, len(model.prompts)))]
        for row in rows:
            for image in row:
                image.thumbnail((SIDE, SIDE))
        arrays = np.stack([np.stack([np.asarray(image) for image in row]) for row in rows])
        blocks[model.model] = torch.from_numpy(arrays).permute(0, 1, 4, 2, 3).float() / 255
    return side_by_side(models[0].prompts[:ROWS], blocks)
