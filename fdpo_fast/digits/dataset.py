"""The embedded default: captions, tiny but genuine diffusers pipelines, and preference pairs, made on the spot.

No network and no weights are needed. scikit-learn's handwritten digits (8x8 scans, here 32x32) train a VAE, text
encoders and a denoiser in minutes on two cores; pairs are sampled from that base model and ranked by the rule of
`config.schema.DigitsRecipe`. Everything lands in one folder named by base and recipe and is made once; a kill costs at
most the last hundred steps or the last batch of images.
"""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from fdpo_fast.cache.build import reading, writing
from fdpo_fast.config.digits import DigitsRecipe
from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.mistakes import checked
from fdpo_fast.config.run import Config
from fdpo_fast.data.readers.pickapic import write_pairs
from fdpo_fast.digits.maker import SIZE, model_of
from fdpo_fast.digits.pipeline import build_pipeline
from fdpo_fast.files import clear_partial, digest, expanded, replacing
from fdpo_fast.models import load_family
from fdpo_fast.models.family import Family
from fdpo_fast.progress import progress

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = tuple(f"a handwritten {word}" for word in WORDS)


def ingredients(base: str, recipe: DigitsRecipe) -> dict[str, Any]:
    """Return the keys of a recipe that an embedded base depends on, with their values."""
    return recipe.model_dump(exclude={other.steps for name, other in EMBEDDED.items() if name != base})


def name_of(base: str, recipe: DigitsRecipe) -> str:
    """Return the name of the folder of what a recipe makes of an embedded base."""
    return f"{base}-{digest(ingredients(base, recipe))[:12]}"


def resolved(config: Config) -> Config:
    """Replace the names of embedded bases by the paths of their pipelines and pairs, made now if need be."""
    named = {
        "model.base": (config.model.base, "pipeline"),
        "reference.model": (config.reference.model, "pipeline"),
        "data.source": (config.data.source, "pairs.parquet"),
    }
    data = config.data
    return config.replace(
        {
            key: str(embedded(base, data.digits, data.cache_dir) / part)
            for key, (base, part) in named.items()
            if base in EMBEDDED
        }
    )


def embedded(base: str, recipe: DigitsRecipe, cache_dir: str | Path) -> Path:
    """Return the folder with `pipeline/` (diffusers format) and `pairs.parquet`, made now if it is not there yet."""
    folder = expanded(cache_dir, "data.cache_dir") / name_of(base, recipe)
    with reading(folder):
        there = (folder / "pairs.parquet").exists()
    if not there:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            clear_partial(folder)
            (folder / "recipe.json").write_text(json.dumps(ingredients(base, recipe), indent=2))
            build_pipeline(base, recipe, *scans(), CAPTIONS, folder)
            build_pairs(base, recipe, folder)
    return folder


# --- the real images and what judges them -----------------------------------------------------------------------


@cache
def scans() -> tuple[Tensor, Tensor]:
    """Load all 1797 scans as (images [n, 1, 32, 32] in [0, 1], labels [n])."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32, device="cpu")[:, None] / 16
    images = interpolate(images, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1)
    return images, torch.tensor(raw.target, dtype=torch.int64, device="cpu")


@cache
def classifier(name: str) -> SVC | MLPClassifier:
    """Train a classifier of real scans.

    "judge" is an SVM on one half of them, and part of the rule; "unseen" is an MLP on the other half.
    """
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC

    images, labels = scans()
    # Writers change along the data set, so the halves are blocks of it, not alternate rows.
    half = {"judge": slice(0, 900), "unseen": slice(900, None)}[name]
    model = {"judge": SVC(gamma=0.02), "unseen": MLPClassifier((128,), max_iter=300, random_state=0)}[name]
    return model.fit(_features(images[half]), labels[half].numpy())


def _features(images: Tensor) -> np.ndarray:
    """Turn images [n, c, 32, 32] in [0, 1] into [n, 64]: gray 8x8 scans, as the digits were recorded."""
    gray = images.mean(dim=1, keepdim=True)
    return interpolate(gray, size=(8, 8), mode="area").flatten(1).numpy() * 4


def read_digits(images: Tensor, judge: str = "judge") -> Tensor:
    """Return the labels [n] that the named classifier reads in images [n, c, 32, 32] of [0, 1]."""
    return torch.from_numpy(classifier(judge).predict(_features(images)))


def ink(images: Tensor) -> Tensor:
    """Return the stroke weight of each image, its mean brightness: [n] in [0, 1]."""
    return images.flatten(1).mean(dim=1)


def score(images: Tensor, labels: Tensor, recipe: DigitsRecipe) -> Tensor:
    """Return the noise-free preference score of the rule for images [n, c, 32, 32] and labels [n]: [n]."""
    correct = (read_digits(images) == labels).float()
    return recipe.correct_weight * correct + recipe.stroke_weight * ink(images)


# --- the same as scorers of `fdpo evaluate`: of PIL images and their captions ---


def unseen(images: list[Image.Image], prompts: list[str]) -> Tensor:
    """Return the probability of the digit asked for, by the classifier that has no part in the pairs, [n]."""
    labels = [CAPTIONS.index(prompt) for prompt in prompts]
    probabilities = classifier("unseen").predict_proba(_features(from_pil(images)))
    return torch.from_numpy(probabilities)[range(len(labels)), labels]


def preference(images: list[Image.Image], prompts: list[str], **recipe: float) -> Tensor:
    """Return the rule's score without its noise, [n]; `recipe` are its weights where they are not the defaults."""
    labels = torch.tensor([CAPTIONS.index(prompt) for prompt in prompts], dtype=torch.int64, device="cpu")
    settings = checked(DigitsRecipe, recipe, "the options of fdpo_fast.digits:preference: ")
    return score(from_pil(images), labels, settings)


def features(images: list[Image.Image]) -> Tensor:
    """Return what the hidden layer of the classifier that has no part in the pairs makes of images, [n, 128]."""
    model = classifier("unseen")
    hidden = _features(from_pil(images)) @ model.coefs_[0] + model.intercepts_[0]
    return torch.from_numpy(hidden).relu()


# --- sampling and pairs -----------------------------------------------------------------------------------------


def family_of(base: str, folder: Path) -> Family:
    """Load the family of an embedded base over what a recipe made of it."""
    return load_family(model_of(base).replace({"base": str(folder / "pipeline")}))


class Sampler:
    """Draws images of captions by the base of a family, or by a policy."""

    def __init__(self, family: Family, recipe: DigitsRecipe, policy: Path | None = None) -> None:
        self.pipeline = family.load(torch.float32, **{family.denoiser_name: family.denoiser(torch.float32, policy)})
        self.pipeline.set_progress_bar_config(disable=True)
        self.settings = {"num_inference_steps": recipe.sampling_steps, "guidance_scale": recipe.guidance}
        self.settings |= family.drawing

    def draw(self, labels: Tensor, seed: int) -> Tensor:
        """Draw images [n, 3, 32, 32] in [0, 1] for the captions of `labels`.

        A seed gives any model the same start latents.
        """
        shape = (len(labels), self.pipeline.vae.config.latent_channels, SIZE // 4, SIZE // 4)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
        captions = [CAPTIONS[label] for label in labels.tolist()]
        images = self.pipeline(captions, latents=latents, output_type="pt", **self.settings).images
        return images.float().cpu().contiguous()  # a file takes no other layout


def build_pairs(base: str, recipe: DigitsRecipe, folder: Path, batch: int = 128) -> None:
    """Sample pairs from the base pipeline, rank them by the rule and write `folder/pairs.parquet`."""
    from safetensors.torch import load_file, save_file

    sampler = Sampler(family_of(base, folder), recipe)
    labels = torch.arange(recipe.pairs, dtype=torch.int64, device="cpu") % len(CAPTIONS)
    sides: list[list[Tensor]] = [[], []]
    work = [(side, part) for part in range(-(-recipe.pairs // batch)) for side in (0, 1)]
    for side, part in progress(work, desc="base pipeline: pairs"):
        saved = folder / f"images-{part:04d}-{side}.safetensors"
        if not saved.exists():
            seed = recipe.seed * 1_000_003 + 2 * part + side
            wanted = labels[part * batch : (part + 1) * batch]
            images = sampler.draw(wanted, seed)
            with replacing(saved) as partial:
                save_file({"images": images}, partial)
        sides[side].append(load_file(saved)["images"])
    images_0, images_1 = (torch.cat(side) for side in sides)
    noise = torch.randn(
        recipe.pairs, generator=torch.Generator().manual_seed(recipe.seed), dtype=torch.float32, device="cpu"
    )
    gap = score(images_0, labels, recipe) - score(images_1, labels, recipe) + recipe.noise * noise
    write_pairs(
        folder / "pairs.parquet",
        captions=[CAPTIONS[label] for label in labels.tolist()],
        jpg_0=[jpeg(image) for image in images_0],
        jpg_1=[jpeg(image) for image in images_1],
        label_0=torch.where(gap.abs() < recipe.tie_below, 0.5, (gap > 0).float()).tolist(),
    )
    for saved in folder.glob("images-*.safetensors"):
        saved.unlink()


def to_pil(image: Tensor) -> Image.Image:
    """Turn an image [3, h, w] in [0, 1] into one of PIL."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def from_pil(images: list[Image.Image]) -> Tensor:
    """Turn PIL images of one size into [n, 3, h, w] in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]) / 255


def jpeg(image: Tensor) -> bytes:
    """Encode an image [3, h, w] in [0, 1] as JPEG."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()
