"""Before and after on the embedded digits: a table over the ten captions, a sample sheet and the training curves.

`fdpo demo --config configs/digits_js.json` reads the finished run in the config's `train.output_dir`.
Base and policy draw the same captions from the same start latents.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fdpo_fast.config.digits import DigitsRecipe
from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.digits.dataset import CAPTIONS, Sampler, embedded, family_of, ink, name_of, read_digits, score
from fdpo_fast.evaluate import statistics, tables
from fdpo_fast.files import replacing
from fdpo_fast.models import quiet_libraries
from fdpo_fast.progress import progress
from fdpo_fast.training.records import read_records
from fdpo_fast.training.samples import side_by_side

SEED = 20_000  # no seed of training: the pairs were drawn with small ones
HEADER = ("caption", "accuracy (judge)", "accuracy (unseen)", "stroke weight", "diversity", "win rate [95 %]")


def demo(config: Config, images_per_caption: int) -> None:
    """Compare the base pipeline and the exported policy; writes report.md, report.json and two pictures."""
    folder = Path(config.train.output_dir).expanduser()
    base = check(config, folder)
    quiet_libraries()
    recipe = config.data.digits
    family = family_of(base, embedded(base, recipe, config.data.cache_dir))
    labels = torch.arange(len(CAPTIONS), dtype=torch.int64, device="cpu").repeat_interleave(images_per_caption)
    before = sample(Sampler(family, recipe), labels, "drawing with the base")
    after = sample(Sampler(family, recipe, folder / "export"), labels, "drawing with the policy")

    rows = [[caption, *cells(before[part], after[part], labels[part], recipe)] for caption, part in groups(labels)]
    rows.append(["**all**", *cells(before, after, labels, recipe)])
    table = "\n".join(tables.table(HEADER, rows)) + "\n"
    (folder / "report.md").write_text(table)
    won = wins(before, after, labels, recipe)
    numbers = {
        "images_per_caption": images_per_caption,
        "base": measure(before, labels),
        "policy": measure(after, labels),
        "win_rate": won.value,
        "win_rate_95": [won.low, won.high],
    }
    (folder / "report.json").write_text(json.dumps(numbers, indent=2) + "\n")
    blocks = {name: images.unflatten(0, (10, -1))[:, :8] for name, images in (("base", before), ("aligned", after))}
    with replacing(folder / "alignment.png") as partial:
        side_by_side(list(CAPTIONS), blocks, scale=2).save(partial, format="PNG")
    curves(folder, folder / "curves.png")
    print(table)
    print(f"pictures: {folder / 'alignment.png'}, {folder / 'curves.png'}")


def check(config: Config, folder: Path) -> str:
    """Return the name of the embedded base that the run in a folder, and the configuration, have.

    Raises UserError where one has another, or none.
    """
    names = {name_of(base, config.data.digits): base for base in EMBEDDED}
    ours, run = config.model.base, load(folder / "config.json").model.base
    base = names.get(Path(ours).parent.name, ours)
    for what, value in (("this model.base", ours), (str(folder), run)):
        if base not in EMBEDDED or names.get(Path(value).parent.name, value) != base:
            raise UserError(
                f"{what} is not of the embedded digits of this configuration ({value}): `fdpo sample` and `fdpo "
                "evaluate` compare any model with its base"
            )
    return base


def sample(sampler: Sampler, labels: Tensor, description: str) -> Tensor:
    """Draw images [n, 3, 32, 32] for `labels`, the start latents fixed by SEED."""
    parts = progress(list(labels.split(128)), desc=description)
    return torch.cat([sampler.draw(part, SEED + i) for i, part in enumerate(parts)])


def groups(labels: Tensor) -> list[tuple[str, Tensor]]:
    """List each caption with the mask [n] of the labels that are its own."""
    return [(caption, labels == label) for label, caption in enumerate(CAPTIONS)]


def diversity(images: Tensor, labels: Tensor) -> float:
    """Return the mean Euclidean distance between two images of one caption, per root of the pixel count.

    It is an RMSE in [0, 1].
    """
    distances = [torch.pdist(images[labels == label].flatten(1)).mean() for label in labels.unique()]
    return (torch.stack(distances).mean() / images[0].numel() ** 0.5).item()


def measure(images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return both classifiers' accuracies, the mean stroke weight, and the diversity of images [n, 3, 32, 32]."""
    return {
        "accuracy_judge": (read_digits(images) == labels).float().mean().item(),
        "accuracy_unseen": (read_digits(images, "unseen") == labels).float().mean().item(),
        "stroke_weight": ink(images).mean().item(),
        "diversity": diversity(images, labels),
    }


def wins(before: Tensor, after: Tensor, labels: Tensor, recipe: DigitsRecipe) -> statistics.Estimate:
    """Estimate how often an image of the policy scores higher under the rule than the base's from the same latents.

    A tie counts as half.
    """
    captions = len(labels.unique())
    by_caption = (score(images, labels, recipe).double().view(captions, -1).numpy() for images in (after, before))
    return statistics.mean(statistics.wins(*by_caption), "images").within(0.0, 1.0)


def cells(before: Tensor, after: Tensor, labels: Tensor, recipe: DigitsRecipe) -> list[str]:
    """Write one row of the table: figures before and after, and the win rate."""
    pairs = zip(measure(before, labels).values(), measure(after, labels).values(), strict=True)
    won = wins(before, after, labels, recipe)
    return [f"{a:.3f} → {b:.3f}" for a, b in pairs] + [f"{won.value:.1%} [{won.low:.1%}, {won.high:.1%}]"]


def curves(folder: Path, picture: Path) -> None:
    """Draw loss and implicit accuracy per step, with a running mean of 10, to the file `picture`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = read_records(folder)
    steps = [record["step"] for record in records]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, key, level in ((axes[0], "loss", np.log(2)), (axes[1], "accuracy", 0.5)):
        values = np.array([record[key] for record in records])
        axis.plot(steps, values, alpha=0.3)
        smooth = [values[max(0, i - 9) : i + 1].mean() for i in range(len(values))]
        axis.plot(steps, smooth, color="C0")
        axis.axhline(level, color="gray", linewidth=0.8, linestyle="--")
        axis.set(xlabel="step", title=key)
    with replacing(picture) as partial:
        figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)
