"""Draw the same captions from base and policy: `fdpo sample --config ... --checkpoint runs/mine`, or by several GPUs
`deepspeed --num_gpus N --module fdpo_fast.cli sample --config ...`.

Image k of a caption starts from the same noise for every model: its seed follows from `evaluate.seed`, the caption and
k, and is what `torch.Generator().manual_seed(seed)` takes in any diffusers pipeline. Whatever is drawn already stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fdpo_fast.cache.open import resolve_embedded
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.distributed import Rank, single_process, start_processes, under_launcher
from fdpo_fast.evaluate import gallery
from fdpo_fast.evaluate.policies import BASE, Policy, policy
from fdpo_fast.files import clear_partial, digest, made, read_json, replacing
from fdpo_fast.models import find, load_family, quiet_libraries
from fdpo_fast.models.family import Family, Pipeline
from fdpo_fast.models.placement import collect
from fdpo_fast.models.process import of_same_noise
from fdpo_fast.progress import progress


def sample(config: Config, prompts: list[str], checkpoints: list[str], output: Path | None, base: bool) -> None:
    """Draw the captions with the base, if asked to, and with every checkpoint ("[NAME=]PATH") after it.

    `output` is the folder of the images, by default `<train.output_dir>/evaluation`. Raises UserError where a policy is
    not there, two have one name, or the folder holds images of other settings. Collective over the launcher's ranks.
    """
    quiet_libraries()
    find(config.model)
    rank = start_processes() if under_launcher() else single_process()
    folder = (output or Path(config.train.output_dir) / "evaluation").expanduser()
    names = draw(config, prompts, checkpoints, folder, base, rank)
    if rank.index == 0:
        gallery.merge(folder)
        gallery.sheet(folder, names)
    rank.barrier()
    rank.say(f"images: {folder}")


def draw(
    config: Config,
    prompts: list[str],
    checkpoints: list[str],
    folder: Path,
    base: bool,
    rank: Rank,
    option: str = "--checkpoint",
) -> list[str]:
    """Draw what `sample` draws, into the models' folders alone, and return their names. Collective.

    option: what the user has given the checkpoints by, for sentences.
    """
    config = resolve_embedded(config, rank)
    family = load_family(config.model)
    policies = [policy(text, family, option) for text in checkpoints]
    if base:
        policies.insert(0, Policy(BASE, family.base))
    names = [model.name for model in policies]
    if len(names) != len(set(names)) or not names:
        raise UserError(f"nothing to draw, or one name twice: {', '.join(names)}; give {option} NAME=PATH")
    studio = Studio(config, family, prompts, folder, rank)
    for model in policies:
        studio.draw(model)
    rank.barrier()  # the first rank has written the last index
    return names


CALLED = {"images": "captions, seeds or numbers of images"}
"""How a sentence calls what images are of, where the key in `sampling.json` does not say it."""


def seed_of(seed: int, prompt: str, number: int) -> int:
    """Return the seed of image `number` of a caption, whatever other captions and images there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{prompt}".encode()).digest()[:6], "big")


@dataclass(frozen=True)
class Task:
    """An image to draw."""

    prompt_number: int
    prompt: str
    image: int
    seed: int

    @property
    def file(self) -> str:
        """Return the name of the image's file in the model's folder."""
        return f"{self.prompt_number:05d}-{self.image}.png"


class Studio:
    """Draws all captions with a model into a folder of its name.

    Raises UserError where the folder holds images of other settings.
    """

    def __init__(self, config: Config, family: Family, prompts: list[str], folder: Path, rank: Rank) -> None:
        self.config, self.family, self.folder, self.rank = config, family, folder, rank
        settings = config.evaluate
        self.tasks = [
            Task(number, prompt, image, seed_of(settings.seed, prompt, image))
            for number, prompt in enumerate(prompts)
            for image in range(settings.images_per_prompt)
        ]
        self.settings = {
            "steps": settings.sampling_steps,
            "guidance": settings.guidance,
            "scheduler": settings.scheduler or "the pipeline's own",
            "resolution": config.data.resolution,
            "dtype": config.model.dtype,
            **family.drawing,
            **({"quantization": config.model.quantization} if config.model.quantization else {}),
        }
        self._claim(
            folder / "sampling.json", {**self.settings, "images": digest([asdict(task) for task in self.tasks])}
        )

    def _claim(self, path: Path, content: dict) -> None:
        """Write down what the images of a folder are of, or refuse where they are of something else."""
        if self.rank.index == 0:
            clear_partial(path.parent)
        before = read_json(path) if path.is_file() and any(path.parent.rglob("*.png")) else None
        self.rank.barrier()
        if before is None and self.rank.index == 0:
            made(path.parent, "--output")
            with replacing(path) as partial:
                partial.write_text(json.dumps(content, indent=2) + "\n")
        changed = [CALLED.get(key, key) for key in content if before is not None and before.get(key) != content[key]]
        if changed:
            raise UserError(
                f"{path.parent} holds images of other {', '.join(changed)}: name another folder by --output, or delete "
                "it"
            )

    def draw(self, policy: Policy) -> None:
        """Draw the images of a model that are missing, by whole batches, as their size may decide about rounding."""
        folder, size = self.folder / policy.name, self.config.evaluate.batch
        self._claim(folder / "model.json", {"weights": policy.digest(self.config, self.family)})
        self.rank.barrier()
        batches = [self.tasks[at : at + size] for at in range(0, len(self.tasks), size)]
        mine = batches[self.rank.index :: self.rank.count]
        missing = [batch for batch in mine if not all((folder / task.file).is_file() for task in batch)]
        if missing:
            self._draw(policy, missing)
        self.rank.barrier()
        if self.rank.index == 0:
            rows = [{"model": policy.name, **asdict(task), "file": f"{policy.name}/{task.file}"} for task in self.tasks]
            gallery.write(folder / gallery.NAME, [{**row, **self.settings} for row in rows])

    def _draw(self, policy: Policy, batches: list[list[Task]]) -> None:
        self.rank.say(f"loading {policy.name}")
        pipeline = policy.sampler(self.config, self.family, self.rank.device)
        if name := self.config.evaluate.scheduler:
            pipeline.scheduler = of_same_noise(name, pipeline)
        total, show = sum(map(len, batches)), self.rank.index == 0
        with progress(total=total, desc=policy.name, unit=" images", show=show) as bar:
            for batch in batches:
                for task, image in zip(batch, self._images(pipeline, batch), strict=True):
                    self._save(image, policy.name, task)
                bar.update(len(batch))
        del pipeline
        collect()

    @torch.inference_mode()
    def _images(self, pipeline: Pipeline, batch: list[Task]) -> Iterator[Image.Image]:
        settings = self.config.evaluate
        return pipeline(
            [task.prompt for task in batch],
            generator=[torch.Generator().manual_seed(task.seed) for task in batch],
            num_inference_steps=settings.sampling_steps,
            guidance_scale=settings.guidance,
            height=self.config.data.resolution,
            width=self.config.data.resolution,
            **self.family.drawing,
        ).images

    def _save(self, image: Image.Image, model: str, task: Task) -> None:
        about = PngInfo()
        for key, value in {"model": model, "prompt": task.prompt, "seed": task.seed, **self.settings}.items():
            about.add_itxt(key, str(value))
        with replacing(self.folder / model / task.file) as partial:
            image.save(partial, format="PNG", pnginfo=about)
